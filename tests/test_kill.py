"""A run that is killed at any moment loses nothing: see `benchmarks/kill.py`, which this runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "kill.py"


def kill_runs(count: int, seed: int, *options: str) -> list[dict]:
    command = [sys.executable, str(SCRIPT), "--runs", str(count), "--seed", str(seed), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=5_400, check=False)
    assert done.stdout, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.skipif(os.name != "posix", reason="runs are forked")
def test_runs_that_are_killed_end_with_the_same_bits_after_a_restart() -> None:
    outcomes = kill_runs(2, 1, "--images", "128")
    assert [outcome["kind"] for outcome in outcomes] == ["scan", "apply", "export"]
    for outcome in outcomes:
        assert outcome["killed"] == 2 and outcome["failures"] == []


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="runs are forked")
def test_fifty_kills_of_every_kind_lose_nothing() -> None:
    for outcome in kill_runs(50, 0):
        assert outcome["killed"] == 50 and outcome["failures"] == []
