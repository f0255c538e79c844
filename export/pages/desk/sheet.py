"""Thumbnails of many images in one picture: one file in the page, of which every place shows a part."""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image, ImageOps

from ....editor.images.source import ImageSource

SIDE, COLUMNS, QUALITY = 64, 32, 68


@dataclass(frozen=True)
class Sheet:
    """Image `i` is in column `i % columns`, row `i // columns`, each `side` pixels wide and high."""

    jpeg: bytes
    columns: int
    rows: int


def draw_thumbnails(source: ImageSource) -> Sheet:
    """The middle of every image, as a square."""
    rows = max(1, -(-len(source) // COLUMNS))
    sheet = Image.new("RGB", (COLUMNS * SIDE, rows * SIDE), (128, 128, 128))
    for index in range(len(source)):
        small = ImageOps.fit(source.open(index).convert("RGB"), (SIDE, SIDE), Image.Resampling.BICUBIC)
        sheet.paste(small, (index % COLUMNS * SIDE, index // COLUMNS * SIDE))
    stream = io.BytesIO()
    sheet.save(stream, "JPEG", quality=QUALITY)
    return Sheet(stream.getvalue(), COLUMNS, rows)
