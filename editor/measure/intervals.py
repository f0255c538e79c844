"""Intervals: how far a share, or the difference between two models on the same images, may be off by chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

DRAWS, SEED, LEVEL = 2_000, 0, 0.95
# Fewer images cannot say beyond chance that a group is served worse: draws of one or two vary not at all.
LEAST_GROUP = 10
# The normal quantile of a two-sided interval of 95 %.
_QUANTILE = 1.959964


@dataclass(frozen=True)
class Cell:
    """Some images of one task, and whether each was answered rightly: a group, or one group of a two-class task."""

    images: Int[np.ndarray, " image"]
    right: Bool[np.ndarray, " image"]


# By figure: its tasks, and the cells of each. The figure is the mean over tasks of the worst cell's accuracy.
Outcomes = Mapping[str, Sequence[Sequence[Cell]]]


@dataclass(frozen=True)
class Difference:
    """What a figure changed by, `after - before`, with a paired 95 % interval.

    Attributes:
        left_out: How many groups have too few images to be compared, and are in neither figure.
    """

    before: float
    after: float
    low: float
    high: float
    left_out: int = 0

    @property
    def change(self) -> float:
        return self.after - self.before

    @property
    def rises(self) -> bool:
        """Beyond what chance gives."""
        return self.low > 0

    @property
    def falls(self) -> bool:
        """Beyond what chance gives."""
        return self.high < 0

    def __str__(self) -> str:
        interval = f"95 % interval {self.low:+.3f} to {self.high:+.3f}"
        small = f"; {self.left_out} small groups left out, of fewer than {LEAST_GROUP} images" if self.left_out else ""
        return f"{self.before:.3f} to {self.after:.3f} ({self.change:+.3f}, {interval}{small})"


def wilson_interval(right: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927): in [0, 1] and sensible for small n and for shares of 0 and 1.

    Raises:
        ValueError: If there are no images.
    """
    if n < 1:
        raise ValueError("a share of no images has no interval")
    share, z = right / n, _QUANTILE
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    # Rounding must not exclude a share of 0 or 1 from its own interval.
    return min(max(0.0, middle - half), share), max(min(1.0, middle + half), share)


def compare_outcomes(
    before: Outcomes, after: Outcomes, groups: Sequence[str], *, draws: int = DRAWS, seed: int = SEED
) -> dict[str, Difference]:
    """Differences of all figures with intervals: a paired bootstrap over images, within groups.

    Both models are measured on the same resampled images, so that what makes an image hard for both cancels out. Groups
    of fewer than 10 images are left out, since of a handful the bootstrap knows no spread, and figures of such alone.

    Args:
        groups: The group of every image, by position; each keeps its size in every draw.
    """
    weights = draw_weights(groups, draws=draws, seed=seed)
    found = {}
    for name in before:
        tasks = (_keep_large(before[name]), _keep_large(after.get(name, ())))
        if not all(tasks):
            continue
        was, now = map(compute_figure, tasks)
        # Paired: the same weights on both sides.
        spread = compute_draws(tasks[1], weights) - compute_draws(tasks[0], weights)
        low, high = np.quantile(spread, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        left_out = sum(map(len, before[name])) - sum(map(len, tasks[0]))
        found[name] = Difference(was, now, float(low), float(high), left_out)
    return found


def _keep_large(tasks: Sequence[Sequence[Cell]]) -> list[list[Cell]]:
    """Tasks without their small cells, and without those that have no other."""
    kept = [[cell for cell in cells if len(cell.images) >= LEAST_GROUP] for cells in tasks]
    return [cells for cells in kept if cells]


def compute_figure(tasks: Sequence[Sequence[Cell]]) -> float:
    """Mean over tasks of the worst cell's accuracy."""
    return float(np.mean([min(float(cell.right.mean()) for cell in cells) for cells in tasks]))


def compute_draws(
    tasks: Sequence[Sequence[Cell]], weights: Float[np.ndarray, "draw image"]
) -> Float[np.ndarray, " draw"]:
    """The figure on every resampled set of images."""
    # A cell's images that a draw leaves out altogether count as they are: there is nothing to draw from.
    # [cell, draw] -> the worst cell of each draw
    worst = [np.stack([_weighted_share(cell, weights) for cell in cells]).min(0) for cells in tasks]
    return np.stack(worst).mean(0)


def draw_weights(groups: Sequence[str], *, draws: int, seed: int) -> Float[np.ndarray, "draw image"]:
    """How often each image is in each resampled set; every group keeps its size."""
    generator, names = np.random.default_rng(seed), np.asarray(groups)
    # Small whole numbers, exact in float32: at half the memory.
    weights = np.zeros((draws, len(names)), np.float32)
    for name in np.unique(names):
        members = np.flatnonzero(names == name)
        # Drawing n images with replacement is one multinomial count over them.
        weights[:, members] = generator.multinomial(len(members), np.full(len(members), 1 / len(members)), size=draws)
    return weights


def _weighted_share(cell: Cell, weights: Float[np.ndarray, "draw image"]) -> Float[np.ndarray, " draw"]:
    # [draw, image of the cell]
    chosen = weights[:, cell.images]
    total = chosen.sum(1)
    # The maximum only keeps the branch that is not taken from dividing by zero.
    return np.where(total > 0, chosen @ cell.right / np.maximum(total, 1), cell.right.mean())
