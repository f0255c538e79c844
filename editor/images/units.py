"""Work units: a source cut into parts that are scanned one by one, on any worker, in any order.

A unit is known before it is read: its `key` says whether a partial scan was made from the same images.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ..errors import ImageError
from .listing import list_images
from .shards import UNIT_IMAGES, WorkUnit, list_shards
from .source import ImageSource
from .texts import list_texts

AnySource = str | Path | ImageSource | Sequence[str | Path]


def list_units(source: AnySource, unit_size: int | None = None, *, texts: bool = False) -> list[WorkUnit]:
    """Cut a source into work units, sorted by name.

    A tar or Arrow shard is always one unit, a Parquet file one or more runs of row groups.

    Args:
        unit_size: Images a unit, 0 for a single one. By default one unit up to 16,384 images, else units of 8,192.
        texts: The source is of texts.

    Raises:
        ImageError: If there are no images, or the size is negative.
    """
    if unit_size is not None and unit_size < 0:
        raise ImageError(f"cannot cut images into units of {unit_size}: give 1 or more images, or 0 for one unit.")
    # A single unit is one source, however many shards it lies in.
    shards = [] if texts or unit_size == 0 else list_shards(source, rows=unit_size or UNIT_IMAGES)
    if shards:
        return shards
    found = list_texts(source) if texts else list_images(source)
    if unit_size is None:
        unit_size = UNIT_IMAGES if len(found) > 2 * UNIT_IMAGES else 0
    return cut_source(found, unit_size or len(found))


def cut_source(source: ImageSource, size: int) -> list[WorkUnit]:
    """Neighbouring images of a source, `size` a unit; named by their positions."""
    return [_unit_of(source, start, min(start + size, len(source))) for start in range(0, len(source), size)]


def choose_shard(units: Sequence[WorkUnit], shard: tuple[int, int]) -> list[WorkUnit]:
    """The units of one of several workers: every N-th, from the i-th on, zero-based.

    Raises:
        ImageError: If there is no such shard.
    """
    index, count = shard
    if not 0 <= index < count:
        raise ImageError(f"cannot scan shard {index}/{count}: shards of {count} are 0/{count} to {count - 1}/{count}.")
    return list(units[index::count])


def _unit_of(source: ImageSource, start: int, stop: int) -> WorkUnit:
    part = source if (start, stop) == (0, len(source)) else source.subset(range(start, stop))
    return WorkUnit(f"{start:09d}-{stop - 1:09d}", part.fingerprint(), partial(_same, part), stop - start)


def _same(part: ImageSource) -> ImageSource:
    return part
