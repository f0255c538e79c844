"""The control and the baseline that stand beside every edit: random heads, and the output projection without heads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ..components import HeadId
from ..concepts.class_weights import DEFAULT_TEMPLATES
from ..edits.apply import apply_recipe
from ..edits.bind import bind_recipe
from ..edits.document import RecipeDocument, Step
from ..edits.recipe import Recipe, load_recipe
from ..images.layouts import Dataset
from ..images.source import ImageSource
from ..load import RECIPE_NAME, FolderEdit, find_missing, load_edit
from ..models.model import Model
from ..scan.collect import BATCH_SIZE, LabelledEmbeddings, collect_embeddings
from ..scan.scan import Scan
from ..scan.tally import Progress
from ..select.plan import draw_random_heads
from .evaluate import Measure, Yardstick, build_measure, build_yardstick
from .fidelity import Embedded, embed_edit, read_for_all, read_once
from .intervals import Difference
from .readable import Answers, describe_images
from .table import Details
from .verdict import Verdict, compare_models, judge_edit, judge_nothing

DRAWS = 10
SIDES = ("before", "after")


@dataclass(frozen=True)
class MeasuredEdit:
    """What an edit changed.

    Attributes:
        rows: `before`, `after`, `control` and, where the recipe edits the output, `output_projection`.
        differences: By figure, from before to after, with paired intervals; none where nothing is right or wrong.
        spread: The standard deviation of every figure over the draws of random heads.
        rank: How many draws of random heads do at least as well as the edit, by figure.
        draws: How many draws there were.
        answers: Embeddings of the labelled images, before and after.
        attributes: What is known of each of these images, by column.
        details: Of `before` and `after`, numbers of images, intervals and groups.
        source: The images.
        measure: In words, what was measured.
    """

    rows: dict[str, dict[str, float]]
    differences: Mapping[str, Difference] = field(default_factory=dict)
    spread: Mapping[str, float] = field(default_factory=dict)
    rank: Mapping[str, int] = field(default_factory=dict)
    draws: int = 0
    answers: tuple[Answers, Answers] | None = None
    attributes: Sequence[Mapping[str, str]] = ()
    details: Mapping[str, Details] = field(default_factory=dict)
    source: ImageSource | None = None
    measure: str = ""

    @property
    def verdict(self) -> Verdict:
        """Whether the edit helps, and why."""
        if self.rows and not self.differences:
            return judge_nothing(self.rows["before"], self.rows["after"])
        return judge_edit(
            self.differences,
            control=self.rows.get("control"),
            control_sd=self.spread,
            projection=self.rows.get("output_projection"),
        )

    def report(self) -> dict[str, Any]:
        """What the rows do not say, as plain data."""
        verdict = self.verdict
        return {
            "verdict": verdict.word,
            "because": verdict.because,
            "measure": self.measure,
            "differences": {name: {**vars(found), "change": found.change} for name, found in self.differences.items()},
            "control_spread": {"sd": dict(self.spread), "rank": dict(self.rank), "draws": self.draws},
            "details": {name: found.report() for name, found in self.details.items()},
        }


def measure_edit(
    recipe: Recipe,
    scan: Scan,
    model: Model,
    dataset: Dataset,
    *,
    templates: Sequence[str] = DEFAULT_TEMPLATES,
    labelled: LabelledEmbeddings | None = None,
    draws: int = DRAWS,
    progress: Progress | None = None,
) -> MeasuredEdit:
    """Before and after an edit, beside random heads and the projection alone, with intervals and the verdict.

    After is what the edited model itself gives, with weights rounded as on disk.

    Args:
        templates: Prompts of the classes.

    Raises:
        ImageError: If images or labels cannot be read.
    """
    shared: dict[str, Any] = {"templates": templates, "labelled": labelled, "draws": draws, "progress": progress}
    if recipe.document.tower == "text":
        return measure_text_edit(recipe, scan, model, dataset, **shared)
    edited = apply_recipe(recipe, model)
    # One each: of a classifier the edited answers are those of its edited head.
    sides = [build_yardstick(one, dataset, templates=templates, by_group=True) for one in (model.editable, edited)]
    source, measure = sides[0].source, sides[0].figures
    embedded = embed_edit(recipe, scan, model, edited, source, progress=progress)
    before, after = embedded.before, embedded.after
    controls = measure_controls(
        recipe, scan, model, lambda bound: measure(*embedded.embed(bound)), labelled=labelled, draws=draws
    )
    found = compare_sides(sides, [before, after], controls)
    answers = Answers(model.editable, *before), Answers(edited, *after)
    return replace(found, answers=answers, attributes=describe_images(dataset, source))


def compare_sides(
    sides: Sequence[Yardstick],
    embedded: Sequence[tuple[Float[Tensor, "image d_embed"], Sequence[int]]],
    controls: ControlRows,
) -> MeasuredEdit:
    """What was found before and after an edit, each side by its own yardstick."""
    rows = {name: side.figures(*found) for name, side, found in zip(SIDES, sides, embedded, strict=True)}
    differences = compare_models(*(side.outcomes(*found) for side, found in zip(sides, embedded, strict=True)))
    details = {name: side.details(*found) for name, side, found in zip(SIDES, sides, embedded, strict=True)}
    found = put_together(rows, controls, differences)
    return replace(found, details=details, source=sides[0].source, measure=sides[0].measure)


def put_together(
    rows: dict[str, dict[str, float]], controls: ControlRows, differences: Mapping[str, Difference]
) -> MeasuredEdit:
    """Before and after, the controls beside them, and what can be said of both."""
    drawn, after = controls.drawn, rows["after"]
    rank = {key: sum(row[key] >= after[key] for row in drawn) for key in (drawn[0] if drawn else ()) if key in after}
    return MeasuredEdit(rows | controls.rows, differences, controls.spread, rank, len(drawn))


def explain_no_control(folder: Path) -> str | None:
    """Why there can be no row of random heads beside a model; None where there is one."""
    missing = find_missing(folder)
    if missing == RECIPE_NAME:
        return f"{folder} was not edited by clipedit: it has no {RECIPE_NAME}"
    if missing is not None:
        return f"{folder} does not hold the scan that its edit was made from; `remove-heads` writes it there"
    if not load_recipe(folder).heads:
        return f"the recipe of {folder} edits no heads, so that random ones would change nothing either"
    return None


def load_edits(folders: Iterable[str]) -> dict[str, FolderEdit]:
    """The edits of the folders that hold their recipe and scan; others have no controls.

    Raises:
        ModelError: If the base that a scan names cannot be loaded.
    """
    return {folder: load_edit(Path(folder)) for folder in folders if find_missing(Path(folder)) is None}


def prepare_controls(
    edits: Mapping[str, FolderEdit],
    models: Mapping[str, Model],
    dataset: Dataset,
    *,
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
) -> tuple[dict[str, Embedded], dict[str, Callable[..., ControlRows]]]:
    """What one reading of the images gives of models, and how the controls of each folder are drawn from it.

    Args:
        edits: By the name of their folder, as `load_edits` gives them.
        models: Those that are to be measured, by name.

    Returns:
        Embeddings for `evaluate`, by the name of the model; for each folder, `draw_edit_controls` of its edit.
    """
    known: dict[str, Embedded] = {}
    controls: dict[str, Callable[..., ControlRows]] = {}
    for folder, edit in edits.items():
        source = build_yardstick(edit.base, dataset).source
        found, embed = read_for_all(edit, models, source, batch_size=batch_size, progress=progress)
        # What an earlier reading gave of the base is the same.
        known = found | known
        controls[folder] = partial(draw_edit_controls, edit, embed=embed)
    return known, controls


def draw_edit_controls(
    edit: FolderEdit,
    dataset: Dataset,
    *,
    templates: Sequence[str] = DEFAULT_TEMPLATES,
    embed: Callable[[Recipe], Embedded] | None = None,
    progress: Progress | None = None,
) -> ControlRows:
    """As `draw_controls`, of a folder's own edit, on either tower."""
    recipe, scan, base = edit.recipe, edit.scan, edit.base
    if recipe.document.tower == "text":
        source = build_yardstick(base, dataset, templates=templates).source
        embedded = collect_embeddings(base, source, progress=progress)
        figures = partial(_measure_texts, base, dataset, templates, embedded)
        return measure_controls(recipe, scan, base, figures)
    source, measure = build_measure(base.editable, dataset, templates=templates)
    return draw_controls(recipe, scan, base, source, measure, embed=embed, progress=progress)


