"""The labelled half: classes that are asked for, what each image should answer, and the figures that follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ....editor.components import Features
from ....editor.concepts.class_weights import compute_class_weights
from ....editor.concepts.concepts import Concept
from ....editor.errors import ImageError
from ....editor.images.demo import COLOR_WORDS, COLORS, PLACES, SHAPES, test_source
from ....editor.images.demo_name import is_demo
from ....editor.images.labelled_options import LabelledOptions
from ....editor.images.layouts import Dataset, open_dataset
from ....editor.images.source import ImageSource, LabelledImages
from ....editor.measure.demo_measure import task_weights
from ....editor.measure.evaluate import build_demo_yardstick, build_yardstick
from ....editor.measure.intervals import Outcomes, compute_figure
from ....editor.measure.readable import LEAST_IMAGES, column_weights, describe_images, find_column
from ....editor.measure.verdict import GOALS, KEPT
from ....editor.models.model import Model
from ....editor.scan.collect import collect_features
from ....editor.scan.scan import Scan
from ....editor.scan.tally import Progress

READ, SATURATED = "read: ", 0.99
_TITLES = GOALS | KEPT | {"place_accuracy": "place (still readable)"}


@dataclass(frozen=True)
class Question:
    """Zero-shot classes, and which is right for each image; -1 where none is. Scores are products with `weights`."""

    name: str
    classes: tuple[str, ...]
    weights: Float[Tensor, "class d_embed"]
    right: tuple[int, ...]


@dataclass(frozen=True)
class Cell:
    """Some images of a figure, by position, and the classes that are told apart; None for all."""

    images: tuple[int, ...]
    among: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Figure:
    """The mean over tasks of the worst cell's accuracy, as `evaluate` computes it; `question` is a position."""

    key: str
    title: str
    question: int
    tasks: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Labelled:
    """Labelled images as the desk asks them.

    Attributes:
        source: The images that could be read, in the order of `features`.
        strata: The group of each image: intervals are drawn within them.
        groups: Groups that are shown as bars, by name: positions of their images.
        readable: Concepts that a column of these images names, by name: the key of their figure.
        total: How many images there were before some were chosen.
        kept: The figure that a search must not lower.
    """

    source: ImageSource
    features: Features
    questions: tuple[Question, ...]
    figures: tuple[Figure, ...]
    groups: dict[str, tuple[int, ...]]
    strata: tuple[str, ...]
    measure: str
    total: int
    readable: dict[str, str]
    kept: str


def open_labelled_images(
    scan: Scan,
    model: Model,
    dataset: Dataset,
    labels: LabelledOptions | None,
    concepts: Sequence[Concept],
    *,
    count: int,
    progress: Progress | None = None,
) -> Labelled:
    """Read labelled images: at most `count`, in the shares that groups have among all.

    Raises:
        ImageError: If images or labels cannot be read, or the set has queries in place of classes.
    """
    options = labels or LabelledOptions()
    task = open_dataset(dataset, options)
    demo = is_demo(task)
    if not demo and (not isinstance(task, LabelledImages) or task.options):
        raise ImageError(
            "cannot lay out these images on the desk: they have queries or captions of their own in place of classes. "
            "Give images with classes, or leave out --dataset."
        )
    total, task, source = _choose(task, count)
    features, kept = collect_features(model, source, layers=scan.layers, progress=progress)
    yardstick = (
        build_demo_yardstick(model, source) if demo else build_yardstick(model, task, templates=options.templates)
    )
    questions = _ask_demo(model, source, kept) if demo else _ask(model, task, kept, options)
    outcomes, strata = yardstick.outcomes(features.embedding, kept)
    found = Labelled(
        source.subset(kept),
        features,
        tuple(questions),
        tuple(_build_figures(outcomes, questions, demo=demo)),
        _find_groups([source.attributes[index]["place"] for index in kept] if demo else strata),
        tuple(strata),
        yardstick.measure,
        total,
        {},
        _choose_kept(outcomes),
    )
    rows = describe_images(task, source)
    return _ask_concepts(found, model, concepts, [rows[index] for index in kept])


def _choose(task: Dataset, count: int) -> tuple[int, Dataset, ImageSource]:
    """How many images there are; and at most `count` of them, as a set and as a source."""
    if isinstance(task, LabelledImages):
        chosen = _take(task, _spread(task.groups, count))
        return len(task.source), chosen, chosen.source
    source = test_source()
    taken = _spread([f"{row['shape']} / {row['place']}" for row in source.attributes], count)
    return len(source), task, source.subset(taken)


