"""Where a repair is written. Nothing here needs torch: what cannot be written is refused before a model is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..editor.files.whole import require_apart, require_free_folder


@dataclass(frozen=True)
class Output:
    """What is written beside the edited model.

    Attributes:
        overwrite: Replace what the folder and the plot hold.
        report: Write `report.html` into the folder; of a text tower there is none.
        plot: A file to draw the Pareto front of `frontier` to.
    """

    overwrite: bool = False
    report: bool = True
    plot: Path | None = None

    def check(self, out: Path | None, *inputs: str | Path | None) -> None:
        """Refuse, before long work starts, what cannot be written.

        Raises:
            ExportError: If `out` is not free, or something is read from it; or the plot cannot be drawn.
        """
        if out is not None:
            require_free_folder(out, overwrite=self.overwrite)
            require_apart(out, *inputs)
        if self.plot is not None:
            from ..editor.look.plot import require_plot  # It needs numpy and more; most repairs draw no plot.

            require_plot(self.plot, overwrite=self.overwrite)
