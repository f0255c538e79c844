"""Target `patch`: the bound recipe and its tensors only; `clipedit apply PATCH --model BASE` rebuilds the edited folder from them."""

from __future__ import annotations

from pathlib import Path

from ...editor.errors import ExportError
from ...editor.models.model import Model
from ..graphs.profile import Profile

RECIPE_NAME = "recipe.yaml"


def write_patch(model: Model, folder: Path) -> None:
    """Write `recipe.yaml` and `recipe.safetensors`: kilobytes a head, and the readout where it was refitted.

    Raises:
        ExportError: If the model was not edited by a recipe.
    """
    if model.recipe is None:
        raise ExportError(
            f"cannot export {model.name} as a patch: no recipe was applied to it. Give a folder that `clipedit apply` wrote."
        )
    model.recipe.save(folder / RECIPE_NAME)


PROFILE = Profile(target="patch", write=lambda model, folder, profile: write_patch(model, folder), needs_texts=False)
