"""Fidelity: how near the model that ships comes to the `direct` edit, which is the papers' definition."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..edits.apply import apply_recipe
from ..edits.bind import bind_recipe
from ..edits.direct import compute_recipe_embeddings
from ..edits.parts import ablated_names
from ..edits.recipe import Recipe, require_bound
from ..images.source import ImageSource
from ..models.model import Model
from ..scan.collect import LabelledEmbeddings, collect_embeddings, collect_features
from ..scan.features import CachedFeatures
from ..scan.scan import Progress, Scan

MOST_IMAGES = 512
ENOUGH = 0.98


@dataclass(frozen=True)
class Fidelity:
    """An edit against the same edit under `direct`.

    Attributes:
        worst_cosine, mean_cosine: Between the embeddings of an image.
        explained: Share of the variance of the directly edited embeddings that the edit reproduces; at most 1.
        explained_change: The same share of what the direct edit changed; stricter. 1 where it changed nothing.
        images: How many images.
    """

    worst_cosine: float
    mean_cosine: float
    explained: float
    explained_change: float
    images: int

    def __str__(self) -> str:
        return (
            f"worst cosine {self.worst_cosine:.4f}, mean {self.mean_cosine:.4f}, explains {self.explained:.4f} of the "
            f"variance of the directly edited embedding ({self.explained_change:.4f} of the change)"
        )


def describe_fidelity(measured: Mapping[str, Any] | None, effect: str) -> list[str]:
    """What a recipe's measured fidelity says in a sentence, and a warning where the edit explains too little; none for `direct`."""
    if measured is None:
        return [] if effect == "direct" else [f"fidelity of {effect} to direct: not measured, no images were given"]
    found = Fidelity(**{key: value for key, value in measured.items() if key != "on"})
    said = [f"fidelity of {effect} to direct, {found.images} of the {measured['on']}: {found}"]
    if found.explained < ENOUGH:
        exact = "--effect direct is exact"
        said.append(f"warning: {effect} explains less than {ENOUGH} of the directly edited embedding; {exact}")
    return said


def compute_fidelity(
    wanted: Float[Tensor, "image d_embed"],
    found: Float[Tensor, "image d_embed"],
    before: Float[Tensor, "image d_embed"],
) -> Fidelity:
    """Compare embeddings `found` with the directly edited ones, `wanted`; `before` are the unedited ones."""
    cosine = F.cosine_similarity(wanted, found)
    left = (wanted - found).var(0).sum()
    change = (wanted - before).var(0).sum()
    return Fidelity(
        worst_cosine=float(cosine.min()),
        mean_cosine=float(cosine.mean()),
        explained=1 - float(left / wanted.var(0).sum()),
        explained_change=1 - float(left / change) if change > 0 else 1.0,
        images=len(wanted),
    )


def measure_fidelity(
    recipe: Recipe,
    scan: Scan,
    model: Model,
    source: ImageSource,
    *,
    labelled: LabelledEmbeddings | None = None,
    cached: CachedFeatures | None = None,
    progress: Progress | None = None,
) -> Fidelity:
    """Fidelity of a bound `distilled` or `total` recipe to `direct`, on at most 512 images spread over a source.

    Raises:
        ImageError: If images cannot be read.
    """
    spread = source.subset(range(0, len(source), -(-len(source) // MOST_IMAGES)))
    direct = bind_recipe(recipe.document.model_copy(update={"effect": "direct"}), scan, model, labelled=labelled)
    parts = ablated_names(require_bound(direct))
    features, _ = collect_features(
        model.editable, spread, layers=scan.layers, parts=parts, cached=None if parts else cached, progress=progress
    )
    wanted = compute_recipe_embeddings(direct, model.editable, features)
    if recipe.document.effect == "total":
        found = collect_embeddings(apply_recipe(recipe, model), spread, progress=progress)[0]
    else:
        found = compute_recipe_embeddings(recipe, model.editable, features)
    return compute_fidelity(wanted, found, features.embedding)
