"""Images that can be opened by index, alone, with their classes, or with their true masks."""

from __future__ import annotations

import bisect
import hashlib
import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image

from .decode import open_image


@runtime_checkable
class CanSubset(Protocol):
    """An `ImageSource.open` that can be cut: a part holds its own images only, small to send to a worker."""

    def subset(self, indices: Sequence[int]) -> Callable[[int], Image.Image]: ...


@dataclass(frozen=True)
class OpenPath:
    """Opens image files by index."""

    paths: tuple[Path, ...]

    def __call__(self, index: int) -> Image.Image:
        return open_image(self.paths[index])

    def subset(self, indices: Sequence[int]) -> OpenPath:
        return OpenPath(tuple(self.paths[i] for i in indices))


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
            self.open.subset(chosen) if isinstance(self.open, CanSubset) else lambda i: self.open(chosen[i]),
            tuple(self.attributes[i] for i in chosen) if self.attributes else (),
            tuple(self.stamps[i] for i in chosen) if self.stamps else (),
            self.holds_texts,
        )

    def marks(self) -> list[str]:
        """A short hash an image, of its name and size: says whether two sources share it."""
        stamps = self.stamps or self.names
        pairs = zip(self.names, stamps, strict=True)
        return [hashlib.sha256(os.fsencode(f"{name}\0{stamp}")).hexdigest()[:16] for name, stamp in pairs]

    def fingerprint(self) -> str:
        """SHA-256 over names and sizes: says whether two scans saw the same images."""
        digest = hashlib.sha256()
        for name, stamp in zip(self.names, self.stamps or self.names, strict=True):
            digest.update(os.fsencode(f"{name}\0{stamp}\n"))
        return digest.hexdigest()


def join_sources(sources: Sequence[ImageSource]) -> ImageSource:
    """One source after the other."""
    if len(sources) == 1:
        return sources[0]
    starts = [0, *itertools.accumulate(len(source) for source in sources)]

    def open_any(index: int) -> Image.Image:
        which = bisect.bisect_right(starts, index) - 1
        return sources[which].open(index - starts[which])

    names = tuple(name for source in sources for name in source.names)
    return ImageSource(names, open_any, stamps=tuple(s for source in sources for s in source.stamps or source.names))


@dataclass(frozen=True)
class LabelledImages:
    """Images, the class of each as an index into `classes` (the words put into prompts), and the group of each.

    Attributes:
        subsets: For sets that compare parts of themselves, the part of each image; empty for others.
        written: For typographic sets, the class that is written on each image; empty for others.
    """

    source: ImageSource
    classes: tuple[str, ...]
    labels: tuple[int, ...]
    groups: tuple[str, ...]
    subsets: tuple[str, ...] = ()
    written: tuple[int, ...] = ()


@dataclass(frozen=True)
class MaskedImages:
    """Images with the true mask of their object: `mask(i)` is 1 on it, 0 beside it, -1 where nothing is known."""

    source: ImageSource
    mask: Callable[[int], np.ndarray]
