"""Kill test: SIGKILL at random moments of a scan, an apply and an export; a restart must give an undisturbed run's
bits.

    python benchmarks/kill.py --runs 50 --seed 0

Runs are forked from a process that has imported everything, so the moments fall into the work and not into imports.
Before half of the runs an older result lies under the final name. After every kill each file under a final name must be
the old one or the complete new one; after the restart all must be the new one, and nothing may be left beside it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

KINDS = ("scan", "apply", "export")
TIMEOUT_SECONDS = 300


@dataclass
class Outcome:
    """What was seen of one kind of run. `too_late`: the run ended before its kill, which then does not count."""

    kind: str
    seed: int
    seconds: float
    killed: int = 0
    too_late: int = 0
    with_older_result: int = 0
    already_new: int = 0
    left_temporary: int = 0
    failures: list[str] = field(default_factory=list)


def hash_tree(path: Path) -> dict[str, str]:
    """SHA-256 of a file, or of all files of a folder; empty if there is neither."""
    files = [path] if path.is_file() else sorted(inner for inner in path.rglob("*") if inner.is_file())
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def start(arguments: Sequence[str], log: Path) -> int:
    """The command line in a forked process, in a process group of its own."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setpgid(0, 0)
        stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        from clipedit import cli

        sys.argv = ["clipedit", *arguments]
        cli.main()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    finally:
        os._exit(code)


def finish(pid: int) -> int:
    """Wait for a run and give its exit code."""
    end = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < end:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return -1


def kill_at(pid: int, moment: float, watch: Callable[[], None]) -> bool:
    """SIGKILL after so many seconds; False if the run had ended. What it started itself is killed only then."""
    end = time.monotonic() + moment
    ended = False
    while not ended and time.monotonic() < end:
        watch()
        ended = os.waitpid(pid, os.WNOHANG)[0] == pid
        time.sleep(min(0.002, max(0.0, end - time.monotonic())))
    if not ended:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return not ended


def end_group(pid: int) -> None:
    """End what a killed run left running: readers of images, a verification."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


@dataclass
class Job:
    """One kind of run: its arguments, the folder it writes to, and what an undisturbed run leaves there."""

    arguments: list[str]
    folder: Path
    new: dict[str, str] = field(default_factory=dict)

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def run(self) -> int:
        return finish(start(self.arguments, self.log))

    def clear(self) -> None:
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def left_beside(self) -> list[str]:
        kept = [path for path in self.folder.iterdir() if path not in (self.out, self.log)]
        return sorted(str(path.relative_to(self.folder)) for top in kept for path in (top, *top.rglob("*")))


def run_kind(kind: str, command: Sequence[str], folder: Path, runs: int, seed: int) -> Outcome:
    """Kill one kind of run at so many moments, spread evenly at random over the time that it takes."""
    job, generator = Job([*command, "-o", str(folder / "out"), "--overwrite"], folder), random.Random(f"{kind} {seed}")
    begun = time.monotonic()
    if job.run():
        raise SystemExit(f"{kind}: the undisturbed run failed: {job.log.read_text()}")
    outcome = Outcome(kind, seed, round(time.monotonic() - begun, 3))
    job.new = hash_tree(job.out)
    while outcome.killed < runs and len(outcome.failures) < 5:
        older, moment = generator.random() < 0.5, generator.uniform(0, outcome.seconds)
        job.clear()
        if older:
            _write_older(job.out, is_file=kind == "scan")
        failures = kill_once(job, moment, outcome, older=older)
        outcome.failures += [f"{moment:.3f} s: {failure}" for failure in failures]
    return outcome


def kill_once(job: Job, moment: float, outcome: Outcome, *, older: bool) -> list[str]:
    """One kill, what it left, and the restart; says what was not as it must be."""
    old, failures = hash_tree(job.out), []

    def watch() -> None:
        if older and not job.out.exists():
            failures.append("nothing was under the final name")

    pid = start(job.arguments, job.log)
    if not kill_at(pid, moment, watch):
        outcome.too_late += 1
        return failures
    outcome.killed += 1
    found = hash_tree(job.out)
    outcome.with_older_result += older
    outcome.already_new += found == job.new
    outcome.left_temporary += bool(job.left_beside())
    if found not in (old, job.new):
        failures.append(f"after the kill the result was neither the old nor the new one: {sorted(found)}")
    if job.run():
        failures.append(f"the restart failed: {job.log.read_text()[-300:]}")
    elif hash_tree(job.out) != job.new:
        failures.append("the restart did not end with the same bits")
    if job.left_beside():
        failures.append(f"left beside the result: {job.left_beside()}")
    end_group(pid)
    return failures


def _write_older(out: Path, *, is_file: bool) -> None:
    if not is_file:
        out.mkdir()
    (out if is_file else out / "older.txt").write_text("an older result")


def import_everything() -> None:
    """What a run needs, imported before the first fork; nothing is computed here, so that no thread is left behind."""
    import torch

    torch.set_num_threads(1)
    from clipedit import cli
    from clipedit.demo import world
    from clipedit.editor.concepts import scores
    from clipedit.editor.measure import (
        control,
        evaluate,
    )
    from clipedit.editor.select import selectors
    from clipedit.export import write, written_for
    from clipedit.export.pages import report
    from clipedit.export.targets import open_clip
    from clipedit.export.verify import verify_child


def prepare(folder: Path, images: int) -> None:
    """What the runs read: a bound recipe for the demo model, images, and a folder with the edited model."""
    from PIL import Image

    import clipedit
    from clipedit.demo import world
    from clipedit.editor.images.demo import demo_calibration_source
    from clipedit.editor.images.demo_name import demo_folder
    from clipedit.export.edited_folder import apply_to_folder

    model = clipedit.load_model("demo")
    scan = clipedit.scan(model, demo_calibration_source(256), workers=0)
    recipe = clipedit.make_recipe(scan, model, concept="location", keep="shape")
    recipe.save(folder / "recipe.yaml")
    recipe = clipedit.load_recipe(folder / "recipe.yaml")
    (folder / "images").mkdir()
    for index, scene in enumerate(world.draw_balanced_scenes(images, seed=7)):
        Image.fromarray(world.render(scene)).save(folder / "images" / f"{index:04d}.png")
    apply_to_folder(recipe, demo_folder(), folder / "edited")


def commands(inputs: Path) -> dict[str, list[str]]:
    """The command line of each kind."""
    return {
        "scan": ["scan", str(inputs / "images"), "--unit-size", "64", "--workers", "0"],
        "apply": ["apply", str(inputs / "recipe.yaml")],
        "export": ["export", str(inputs / "edited"), "--target", "open-clip"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50, help="Kills of every kind.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--images", type=int, default=512, help="Images of the scan.")
    given, failed = parser.parse_args(), False
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as name:
        inputs = Path(name) / "inputs"
        inputs.mkdir()
        import_everything()
        pid = os.fork()
        if pid == 0:
            prepare(inputs, given.images)
            os._exit(0)
        if finish(pid):
            raise SystemExit("the inputs could not be made")
        for kind in given.kinds.split(","):
            work = Path(name) / kind
            work.mkdir()
            outcome = run_kind(kind, commands(inputs)[kind], work, given.runs, given.seed)
            print(json.dumps(asdict(outcome)), flush=True)
            failed |= bool(outcome.failures)
    sys.exit(failed)


if __name__ == "__main__":
    main()
