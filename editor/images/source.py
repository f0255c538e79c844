"""Images that can be opened by index, alone, with their classes, or with their true masks."""

from __future__ import annotations

import bisect
import hashlib
import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from ..errors import ImageError
from .decode import UPRIGHT, Decoding, open_image

# In place of an image's mark, where it cannot be read.
_UNREADABLE = "unreadable"


@runtime_checkable
class CanSubset(Protocol):
    """An `ImageSource.open` that can be cut: a part holds its own images only, small to send to a worker."""

    def subset(self, indices: Sequence[int]) -> Callable[[int], Image.Image]: ...


@runtime_checkable
class CanTurn(Protocol):
    """An `ImageSource.open` that reads files, which can be decoded in more than one way."""

    def read_as(self, decoding: Decoding) -> Callable[[int], Image.Image]: ...


def _read_as(opener: Callable[[int], Image.Image], decoding: Decoding) -> Callable[[int], Image.Image]:
    return opener.read_as(decoding) if isinstance(opener, CanTurn) else opener


@dataclass(frozen=True)
class OpenPath:
    """Opens image files by index."""

    paths: tuple[Path, ...]
    decoding: Decoding = UPRIGHT

    def __call__(self, index: int) -> Image.Image:
        return open_image(self.paths[index], self.decoding)

    def subset(self, indices: Sequence[int]) -> OpenPath:
        return OpenPath(tuple(self.paths[i] for i in indices), self.decoding)

    def read_as(self, decoding: Decoding) -> OpenPath:
        return replace(self, decoding=decoding)


@dataclass(frozen=True)
class _OpenSome:
    """Opens some of the images of a source that cannot be cut; of one that holds texts, its texts."""

    open: Callable[[int], Any]
    chosen: Sequence[int]

    def __call__(self, index: int) -> Any:
        return self.open(self.chosen[index])

    def read_as(self, decoding: Decoding) -> _OpenSome:
        return replace(self, open=_read_as(self.open, decoding))


@dataclass(frozen=True)
class _OpenJoined:
    """Opens the images of several sources, one source after the other; `starts` has each one's first index."""

    openers: Sequence[Callable[[int], Image.Image]]
    starts: Sequence[int]

    def __call__(self, index: int) -> Image.Image:
        # The last start that is not beyond the index, which passes over empty sources.
        which = bisect.bisect_right(self.starts, index) - 1
        return self.openers[which](index - self.starts[which])

    def read_as(self, decoding: Decoding) -> _OpenJoined:
        return replace(self, openers=[_read_as(opener, decoding) for opener in self.openers])


@dataclass(frozen=True)
class ImageSource:
    """Images that can be opened by index, with the attributes of each (the columns of a CSV, or none).

    A source of texts (`editor/images/texts.py`) `holds_texts` in place of images, for text towers.

    `names` are what is printed when an image is bad, `sizes` and `times` fix the fingerprint.
    """

    names: tuple[str, ...]
    open: Callable[[int], Image.Image]
    attributes: tuple[dict[str, str], ...] = ()
    stamps: tuple[str, ...] = field(default=(), repr=False)
    holds_texts: bool = False

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, indices: Sequence[int]) -> ImageSource:
        """Some of the images, in the given order."""
        chosen = list(indices)
        return ImageSource(
            tuple(self.names[i] for i in chosen),
            self.open.subset(chosen) if isinstance(self.open, CanSubset) else _OpenSome(self.open, chosen),
            tuple(self.attributes[i] for i in chosen) if self.attributes else (),
            tuple(self.stamps[i] for i in chosen) if self.stamps else (),
            self.holds_texts,
        )

    def read_as(self, decoding: Decoding) -> ImageSource:
        """The same images, decoded so; what is no file stays as it is."""
        return replace(self, open=_read_as(self.open, decoding))

    def marks(self) -> list[str]:
        """A short hash an image, of its name and size: says whether two sources share it."""
        stamps = self.stamps or self.names
        pairs = zip(self.names, stamps, strict=True)
        return [hashlib.sha256(os.fsencode(f"{name}\0{stamp}")).hexdigest()[:16] for name, stamp in pairs]

    def fingerprint(self) -> str:
        """SHA-256 over names and sizes: says whether two scans saw the same images."""
        digest = hashlib.sha256()
        # `fsencode`: file names may hold bytes that are no UTF-8, on which `encode` fails.
        for name, stamp in zip(self.names, self.stamps or self.names, strict=True):
            digest.update(os.fsencode(f"{name}\0{stamp}\n"))
        return digest.hexdigest()


