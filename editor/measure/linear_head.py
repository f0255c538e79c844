"""A classifier's linear head stands in for zero-shot: the checkpoint's own, or one trained here on labelled images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import ImageError
from ..images.source import ImageSource, mark_contents
from ..models.model import Model
from .intervals import wilson_interval

TRAINED_ON_NAME = "head_images.txt"
DECAYS = (1e-1, 1e-2, 1e-3, 1e-4)
LEAST_A_CLASS = 5


def require_unseen(model: Model, source: ImageSource) -> None:
    """Refuse to measure a head on images that it was trained on.

    Raises:
        ImageError: If the model's folder names some of them.
    """
    path = model.folder / TRAINED_ON_NAME if model.folder else None
    if path is None or not path.is_file():
        return
    trained = set(path.read_text(encoding="utf-8").split())
    # By name and size, as older heads were marked; and by content, whatever the images are called.
    shared = sum(bool({*marks} & trained) for marks in zip(source.marks(), mark_contents(source), strict=True))
    if shared:
        raise ImageError(
            f"cannot measure {model.name}: {shared} of the {len(source)} images trained its head. Give another --split."
        )


def fit_head(
    embeddings: Float[Tensor, "image d_embed"], labels: Int[Tensor, " image"], n_classes: int, *, decay: float
) -> tuple[Float[Tensor, "class d_embed"], Float[Tensor, " class"]]:
    """Multinomial logistic regression with `decay / 2 |W|^2`, embeddings centred and scaled to unit variance first."""
    # One scale for all dimensions, so that the decay means the same whatever the length of the embeddings.
    center, scale = embeddings.double().mean(0), embeddings.double().std().clamp_min(1e-12)
    inputs = (embeddings.double() - center) / scale
    weight = torch.zeros(n_classes, inputs.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(n_classes, dtype=torch.float64, requires_grad=True)
    # The loss is convex and smooth: the line search converges without a step size to choose.
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=300, line_search_fn="strong_wolfe")

    def compute() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(inputs @ weight.T + bias, labels) + decay / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(compute)
    # W (z - center) / scale + b, as one weight and bias for embeddings as they come.
    found = weight.detach() / scale
    return found.float(), (bias.detach() - found @ center).float()


def choose_head(
    embeddings: Float[Tensor, "image d_embed"], labels: Int[Tensor, " image"], n_classes: int, *, seed: int = 0
) -> tuple[Float[Tensor, "class d_embed"], Float[Tensor, " class"], dict[str, float]]:
    """A head fitted on all images, with the decay that is best on a fifth of them; and what it reached there.

    Raises:
        ImageError: If a class has fewer than five images.
    """
    fewest = int(torch.bincount(labels, minlength=n_classes).min())
    if fewest < LEAST_A_CLASS:
        raise ImageError(
            f"cannot train a head: a class has {fewest} images, at least {LEAST_A_CLASS} are needed. Add images."
        )
    # Shuffled: data sets often lie in folders of one class each.
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    held_out, rest = order[: len(order) // 5], order[len(order) // 5 :]
    reached = {}
    for decay in DECAYS:
        weight, bias = fit_head(embeddings[rest], labels[rest], n_classes, decay=decay)
        right = (embeddings[held_out] @ weight.T + bias).argmax(1) == labels[held_out]
        reached[decay] = float(right.float().mean())
    best = max(DECAYS, key=lambda decay: reached[decay])
    low, high = wilson_interval(round(reached[best] * len(held_out)), len(held_out))
    report = {"decay": best, "held_out_accuracy": reached[best], "n": len(held_out), "low": low, "high": high}
    # What ships is fitted on all images; the figure is of the part left out.
    return *fit_head(embeddings, labels, n_classes, decay=best), report
