"""A saved recipe applied to a model in memory: bound to the user's images first, if it is a published list of heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..editor.edits.apply import check_base, check_origin
from ..editor.edits.bind import bind_recipe, check_heads
from ..editor.edits.document import RecipeDocument
from ..editor.edits.recipe import Recipe
from ..editor.errors import RecipeError
from ..editor.models.model import Model
from ..editor.scan.scan import Scan
from ..editor.select.options import HeadChoice
from .edited_folder import write_edited_model
from .inputs import Follow, follow_nothing, load_erased, scan_or_load


def apply_in_memory(
    recipe: Recipe,
    model: Model,
    out: Path,
    *,
    images: str | None = None,
    scan: Path | None = None,
    choice: HeadChoice | None = None,
    force: bool = False,
    overwrite: bool = False,
    progress: Follow | None = None,
) -> Scan | None:
    """Write the edited model of a recipe.

    Args:
        images, scan: What an unbound recipe is bound to.
        choice: Labelled images and the column that a recipe erases.
        force: Apply to other weights than the recipe was made for.

    Returns:
        The scan that was made or read; None for bound recipes.

    Raises:
        RecipeError: If the recipe does not fit, or is unbound and there are no images.
    """
    erased = load_erased(recipe.document, model, choice or HeadChoice(), progress or follow_nothing)
    model, scanned = model.with_tower(recipe.document.tower), None
    # Before any scan, which would be lost on a recipe that does not fit.
    check_heads(recipe.document, model)
    if not recipe.is_bound:
        check_origin(recipe.document, model, force=force)
        if images is None and scan is None:
            raise RecipeError(f"cannot apply recipe {recipe.document.name}: it is unbound. Add --images DIR or --scan.")
        needed = parts_to_scan(recipe.document)
        scanned = scan_or_load(model, images, scan, options=needed, follow=progress or follow_nothing)
        recipe = bind_recipe(recipe.document, scanned, model, labelled=erased)
    check_base(recipe, model.weights_hash, model.name, force=force, config=model.editable.config)
    images = images if model.side == "image" else None  # Texts are no images to verify with.
    write_edited_model(recipe, model, out, images=images, overwrite=overwrite, force=force)
    return scanned if scan is None else None


def parts_to_scan(document: RecipeDocument) -> dict[str, Any]:
    """What a scan must see, beyond the last layers' heads, to bind a recipe."""
    steps = document.steps
    layers = {layer for step in steps for layer in (*step.layers, *(head.layer for head in step.head_ids()))}
    return {
        "mlps": any(step.target in ("mlps", "layers") for step in steps),
        "self_attention": any(step.target == "self-attention" for step in steps),
        "layers": sorted(layers) or None,
    }