def _spread(groups: Sequence[str], count: int) -> list[int]:
    """Every so many images in the order of groups: each group keeps its share."""
    order = np.argsort(np.asarray(groups), kind="stable")
    places = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
    return sorted(order[np.unique(places)].tolist())


def _take(task: LabelledImages, taken: Sequence[int]) -> LabelledImages:
    def pick(values: Sequence) -> tuple:
        return tuple(values[index] for index in taken) if values else ()

    return replace(
        task,
        source=task.source.subset(taken),
        labels=pick(task.labels),
        groups=pick(task.groups),
        subsets=pick(task.subsets),
        written=pick(task.written),
        retention=task.retention and _take(task.retention, taken),
    )


def _ask(model: Model, task: Dataset, kept: Sequence[int], options: LabelledOptions) -> list[Question]:
    assert isinstance(task, LabelledImages)
    # A set may bring its own prompts.
    templates = task.templates or options.templates
    asked = {"classes": task} | ({"retention": task.retention} if task.retention is not None else {})
    return [
        _question(
            name,
            one.classes,
            compute_class_weights(model, one.classes, templates, published=bool(one.templates)),
            one.labels,
            kept,
        )
        for name, one in asked.items()
    ]


def _ask_demo(model: Model, source: ImageSource, kept: Sequence[int]) -> list[Question]:
    weights, rows = task_weights(model), source.attributes
    named = {"shape": (SHAPES, SHAPES), "color": (COLOR_WORDS, COLORS), "place": (PLACES, PLACES)}
    return [
        _question(name, words, weights[name], [values.index(row[name]) for row in rows], kept)
        for name, (words, values) in named.items()
    ]


def _question(
    name: str, classes: Sequence[str], weights: Tensor, right: Sequence[int], kept: Sequence[int]
) -> Question:
    # Less their mean: what all classes have in common decides nothing, and would cost digits.
    apart = weights.double() - weights.double().mean(0)
    return Question(name, tuple(classes), apart, tuple(right[index] for index in kept))


def _build_figures(outcomes: Outcomes, questions: Sequence[Question], *, demo: bool) -> list[Figure]:
    """From whose images decide what, as `evaluate` finds it, to figures that can be computed again for any edit."""
    names = [question.name for question in questions]
    asked = {"retention": "color" if demo else "retention", "place_accuracy": "place"}
    found = []
    for key, tasks in outcomes.items():
        at = names.index(asked[key]) if key in asked else 0
        # The demo's pairs tell two shapes apart, those of the pair's images.
        pairs = demo and key.startswith("worst_group")
        cells = [[tuple(cell.images.tolist()) for cell in task] for task in tasks]
        among = [tuple(sorted({questions[at].right[i] for images in task for i in images})) for task in cells]
        found.append(
            Figure(
                key,
                _TITLES.get(key, key),
                at,
                tuple(
                    tuple(Cell(images, told if pairs else None) for images in task)
                    for task, told in zip(cells, among, strict=True)
                ),
            )
        )
    return found


def _choose_kept(outcomes: Outcomes) -> str:
    """Retention, where it can still tell edits apart: a second task without errors cannot."""
    retention = outcomes.get("retention")
    return "retention" if retention and compute_figure(retention) < SATURATED else "overall"


def _find_groups(names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    every = np.asarray(names)
    return {str(name): tuple(np.flatnonzero(every == name).tolist()) for name in np.unique(every)}


def _ask_concepts(found: Labelled, model: Model, concepts: Sequence[Concept], rows: Sequence[dict]) -> Labelled:
    """Concepts that a column names are read zero-shot, as `remove-heads` reads them: the mean of the instances."""
    for concept in concepts:
        column = find_column(concept, rows)
        if column is None or len(column.rows) < LEAST_IMAGES:
            continue
        right = [-1] * len(rows)
        for row, instance in zip(column.rows, column.found, strict=True):
            right[row] = instance
        named = [texts[0] for texts in column.texts]
        question = _question(concept.name, named, column_weights(model, column), right, range(len(rows)))
        # One task for each instance: the figure is the mean over them.
        cells = [
            tuple(i for i, value in enumerate(right) if value == instance) for instance in sorted(set(right) - {-1})
        ]
        figure = Figure(
            f"{READ}{concept.name}", concept.name, len(found.questions), tuple((Cell(images),) for images in cells)
        )
        found = replace(
            found,
            questions=(*found.questions, question),
            figures=(*found.figures, figure),
            readable=found.readable | {concept.name: figure.key},
        )
    return found
