"""Images with captions: which image is found by a text, and which text by an image."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...choices import Exif
from ..source import ImageSource


@dataclass(frozen=True)
class CaptionSet:
    """Images, and the captions of each; `split` is the part of the set that was read."""

    source: ImageSource
    captions: tuple[tuple[str, ...], ...]
    split: str | None = None

    def read_as(self, exif: Exif) -> CaptionSet:
        """The same images, turned upright or as they are stored."""
        return replace(self, source=self.source.read_as(exif))
