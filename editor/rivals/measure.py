"""Rivals measured on the same labelled images as the models that they stand beside; images are read once for all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..components import Features
from ..errors import ClipeditError, ImageError
from ..images.demo import SHAPES
from ..images.demo_name import is_demo
from ..images.layouts import Dataset
from ..images.skew import RetrievalSet
from ..images.source import ImageSource, LabelledImages
from ..measure.demo_measure import SHAPE_TEMPLATES
from ..measure.evaluate import Measure, Yardstick, build_yardstick
from ..models.model import Model
from ..scan.collect import collect_embeddings, collect_features
from ..scan.tally import Progress
from .roster import METHODS
from .setting import Setting

UNEDITED = "unedited"


@dataclass(frozen=True)
class RivalRow:
    """What one method gives.

    Attributes:
        figures: As `evaluate` gives them.
        labels: Whether it is fitted to labels.
        plain: Whether an ordinary checkpoint holds the result.
        seconds: To make it, from a scan on.
    """

    figures: Mapping[str, float]
    labels: bool = False
    plain: bool = True
    seconds: float = 0.0


@dataclass
class RivalTable:
    """A row for each method, by its name.

    Attributes:
        measure: In words, what was measured.
        left_out: Methods that could not be made here, and why.
    """

    measure: str
    methods: dict[str, RivalRow] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Flat dictionaries with the same keys."""
        return [
            {
                "method": name,
                **row.figures,
                "labels_used": row.labels,
                "plain_checkpoint": row.plain,
                "seconds": round(row.seconds, 1),
            }
            for name, row in self.methods.items()
        ]

    def report(self) -> dict[str, Any]:
        """Plain data."""
        return {"measure": self.measure, "rows": self.rows, "left_out": self.left_out}


def measure_rivals(
    setting: Setting,
    dataset: Dataset,
    *,
    others: Mapping[str, Model] | None = None,
    progress: Progress | None = None,
) -> RivalTable:
    """Every method that can be made of a model, beside the model itself and others.

    Args:
        dataset: The images to report on: none of those that the setting holds.
        others: Models to measure as they are, such as an edit of one's own.

    Raises:
        ImageError: If images or labels cannot be read.
    """
    model = setting.model

    def yardstick(one: Model) -> Yardstick:
        return build_yardstick(one, dataset, templates=setting.templates)

    own = yardstick(model)

    def judge(one: Model) -> Measure:
        return (own if one is model else yardstick(one)).figures

    # What the last norm gave is all that a readout needs: no method changes what lies before it.
    features, kept = collect_features(model, own.source, layers=(), progress=progress)
    table = RivalTable(own.measure, {UNEDITED: RivalRow(own.figures(features.embedding, kept))})
    for name, other in (others or {}).items():
        # Not their features: what a `direct` edit changes is the embedding alone.
        embedded = collect_embeddings(other, own.source, progress=progress)
        table.methods[name] = RivalRow(yardstick(other).figures(*embedded))
    for name, found in measure_methods(setting, features, kept, judge):
        if isinstance(found, str):
            table.left_out[name] = found
        else:
            table.methods[name] = found
    return table


def measure_methods(
    setting: Setting, features: Features, kept: Sequence[int], judge: Callable[[Model], Measure]
) -> Iterator[tuple[str, RivalRow | str]]:
    """Every method in turn: its row, or why it could not be made here.

    Args:
        features, kept: Of the images to report on, from the unedited model, and their positions.
        judge: How embeddings of these images are measured with a model's texts.
    """
    model = setting.model
    own = judge(model)
    for name, method in METHODS.items():
        started = time.perf_counter()
        try:
            rival = method.make(setting)
        except ClipeditError as error:
            yield name, str(error)
            continue
        seconds = time.perf_counter() - started
        # Classes are asked of the method's own texts, which may be what it changes.
        measure = judge(rival.apply(model)) if rival.texts else own
        figures = measure(rival.embed(model, features), kept)
        yield name, RivalRow(figures, method.labels, rival.is_plain, seconds)


def classes_of(dataset: Dataset, templates: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The words that are told apart in a data set, and their prompts.

    Raises:
        ImageError: If it has none, as sets of captions.
    """
    if is_demo(dataset):
        return SHAPES, SHAPE_TEMPLATES
    if isinstance(dataset, RetrievalSet):
        return tuple(dataset.queries), templates
    if not isinstance(dataset, LabelledImages):
        raise ImageError("cannot compare rivals on these images: they have no classes. Give images with classes.")
    return dataset.classes, templates


def source_of(dataset: Dataset) -> ImageSource | None:
    """The images of a data set; None of the demo's, which are apart from all others by themselves."""
    return dataset.source if isinstance(dataset, LabelledImages | RetrievalSet) else None
