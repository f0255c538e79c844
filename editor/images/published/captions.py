"""Images with captions: which image is found by a text, and which text by an image."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..decode import Decoding
from ..source import ImageSource


@dataclass(frozen=True)
class CaptionSet:
    """Images, and the captions of each; `split` is the part of the set that was read."""

    source: ImageSource
    captions: tuple[tuple[str, ...], ...]
    split: str | None = None

    def read_as(self, decoding: Decoding) -> CaptionSet:
        """The same images, decoded so."""
        return replace(self, source=self.source.read_as(decoding))
