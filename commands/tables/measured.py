"""The shapes of what `--json` prints where something is measured or drawn; `outputs.py` has the others."""

from __future__ import annotations

from typing import Any, NotRequired

from pydantic import with_config
from typing_extensions import TypedDict

from .audit_output import CLOSED, Figure


@with_config(CLOSED)
class GroupRow(TypedDict):
    """A group of `evaluate`, with the ends of its 95 % interval."""

    group: str
    n: int
    accuracy: Figure
    low: Figure
    high: Figure


# By model, figures by name; `groups` holds the groups.
EvaluateOutput = dict[str, dict[str, Figure | list[GroupRow]]]


@with_config(CLOSED)
class DrawsRow(TypedDict):
    """Random heads beside an edited model: mean and spread of each figure."""

    draws: int
    mean: dict[str, Figure] | None
    sd: dict[str, Figure]


@with_config(CLOSED)
class SuiteRow(TypedDict):
    """A data set of `evaluate --suite`."""

    set: str
    n: int
    measure: str
    models: EvaluateOutput
    controls: dict[str, DrawsRow]


@with_config(CLOSED)
class SuiteOutput(TypedDict):
    """What `evaluate --suite` prints."""

    sets: list[SuiteRow]


@with_config(CLOSED)
class RivalsOutput(TypedDict):
    """What `evaluate --rivals` prints: of each method its figures, labels, checkpoint and seconds."""

    measure: str
    rows: list[dict[str, str | bool | Figure]]
    left_out: dict[str, str]


@with_config(CLOSED)
class ScoreTestOutput(TypedDict):
    """What `score --test` prints; both by concept and head, and their rank correlations."""

    scores: dict[str, dict[str, Figure]]
    retrieval: dict[str, dict[str, Figure]]
    between: dict[str, Figure]
    within: Figure


@with_config(CLOSED)
class VariantRow(TypedDict):
    """A variant of `completeness`."""

    variant: str
    texts: int | None
    accuracy: Figure
    explained: Figure
    n: int
    low: Figure
    high: Figure


@with_config(CLOSED)
class TrainHeadOutput(TypedDict):
    """What `train-head` prints: the weight decay that did best on a held-out fifth, and how well."""

    decay: float
    held_out_accuracy: float
    n: int
    low: float
    high: float


@with_config(CLOSED)
class TensorRow(TypedDict):
    """A tensor that `diff` found changed."""

    name: str
    part: str
    norm: Figure
    relative: Figure
    heads: dict[str, Figure]


@with_config(CLOSED)
class DiffOutput(TypedDict):
    """What `diff` prints."""

    tensors: int
    changed: list[TensorRow]
    direct: dict[str, Figure]
    others: list[str]
    heads: list[str]
    unknown: str
    steps: list[str]
    same: bool


@with_config(CLOSED)
class FidelityRow(TypedDict):
    """Embeddings of `reindex` beside those of the same edit under `direct`."""

    worst_cosine: Figure
    mean_cosine: Figure
    explained: Figure
    explained_change: Figure
    held_out: bool


@with_config(CLOSED)
class ReindexOutput(TypedDict):
    """What `reindex` prints; no fidelity where no images were given."""

    out: str
    rows: int
    fidelity: dict[str, FidelityRow]


@with_config(CLOSED)
class DrawnRow(TypedDict):
    """A picture of `heatmap`."""

    heads: str
    text: str
    share: Figure
    on_image: Figure
    cells: list[list[Figure]]


@with_config(CLOSED)
class HeatmapOutput(TypedDict):
    """What `heatmap` prints."""

    out: str
    heatmaps: list[DrawnRow]


@with_config(CLOSED)
class UploadRow(TypedDict):
    """A file of `push`."""

    name: str
    bytes: int


@with_config(CLOSED)
class PushOutput(TypedDict):
    """What `push` prints; without `--dry-run` also the commit's name and address, and what was left there."""

    repository: str
    dry_run: bool
    name: NotRequired[str]
    url: NotRequired[str]
    kept: NotRequired[list[str]]
    files: list[UploadRow]
    bytes: int


@with_config(CLOSED)
class PlacesRow(TypedDict):
    """The places of the demo's world."""

    listed: list[str]
    held_out: list[str]


@with_config(CLOSED)
class DemoOutput(TypedDict):
    """What `demo` prints: four rows of figures, and what speaks for them."""

    verdict: str
    because: str
    before: dict[str, Figure]
    after: dict[str, Figure]
    control: dict[str, Any]
    output_projection: NotRequired[dict[str, Figure]]
    differences: dict[str, Any]
    details: dict[str, Any]
    fidelity: dict[str, Any]
    certificate: dict[str, Any] | None
    readable: list[dict[str, Any]]
    places: PlacesRow
    usual_place: dict[str, str]
    heads: list[str]
    files: dict[str, str]
    seconds: dict[str, float]


MEASURED: dict[str, Any] = {
    "ablate-layers": dict[str, list[dict[str, Figure]]],
    "align": dict[str, Figure],
    "completeness": list[VariantRow],
    "demo": DemoOutput,
    "diff": DiffOutput,
    "evaluate": EvaluateOutput,
    "evaluate-rivals": RivalsOutput,
    "evaluate-suite": SuiteOutput,
    "heatmap": HeatmapOutput,
    "push": PushOutput,
    "reindex": ReindexOutput,
    "score-test": ScoreTestOutput,
    "train-head": TrainHeadOutput,
}
