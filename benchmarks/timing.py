"""Ratios of interleaved runs: what else the machine does falls on both sides."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def seconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def interleaved(first: Callable[[], object], second: Callable[[], object], rounds: int) -> list[float]:
    """Ratios first / second of neighbouring runs, after one warm-up of each; the order alternates."""
    first(), second()
    ratios = []
    for index in range(rounds):
        if index % 2:
            below, above = seconds(second), seconds(first)
        else:
            above, below = seconds(first), seconds(second)
        ratios.append(above / below)
    return ratios


def describe(ratios: list[float]) -> str:
    return (
        f"median {statistics.median(ratios):.3f} (min {min(ratios):.3f}, max {max(ratios):.3f}, {len(ratios)} rounds)"
    )
