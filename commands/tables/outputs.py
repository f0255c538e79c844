"""The shapes of what `--json` prints, with those of `measured.py`; `clipedit schema` makes a JSON Schema of each.

Figures are numbers, or null where there is none: JSON has no NaN.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired

from pydantic import TypeAdapter, with_config
from typing_extensions import TypedDict

from ...editor.concepts.concepts import Concept
from ...editor.edits.document import RecipeDocument
from ...editor.errors import ClipeditError, nearest_names
from .audit_output import CLOSED, AuditOutput, Figure, LabelRow
from .measured import MEASURED


@with_config(CLOSED)
class ConceptRow(TypedDict):
    """A concept of `concepts list`."""

    name: str
    texts: int
    description: str


@with_config(CLOSED)
class ScoreRow(TypedDict):
    """A component of `score`, best first."""

    component: str
    concept: Figure
    keep: Figure
    score: Figure


@with_config(CLOSED)
class CheckRow(TypedDict):
    """A comparison of an export with the model; `verify` says of each whether it holds."""

    name: str
    figure: Figure
    relation: Literal["<=", ">="]
    tolerance: float
    holds: NotRequired[bool]


@with_config(CLOSED)
class DriftRow(TypedDict):
    """A head of `monitor`."""

    mean_shift: Figure
    covariance_distance: Figure
    drifted: bool


@with_config(CLOSED)
class ConceptDriftRow(TypedDict):
    """A concept of `monitor`, in the scan and in what is new; selectivity is null of stored vectors."""

    selectivity_then: Figure
    selectivity_now: Figure
    share_then: Figure
    share_now: Figure
    mean_shift: Figure


@with_config(CLOSED)
class MonitorOutput(TypedDict):
    """What `monitor` prints; the verdict where a recipe was measured again."""

    verdict: NotRequired[str]
    because: NotRequired[str]
    images: int
    calibration_images: int
    limit: float
    heads: dict[str, DriftRow]
    embedding: DriftRow | None
    concepts: dict[str, ConceptDriftRow]
    drifted: list[str]
    re_measure: bool


@with_config(CLOSED)
class ReadableRow(TypedDict):
    """How well a concept can be read before and after an edit."""

    concept: str
    edited: bool
    measure: str
    before: Figure
    after: Figure
    images: int
    instances: int
    column: str | None
    left_out: bool


@with_config(CLOSED)
class LeanRow(TypedDict):
    """How much the classes lean on a concept that was removed: the share of the variance of their margins along it,
    and of how many percent of random texts it is above.
    """

    concept: str
    share: Figure
    percentile: Figure
    leant_on: bool
    because: str


@with_config(CLOSED)
class RepairOutput(TypedDict):
    """What `remove-heads` prints; `measured` is what the recipe keeps."""

    verdict: str
    because: str
    certificate: dict[str, Any] | None
    readable: list[ReadableRow]
    leans: list[LeanRow]
    interactions: NotRequired[list[dict[str, Any]]]
    heads: list[str]
    notes: list[str]
    measured: dict[str, Any]
    out: str | None
    checks: list[CheckRow]


@with_config(CLOSED)
class WeighedRow(TypedDict):
    """An edit that was weighed: shares of variance."""

    heads: int
    output_strength: float
    removed: Figure
    elsewhere: Figure
    of: str


@with_config(CLOSED)
class PlannedConcept(TypedDict):
    """A concept of a dry run: whether a few heads hold it, what was weighed, and the best of that."""

    concept: str
    verdict: Literal["held", "other", "absent"]
    because: str
    selectivity: Figure
    interval: list[Figure]
    weighed: list[WeighedRow]
    chosen: WeighedRow


@with_config(CLOSED)
class PlanOutput(TypedDict):
    """What `remove-heads --dry-run` prints."""

    recipe: str
    heads: list[str]
    effect: str
    steps: list[dict[str, Any]]
    concepts: list[PlannedConcept]
    refused: str | None


@with_config(CLOSED)
class ExportOutput(TypedDict):
    """What `export` prints; the verdict where the model was edited."""

    verdict: NotRequired[str]
    because: NotRequired[str]
    out: str
    checks: list[CheckRow]


@with_config(CLOSED)
class BaseRow(TypedDict):
    """The base in `log`."""

    model: str
    pretrained: str | None
    weights_hash: str | None


@with_config(CLOSED)
class EditRow(TypedDict):
    """An edit in `log`."""

    recipe: str
    effect: str
    heads: list[str]
    base: str | None
    replaced: list[str]
    changed_before: list[str]


@with_config(CLOSED)
class LogOutput(TypedDict):
    """What `log` prints: the first edit first."""

    base: BaseRow
    edits: list[EditRow]
    changed: list[str]


@with_config(CLOSED)
class HitRow(TypedDict):
    """An image that `retrieve` found."""

    name: str
    similarity: Figure
    position: int


@with_config(CLOSED)
class RetrieveOutput(TypedDict):
    """What `retrieve` prints: the heads that images were compared by, why they are a poor guide, and the images."""

    heads: list[str]
    because: str
    images: list[HitRow]


@with_config(CLOSED)
class DifferenceRow(TypedDict):
    """What `reproduce` found otherwise than recorded."""

    severity: str
    what: str
    recorded: str
    found: str


@with_config(CLOSED)
class ModelRow(TypedDict):
    """A model of `models`; `reason` says why it cannot be edited."""

    family: str
    library: str
    model: str
    tower: str | None
    heads_per_layer: list[int]
    effects: list[str]
    reason: str | None


@with_config(CLOSED)
class PluginRow(TypedDict):
    """A plugin of `plugins`; `reason` says why it cannot be used."""

    kind: Literal["layout", "operation", "selector", "target", "tower"]
    name: str
    package: str
    reason: str | None


OUTPUTS: dict[str, Any] = {
    "audit": AuditOutput,
    "concepts-list": list[ConceptRow],
    "dry-run": PlanOutput,
    "export": ExportOutput,
    "label": dict[str, list[LabelRow]],
    "log": LogOutput,
    "models": list[ModelRow],
    "monitor": MonitorOutput,
    "plugins": list[PluginRow],
    "remove-heads": RepairOutput,
    "reproduce": list[DifferenceRow],
    "retrieve": RetrieveOutput,
    "score": list[ScoreRow],
    "verify": list[CheckRow],
    **MEASURED,
}


def _describe_concept() -> dict[str, Any]:
    # A file that groups its texts by instance does not list them again.
    found = Concept.model_json_schema()
    found["required"].remove("texts")
    return found | {"anyOf": [{"required": ["texts"]}, {"required": ["instances"]}]}


def _describe_listed_recipes() -> dict[str, Any]:
    # A recipe's file, and all heads that its steps name.
    row = RecipeDocument.model_json_schema()
    row["properties"]["heads"] = {"type": "array", "items": {"type": "string"}}
    row["required"].append("heads")
    return {"type": "array", "$defs": row.pop("$defs"), "items": row}


# Those that are not of one type.
_DESCRIBED = {
    "concept": _describe_concept,
    "recipe": RecipeDocument.model_json_schema,
    "recipes-list": _describe_listed_recipes,
}
NAMES = ("concept", "recipe", *sorted({*OUTPUTS, "recipes-list"}))


def make_schema(name: str) -> dict[str, Any]:
    """The JSON Schema of a file, or of what a command prints.

    Raises:
        ClipeditError: If there is none of that name.
    """
    if name not in NAMES:
        raise ClipeditError(f"cannot print the schema {name}: there is none. {nearest_names(name, NAMES)}")
    return _DESCRIBED[name]() if name in _DESCRIBED else TypeAdapter(OUTPUTS[name]).json_schema()
