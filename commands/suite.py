"""`evaluate --suite`: many data sets in one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from .console import compare_with_first, print_json, print_table, progress, say
from .load import open_all
from .options import given

if TYPE_CHECKING:
    from ..editor.measure.benchmarks.suite import SuiteResult

# Columns of their own; all other figures stand in the last one.
_COLUMNS = ("overall", "worst_group", "retention")
_LEGEND = "random heads: the mean and standard deviation over draws of as many other heads of the same layers"


def require_suite_or_dataset(asked: Mapping[str, Any]) -> None:
    """Usage errors: one of both, and what goes with a suite.

    Raises:
        typer.BadParameter: Naming the option.
    """
    if asked["suite"] is None:
        if asked["dataset"] is None:
            raise typer.BadParameter("give the labelled images, or several sets with --suite", param_hint="--dataset")
        if asked["clip_benchmark"] is not None:
            raise typer.BadParameter("goes with --suite", param_hint="--clip-benchmark")
        return
    alone = ("dataset", "segmentation", "rivals", "control")
    other = next((name for name in alone if asked[name]), None)
    if other is not None:
        why = "random heads stand beside every edit of a suite" if other == "control" else "give one of both"
        raise typer.BadParameter(f"goes without --{other}: {why}", param_hint="--suite")


def measure_suite(asked: dict[str, Any], write: Any) -> None:
    """Run a suite, print it and write what was asked for."""
    from ..editor.files.whole import require_free_folder
    from ..editor.measure.benchmarks.suite import evaluate_suite, write_results
    from ..editor.measure.benchmarks.suite_file import load_suite

    sets, folder = load_suite(asked["suite"]), asked["clip_benchmark"]
    if folder is not None:
        # Refused before anything is measured.
        require_free_folder(folder, overwrite=asked["overwrite"])
    loaded = open_all(asked["models"], asked["aligner"])
    _say_no_controls(asked["models"])
    with progress() as follow:
        found = evaluate_suite(loaded, sets, follow=follow, **given(batch_size=asked["batch_size"]))
    write([row for one in found for row in one.rows])
    if folder is not None:
        files = write_results(folder, found, overwrite=asked["overwrite"])
        say(f"wrote {folder}: {len(files)} files; `clip_benchmark build {folder}/*.json --output b.csv` tabulates them")
    print_json({"sets": [one.report() for one in found]}) if asked["as_json"] else _print_suite(found)
    if asked["fail_if_worse"]:
        compare_with_first([(one.name, one.table) for one in found])


def _say_no_controls(models: Sequence[str]) -> None:
    from ..editor.measure.control import explain_no_control

    # The first is the unedited one.
    for name in models[1:]:
        if why := explain_no_control(Path(name)):
            say(f"no control: {why}")


def _print_suite(found: Sequence[SuiteResult]) -> None:
    from ..editor.measure.table import Details

    rows = []
    for one in found:
        for model, row, details, spread in one.lines():
            cells = [_spell(row, details, spread, name) for name in _COLUMNS]
            others = [name for name in row if name not in (*_COLUMNS, "mean_of_groups") and ":" not in name]
            last = ", ".join(f"{name} {_spell(row, Details(), spread, name)}" for name in others)
            rows.append([one.name, str(one.n or ""), model, *cells, last])
    print_table(["set", "n", "model", "overall", "worst group", "retention", "other figures"], rows)
    for one in found:
        say(f"{one.name}: {one.table.measure}")
    if any(one.controls for one in found):
        say(_LEGEND)


def _spell(row: Mapping[str, float], details: Any, spread: Mapping[str, float], name: str) -> str:
    """`0.935 (0.921 to 0.947)`, or for a control `0.935 (sd 0.012)`; empty for what was not measured."""
    from ..editor.measure.table import spell_interval

    if name not in row:
        return ""
    if name in spread:
        return f"{row[name]:.3f} (sd {spread[name]:.3f})"
    found = details.figures.get(name)
    if found is None or found.low is None or found.high is None:
        return f"{row[name]:.3f}"
    return spell_interval(row[name], found.low, found.high)
