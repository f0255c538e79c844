"""Recipes: the only record of an edit. YAML for people, and a safetensors file beside it for the numbers.

A recipe is unbound (heads and operations only, as published lists are) or bound (maps, means and refitted weights
included). A bound recipe applied to the same base gives the same bytes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..choices import Effect
from ..components import HeadId
from ..errors import ModelError, RecipeError
from ..files.tensors import load_tensors
from ..files.whole import find_beside, save_tensors, write_text
from ..notebook import html_facts, html_table
from .document import RecipeDocument, TensorFile, describe_step, format_document, load_document

KIND = "clipedit-recipe-1"
_HEAD = re.compile(r"L\d{1,4}H\d{1,4}", re.ASCII)


@dataclass(frozen=True)
class Recipe:
    """A document and, if it is bound, its tensors.

    Attributes:
        tensors: `heads.L3H5.{map,offset,value_offset}` and, where it is not `map`, `value_map`; `output.map`,
            `texts.map`, and for `distilled` the new weights themselves, `folded.NAME`; float32.
        names: The checkpoint's tensor names, as `Tower.tensor_names` gives them: applying needs no model.
    """

    document: RecipeDocument
    tensors: Mapping[str, Tensor] | None = None
    names: Mapping[str, str] = field(default_factory=dict)

    def _repr_html_(self) -> str:
        document = self.document
        facts = (
            ("description", document.description),
            ("source", document.source),
            ("base", " ".join(filter(None, (document.base.model, document.base.pretrained)))),
            ("effect", document.effect),
            ("calibration", f"{document.calibration.images} images" if document.calibration else "not bound yet"),
            *((f"step {number}", describe_step(step)) for number, step in enumerate(document.steps, 1)),
        )
        rows = {name: row for name, row in (document.measured or {}).items() if isinstance(row, dict)}
        keys = [key for key in rows.get("after", {}) if not str(key).startswith("group: ")]
        shown = [(name, *(row.get(key, "") for key in keys)) for name, row in rows.items() if row.keys() & set(keys)]
        return html_facts(document.name, facts) + (html_table("measured", ("", *keys), shown) if keys else "")

    @property
    def is_bound(self) -> bool:
        return self.tensors is not None

    @property
    def heads(self) -> list[str]:
        """All heads that a step names, in order."""
        return self.document.heads

    def with_measured(self, measured: Mapping[str, Any]) -> Recipe:
        """The same recipe with more figures in it."""
        figures = {**(self.document.measured or {}), **measured}
        return replace(self, document=self.document.model_copy(update={"measured": figures}))

    def with_effect(self, effect: Effect | None) -> Recipe:
        """The same recipe with another effect; None for its own.

        Raises:
            RecipeError: If it is bound: its numbers belong to one effect.
        """
        if effect is None:
            return self
        if self.is_bound and effect != self.document.effect:
            raise RecipeError(
                f"cannot make recipe {self.document.name} {effect}: it is bound as {self.document.effect}. Leave out "
                "--effect."
            )
        return replace(self, document=self.document.model_copy(update={"effect": effect}))

    def save(self, path: str | Path) -> None:
        """Write the YAML file and, for bound recipes, `<name>.safetensors` beside it; each whole or absent."""
        path, document = Path(path), self.document.model_copy(update={"tensors": None})
        if self.tensors is not None:
            beside = path.with_suffix(".safetensors")
            # Before the YAML, which names their hash: a break between the two leaves no recipe without tensors.
            save_tensors(beside, self.tensors, KIND, dict(self.names))
            digest = hashlib.sha256(beside.read_bytes()).hexdigest()
            document = document.model_copy(update={"tensors": TensorFile(file=beside.name, sha256=digest)})
        write_text(path, format_document(document))


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe: a file, the name of a shipped one, or a folder that clipedit wrote (the `recipe.yaml` in it).

    Raises:
        RecipeError: If the file cannot be read, has unknown keys, or its tensors are missing or were changed.
    """
    document, path = load_document(path)
    if document.tensors is None:
        return Recipe(document)
    recipe = Recipe(document, *_load_tensors(path, document.tensors))
    _require_complete(recipe, path)
    return recipe


def _load_tensors(path: Path, file: TensorFile) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        beside = find_beside(path, file.file)
    except ValueError as error:
        raise RecipeError(f"cannot use the recipe {path}: {error}. Copy the file itself.") from None
    if not beside.is_file():
        raise RecipeError(f"cannot use the recipe {path}: {file.file} is missing beside it. Copy both files.")
    if hashlib.sha256(beside.read_bytes()).hexdigest() != file.sha256:
        raise RecipeError(f"cannot use the recipe {path}: {file.file} is not the file that was saved with it.")
    try:
        tensors, names = load_tensors(beside, KIND)
        return tensors, dict(names)
    except (ModelError, TypeError, ValueError) as error:
        raise RecipeError(f"cannot use the recipe {path}: {error}") from None


def _require_complete(recipe: Recipe, path: Path) -> None:
    """Refuse tensors that lack what a step needs: without them only half of the edit would be applied."""
    targets = {step.target for step in recipe.document.steps} & {"output", "texts"}
    needed = [f"heads.{head}.{part}" for head in recipe.heads for part in ("map", "offset", "value_offset")]
    needed += [f"{target}.map" for target in sorted(targets)]
    found = recipe.tensors or {}
    missing = [name for name in needed if name not in found]
    if not missing and recipe.document.effect == "distilled" and not any(name.startswith("folded.") for name in found):
        missing = ["folded.*"]
    if missing:
        raise RecipeError(f"cannot use the recipe {path}: its tensors lack {', '.join(missing[:3])}. Copy it whole.")
    wrong = next((name for name, tensor in found.items() if not _is_usable(name, tensor)), None)
    names = all(isinstance(key, str) and isinstance(name, str) for key, name in recipe.names.items())
    if wrong is not None or not names:
        raise RecipeError(f"cannot use the recipe {path}: its {wrong or 'names'} cannot be used. Make it again.")


def _is_usable(name: str, tensor: Tensor) -> bool:
    """Whether a tensor has a known name, and the numbers and axes that go with it."""
    kind, _, part = name.partition(".")
    if kind == "heads":
        head, _, part = part.partition(".")
        known = _HEAD.fullmatch(head) is not None and part in ("map", "offset", "value_offset", "value_map")
    else:
        known = kind in ("folded", "ablated") or name in ("output.map", "output.offset", "texts.map")
    # Folded tensors have the checkpoint's shapes, which `require_fit` compares when they are applied.
    is_map = part.endswith("map") and kind != "folded"
    fits = tensor.ndim == 2 and tensor.shape[0] == tensor.shape[1] if is_map else kind == "folded" or tensor.ndim == 1
    return known and fits and tensor.is_floating_point() and bool(tensor.isfinite().all())


def require_bound(recipe: Recipe) -> Mapping[str, Tensor]:
    """The tensors of a bound recipe.

    Raises:
        RecipeError: If it is unbound.
    """
    if recipe.tensors is None:
        raise RecipeError(
            f"cannot apply recipe {recipe.document.name}: it is unbound, its means are not known. Give --images or "
            "--scan."
        )
    return recipe.tensors


def bound_heads(recipe: Recipe) -> list[HeadId]:
    """The heads that a bound recipe has maps of: those its steps name, and those of layers that it ablates."""
    return sorted({HeadId.parse(name.split(".")[1]) for name in require_bound(recipe) if name.startswith("heads.")})
