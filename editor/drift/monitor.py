"""Distribution drift: do new images look to a model's heads as those did that a scan, and with it a recipe, was made
from?

Both sides are statistics only. A difference counts where it is larger than the noise of so few images, and large enough
to matter: shifts are in units of the calibration's standard deviation, covariances relative to the calibration's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..components import ComponentGroup
from ..concepts.concepts import Concept
from ..errors import StatisticsError, require_kinds
from ..images.listing import list_images
from ..images.source import ImageSource
from ..images.texts import list_texts
from ..models.model import Model
from ..scan.scan import Scan, read_batches
from ..scan.scanner import Scanner
from ..scan.statistics import Statistics, sum_statistics
from ..scan.tally import MAX_BAD, Progress, Tally
from .held import ConceptDrift, compare_scanned_concepts, find_concepts

BLOCKS, MIN_IMAGES, SEED = 8, 256, 7_001
# One false alarm in 100 checks, over all heads and both tests together.
FALSE_ALARMS = 0.01


@dataclass(frozen=True)
class HeadDrift:
    """How one head's contributions changed; sampling noise is already taken off.

    Attributes:
        mean_shift: Distance of the means, in standard deviations of the calibration images.
        covariance_distance: Frobenius distance of the covariances, relative to the calibration's norm.
        drifted: Whether one of them is above the limit, and above noise.
    """

    mean_shift: float
    covariance_distance: float
    drifted: bool

    @property
    def change(self) -> float:
        """The larger of both figures."""
        return max(self.mean_shift, self.covariance_distance)


@dataclass(frozen=True)
class DriftReport:
    """The comparison of new images with a scan.

    Attributes:
        heads: By head; empty where stored vectors were compared.
        embedding: Of stored vectors, which tell nothing of single heads: that of the whole, of length 1.
        concepts: How far a concept's directions, and the heads that hold it, are what they were.
    """

    images: int
    calibration_images: int
    limit: float
    heads: dict[str, HeadDrift]
    embedding: HeadDrift | None = None
    concepts: dict[str, ConceptDrift] = field(default_factory=dict)

    @property
    def parts(self) -> dict[str, HeadDrift]:
        """What was compared: the heads, or `embedding`."""
        return self.heads if self.embedding is None else {**self.heads, "embedding": self.embedding}

    @property
    def ranked(self) -> list[str]:
        """All parts, the one that changed most first."""
        return sorted(self.parts, key=lambda name: -self.parts[name].change)

    @property
    def drifted(self) -> list[str]:
        """Parts that changed, the strongest first."""
        return [name for name in self.ranked if self.parts[name].drifted]


def monitor(
    scan: Scan,
    model: Model,
    images: object,
    *,
    heads: Sequence[str] | None = None,
    concepts: Sequence[str | Concept] = (),
    limit: float = 0.3,
    batch_size: int = 32,
    workers: int | None = None,
    max_bad: float = MAX_BAD,
    progress: Progress | None = None,
) -> DriftReport:
    """Compare new images with the images of a scan.

    Args:
        images: As for `scan`; at least 256.
        heads: Those that matter, such as a recipe's; all that were scanned by default.
        concepts: Compared besides, by name or as they are: see `ConceptDrift`.
        limit: From what a shift or a distance counts, beyond noise.

    Raises:
        StatisticsError: If there are too few images, a head was not scanned, or the scan is of another model.
        ConceptError: If a concept is unknown.
        ImageError: If the images cannot be read.
    """
    require_kinds("compare images with a scan", scan=(scan, Scan), model=(model, Model))
    groups = [group for group in scan.groups(model) if group.ids[0].kind == "head"]
    source = list_texts(images) if model.side == "text" else list_images(images)  # pyright: ignore[reportArgumentType]
    require_enough(len(source), scan)
    wanted = find_concepts(concepts, model)
    names = [str(identity) for group in groups for identity in group.ids]
    chosen = set(heads if heads is not None else names)
    if not chosen <= set(names):
        raise StatisticsError(f"cannot monitor {min(chosen - set(names))}: the scan has {names[0]} to {names[-1]}.")
    scanner = Scanner(model, scan.layers, batch_size=batch_size, exif=scan.exif, decode=scan.decode)
    blocks = _scan_blocks(scanner, source, workers, max_bad, progress)
    found = compare_statistics(model, groups, scan.statistics, blocks, limit=limit)
    kept = {name: found[name] for name in names if name in chosen}
    changed = compare_scanned_concepts(wanted, scan, model, blocks)
    return DriftReport(sum(block.n for block in blocks), scan.statistics.n, limit, kept, concepts=changed)


def require_enough(count: int, scan: Scan) -> None:
    """Refuse so few images, new or scanned, that nothing could be told.

    Raises:
        StatisticsError: With the number.
    """
    if count < MIN_IMAGES:
        raise StatisticsError(f"cannot monitor {count} images: noise would hide a drift, {MIN_IMAGES} are needed.")
    scan.statistics.require(MIN_IMAGES)


def compare_statistics(
    model: Model,
    groups: Sequence[ComponentGroup],
    calibration: Statistics,
    blocks: Sequence[Statistics],
    *,
    limit: float,
) -> dict[str, HeadDrift]:
    """How heads changed between calibration images and new ones.

    Args:
        groups: Groups of heads that both sides hold.
        blocks: Statistics of random parts of the new images, at least two.
        limit: As for `monitor`.
    """
    sides = Sides(calibration, blocks, limit, alarm_level(sum(len(group.ids) for group in groups)))
    readouts = model.tower.compute_readouts(groups)
    found: dict[str, HeadDrift] = {}
    for group in groups:
        found |= sides.compare(group, _metric_root(readouts[group.name]))
    return found


def alarm_level(count: int) -> float:
    """How rarely chance may raise the alarm of one part of several: Bonferroni, two tests for each."""
    return FALSE_ALARMS / (2 * count)


def _scan_blocks(
    scanner: Scanner, source: ImageSource, workers: int | None, max_bad: float, progress: Progress | None
) -> list[Statistics]:
    """Statistics of random parts of the new images: how much they differ says how much chance does."""
    order = np.random.default_rng(SEED).permutation(len(source)).tolist()
    tally = Tally(len(source), max_bad, progress)
    parts = [source.subset(order[start::BLOCKS]) for start in range(BLOCKS)]
    return [scanner.sum_batches(read_batches(scanner, part, workers), tally.add) for part in parts]


@dataclass(frozen=True)
class Sides:
    """What is compared: calibration images and blocks of new ones; `level` is how rarely chance may raise a head's
    alarm.
    """

    calibration: Statistics
    blocks: Sequence[Statistics]
    limit: float
    level: float

    def compare(self, group: ComponentGroup, root: Float[Tensor, "head k k"]) -> dict[str, HeadDrift]:
        """The drift of a group's heads."""
        old_mean, old = _moments(self.calibration, group.name, root)
        total = sum_statistics(self.blocks)
        new_mean, new = _moments(total, group.name, root)
        # What chance adds to the squared distance of two means, in units of one image's variance.
        fewer = 1 / total.n + 1 / self.calibration.n
        shift = (new_mean - old_mean).square().sum(1) / _trace(old)
        distance, noise = (new - old).square().sum((1, 2)), fewer * self._spread(group, root, new)
        # Noise adds to a squared distance on average, so it is taken off before the root.
        shift_left = (shift - fewer).clamp(min=0).sqrt()
        distance_left = ((distance - noise).clamp(min=0) / old.square().sum((1, 2)).clamp(min=1e-60)).sqrt()
        freedom = _freedom(old)
        shifted = _chance_of_shift(shift / fewer, old) < self.level
        # A Gaussian's covariance varies along the products of its directions; noise is itself estimated, from a few
        # blocks.
        pairs = (freedom.square() / 2).clamp(min=1)
        spread = (
            _chance_of_distance(distance / noise.clamp(min=1e-60), pairs, pairs * (len(self.blocks) - 1)) < self.level
        )
        drifted = (shifted & (shift_left > self.limit)) | (spread & (distance_left > self.limit))
        return {
            str(identity): HeadDrift(float(shift_left[i]), float(distance_left[i]), bool(drifted[i]))
            for i, identity in enumerate(group.ids)
        }

    def _spread(
        self, group: ComponentGroup, root: Float[Tensor, "head k k"], new: Float[Tensor, "head k k"]
    ) -> Float[Tensor, " head"]:
        """How much an estimate of a covariance varies, times its images: from the blocks, whatever the distribution."""
        # An estimate from n images varies by 1 / n: times n, blocks of any size agree.
        squares = [block.n * (_moments(block, group.name, root)[1] - new).square().sum((1, 2)) for block in self.blocks]
        return torch.stack(squares).sum(0) / (len(squares) - 1)


