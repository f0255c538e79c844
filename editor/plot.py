"""Plots of measured curves; matplotlib is loaded here and nowhere else."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
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
    with staged_file(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), metadata={} if path.suffix == ".png" else None)
