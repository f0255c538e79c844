"""Figures of what was measured; matplotlib is loaded when one is drawn. Notebooks show what a `plot_` returns."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..components import HeadId
from ..concepts.scores import HeadScore
from ..errors import ExportError, StatisticsError
from ..files.whole import staged_file
from ..measure.completeness import CompletenessRow
from .pictures import draw_overlay
from .spatial import Heatmap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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


def plot_scores(scores: Sequence[HeadScore]) -> Figure:
    """Layers x heads, the last layer on top; red for the concept, blue for what is kept.

    Raises:
        StatisticsError: If no head is among the scores.
    """
    found = {HeadId.parse(row.component): row.score for row in scores if "H" in row.component}
    if not found:
        raise StatisticsError("cannot plot scores: none is of a head. Scan with heads.")
    layers = sorted({head.layer for head in found}, reverse=True)
    # NaN stays blank: layers may have different numbers of heads.
    grid = np.full((len(layers), 1 + max(head.head for head in found)), np.nan)
    for head, score in found.items():
        grid[layers.index(head.layer), head.head] = score
    figure = _new_figure(1.5 + 0.4 * grid.shape[1], 1.2 + 0.4 * len(layers))
    axis = figure.subplots()
    # Symmetric limits make white mean zero; scores of nothing but zeros still need a range.
    most = float(np.nanmax(np.abs(grid))) or 1.0
    shown = axis.imshow(grid, cmap="RdBu_r", vmin=-most, vmax=most)
    axis.set(xlabel="head", ylabel="layer", xticks=range(grid.shape[1]), yticks=range(len(layers)), yticklabels=layers)
    figure.colorbar(shown, ax=axis, label="score")
    return figure


def plot_heatmap(image: Image.Image, shown: Heatmap) -> Figure:
    """The image with what speaks for the text in red and against it in blue."""
    figure = _new_figure(4.0, 0.4 + 4.0 * image.height / image.width)
    axis = figure.subplots()
    axis.imshow(np.asarray(draw_overlay(image, shown)))
    heads = str(shown.heads[0]) if len(shown.heads) == 1 else f"{len(shown.heads)} heads"
    # A text is no mathematics: dollar signs stay what they are.
    axis.set_title(f"{' '.join(shown.text.split())} ({heads})", fontsize=9, parse_math=False)
    axis.set_axis_off()
    return figure


def plot_frontier(frontier: Mapping[str, Any]) -> Figure:
    """The Pareto front that `select_by_frontier` describes: retention to the right, worst group upwards."""
    figure = _new_figure(5.0, 3.6)
    axis = figure.subplots()
    front = frontier["front"]
    axis.plot([p["retention"] for p in front], [p["worst_group"] for p in front], "o-", label="Pareto front")
    for name, marker in (("unedited", "s"), ("chosen", "*")):
        point = frontier[name]
        axis.plot(point["retention"], point["worst_group"], marker, markersize=11, label=name)
    axis.set(xlabel="kept (accuracy of what should not change)", ylabel="worst group")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    return figure


def plot_layer_ablation(curves: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """`measure_layer_ablation`'s curves: a panel a figure in [0, 1], a line a kind of component."""
    columns = list(next(iter(curves.values()))[0])
    figure = _new_figure(3.4 * len(columns), 3.2)
    axes = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axis, column in zip(axes, columns, strict=True):
        for kind, rows in curves.items():
            axis.plot(range(len(rows)), [row[column] for row in rows], marker="o", markersize=3, label=kind)
        axis.set(title=column.replace("_", " "), xlabel="last layers mean-ablated", ylim=(0, 1.02))
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    return figure


def plot_completeness(rows: Sequence[CompletenessRow]) -> Figure:
    """Accuracy against m, a line a pool, the unedited model dotted."""
    figure = _new_figure(5.0, 3.6)
    axis = figure.subplots()
    for variant in dict.fromkeys(row.variant for row in rows if row.texts is not None):
        points = [(row.texts, row.accuracy) for row in rows if row.variant == variant]
        style = "--" if variant.startswith("random") else "-"
        axis.plot(*zip(*points, strict=True), marker="o", linestyle=style, label=variant)
    for row in rows:
        if row.variant == "unedited":
            axis.axhline(row.accuracy, color="gray", linestyle=":", label="unedited")
    axis.set(xlabel="texts a head (m)", ylabel="zero-shot accuracy")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=8)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure; the format is that of the path's suffix."""
    with staged_file(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), metadata={} if path.suffix == ".png" else None)


def _new_figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure as Plain

    class Shown(Plain):
        """A figure that notebooks show without pyplot, and that no global list keeps alive."""

        def _repr_png_(self) -> bytes:
            stream = io.BytesIO()
            self.savefig(stream, format="png")
            return stream.getvalue()

    return Shown(figsize=(width, height), layout="constrained")
