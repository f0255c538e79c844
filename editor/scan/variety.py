"""Variety: whether a scan's images differ enough to say anything about heads."""

from __future__ import annotations

import torch

from ..errors import StatisticsError
from .scan import Scan

LEAST_IMAGES = 8
# Of the largest eigenvalue: what is below does not count as a direction in which images differ.
_NEGLIGIBLE = 1e-4


def count_distinct_images(scan: Scan) -> int:
    """How many images the scan is worth: one more than the directions in which `f / |z|` varies, at most their number.

    Copies of one image are worth one, however many there are; images that differ are each worth one until they fill the
    space.
    """
    statistics = scan.statistics
    covariance = statistics.final_covariance()
    # The norm before the readout makes this covariance singular: rounding can give eigenvalues below zero.
    values = torch.linalg.eigvalsh(covariance).clamp_min(0)
    mean_square = (statistics.gg[-1, :-2] / statistics.n).square().sum()
    # Copies of one image still differ by rounding from batch to batch.
    if values.sum() <= 1e-8 * mean_square:
        return 1
    return min(statistics.n, 1 + int((values > _NEGLIGIBLE * values.max()).sum()))


def require_variety(scan: Scan) -> None:
    """Refuse images that are too few, or copies of a few.

    Raises:
        StatisticsError: With how many they are worth.
    """
    distinct = count_distinct_images(scan) if scan.statistics.n > 1 else 1
    if distinct < LEAST_IMAGES:
        raise StatisticsError(
            f"cannot choose heads: {scan.statistics.n} images are worth {distinct} that differ, at least "
            f"{LEAST_IMAGES} are needed and a few hundred are better. Scan images like those that the model will see."
        )
