"""`--plot`: the file is refused before the work starts, and drawn when it is done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..console import say


def plot_to(path: Path | None, *, overwrite: bool) -> Callable[[Callable[[Any], Any], Any], None]:
    """What draws figures with one function to a file, and says so; nothing where there is no file."""
    if path is None:
        return lambda draw, found: None
    from ...editor.look.plot import require_plot, save_figure

    # Now: what cannot be drawn must not cost a measurement.
    require_plot(path, overwrite=overwrite)

    def plotted(draw: Callable[[Any], Any], found: Any) -> None:
        save_figure(draw(found), path)
        say(f"wrote {path}")

    return plotted
