"""Target `patch`: the bound recipe and its tensors; `clipedit apply PATCH --model BASE` rebuilds the edited folder."""

from __future__ import annotations

from pathlib import Path

from ...editor.edits.apply import apply_recipe
from ...editor.edits.recipe import load_recipe
from ...editor.errors import ExportError
from ...editor.load import load_model
from ...editor.models.model import Model
from ..consumers.consumer import Consumer, build_own_consumer
from ..consumers.target import Target, TargetRow
from ..graphs.profile import Profile
from ..verify.reference import Reference

RECIPE_NAME = "recipe.yaml"

CARD = """\
The patch is applied to its base: `clipedit apply . --model BASE -o DIR` writes the edited folder, and this applies it
in memory.

```python
import clipedit
import torch
from PIL import Image

model = clipedit.apply_recipe(clipedit.load_recipe("."), clipedit.load_model({{ load_base }}))
image = torch.nn.functional.normalize(model.encode_image(model.preprocess(Image.open("example.png"))[None])[0], dim=0)
text = torch.nn.functional.normalize(model.encode_text(["a photo of a circle"])[0], dim=0)
print("image ", *(f"{x:.4f}" for x in image[:4].tolist()))
print("text  ", *(f"{x:.4f}" for x in text[:4].tolist()))
print("cosine", f"{float(image @ text):.4f}")
```
"""


def write_patch(model: Model, folder: Path) -> None:
    """Write `recipe.yaml` and `recipe.safetensors`: kilobytes a head, and the readout where it was refitted.

    Raises:
        ExportError: If the model was not edited by a recipe.
    """
    if model.recipe is None:
        raise ExportError(
            f"cannot export {model.name} as a patch: no recipe was applied to it. Give a folder that `clipedit apply` "
            "wrote."
        )
    model.recipe.save(folder / RECIPE_NAME)


def _load(folder: Path, reference: Reference, profile: Profile) -> Consumer:
    """Apply the patch to the base that it names, as `clipedit apply` does."""

    recipe = load_recipe(folder)
    base = recipe.document.base
    return build_own_consumer(apply_recipe(recipe, load_model(base.model, base.pretrained)))


TARGET = Target(
    Profile(target="patch", needs_texts=False),
    write=lambda model, folder, profile: write_patch(model, folder),
    load=_load,
    card=CARD,
    row=TargetRow(
        "`recipe.yaml`, `recipe.safetensors`: the edit alone, kilobytes a head and the readout where it was refitted",
        "`clipedit apply PATCH --model BASE`, which rebuilds the edited folder byte for byte",
    ),
)