def _metric_root(readouts: Float[Tensor, "head d_embed k"]) -> Float[Tensor, "head k k"]:
    """`(R^T R)^(1/2)`: features times it are as long as the contributions, whatever basis a head keeps them in."""
    values, vectors = torch.linalg.eigh(readouts.transpose(1, 2) @ readouts)
    # `V diag(s) V^T`; rounding can give a singular `R^T R` eigenvalues below zero.
    return vectors * values.clamp(min=0).sqrt()[:, None] @ vectors.transpose(1, 2)


def _moments(
    statistics: Statistics, group: str, root: Float[Tensor, "head k k"]
) -> tuple[Float[Tensor, "head k"], Float[Tensor, "head k k"]]:
    """Mean and covariance of the contributions, divided by `|z|`, in coordinates of equal length."""
    mean = statistics.groups[group].ug[..., -1] / statistics.n
    # Dividing by n makes covariances of small blocks too small, and would pass for a drift.
    unbiased = statistics.n / (statistics.n - 1)
    return (root @ mean[:, :, None])[:, :, 0], root @ statistics.feature_covariance(group) @ root * unbiased


def _trace(matrices: Float[Tensor, "head k k"]) -> Float[Tensor, " head"]:
    return matrices.diagonal(dim1=1, dim2=2).sum(1).clamp(min=1e-30)


