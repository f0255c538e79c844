"""Words written over images: typographic attacks made from a user's own photographs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK, PLATE = (16, 16, 16), (250, 250, 250)
# Of an image's height, a word takes one.
PARTS = 6


class Box(NamedTuple):
    """A rectangle in pixels; right and bottom lie outside it."""

    left: int
    top: int
    right: int
    bottom: int


def overlay_word(
    image: Image.Image, word: str, generator: np.random.Generator, parts: int = PARTS
) -> tuple[Image.Image, Box]:
    """The image with a word on a light plate somewhere in it, one of so many parts of its height; and where it is."""
    height = max(8, image.height // parts)
    width = min(image.width, _word_width(word, height))
    left = int(generator.integers(0, image.width - width + 1))
    top = int(generator.integers(0, max(1, image.height - height + 1)))
    return draw_word(image, word, left=left, top=top, height=height)


def draw_word(image: Image.Image, word: str, *, left: int, top: int, height: int) -> tuple[Image.Image, Box]:
    """The image with a word at a fixed place, dark on a light plate `height` pixels high; words too long are cut."""
    box = Box(left, top, min(image.width, left + _word_width(word, height)), min(image.height, top + height))
    plate = Image.new("RGB", (box.right - box.left, box.bottom - box.top), PLATE)
    ImageDraw.Draw(plate).text((1, height // 2), word, fill=INK, font=_font(height), anchor="lm")
    found = image.copy()
    found.paste(plate, (left, top))
    return found, box


def _font(height: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=height)


def _word_width(word: str, height: int) -> int:
    return int(np.ceil(_font(height).getlength(word))) + 2
