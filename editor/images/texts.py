"""Texts as a source that is scanned: what images are to the image tower, texts are to the text tower."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...demo import world
from ..concepts.concepts import load_texts
from ..errors import ImageError
from .source import DEMO_CALIBRATION_COUNT, DEMO_CALIBRATION_SEED, ImageSource


def list_texts(source: object) -> ImageSource:
    """The texts of a file, one a line; `demo` stands for captions of the embedded world.

    Raises:
        ImageError: If the source is not a file of texts.
        ConceptError: If the file cannot be read or holds no text.
    """
    if isinstance(source, ImageSource) and source.holds_texts:
        return source
    if source == "demo":
        generator = np.random.default_rng(DEMO_CALIBRATION_SEED)
        captions = [world.draw_captioned_scene(generator)[1] for _ in range(DEMO_CALIBRATION_COUNT)]
        return text_source(tuple(dict.fromkeys(captions)))
    if not isinstance(source, str | Path) or Path(source).is_dir():
        raise ImageError("cannot scan a text tower on images: texts are needed. Give a file with a text a line.")
    return text_source(load_texts(source))


def text_source(texts: tuple[str, ...]) -> ImageSource:
    """A source of given texts; they are their own names."""
    return ImageSource(texts, lambda index: texts[index], holds_texts=True)  # pyright: ignore[reportArgumentType]
