"""The plot of a completeness test; matplotlib is loaded when it is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .completeness import CompletenessRow
from .files import staged_file


def draw_completeness(rows: Sequence[CompletenessRow], path: Path) -> None:
    """Accuracy against m, a line a pool, the unedited model dotted; the format is that of the path's suffix."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.6), layout="constrained")
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
    with staged_file(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower())
