"""Sources in shards: webdataset tars, Parquet with image bytes, Hugging Face datasets; local, or behind a URI.

A shard is a work unit. It is opened where it is scanned, so that listing thousands of them reads no image.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path

from PIL import Image

from ..errors import ImageError, describe_given
from ..files.locations import Location, expand_range, is_remote, list_locations, open_location
from .decode import SUFFIXES, UPRIGHT, Decoding, read_image
from .demo_name import is_demo
from .folders import read_folder
from .packed.parquet import ARROW_SUFFIXES, PARQUET_SUFFIXES, cut_parquet, open_arrow, open_parquet
from .packed.tar import TAR_SUFFIXES, open_tar
from .source import ImageSource

SHARD_SUFFIXES = (*TAR_SUFFIXES, *PARQUET_SUFFIXES, *ARROW_SUFFIXES)
UNIT_IMAGES = 8_192


@dataclass(frozen=True)
class WorkUnit:
    """Part of a source.

    Attributes:
        name: What is printed, and the order of the reduce: units are sorted by it.
        key: SHA-256 of the names and sizes of what will be read.
        open: Gives the unit's images; reads files, so it is called where the unit is scanned.
        images: How many, if that is known before opening.
    """

    name: str
    key: str
    open: Callable[[], ImageSource]
    images: int | None = None


def list_shards(source: str | Path | ImageSource | Sequence[str | Path], rows: int = UNIT_IMAGES) -> list[WorkUnit]:
    """The shards of a source, sorted by name; none if it is no source of shards.

    Args:
        source: A folder, file, glob, range `{000..099}` or URI, or a list of them; of a folder `read_folder` says what
            it is read as.
        rows: Parquet files are cut at row groups into units of up to so many rows.

    Raises:
        ImageError: If a shard is missing, or a Parquet file cannot be read or holds no images.
    """
    if isinstance(source, ImageSource) or is_demo(source):
        return []
    # A string is iterable too, and is one place.
    given = list(source) if isinstance(source, Iterable) and not isinstance(source, str) else [source]
    for item in given:
        _require_place(item)
    located = []
    for item in given:
        found = _locate(item)
        if found is None:
            return []
        located += found
    return open_shards(located, rows)


def open_shards(shards: Iterable[Location], rows: int = UNIT_IMAGES) -> list[WorkUnit]:
    """The work units of shards, sorted by name.

    Raises:
        ImageError: If a Parquet file cannot be read or holds no images.
    """
    units = [unit for location in shards for unit in _units_of(location, rows)]
    return sorted(units, key=lambda unit: unit.name)


def _require_place(item: object) -> None:
    """Refuse what no images can be read from.

    Raises:
        TypeError: Saying what may be given.
    """
    if not isinstance(item, str | PathLike):
        raise TypeError(
            f"cannot read images: {describe_given('images', item)}. "
            "Give a folder, a CSV with a column of paths, a list of files, or `demo`."
        )


def read_remote_folder(uri: str) -> ImageSource:
    """Image files behind a URI.

    Raises:
        ImageError: If there are none, or the file system cannot be read.
    """
    found = list_locations(uri, tuple(sorted(SUFFIXES)))
    if not found:
        raise ImageError(
            f"cannot read images from {uri}: there is no image and no shard. Looked for {', '.join(sorted(SUFFIXES))}."
        )
    opener = OpenLocation(tuple(item.path for item in found))
    return ImageSource(tuple(item.name for item in found), opener, stamps=tuple(str(item.size) for item in found))


@dataclass(frozen=True)
class OpenLocation:
    """Opens images behind URIs by index."""

    paths: tuple[str, ...]
    decoding: Decoding = UPRIGHT

    def __call__(self, index: int) -> Image.Image:
        with open_location(self.paths[index]) as stream:
            content = stream.read()
        return read_image(io.BytesIO(content), self.paths[index], self.decoding)

    def subset(self, indices: Sequence[int]) -> OpenLocation:
        return OpenLocation(tuple(self.paths[i] for i in indices), self.decoding)

    def read_as(self, decoding: Decoding) -> OpenLocation:
        return replace(self, decoding=decoding)


def _locate(item: str | Path) -> Sequence[Location] | None:
    """The shards that a place stands for; None for a place of images or of something else."""
    if os.path.isdir(item):
        return read_folder(item).shards or None
    if not is_remote(item) and not expand_range(str(item))[0].lower().endswith(SHARD_SUFFIXES):
        return None
    found = list_locations(item, SHARD_SUFFIXES)
    # `datasets` keeps results of its own beside the data.
    return [location for location in found if not os.path.basename(location.path).startswith("cache-")]


def _units_of(location: Location, rows: int) -> list[WorkUnit]:
    lower = location.path.lower()
    if not lower.endswith(PARQUET_SUFFIXES):
        opener = partial(open_tar if lower.endswith(TAR_SUFFIXES) else open_arrow, location)
        return [WorkUnit(location.name, _key(location), opener)]
    runs = cut_parquet(location, rows)
    # Padded with zeros: sorted by name, units then come in the order of their rows.
    width = len(str(runs[-1][1])) if runs else 1
    return [
        WorkUnit(
            f"{location.name}#{first:0{width}d}-{last:0{width}d}",
            _key(location, first, last),
            partial(open_parquet, location, first, last),
            count,
        )
        for first, last, count in runs
    ]


def _key(location: Location, *rows: int) -> str:
    text = "\0".join([location.name, str(location.size), *map(str, rows)])
    return hashlib.sha256(os.fsencode(text)).hexdigest()
