"""How a run speaks on stderr: in lines for people, or in JSON for what collects logs; quiet, or not."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

Tell = Callable[[int, int], None]
Follow = Callable[[str], Tell]

err_console = Console(stderr=True)


@dataclass
class Voice:
    """What the options of this run say. Not frozen: options are read one by one, in any order."""

    command: str = "clipedit"
    quiet: bool = False
    as_json: bool = False
    started: float = field(default_factory=time.monotonic)


VOICE = Voice()


def begin() -> None:
    """A new run: what the one before in this process was told is forgotten."""
    vars(VOICE).update(vars(Voice()))


def write_event(event: str, **values: Any) -> None:
    """One JSON line on stderr."""
    line = {"event": event, "command": VOICE.command, **values}
    sys.stderr.write(json.dumps(line, default=str) + "\n")
    sys.stderr.flush()


def say(message: str) -> None:
    """A line on stderr; none with `--quiet`."""
    if not VOICE.quiet:
        _write_message("message", message)


def say_result(message: str) -> None:
    """A line on stderr that no option takes away: a verdict, or what went wrong without stopping the run."""
    _write_message("result", message)


def _write_message(event: str, message: str) -> None:
    if VOICE.as_json:
        write_event(event, message=message)
    else:
        err_console.print(printable(message), markup=False, highlight=False, soft_wrap=True)


def printable(text: str) -> str:
    """What files of others say cannot move the cursor, or hide what was printed."""
    # Names of files and texts of recipes come from anybody: escape sequences among them are spelled out.
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def end(code: int) -> None:
    """The last line of a log: the whole command, as if it were a stage."""
    if VOICE.as_json and not sys.stderr.closed:
        write_event("end", **_measure("total", VOICE.started, None), exit=code)


@contextmanager
def logged_stages(shown: Follow) -> Iterator[Follow]:
    """What shows progress, which also writes one line for each stage when the next begins, or the last ends."""
    stages: list[_Stage] = []

    def follow(name: str) -> Tell:
        _close(stages)
        tell, stage = shown(name), _Stage(name)
        stages.append(stage)

        def count(done: int, total: int) -> None:
            stage.images, stage.told = done, time.monotonic()
            tell(done, total)

        return count

    yield follow if VOICE.as_json else shown
    _close(stages)


@dataclass
class _Stage:
    name: str
    images: int | None = None
    # Looked up when a stage begins, so that a test can set the clock.
    started: float = field(default_factory=lambda: time.monotonic())
    told: float | None = None


def _close(stages: list[_Stage]) -> None:
    for stage in stages:
        # Until its last image: what comes between two stages belongs to neither.
        write_event("stage", **_measure(stage.name, stage.started, stage.images, ended=stage.told))
    stages.clear()


def _measure(stage: str, started: float, images: int | None, *, ended: float | None = None) -> dict[str, Any]:
    seconds = round((time.monotonic() if ended is None else ended) - started, 3)
    return {"stage": stage, "seconds": seconds, "images": images, "peak_memory_mb": _peak_memory_mb()}


def _peak_memory_mb() -> float | None:
    """The most memory that this process has held until now, in MiB; None where the system does not say."""
    try:
        # The high-water mark of this address space; `ru_maxrss` would count the parent's, which a child inherits.
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            kilobytes = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
        return round(kilobytes / 2**10, 1)
    except (OSError, StopIteration):
        pass
    try:
        import resource  # There is none on Windows.
    except ImportError:
        return None
    # In bytes on macOS, the one system with `resource` and without /proc that is common.
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 1)
