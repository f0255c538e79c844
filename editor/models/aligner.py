"""An aligner: one linear map a component from a model's own space to a CLIP's, `z^a = sum_c W_c contribution_c + b`.

CompAlign (Balasubramanian et al., NeurIPS 2024): `W_c` is nearly orthogonal, so that what a component writes keeps its
geometry and texts of the CLIP can be compared with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..errors import AlignmentError, ModelError
from ..files.inputs import require_aligner_file
from ..files.tensors import load_tensors
from ..files.whole import save_tensors
from .loaders import lasting_name
from .model import Model

KIND = "clipedit-aligner-1"


@dataclass(frozen=True)
class Aligner:
    """Maps, and what they lead from and to.

    Attributes:
        maps: `W_c`, components in the order of the tower's groups of all layers, MLPs and the embedding; a single one
            if all components share it.
        bias: `b`; holds the own model's constant too.
        base, clip: `name`, `pretrained` and `weights_hash` of the model and of the CLIP.
        described: Options, fingerprint of the images, log of the training and the report on held-out images.
    """

    maps: Float[Tensor, "component d_clip d_own"]
    bias: Float[Tensor, " d_clip"]
    base: Mapping[str, Any]
    clip: Mapping[str, Any]
    described: Mapping[str, Any]

    @property
    def report(self) -> dict[str, float]:
        """`cosine` to the CLIP on held-out images and the rest of `compute_report`."""
        return dict(self.described["report"])

    @property
    def digest(self) -> str:
        """SHA-256 of maps and bias."""
        found = hashlib.sha256(self.bias.contiguous().numpy().tobytes())
        found.update(self.maps.contiguous().numpy().tobytes())
        return found.hexdigest()

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or absent."""
        described = {"base": self.base, "clip": self.clip, **self.described}
        save_tensors(Path(path), {"maps": self.maps, "bias": self.bias}, KIND, described)


def load_aligner(path: str | Path) -> Aligner:
    """Read an aligner.

    Raises:
        AlignmentError: If the file is missing or is no aligner.
    """
    path = Path(path)
    require_aligner_file(path)
    try:
        tensors, described = load_tensors(path, KIND)
        base, clip = described.pop("base"), described.pop("clip")
        _require_whole(tensors["maps"], tensors["bias"], base, clip, described)
        return Aligner(tensors["maps"], tensors["bias"], base, clip, described)
    except ModelError as error:
        raise AlignmentError(str(error)) from None
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise AlignmentError(
            f"cannot read the aligner {path}: {error} is missing or wrong. Run `clipedit align` again."
        ) from None


def _require_whole(maps: Tensor, bias: Tensor, base: Any, clip: Any, described: Any) -> None:
    if maps.ndim != 3 or bias.ndim != 1 or not (maps.isfinite().all() and bias.isfinite().all()):
        raise ValueError("`maps`")
    for name, model in (("base", base), ("clip", clip)):
        if not all(
            isinstance(model[key], str | None if key == "pretrained" else str)
            for key in ("name", "pretrained", "weights_hash")
        ):
            raise ValueError(f"`{name}`")
    if not all(isinstance(value, float | int) for value in described["report"].values()):
        raise ValueError("`report`")


def check_aligner(aligner: Aligner, model: Model, clip: Model, n_components: int) -> None:
    """Refuse an aligner of another model or CLIP.

    Raises:
        AlignmentError: With what differs.
    """
    for kind, expected, found in (("model", aligner.base, model), ("CLIP", aligner.clip, clip)):
        if expected["weights_hash"] != found.weights_hash:
            raise AlignmentError(
                f"cannot align {found.name}: the aligner was made for the {kind} {expected['name']} with weights "
                f"{expected['weights_hash'][:12]}, these are {found.weights_hash[:12]}. Align this one: `clipedit "
                "align`."
            )
    count, d_clip, d_own = aligner.maps.shape
    wanted = (n_components, clip.tower.d_embed, model.tower.d_embed)
    if count not in (1, n_components) or (d_clip, d_own) != wanted[1:] or len(aligner.bias) != d_clip:
        raise AlignmentError(
            f"cannot align {model.name}: the aligner holds {count} maps of {d_own} to {d_clip} dimensions, needed are "
            f"{wanted[0]} (or one) of {wanted[2]} to {wanted[1]}. Align this model: `clipedit align`."
        )


