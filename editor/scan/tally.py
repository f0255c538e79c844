"""How far a pass over images is, and how many could not be read: the one place that counts both and says stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..errors import ImageError
from ..images.batches import Batch

Progress = Callable[[int, int], None]
BadImages = Sequence[tuple[str, str]]
# The share of unreadable images that is tolerated where nobody says another.
MAX_BAD = 0.01
# Before so many images are seen, a few unreadable ones do not stop a pass whose size is not known.
ENOUGH_IMAGES = 1_000


@dataclass
class Tally:
    """What a pass has seen so far.

    Attributes:
        total: How many images there are; None where the units that hold them do not say.
        max_bad: Share of unreadable images that is tolerated, in [0, 1].
        progress: Told the images done and in total; the total is an estimate while it is not known.
        units, finished: Work units that the images come in, and how many of them are done.
        bad: Names of images that could not be read, with the reason.
    """

    total: int | None
    max_bad: float
    progress: Progress | None = None
    units: int = 1
    finished: int = 0
    done: int = 0
    bad: list[tuple[str, str]] = field(default_factory=list)

    def add(self, batch: Batch) -> None:
        """Count a batch, and say how far the pass is.

        Raises:
            ImageError: If more than `max_bad` of the images cannot be read.
        """
        self.count(len(batch.indices) + len(batch.bad), batch.bad)

    def count(self, images: int, bad: BadImages) -> None:
        """As `add`, for so many images, the unreadable ones included."""
        self.done += images
        self.bad += bad
        check_bad(self.bad, max(self.done, ENOUGH_IMAGES) if self.total is None else self.total, self.max_bad)
        if self.progress is not None:
            self.progress(self.done, self._estimate() if self.total is None else self.total)

    def _estimate(self) -> int:
        # What is left is taken to hold as many images per unit as what is finished.
        return max(self.done, round(self.done / max(self.finished, 1) * self.units))


def is_too_many(bad: int, total: int, max_bad: float) -> bool:
    """Whether more images are unreadable than is tolerated."""
    return bad > max_bad * total


def check_bad(bad: BadImages, total: int, max_bad: float, *, unnamed: int = 0) -> None:
    """Stop when too many images are unreadable.

    Args:
        unnamed: How many more there are than `bad` names.

    Raises:
        ImageError: With the first reasons.
    """
    count = len(bad) + unnamed
    if is_too_many(count, total, max_bad):
        reasons = "; ".join(reason for _, reason in bad[:3])
        raise ImageError(
            f"cannot go on: {count} of {total} images cannot be read, {max_bad:.1%} are tolerated (--max-bad). "
            f"{reasons}"
        )
