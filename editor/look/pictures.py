"""Pictures of heatmaps: an overlay on the original image, and sheets of several pictures with their captions."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from .spatial import Heatmap

TOWARDS, AWAY = (224, 49, 49), (40, 98, 214)
STRONGEST = 0.78  # Opacity at the largest value: the image stays visible below.
SMALLEST_SIDE, LARGEST_SIDE = 256, 2_048


def draw_overlay(image: Image.Image, shown: Heatmap, *, scale: float | None = None) -> Image.Image:
    """The image with what speaks for the text in red and against it in blue; what the model's crop left out is greyed.

    Args:
        scale: The value that gets full opacity; by default the largest absolute one. Give one for pictures to compare.
    """
    factor = _display_factor(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    base = np.asarray(image.convert("RGB").resize(size, Image.Resampling.BICUBIC), np.float64)
    values = _resize(shown.values, size)
    unseen = np.isnan(values)[..., None]
    color, opacity = tint(np.nan_to_num(values), scale or float(np.nanmax(np.abs(shown.values), initial=0.0)))
    blended = base * (1 - opacity[..., None]) + color * opacity[..., None]
    grey = base.mean(2, keepdims=True) * 0.35 + 110
    return Image.fromarray(np.where(unseen, grey, blended).clip(0, 255).astype(np.uint8))


def tint(
    values: Float[np.ndarray, "row column"], scale: float
) -> tuple[Float[np.ndarray, "row column 3"], Float[np.ndarray, "row column"]]:
    """Colour by sign, and opacity in [0, `STRONGEST`] by size; `scale` gets the strongest."""
    color = np.where((values > 0)[..., None], np.asarray(TOWARDS, float), np.asarray(AWAY, float))
    # A map of zeros has no largest value to divide by.
    return color, (np.abs(values) / (scale or 1.0)).clip(0, 1) * STRONGEST


def tint_png(values: Float[np.ndarray, "row column"], scale: float) -> bytes:
    """A transparent PNG with one pixel a value: a few hundred bytes, to be stretched over the image."""
    color, opacity = tint(values, scale)
    pixels = np.concatenate([color, opacity[..., None] * 255], axis=2).astype(np.uint8)
    return encode_image_file(pixels, "PNG")


def encode_image_file(pixels: UInt8[np.ndarray, "height width *channel"], kind: str) -> bytes:
    """The bytes of an image file of some kind, `PNG` or `JPEG`."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **({"quality": 82} if kind == "JPEG" else {"optimize": True}))
    return stream.getvalue()


def draw_sheet(
    pictures: Sequence[Image.Image], captions: Sequence[str], *, columns: int, side: int = 256
) -> Image.Image:
    """Pictures in rows, each fitted into a square of `side` pixels with its caption below."""
    font = ImageFont.load_default(14)
    cell, line, gap = (side, side), 24, 12
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (side + gap) + gap, rows * (side + line + gap) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        x, y = gap + index % columns * (side + gap), gap + index // columns * (side + line + gap)
        small = _fit(picture, cell)
        sheet.paste(small, (x + (side - small.width) // 2, y + (side - small.height) // 2))
        draw.text((x, y + side + 4), _shorten(caption, font, side), fill=(40, 44, 52), font=font)
    return sheet


def _fit(picture: Image.Image, cell: tuple[int, int]) -> Image.Image:
    factor = min(cell[0] / picture.width, cell[1] / picture.height)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def _shorten(caption: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    plain = " ".join(caption.split())
    while plain and font.getlength(plain) > width:
        # The ellipsis of the last round goes, and one letter with it.
        plain = plain[:-2].rstrip("…") + "…"
    return plain


def _display_factor(size: tuple[int, int]) -> float:
    """Small images are enlarged until a heatmap can be read, enormous ones are made smaller."""
    return min(max(1.0, SMALLEST_SIDE / min(size)), LARGEST_SIDE / max(size))


def _resize(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear, NaN by the nearest pixel."""
    # Apart from the values: interpolated, one NaN would spoil all pixels around it.
    seen = Image.fromarray((~np.isnan(values)).astype(np.uint8) * 255).resize(size, Image.Resampling.NEAREST)
    smooth = Image.fromarray(np.nan_to_num(values).astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    return np.where(np.asarray(seen) > 127, np.asarray(smooth), np.nan)
