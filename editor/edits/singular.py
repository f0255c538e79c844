"""Singular directions of a head's value-output matrix, with weights from a pool of texts (after SITH, CVPR 2026)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..components import HeadId
from ..concepts.directions import encode_pool
from ..errors import RecipeError
from ..files.bounded import load_yaml
from ..models.model import Model
from ..towers.vit.open_clip_attention import residual_readout, value_output_weights
from ..towers.vit.open_clip_vit import OpenClipViT
from .operations import SingularDirections
from .step_directions import NAMED_SHARE

NEAREST_TEXTS = 10


def compute_singular_directions(
    model: Model,
    head: HeadId,
    given: Mapping[str, Sequence[float]] | None,
    concept: Tensor | None,
    pool: Tensor | None = None,
) -> SingularDirections:
    """Directions and weights of one head: those given for it, else one minus each direction's score for the concept.

    Raises:
        RecipeError: If the architecture has no plain value-output matrix, or the number of weights is wrong.
    """
    tower = model.tower
    if not isinstance(tower, OpenClipViT):
        raise RecipeError(
            f"cannot reweight {head} of {model.name}: only open_clip ViTs give their value-output matrices."
        )
    output, value = (weights[head.head] for weights in value_output_weights(tower, head.layer))
    # The product has rank `d_head` at most: what lies beyond is rounding.
    left = torch.linalg.svd(output @ value, full_matrices=False)[0][:, : tower.d_head]
    if given is None and concept is not None:
        weights = 1 - score_directions(model, left, concept, pool)
    else:
        weights = torch.tensor((given or {}).get(str(head), ()), dtype=torch.float64)
    if len(weights) != tower.d_head:
        raise RecipeError(
            f"cannot reweight {head}: {len(weights)} weights are given, it has {tower.d_head} singular directions. Add "
            "`concept`, or one weight a direction under `weights`."
        )
    return SingularDirections(output, left, weights)


def score_directions(
    model: Model,
    left: Float[Tensor, "d_model d_head"],
    concept: Float[Tensor, "d_embed concept"],
    pool: Float[Tensor, "text d_embed"] | None = None,
) -> Float[Tensor, " d_head"]:
    """How much each direction says about a concept, in [0, 1], without a language model.

    Each direction is read out into the joint space; of the ten texts of the pool nearest to it (either sign, cosine
    with the centred texts), the share by cosine of those that name the concept.
    """
    assert isinstance(model.tower, OpenClipViT)
    read = F.normalize(residual_readout(model.tower) @ left, dim=0)
    pool = encode_pool(model) if pool is None else pool
    centred = F.normalize(pool - pool.mean(0), dim=-1)
    # `concept` is orthonormal and the texts are of unit length: the sum is the share within the span.
    named = (centred @ concept).square().sum(1) >= NAMED_SHARE
    # Signs of singular vectors are arbitrary.
    near = (centred @ read).abs().topk(min(NEAREST_TEXTS, len(pool)), dim=0)
    return (near.values * named[near.indices]).sum(0) / near.values.sum(0).clamp_min(1e-12)


def load_weights(path: Path) -> dict[str, tuple[float, ...]]:
    """Weights of singular directions by head, from YAML or JSON: `L3H5: [1, 1, 0.2, ...]`.

    Raises:
        RecipeError: If the file cannot be read, or has another form.
    """
    try:
        found = load_yaml(Path(path))
        return {str(HeadId.parse(head)): tuple(float(value) for value in row) for head, row in found.items()}
    except (OSError, AttributeError, TypeError, ValueError, OverflowError) as error:
        raise RecipeError(f"cannot read weights from {path}: {error}. Write `L3H5: [1, 1, 0.2, ...]` a head.") from None
