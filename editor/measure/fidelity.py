"""What models answer under an edit, from one reading of the images; and how near what ships comes to `direct`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from pydantic import TypeAdapter
from torch import Tensor

from ..components import Features
from ..edits.apply import apply_recipe
from ..edits.bind import bind_recipe
from ..edits.direct import as_stored, compute_recipe_embeddings
from ..edits.held_out import Fidelity, compute_fidelity
from ..edits.parts import ablated_names
from ..edits.recipe import Recipe, require_bound
from ..images.source import ImageSource
from ..load import FolderEdit
from ..models.model import Model
from ..scan.collect import BATCH_SIZE, LabelledEmbeddings, collect_embeddings, collect_features
from ..scan.features import CachedFeatures
from ..scan.scan import Scan
from ..scan.tally import Progress

MOST_IMAGES = 512
ENOUGH = 0.98

Embedded = tuple[Float[Tensor, "image d_embed"], list[int]]


@dataclass(frozen=True)
class EmbeddedEdit:
    """Embeddings of images, and the positions of those that could be read: before, after, and of any like recipe."""

    before: Embedded
    after: Embedded
    embed: Callable[[Recipe], Embedded]


def describe_fidelity(measured: Mapping[str, Any] | None, effect: str) -> list[str]:
    """A recipe's measured fidelity in a sentence, with a warning where it explains too little; none for `direct`."""
    if measured is None:
        return [] if effect == "direct" else [f"fidelity of {effect} to direct: not measured, no images were given"]
    try:
        found = TypeAdapter(Fidelity).validate_python(measured)
    except ValueError:
        return []
    fitted = "" if found.held_out else " (those that it was fitted to: not cross-fitted)"
    said = [f"fidelity of {effect} to direct, {found.images} of the {measured.get('on', 'images')}{fitted}: {found}"]
    if found.explained < ENOUGH:
        exact = "--effect direct is exact"
        said.append(f"warning: {effect} explains less than {ENOUGH} of the directly edited embedding; {exact}")
    return said


def spread_images(source: ImageSource, most: int = MOST_IMAGES) -> ImageSource:
    """At most so many images, spread over a source."""
    # Rounded up, so that there are never more than `most`.
    return source.subset(range(0, len(source), max(1, -(-len(source) // most))))


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
    spread = spread_images(source)
    # Bound again: the tensors of a direct edit are not those of the effect that ships.
    direct = bind_recipe(recipe.document.model_copy(update={"effect": "direct"}), scan, model, labelled=labelled)
    parts = ablated_names(require_bound(direct))
    features, _ = collect_features(
        model.editable, spread, layers=scan.layers, parts=parts, cached=None if parts else cached, progress=progress
    )
    wanted = compute_recipe_embeddings(direct, model.editable, features)
    # Later layers see a total edit: only the edited model itself says what it answers.
    if recipe.document.effect == "total":
        found = collect_embeddings(apply_recipe(recipe, model), spread, progress=progress)[0]
    else:
        found = compute_recipe_embeddings(recipe, model.editable, features)
    return compute_fidelity(wanted, found, features.embedding)


def embed_edit(
    recipe: Recipe,
    scan: Scan,
    model: Model,
    edited: Model,
    source: ImageSource,
    *,
    progress: Progress | None = None,
) -> EmbeddedEdit:
    """Images under a bound recipe, read once where the edit is at the readout.

    A classifier answers by its edited head, and its edited model is run; so is that of a `total` recipe.

    Args:
        edited: What the recipe makes of the model.
    """
    features, embed = read_once(recipe, scan, model, source, progress)
    if features is None:
        before = collect_embeddings(model.editable, source, progress=progress)
        return EmbeddedEdit(before, collect_embeddings(edited, source, progress=progress), embed)
    runs = recipe.document.effect == "distilled" and not edited.has_texts
    after = collect_embeddings(edited, source, progress=progress) if runs else embed(as_stored(recipe, edited))
    return EmbeddedEdit((features[0].embedding, features[1]), after, embed)


def read_once(
    recipe: Recipe,
    scan: Scan,
    model: Model,
    source: ImageSource,
    progress: Progress | None,
    *,
    batch_size: int = BATCH_SIZE,
) -> tuple[tuple[Features, list[int]] | None, Callable[[Recipe], Embedded]]:
    """The unedited features of a source, and any like recipe's embeddings from them; `total` ones have none."""
    shared: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
    # Later layers see the edit, so that cached features would not show it.
    if recipe.document.effect == "total":
        return None, lambda which: collect_embeddings(apply_recipe(which, model), source, **shared)
    # `direct` and `distilled` edits are affine in features that do not change.
    base, parts = model.editable, ablated_names(require_bound(recipe))
    features, kept = collect_features(base, source, layers=scan.layers, parts=parts, **shared)
    return (features, kept), lambda which: (compute_recipe_embeddings(which, base, features), kept)


def read_for_all(
    edit: FolderEdit,
    models: Mapping[str, Model],
    source: ImageSource,
    *,
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
) -> tuple[dict[str, Embedded], Callable[[Recipe], Embedded] | None]:
    """One reading of images by the base of a folder's edit, for every model that it can answer for.

    These are the base itself, and `direct` edits of it, by the hash of their weights: layers of any other model may
    see something else.

    Returns:
        Embeddings by the name of the model, and any like recipe's embeddings; nothing read where no model's are had.
    """
    recipe, scan, base = edit.recipe, edit.scan, edit.base
    plain = base.alignment is None and recipe.document.tower == "image" and recipe.document.effect != "total"
    same = {name: model for name, model in models.items() if plain and _is_of_base(model, edit)}
    if not same:
        return {}, None
    features, embed = read_once(recipe, scan, base, source, progress, batch_size=batch_size)
    assert features is not None
    unedited = features[0].embedding.float(), features[1]
    return {
        name: unedited if model.readout_edit is None else embed(as_stored(recipe, model))
        for name, model in same.items()
    }, embed


def _is_of_base(model: Model, edit: FolderEdit) -> bool:
    if model.alignment is not None or model.weights_hash != edit.base.weights_hash:
        return False
    return model.readout_edit is None or (model.recipe is not None and model.recipe.document == edit.recipe.document)