def draw_controls(
    recipe: Recipe,
    scan: Scan,
    model: Model,
    source: ImageSource,
    measure: Measure,
    *,
    labelled: LabelledEmbeddings | None = None,
    draws: int = DRAWS,
    embed: Callable[[Recipe], Embedded] | None = None,
    progress: Progress | None = None,
) -> ControlRows:
    """`control`: mean of `draws` recipes with random heads; `output_projection`: the recipe without its heads; and the
    figures of every draw.

    `direct` and `distilled` recipes share one pass over the images; `total` ones run the model once a draw.

    Args:
        embed: Embeddings of these images by any like recipe, where they were read already.
    """
    read = embed or read_once(recipe, scan, model, source, progress)[1]
    return measure_controls(recipe, scan, model, lambda bound: measure(*read(bound)), labelled=labelled, draws=draws)


def measure_text_edit(
    recipe: Recipe,
    scan: Scan,
    model: Model,
    dataset: Dataset,
    *,
    templates: Sequence[str] = DEFAULT_TEMPLATES,
    labelled: LabelledEmbeddings | None = None,
    draws: int = DRAWS,
    progress: Progress | None = None,
) -> MeasuredEdit:
    """As `measure_edit`, of an edit of the text tower: images are embedded once, classes by every edited model."""
    edited = apply_recipe(recipe, model)
    sides = [build_yardstick(one, dataset, templates=templates, by_group=True) for one in (model, edited)]
    embedded = collect_embeddings(model, sides[0].source, progress=progress)
    figures = partial(_measure_texts, model, dataset, templates, embedded)
    controls = measure_controls(recipe, scan, model, figures, labelled=labelled, draws=draws)
    found = compare_sides(sides, [embedded, embedded], controls)
    answers = Answers(model, *embedded), Answers(edited, *embedded)
    return replace(found, answers=answers, attributes=describe_images(dataset, sides[0].source))


