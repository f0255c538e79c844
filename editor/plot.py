"""Plots of measured curves; matplotlib is loaded here and nowhere else."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import ExportError
from .files import staged_file

SUFFIXES = (".svg", ".png", ".pdf")


def require_plot(path: Path, *, overwrite: bool) -> None:
    """Check, before long work starts, that a plot can be drawn.

    Raises:
        ExportError: If matplotlib is missing, the suffix is unknown, or the file exists and `overwrite` is not set.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ExportError(
            f'cannot draw {path}: matplotlib is missing. `pip install "clipedit[plot]"`, or leave out --plot.'
        )
    if path.suffix.lower() not in SUFFIXES:
        raise ExportError(f"cannot draw {path}: its suffix is not one of {', '.join(SUFFIXES)}. Choose another name.")
    if path.exists() and not overwrite:
        raise ExportError(f"cannot write {path}: it exists. Choose another --plot, or add --overwrite.")


def draw_frontier(frontier: Mapping[str, Any], path: Path) -> None:
    """Draw the Pareto front that `select_by_frontier` describes: retention to the right, worst group upwards."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axis = figure.subplots()
    front = frontier["front"]
    axis.plot([p["retention"] for p in front], [p["worst_group"] for p in front], "o-", label="Pareto front")
    for name, marker in (("unedited", "s"), ("chosen", "*")):
        point = frontier[name]
        axis.plot(point["retention"], point["worst_group"], marker, markersize=11, label=name)
    axis.set(xlabel="kept (accuracy of what should not change)", ylabel="worst group")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    _save(figure, path)


def draw_layer_ablation(curves: Mapping[str, Sequence[Mapping[str, float]]], path: Path) -> None:
    """Draw `measure_layer_ablation`'s curves: a panel a figure in [0, 1], a line a kind of component."""
    from matplotlib.figure import Figure

    columns = list(next(iter(curves.values()))[0])
    figure = Figure(figsize=(3.4 * len(columns), 3.2), layout="constrained")
    axes = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axis, column in zip(axes, columns, strict=True):
        for kind, rows in curves.items():
            axis.plot(range(len(rows)), [row[column] for row in rows], marker="o", markersize=3, label=kind)
        axis.set(title=column.replace("_", " "), xlabel="last layers mean-ablated", ylim=(0, 1.02))
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    with staged_file(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), metadata={} if path.suffix == ".png" else None)