def compute_aligned(
    contributions: Float[Tensor, "image component d_own"],
    maps: Float[Tensor, "map d_clip d_own"],
    bias: Float[Tensor, " d_clip"],
) -> Float[Tensor, "image d_clip"]:
    """`z^a = sum_c W_c contribution_c + b`; a single map serves all components."""
    if len(maps) == 1:
        # Linear: [image, component, d_own] -> [image, d_own] first, then one product for all components.
        return contributions.sum(1) @ maps[0].T + bias
    # i image, c component, d d_own, e d_clip.
    return torch.einsum("icd,ced->ie", contributions, maps) + bias


def compute_orthogonality(maps: Float[Tensor, "map d_clip d_own"]) -> Float[Tensor, " map"]:
    """`d mean((W W^T - I)^2)` a map: 0 for orthonormal rows, about 1 for `W = 0`.

    Where the model is narrower than the CLIP, rows cannot be orthonormal; columns are then: `W^T W`, `d` the model's
    width.
    """
    narrow = maps if maps.shape[1] <= maps.shape[2] else maps.transpose(1, 2)
    gram = narrow @ narrow.transpose(1, 2)
    return (gram - torch.eye(gram.shape[1]).to(gram)).square().mean((1, 2)) * gram.shape[1]


def compute_alignment_loss(
    aligned: Float[Tensor, "image d_clip"],
    target: Float[Tensor, "image d_clip"],
    maps: Float[Tensor, "map d_clip d_own"],
    penalty: float,
) -> Float[Tensor, ""]:
    """`mean(1 - cos(z^a, z_CLIP)) + lambda * d * mean((W_c W_c^T - I)^2)`, the second mean over maps too."""
    loss = (1 - F.cosine_similarity(aligned, target, dim=1)).mean()
    return loss + penalty * compute_orthogonality(maps).mean() if penalty else loss


def fit_shared_map(
    own: Float[Tensor, "image d_own"], target: Float[Tensor, "image d_clip"]
) -> tuple[Float[Tensor, "d_clip d_own"], Float[Tensor, " d_clip"]]:
    """Where training starts: the orthogonal map nearest to leading one space to the other (Procrustes), and its bias.

    Targets are normalised, and scaled to the own model's spread: a cosine does not see the scale, Adam's steps do.
    """
    target = F.normalize(target.double(), dim=1)
    center, aim = own.double().mean(0), target.mean(0)
    left, singular, right = torch.linalg.svd((target - aim).T @ (own.double() - center), full_matrices=False)
    # `U V^T` of the cross-covariance [d_clip, d_own] is the orthogonal map of least squares (Procrustes).
    turn = left @ right
    # The inverse of the factor by which the turned vectors fit the targets best.
    scale = (own.double() - center).square().sum() / singular.sum().clamp_min(1e-12)
    return turn.float(), (scale * aim - turn @ center).float()


def compute_report(
    aligned: Float[Tensor, "image d_clip"],
    target: Float[Tensor, "image d_clip"],
    mean: Float[Tensor, " d_clip"],
    maps: Float[Tensor, "map d_clip d_own"],
) -> dict[str, float]:
    """Figures on held-out images.

    Returns:
        `cosine`, `worst_cosine` to the CLIP; `cosine_centred`: with `mean` taken from both, so that what all images
        share does not count; `cosine_of_mean`: what answering with the training images' mean would reach;
        `orthogonality`, `worst_orthogonality`: see `compute_orthogonality`.
    """
    unit, aim = F.normalize(aligned, dim=1), F.normalize(target, dim=1)
    cosines = (unit * aim).sum(1)
    centred = F.cosine_similarity(unit - mean, aim - mean, dim=1)
    reached = compute_orthogonality(maps)
    found = {
        "cosine": cosines.mean(),
        "worst_cosine": cosines.min(),
        "cosine_centred": centred.mean(),
        "cosine_of_mean": F.cosine_similarity(aim, mean[None], dim=1).mean(),
        "orthogonality": reached.mean(),
        "worst_orthogonality": reached.max(),
    }
    return {name: round(float(value), 5) for name, value in found.items()}


def describe_model(model: Model) -> dict[str, Any]:
    """Enough to load a model again and to know it by."""
    names = {"name": lasting_name(model.name), "pretrained": model.pretrained and lasting_name(model.pretrained)}
    return names | {"weights_hash": model.weights_hash}
