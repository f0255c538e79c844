"""Many data sets at once: models side by side on each, with the matched control of every edited one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...files.whole import require_free_folder
from ...images.layouts import open_dataset
from ...models.model import Model
from ...scan.collect import BATCH_SIZE
from ...scan.tally import Progress
from ..control import ControlRows, load_edits, prepare_controls
from ..evaluate import evaluate
from ..table import Details, FigureTable, FlatRow
from .clip_benchmark import write_result
from .suite_file import SuiteSet

# How the rows of random heads are called.
CONTROL = "random heads"


@dataclass(frozen=True)
class SuiteResult:
    """What was found on one data set.

    Attributes:
        name: What the suite calls the set.
        table: A row for each model.
        controls: By model, the same edit with other heads; none for models that are no edit.
    """

    name: str
    table: FigureTable
    controls: Mapping[str, ControlRows]

    def lines(self) -> Iterator[tuple[str, Mapping[str, float], Details, Mapping[str, float]]]:
        """Each model and each control: its name, figures, details and the spread over draws."""
        for model, row in self.table.items():
            yield model, row, self.table.details.get(model, Details()), {}
            control = self.controls.get(model)
            if control is not None and "control" in control.rows:
                yield f"{model}, {CONTROL}", control.rows["control"], Details(), control.spread

    @property
    def n(self) -> int | None:
        """How many images, or questions where there are no classes."""
        first = next(iter(self.table.details.values()), Details()).figures
        found = first.get("overall") or first.get("text_retrieval_recall@1") or next(iter(first.values()), None)
        return found and found.n

    @property
    def rows(self) -> list[FlatRow]:
        """Flat rows, as those of `FigureTable`, with the name of the set and the spread of a control."""
        return [
            flat | {"sd": spread.get(flat["figure"])}
            for model, row, details, spread in self.lines()
            for flat in details.flat(row, set=self.name, model=model)
        ]

    def report(self) -> dict[str, Any]:
        """Plain data."""
        controls = {
            model: {"draws": len(found.drawn), "mean": found.rows.get("control"), "sd": found.spread}
            for model, found in self.controls.items()
            if found.drawn
        }
        models = self.table.report()
        return {"set": self.name, "n": self.n, "measure": self.table.measure, "models": models, "controls": controls}


def evaluate_suite(
    models: Mapping[str, Model],
    sets: Sequence[SuiteSet],
    *,
    batch_size: int = BATCH_SIZE,
    follow: Callable[[str], Progress] | None = None,
) -> list[SuiteResult]:
    """Measure models on every set of a suite, with random heads beside each that `remove-heads` wrote.

    Whatever is wrong with a set is said before anything is measured.

    Args:
        models: By name; of folders the name is the path.
        follow: Gives what is told of the progress of each stage.

    Raises:
        ImageError: If a data set cannot be read; the message begins with its name in the suite.
    """
    opened = [(one, one.read(open_dataset)) for one in sets]
    edits = load_edits(models)
    found = []
    for one, task in opened:
        told = follow(one.name) if follow else None
        shared: dict[str, Any] = {"batch_size": batch_size, "progress": told}
        known, draws = prepare_controls(edits, models, task, **shared)
        table = evaluate(models, task, labels=one.options, known=known, **shared)
        controls = {name: draw(task, templates=one.options.templates, progress=told) for name, draw in draws.items()}
        found.append(SuiteResult(one.name, table, controls))
    return found


def write_results(folder: Path, results: Sequence[SuiteResult], *, overwrite: bool = False) -> list[Path]:
    """CLIP_benchmark's file for each set that it has a task for, and each model.

    Raises:
        ExportError: If the folder is not free, or cannot be written.
    """
    require_free_folder(folder, overwrite=overwrite)
    return [
        write_result(folder, found.name, model, benchmark)
        for found in results
        for model, benchmark in found.table.benchmarks.items()
    ]
