"""Fuzzing of everything that reads files of others: valid files, changed at random with their structure in mind.

    python benchmarks/fuzz.py --seed 0                     # all targets, as many inputs as `TARGETS` says
    python benchmarks/fuzz.py --only recipe,images --share 0.01

What is tested: reading returns, or raises a `ClipeditError`, within five seconds of processor time. Any other
exception, a crash or a hang is a failure; its input is written to --keep and made again by its target, seed and index.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# Of processor time, so that a busy machine finds no hangs; by the clock it is a minute, for what waits.
LIMIT_SECONDS, LIMIT_WALL_SECONDS, LIMIT_BYTES = 5.0, 60.0, 6 * 2**30
_armed = False


@dataclass
class Target:
    """One reader: how an input is made from valid files, and what reads it.

    Attributes:
        make: Writes an input into an empty folder and gives what is read.
        read: Reads it; raises `ClipeditError` where it cannot.
        inputs: How many a full run makes.
    """

    make: Callable[[random.Random, Path], Any]
    read: Callable[[Any], object]
    inputs: int


@dataclass
class Result:
    """`read`: inputs that were accepted; `refused`: those that a `ClipeditError` was raised for."""

    target: str
    seed: int
    inputs: int = 0
    read: int = 0
    refused: int = 0
    slowest_seconds: float = 0.0
    peak_megabytes: int = 0
    failures: dict[int, str] = field(default_factory=dict)


class Hang(BaseException):
    """Raised by the alarm; no handler of errors catches it."""


def run_target(
    name: str, target: Target, *, seed: int, inputs: int, keep: Path | None = None, first: int = 0
) -> Result:
    """Inputs of one target in this process; the state is written after each, for a parent to read should it crash."""
    from clipedit import ClipeditError

    result = Result(name, seed)
    signal.signal(signal.SIGALRM, _on_alarm)
    signal.signal(signal.SIGPROF, _on_alarm)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        for index in range(first, first + inputs):
            place = Path(folder) / "input"
            place.mkdir()
            given = target.make(random.Random(f"{name} {seed} {index}"), place)
            if keep is not None:
                (keep / "running").write_text(f"{name} {seed} {index}")
            begun = time.process_time()
            _arm(on=True)
            try:
                target.read(given)
                result.read += 1
            except ClipeditError:
                result.refused += 1
            except (Exception, Hang):
                result.failures[index] = traceback.format_exc(limit=-4)
            finally:
                _arm(on=False)
            result.inputs += 1
            result.slowest_seconds = max(result.slowest_seconds, round(time.process_time() - begun, 2))
            if index in result.failures and keep is not None:
                _copy(place, keep / f"{name}-{seed}-{index}")
            _remove(place)
    result.peak_megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return result


def run_apart(name: str, target: Target, *, seed: int, inputs: int, keep: Path) -> Result:
    """As `run_target`, in a process of its own: a crash is a failure of the input that was read."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        resource.setrlimit(resource.RLIMIT_DATA, (LIMIT_BYTES, LIMIT_BYTES))
        found = run_target(name, target, seed=seed, inputs=inputs, keep=keep)
        with os.fdopen(writer, "w") as stream:
            json.dump(asdict(found), stream)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        said = stream.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if said:
        return Result(**json.loads(said))
    running = (keep / "running").read_text()
    return Result(name, seed, failures={int(running.rsplit(" ", 1)[1]): f"the process ended with {status}"})


def _arm(*, on: bool) -> None:
    global _armed  # noqa: PLW0603 - a signal has no other state.
    _armed = on
    signal.setitimer(signal.ITIMER_PROF, LIMIT_SECONDS if on else 0)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_WALL_SECONDS if on else 0)


def _on_alarm(*_: object) -> None:
    if _armed:
        raise Hang


def _copy(source: Path, target: Path) -> None:
    import shutil

    shutil.copytree(source, target, dirs_exist_ok=True, symlinks=True)


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder)


def main() -> None:
    from fuzz_targets import build_targets

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="Targets, separated by commas.")
    parser.add_argument("--share", type=float, default=1.0, help="Of the inputs of a full run.")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"), help="Where failing inputs are written.")
    given = parser.parse_args()
    given.keep.mkdir(exist_ok=True)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        targets = build_targets(Path(folder))
        chosen = [name for name in given.only.split(",") if name] or list(targets)
        failed = False
        for name in chosen:
            inputs = max(1, round(targets[name].inputs * given.share))
            result = run_apart(name, targets[name], seed=given.seed, inputs=inputs, keep=given.keep)
            print(json.dumps(asdict(result)), flush=True)
            failed |= bool(result.failures)
    sys.exit(failed)


if __name__ == "__main__":
    main()