def join_sources(sources: Sequence[ImageSource]) -> ImageSource:
    """One source after the other."""
    if len(sources) == 1:
        return sources[0]
    starts = [0, *itertools.accumulate(len(source) for source in sources)]
    open_any = _OpenJoined([source.open for source in sources], starts)
    names = tuple(name for source in sources for name in source.names)
    return ImageSource(names, open_any, stamps=tuple(s for source in sources for s in source.stamps or source.names))


@dataclass(frozen=True)
class LabelledImages:
    """Images, the class of each as an index into `classes` (the words put into prompts), and the group of each.

    Attributes:
        subsets: For sets that compare parts of themselves, the part of each image; empty for others.
        written: For typographic sets, the class that is written on each image; empty for others.
        options: For sets that ask between a few classes at each image, those classes; empty where all are asked.
        templates: Prompts that belong to the set, which are then taken word by word; empty for others.
        gap: For sets that compare two of their parts, the name of the difference and both parts.
        split: The value of the `split` column that was kept; None where all rows were.
        retention: The same images with the classes of a second task, on which nothing should change.
    """

    source: ImageSource
    classes: tuple[str, ...]
    labels: tuple[int, ...]
    groups: tuple[str, ...]
    subsets: tuple[str, ...] = ()
    written: tuple[int, ...] = ()
    options: tuple[tuple[int, ...], ...] = ()
    templates: tuple[str, ...] = ()
    gap: tuple[str, str, str] | None = None
    split: str | None = None
    retention: LabelledImages | None = None

    def read_as(self, decoding: Decoding) -> LabelledImages:
        """The same images, decoded so."""
        retention = self.retention and self.retention.read_as(decoding)
        return replace(self, source=self.source.read_as(decoding), retention=retention)


@dataclass(frozen=True)
class MaskedImages:
    """Images with the true mask of their object: `mask(i)` is 1 on it, 0 beside it, -1 where nothing is known."""

    source: ImageSource
    mask: Callable[[int], np.ndarray]

    def read_as(self, decoding: Decoding) -> MaskedImages:
        """The same images, decoded so; masks have pixels only, which stay."""
        return replace(self, source=self.source.read_as(decoding))


def find_shared(one: ImageSource, other: ImageSource) -> list[int]:
    """Positions in `other` of the images that `one` holds too, by content.

    Of two sets of files the bytes are compared, and only of files that have equals in size; else the pixels are.
    """
    if isinstance(one.open, OpenPath) and isinstance(other.open, OpenPath):
        sizes = set(one.stamps) & set(other.stamps)
        ours = _mark_files(one.open.paths, one.stamps, sizes)
        theirs = _mark_files(other.open.paths, other.stamps, sizes)
    else:
        ours, theirs = _mark_pixels(one), _mark_pixels(other)
    # All unreadable images have this mark, and are not equal for that.
    known = set(ours) - {_UNREADABLE}
    return [index for index, mark in enumerate(theirs) if mark in known]


def mark_contents(source: ImageSource) -> list[str]:
    """A short hash per image of what it holds, whatever it is called: of a file's bytes, else of the pixels."""
    if isinstance(source.open, OpenPath):
        return _mark_files(source.open.paths, source.stamps, set(source.stamps))
    return _mark_pixels(source)


def _mark_files(paths: Sequence[Path], sizes: Sequence[str], wanted: set[str]) -> list[str]:
    return [_mark_file(path) if size in wanted else _UNREADABLE for path, size in zip(paths, sizes, strict=True)]


def _mark_file(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    except (OSError, ValueError):  # What cannot be read is skipped where it is measured.
        return _UNREADABLE


def _mark_pixels(source: ImageSource) -> list[str]:
    return [_mark_picture(source, index) for index in range(len(source))]


def _mark_picture(source: ImageSource, index: int) -> str:
    try:
        picture = source.open(index).convert("RGB")
    except (OSError, ValueError, ImageError):
        return _UNREADABLE
    # With the size: the same bytes may be 2 x 8 or 4 x 4 pixels.
    return hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()[:16]
