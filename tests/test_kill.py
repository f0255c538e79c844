"""A run that is killed at any moment loses nothing: see `benchmarks/kill.py`, which this runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import clipedit
from clipedit.editor.files.whole import require_free_folder

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "kill.py"


def kill_runs(count: int, seed: int, *options: str) -> list[dict]:
    command = [sys.executable, str(SCRIPT), "--runs", str(count), "--seed", str(seed), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=5_400, check=False)
    assert done.stdout, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.skipif(os.name != "posix", reason="runs are forked")
def test_runs_that_are_killed_end_with_the_same_bits_after_a_restart() -> None:
    outcomes = kill_runs(1, 1, "--images", "128")
    assert [outcome["kind"] for outcome in outcomes] == ["scan", "apply", "export"]
    for outcome in outcomes:
        assert outcome["killed"] == 1 and outcome["failures"] == []


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="runs are forked")
def test_remove_heads_that_is_killed_leaves_nothing_in_the_way_of_the_next_run(
    demo_model: clipedit.Model, small_demo_scan: clipedit.Scan, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def follow(name: str) -> Callable[[int, int], None]:
        def told(done: int, total: int) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        return told if name == "report" else lambda done, total: None

    pid = os.fork()
    if not pid:
        try:
            torch.set_num_threads(1)
            options = {"scan": small_demo_scan, "concept": "location", "measure": False}
            clipedit.repair(demo_model, out=out, images="demo", progress=follow, **options)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert not out.exists() and [path.name for path in tmp_path.iterdir() if ".partial-" not in path.name] == []
    # As the next run does before it starts.
    require_free_folder(out, overwrite=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="runs are forked")
def test_fifty_kills_of_every_kind_lose_nothing() -> None:
    for outcome in kill_runs(50, 0):
        assert outcome["killed"] == 50 and outcome["failures"] == []