def _measure_texts(
    model: Model, dataset: Dataset, templates: Sequence[str], embedded: tuple[Tensor, Sequence[int]], bound: Recipe
) -> dict[str, float]:
    """The figures of an edit of the text tower, which the embeddings of images do not see."""
    return build_measure(apply_recipe(bound, model), dataset, templates=templates)[1](*embedded)


@dataclass(frozen=True)
class ControlRows:
    """Rows beside an edit, and those of every draw of random heads."""

    rows: dict[str, dict[str, float]]
    drawn: Sequence[Mapping[str, float]]

    @property
    def spread(self) -> dict[str, float]:
        """The standard deviation of every figure over the draws; none of fewer than two."""
        first = self.drawn[0] if len(self.drawn) > 1 else {}
        # Of a sample of draws, hence ddof=1.
        return {key: float(np.std([row[key] for row in self.drawn], ddof=1)) for key in first}


def measure_controls(
    recipe: Recipe,
    scan: Scan,
    model: Model,
    figures: Callable[[Recipe], dict[str, float]],
    *,
    labelled: LabelledEmbeddings | None = None,
    draws: int = DRAWS,
) -> ControlRows:
    """As `draw_controls`, from a function that gives the figures of a bound recipe."""
    heads = [HeadId(layer, head) for layer in scan.layers for head in range(model.tower.heads_per_layer[layer])]
    rows: dict[str, dict[str, float]] = {}
    documents = draw_control_documents(recipe.document, heads, draws=draws)
    drawn = [figures(bind_recipe(document, scan, model, labelled=labelled)) for document in documents]
    if drawn:
        rows["control"] = mean_rows(drawn)
    # The baseline that needs no heads: the same projection of the output, alone.
    outputs = tuple(step for step in recipe.document.steps if step.target == "output")
    if outputs:
        projection = recipe.document.model_copy(update={"steps": outputs})
        rows["output_projection"] = figures(bind_recipe(projection, scan, model, labelled=labelled))
    return ControlRows(rows, drawn)


def draw_control_documents(
    document: RecipeDocument, scanned: Sequence[HeadId], *, draws: int = DRAWS, seed: int = 0
) -> Iterator[RecipeDocument]:
    """The same recipe with random heads: as many per layer, the same operations and projection of the output."""
    # Seeded, so that the same recipe always meets the same controls.
    generator = np.random.default_rng(seed)
    for _ in range(draws if any(step.target == "heads" for step in document.steps) else 0):
        yield document.model_copy(
            update={"steps": tuple(_with_random_heads(step, scanned, generator) for step in document.steps)}
        )


def _with_random_heads(step: Step, scanned: Sequence[HeadId], generator: np.random.Generator) -> Step:
    if step.target != "heads":
        return step
    drawn = draw_random_heads(scanned, step.head_ids(), generator)
    return step.model_copy(update={"heads": tuple(map(str, drawn))})


def mean_rows(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of several measurements, column by column."""
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