def _freedom(covariance: Float[Tensor, "head k k"]) -> Float[Tensor, " head"]:
    """Directions that a covariance has in effect: those of Satterthwaite's chi-square for a sum of weighted squares."""
    # The floor is the square of the one in `_trace`: a head that never varies counts as one direction.
    return _trace(covariance).square() / covariance.square().sum((1, 2)).clamp(min=1e-60)


def _chance_of_shift(ratio: Float[Tensor, " head"], covariance: Float[Tensor, "head k k"]) -> Float[Tensor, " head"]:
    """How often chance gives a squared shift that is so many times what it gives on average.

    A squared shift is a sum of squares weighted by the covariance's eigenvalues; its tail is that of the chi-square
    with the same mean, variance and skewness (Pearson's three moments, as in Imhof 1961, section 4).
    """
    square = covariance @ covariance
    first, second, third = _trace(covariance), _trace(square), _trace(square @ covariance)
    freedom = second**3 / third.square()
    standard = (ratio - 1) * first / second.sqrt()
    # Both standard deviations hold a factor of sqrt(2), that of the sum and that of the chi-square: it cancels.
    return torch.special.gammaincc(freedom / 2, (freedom + standard * freedom.sqrt()).clamp(min=0) / 2)


def _chance_of_distance(
    ratio: Float[Tensor, " head"], above: Float[Tensor, " head"], below: Float[Tensor, " head"]
) -> Float[Tensor, " head"]:
    """How often chance gives so large a ratio of two estimates, with their degrees of freedom: the tail of F, an
    incomplete beta integral.
    """
    # P(F > ratio) = I_end(below / 2, above / 2), the regularised incomplete beta function.
    a, b = below / 2, above / 2
    end = below / (below + above * ratio)
    # [point, head]; not from 0, where the logarithm of the density is infinite.
    points = end * torch.linspace(1e-6, 1, 4_001, dtype=torch.float64)[:, None]
    density = (a - 1) * points.log() + (b - 1) * (1 - points).clamp(min=1e-12).log()
    scale = torch.lgamma(a + b) - torch.lgamma(a) - torch.lgamma(b)
    return torch.trapezoid((density + scale).exp(), points, dim=0)
