"""The exit codes, one meaning each; docs/pipelines.md shows this table."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """What a run's exit code says to a script."""

    FINE = 0
    REFUSED = 1
    USAGE = 2
    WORSE = 3
    DRIFT = 4
    INTERRUPTED = 130


MEANINGS = {
    Exit.FINE: "done; what was asked holds",
    Exit.REFUSED: "refused, failed, or what was compared differs (`verify`, `diff`, `reproduce`)",
    Exit.USAGE: "wrong usage: an option, a command or their combination",
    Exit.WORSE: "with `--fail-if-worse`: done, and the verdict is HARMS",
    Exit.DRIFT: "`monitor`: done, and the images have drifted",
    Exit.INTERRUPTED: "stopped by Ctrl-C; nothing half-written is left",
}


def render_exits_markdown() -> str:
    """The table of the docs."""
    rows = [f"| {code:d} | {MEANINGS[code]} |" for code in Exit]
    return "\n".join(["| exit code | meaning |", "|---|---|", *rows]) + "\n"
