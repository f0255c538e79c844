"""Recipes: the only record of an edit. YAML for people, and a safetensors file beside it for the numbers.

A recipe is unbound (heads and operations only, as published lists are) or bound (maps, means and refitted weights
included). A bound recipe applied to the same base gives the same bytes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from torch import Tensor

from ... import recipes
from ..components import HeadId
from ..concepts.concepts import describe_validation
from ..errors import ModelError, RecipeError, nearest_names
from ..files.bounded import load_yaml
from ..files.tensors import load_tensors
from ..files.whole import find_beside, is_plain_name, save_tensors, write_text
from ..notebook import html_facts, html_table

KIND = "clipedit-recipe-1"
Effect = Literal["distilled", "total", "direct"]
EFFECTS = get_args(Effect)
HeadOperation = Literal["mean-ablate", "zero-ablate", "scale", "project-out", "keep-only", "reweight"]
Along = Literal["texts", "text-span", "pca", "labels"]
_HEAD = re.compile(r"L\d{1,4}H\d{1,4}", re.ASCII)
WHOLE_PARTS = ("mlps", "self-attention", "layers")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Step(_Section):
    """One operation on some heads, on the image embedding (`output`), on all text embeddings (`texts`), or on whole parts.

    Attributes:
        then: Further operations on the same heads, in this order, with the same parameters.
        layers: Of the parts `mlps`, `self-attention` (what CLS takes from CLS) and `layers` (attention and MLPs).
        along: Where directions come from: texts (those here, else the concept's), the head's own TextSpan labels that name
            the concept, the head's main components, or the means of labelled images.
        weights: For `reweight`, by head, a weight for each singular direction; else they come from the concept.
        strength: Of the whole step, in [0, 1].
    """

    operation: Literal[HeadOperation, "leace"]
    then: tuple[HeadOperation, ...] = ()
    target: Literal["heads", "output", "texts", "mlps", "self-attention", "layers"] = "heads"
    heads: tuple[str, ...] = ()
    layers: tuple[Annotated[int, Field(ge=0)], ...] = ()
    concept: str | None = None
    texts: tuple[str, ...] | None = None
    along: Along = "texts"
    directions: int | None = Field(default=None, ge=1)
    factor: float | None = None
    weights: dict[str, tuple[float, ...]] | None = None
    strength: float = Field(default=1.0, ge=0.0, le=1.0)

    @field_validator("heads")
    @classmethod
    def _heads_are_heads(cls, heads: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(heads)) != len(heads):
            raise ValueError("a head is named twice")
        return tuple(str(HeadId.parse(head)) for head in heads)

    @field_validator("concept")
    @classmethod
    def _concept_is_a_name(cls, concept: str | None) -> str | None:
        if concept is not None and concept.endswith((".yaml", ".yml")):
            raise ValueError("must be the name of a concept, not a file: write its texts under `texts`")
        return concept

    @model_validator(mode="after")
    def _only_heads_have_heads(self) -> Step:
        if self.heads and self.target != "heads":
            raise ValueError(f"a step on {self.target} names heads: write a step of its own for them")
        if (self.target in WHOLE_PARTS) != bool(self.layers):
            raise ValueError(f"`layers` go with a target of {', '.join(WHOLE_PARTS)}: the target is {self.target}")
        if self.target in WHOLE_PARTS and (self.operation != "mean-ablate" or self.then or self.strength < 1):
            raise ValueError(f"{self.target} can only be mean-ablated, whole")
        if self.operation == "leace" and self.target != "output":
            raise ValueError("leace acts on the output: write `target: output`")
        return self

    def head_ids(self) -> list[HeadId]:
        """The step's heads."""
        return [HeadId.parse(head) for head in self.heads]


class Base(_Section):
    """The model that the recipe was made for. `weights_hash` is missing in unbound recipes."""

    model: str
    pretrained: str | None = None
    weights_hash: str | None = None


class Calibration(_Section):
    """The images that means and refits come from."""

    fingerprint: str
    images: int


class Fold(_Section):
    """How well a `distilled` constant went into the last norm's bias: `residual` of `P'^T b = c`, relative, and `|b|`."""

    residual: float
    bias_norm: float


class TensorFile(_Section):
    """The safetensors file beside the recipe."""

    file: str
    sha256: str

    @field_validator("file")
    @classmethod
    def _stays_in_the_folder(cls, name: str) -> str:
        if not is_plain_name(name):
            raise ValueError("must be a file name, without a folder")
        return name


class RecipeDocument(_Section):
    """What the YAML file says."""

    schema_version: Literal[1]
    name: str
    description: str = ""
    source: str = ""
    base: Base
    tower: Literal["image", "text"] = "image"
    effect: Effect = "distilled"
    steps: tuple[Step, ...]
    calibration: Calibration | None = None
    fold: Fold | None = None
    tensors: TensorFile | None = None
    measured: dict[str, Any] | None = None


@dataclass(frozen=True)
class Recipe:
    """A document and, if it is bound, its tensors.

    Attributes:
        tensors: `heads.L3H5.{map,offset,value_offset}` and, where it is not `map`, `value_map`; `output.map`, `texts.map`, and for `distilled` the new weights
            themselves, `folded.NAME`; float32.
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
        found = {head for step in self.document.steps for head in step.head_ids()}
        return [str(head) for head in sorted(found)]

    def with_measured(self, measured: Mapping[str, Any]) -> Recipe:
        """The same recipe with more figures in it."""
        figures = {**(self.document.measured or {}), **measured}
        return replace(self, document=self.document.model_copy(update={"measured": figures}))

    def with_effect(self, effect: Effect) -> Recipe:
        """The same recipe with another effect.

        Raises:
            RecipeError: If it is bound: its numbers belong to one effect.
        """
        if self.is_bound and effect != self.document.effect:
            raise RecipeError(
                f"cannot make recipe {self.document.name} {effect}: it is bound as {self.document.effect}. Leave out --effect."
            )
        return replace(self, document=self.document.model_copy(update={"effect": effect}))

    def save(self, path: str | Path) -> None:
        """Write the YAML file and, for bound recipes, `<name>.safetensors` beside it; each whole or absent."""
        path, document = Path(path), self.document.model_copy(update={"tensors": None})
        if self.tensors is not None:
            beside = path.with_suffix(".safetensors")
            save_tensors(beside, self.tensors, KIND, dict(self.names))
            digest = hashlib.sha256(beside.read_bytes()).hexdigest()
            document = document.model_copy(update={"tensors": TensorFile(file=beside.name, sha256=digest)})
        write_text(path, format_document(document))


def format_document(document: RecipeDocument) -> str:
    """The YAML of a document, defaults left out."""
    plain = document.model_dump(mode="json", exclude_defaults=True)
    return yaml.safe_dump({"schema_version": 1, **plain}, sort_keys=False, allow_unicode=True, width=110)


def describe_step(step: Step) -> str:
    """`mean-ablate L3H5, L3H1`, `project-out output (location), strength 0.9`."""
    what = ", ".join(step.heads) or step.target + (f" {', '.join(map(str, step.layers))}" if step.layers else "")
    concept = f" ({step.concept})" if step.concept else ""
    strength = f", strength {step.strength:g}" if step.strength < 1 else ""
    return f"{', '.join((step.operation, *step.then))} {what}{concept}{strength}"


def list_recipes() -> dict[str, Path]:
    """The shipped recipes, by name."""
    return {path.stem: path for path in sorted(Path(str(resources.files(recipes))).glob("*.yaml"))}


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe: a file, the name of a shipped one, or a folder that clipedit wrote (the `recipe.yaml` in it).

    Raises:
        RecipeError: If the file cannot be read, has unknown keys, or its tensors are missing or were changed.
    """
    path = Path(path)
    if not path.exists() and path.suffix not in (".yaml", ".yml"):
        known = list_recipes()
        if str(path) not in known:
            raise RecipeError(f"unknown recipe {str(path)!r}. {nearest_names(str(path), known)} Or give a YAML file.")
        path = known[str(path)]
    path = path / "recipe.yaml" if path.is_dir() else path
    try:
        document = RecipeDocument.model_validate(load_yaml(path))
    except FileNotFoundError:
        raise RecipeError(f"cannot read the recipe {path}: no such file.") from None
    except ValidationError as error:
        raise RecipeError(f"cannot use the recipe {path}: {describe_validation(error)}. Correct it there.") from None
    except (OSError, ValueError) as error:
        raise RecipeError(f"cannot read the recipe {path}: {error}.") from None
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
    is_map = part.endswith("map") and kind != "folded"
    fits = tensor.ndim == 2 and tensor.shape[0] == tensor.shape[1] if is_map else kind == "folded" or tensor.ndim == 1
    return known and fits and tensor.is_floating_point() and bool(tensor.isfinite().all())
