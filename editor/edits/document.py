"""What a recipe's YAML file says: its schema, reading and writing it, and the list of the shipped ones; no torch."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ... import recipes
from ..choices import DEFAULT_EFFECT, Along, Effect, HeadOperation, Side
from ..concepts.concepts import describe_validation
from ..errors import ExportError, RecipeError, nearest_names, require_path
from ..files.bounded import load_yaml
from ..files.whole import is_plain_name
from ..identities import HeadId
from ..plugin_names import NameOf
from ..plugins import OPERATION, find_plugins

# Of a folder that was edited, and of an export.
RECIPE_FILES = ("recipe.yaml", "reproduce/recipe.yaml")
WHOLE_PARTS = ("mlps", "self-attention", "layers")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Step(_Section):
    """One operation on some heads, on the image embedding (`output`), on all text embeddings (`texts`), or on whole
    parts.

    Attributes:
        then: Further operations on the same heads, in this order, with the same parameters.
        layers: Of the parts `mlps`, `self-attention` (what CLS takes from CLS) and `layers` (attention and MLPs).
        along: Where directions come from: texts (those here, else the concept's), the head's own TextSpan labels that
            name the concept, the head's main components, or the means of labelled images.
        weights: For `reweight`, by head, a weight for each singular direction; else they come from the concept.
        spared: Texts of a concept that a projection of the output leaves exactly as it is.
        strength: Of the whole step, in [0, 1].
    """

    operation: Annotated[Literal[HeadOperation, "leace"] | str, NameOf(OPERATION, reserved=True)]
    then: tuple[Annotated[HeadOperation | str, NameOf(OPERATION)], ...] = ()
    target: Literal["heads", "output", "texts", "mlps", "self-attention", "layers"] = "heads"
    heads: tuple[str, ...] = ()
    layers: tuple[Annotated[int, Field(ge=0)], ...] = ()
    concept: str | None = None
    texts: tuple[str, ...] | None = None
    spared: tuple[str, ...] | None = None
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
        if self.spared is not None and self.target == "heads":
            raise ValueError("`spared` goes with a projection of the output or of texts")
        if self.operation == "leace" and self.target != "output":
            raise ValueError("leace acts on the output: write `target: output`")
        return self

    def head_ids(self) -> list[HeadId]:
        """The step's heads."""
        return [HeadId.parse(head) for head in self.heads]


class Base(_Section):
    """The model that the recipe was made for. `weights_hash` and `function` are missing in unbound recipes.

    `function` is what the model computes with its weights (`editor/models/identity.py`); older recipes do not say it.
    """

    model: str
    pretrained: str | None = None
    weights_hash: str | None = None
    function: dict[str, Any] | None = None


class Calibration(_Section):
    """The images that means and refits come from."""

    fingerprint: str
    images: int


class Fold(_Section):
    """How well a `distilled` constant went into the last norm's bias: `residual` of `P'^T b = c`, relative, and `|b|`.

    `ridge` is that of the refit, relative to the mean of the Gram matrix's diagonal; older recipes do not say it.
    """

    residual: float
    bias_norm: float
    ridge: float | None = None


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
    """What the YAML file says.

    Attributes:
        plugins: By operation, the package that it is of and its version, for operations that are not clipedit's own.
    """

    schema_version: Literal[1]
    name: str
    description: str = ""
    source: str = ""
    base: Base
    tower: Side = "image"
    effect: Effect = DEFAULT_EFFECT
    steps: tuple[Step, ...]
    calibration: Calibration | None = None
    fold: Fold | None = None
    tensors: TensorFile | None = None
    plugins: dict[str, str] | None = None
    measured: dict[str, Any] | None = None

    @property
    def heads(self) -> list[str]:
        """All heads that a step names, in order."""
        found = {head for step in self.steps for head in step.head_ids()}
        return [str(head) for head in sorted(found)]


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


def find_recipe_file(folder: Path) -> Path | None:
    """The recipe of a folder that clipedit wrote; None where its model was not edited."""
    return next((folder / name for name in RECIPE_FILES if (folder / name).is_file()), None)


def require_recipe_file(folder: Path) -> Path:
    """As `find_recipe_file`, of a folder that must hold one.

    Raises:
        ExportError: If it does not.
    """
    path = find_recipe_file(folder)
    if path is None:
        raise ExportError(f"cannot report on {folder}: it has no recipe.yaml. Give a folder that `remove-heads` wrote.")
    return path


def split_named_recipe(given: str | Path) -> tuple[str | None, str | Path]:
    """The name and the recipe of `NAME=RECIPE`; without a name None, and what was given."""
    name, sign, path = str(given).partition("=")
    # A path may hold the sign itself.
    return (name, path) if sign and not Path(given).exists() else (None, given)


def load_document(path: str | Path) -> tuple[RecipeDocument, Path]:
    """Read what a recipe says, without its numbers: a file, the name of a shipped one, or a folder that clipedit wrote.

    Returns:
        The document, and the file that it stands in.

    Raises:
        RecipeError: If the file cannot be read, or has unknown keys.
    """
    require_path("read a recipe", path, "a file, a folder, or the name of a shipped recipe")
    path = Path(path)
    # A file or folder of the user's comes before a shipped recipe of that name.
    if not path.exists() and path.suffix not in (".yaml", ".yml"):
        known = list_recipes()
        if str(path) not in known:
            raise RecipeError(f"unknown recipe {str(path)!r}. {nearest_names(str(path), known)} Or give a YAML file.")
        path = known[str(path)]
    path = path / "recipe.yaml" if path.is_dir() else path
    try:
        plain = load_yaml(path)
        return RecipeDocument.model_validate(plain, context=_read_recorded(plain)), path
    except FileNotFoundError:
        raise RecipeError(f"cannot read the recipe {path}: no such file.") from None
    except ValidationError as error:
        raise RecipeError(f"cannot use the recipe {path}: {describe_validation(error)}. Correct it there.") from None
    except (OSError, ValueError) as error:
        raise RecipeError(f"cannot read the recipe {path}: {error}.") from None


def _read_recorded(plain: Any) -> dict[str, Any]:
    """The plugins that a file names: a bound recipe holds what their operations computed, and can do without them."""
    named = plain.get("plugins") if isinstance(plain, dict) else None
    return {"recorded" if plain.get("tensors") else "missing": named} if isinstance(named, dict) else {}


def describe_plugins(steps: Sequence[Step]) -> dict[str, str] | None:
    """The plugins that some steps' operations are of; None where all are clipedit's own."""
    plugins = find_plugins(OPERATION)
    named = {name for step in steps for name in (step.operation, *step.then)}
    return {name: plugins[name].distribution for name in sorted(named) if name in plugins} or None
