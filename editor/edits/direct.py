"""direct: the edit at the readout, and what a distilled recipe gives, from features of the unedited model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from ..components import Features, HeadId
from ..errors import ImageError
from ..models.model import Model
from ..scan.collect import collect_with_parts, place
from ..towers.tower import Tower
from .parts import ablate_parts, ablated_names, compute_part_readouts
from .recipe import Recipe, bound_heads, require_bound


def compute_edited_readouts(recipe: Recipe, tower: Tower) -> dict[HeadId, Float[Tensor, "d_embed d_head"]]:
    """The readouts of the heads that a recipe edits, float64."""
    groups = [group for group in tower.groups(_edited_layers(recipe), mlps=False) if group.ids[0].kind == "head"]
    readouts = tower.compute_readouts(groups)
    return {head: readouts[f"L{head.layer}.heads"][head.head] for head in bound_heads(recipe)}


def compute_direct_embeddings(
    recipe: Recipe,
    readouts: Mapping[HeadId, Tensor],
    features: Features,
    parts: Mapping[str, Tensor] | None = None,
) -> Float[Tensor, "image d_embed"]:
    """`z' = A (z - sum_h R_h (u_h - u_h')) + b`: the papers' edit, at the readout only; `parts` are ablated whole."""
    tensors = require_bound(recipe)
    embedding = ablate_parts(features.embedding, features, tensors, parts or {})
    for head, readout in readouts.items():
        u = features.groups[f"L{head.layer}.heads"][:, head.head]
        edited = u @ tensors[f"heads.{head}.map"].to(u).T + tensors[f"heads.{head}.offset"].to(u)
        embedding = embedding - (u - edited) @ readout.T.to(u)
    # After the heads: the map was made for the embedding that their edit leaves.
    if "output.map" in tensors:
        embedding = embedding @ tensors["output.map"].to(embedding).T
    return embedding + tensors["output.offset"].to(embedding) if "output.offset" in tensors else embedding


def compute_distilled_embeddings(recipe: Recipe, tower: Tower, features: Features) -> Float[Tensor, "image d_embed"]:
    """What a `distilled` recipe's checkpoint gives, from the unedited model's features; before rounding to disk."""
    tensors = require_bound(recipe)
    folded = {name.removeprefix("folded."): tensor for name, tensor in tensors.items() if name.startswith("folded.")}
    return tower.embed_final(features.final, folded)


def direct_edit(recipe: Recipe, base: Tower) -> Callable[[Tower, Tensor], Tensor]:
    """A `direct` recipe as a function of a tower and pixels; the readouts are computed here, not for every batch."""
    readouts, parts = compute_edited_readouts(recipe, base), compute_recipe_parts(recipe, base)
    _require_readable(require_bound(recipe), readouts, base.d_embed)

    def encode(tower: Tower, pixels: Tensor) -> Tensor:
        return compute_direct_embeddings(recipe, readouts, _collect_edited(recipe, tower, pixels), parts)

    return encode


@torch.no_grad()
def encode_before_and_after(
    recipe: Recipe, base: Model, pixels: Float[Tensor, "image 3 height width"]
) -> tuple[Float[Tensor, "image d_embed"], Float[Tensor, "image d_embed"]]:
    """Embeddings by the unedited model and by a bound `direct` or `distilled` recipe, from one pass.

    Raises:
        ImageError: For `total`, as `compute_recipe_embeddings`.
    """
    features = _collect_edited(recipe, base.tower, pixels.to(base.device))
    return features.embedding.float(), compute_recipe_embeddings(recipe, base, features).float()


def _collect_edited(recipe: Recipe, tower: Tower, pixels: Tensor) -> Features:
    """The features of the layers and parts that a recipe edits."""
    parts = ablated_names(require_bound(recipe))
    groups = tower.groups(_edited_layers(recipe), mlps=any(name.endswith(".mlp") for name in parts))
    return collect_with_parts(tower, pixels, groups, list(parts))


def _require_readable(tensors: Mapping[str, Tensor], readouts: Mapping[HeadId, Tensor], d_embed: int) -> None:
    """Refuse maps of other sizes than the readouts that they stand in front of."""
    wanted = {
        f"heads.{head}.{part}": readout.shape[1] for head, readout in readouts.items() for part in ("map", "offset")
    }
    wanted |= {name: d_embed for name in tensors if name.startswith(("output.", "ablated."))}
    for name, size in wanted.items():
        if len(tensors[name]) != size:
            raise ValueError(f"{name} has {len(tensors[name])} rows, {size} are needed")


def compute_recipe_parts(recipe: Recipe, tower: Tower) -> dict[str, Float[Tensor, "d_embed k"]]:
    """The readouts of the parts that a bound recipe ablates whole; none for most."""
    return compute_part_readouts(ablated_names(require_bound(recipe)), tower)


def _edited_layers(recipe: Recipe) -> list[int]:
    parts = {place(name)[0].split(".")[0] for name in ablated_names(require_bound(recipe))}
    return sorted({head.layer for head in bound_heads(recipe)} | {int(name[1:]) for name in parts})


def compute_recipe_embeddings(recipe: Recipe, model: Model, features: Features) -> Float[Tensor, "image d_embed"]:
    """Embeddings of a `direct` or `distilled` recipe from cached features of the unedited model.

    Raises:
        ImageError: For `total`, which changes the features themselves.
    """
    if recipe.document.effect == "direct":
        readouts, parts = compute_edited_readouts(recipe, model.tower), compute_recipe_parts(recipe, model.tower)
        return compute_direct_embeddings(recipe, readouts, features, parts)
    if recipe.document.effect == "distilled":
        return compute_distilled_embeddings(recipe, model.tower, features)
    raise ImageError("cannot compute a total edit from cached features: apply the recipe and run the model.")


def as_stored(recipe: Recipe, edited: Model) -> Recipe:
    """The recipe with the edited model's own weights, which were rounded as on disk."""
    stored = {f"folded.{name}": tensor.cpu() for name, tensor in edited.module.state_dict().items()}
    tensors = {name: stored.get(name, tensor) for name, tensor in require_bound(recipe).items()}
    return replace(recipe, tensors=tensors)
