"""Pictures of heatmaps: an overlay on the original image, and sheets of several pictures with their captions."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from .spatial import Heatmap

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

TOWARDS, AWAY = (224, 49, 49), (40, 98, 214)
STRONGEST = 0.85  # Opacity at the largest value: the image stays visible below.
SMALLEST_SIDE, LARGEST_SIDE = 512, 2_048
CAPTION_LINES = 2
_INK, _GAP, _LINE = (40, 44, 52), 12, 18
_BAR_WIDTH, _BAR_HEIGHT = 260, 12


def draw_overlay(image: Image.Image, shown: Heatmap, *, scale: float | None = None) -> Image.Image:
    """The image in light grey, with what speaks for the text in red and against it in blue.

    What the model's crop left out is almost white.

    Args:
        scale: The value that gets full opacity; by default the largest absolute one. Give one for pictures to compare.
    """
    factor = _display_factor(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    # A tint on an image's own colours cannot be told from them: a red object would speak for every text.
    grey = np.asarray(image.convert("L").resize(size, Image.Resampling.BICUBIC), np.float64)[..., None]
    values = _resize(shown.values, size)
    unseen = np.isnan(values)[..., None]
    color, opacity = tint(np.nan_to_num(values), scale or float(np.nanmax(np.abs(shown.values), initial=0.0)))
    blended = (grey * 0.6 + 80) * (1 - opacity[..., None]) + color * opacity[..., None]
    return Image.fromarray(np.where(unseen, grey * 0.15 + 210, blended).clip(0, 255).astype(np.uint8))


def tint(
    values: Float[np.ndarray, "row column"], scale: float
) -> tuple[Float[np.ndarray, "row column 3"], Float[np.ndarray, "row column"]]:
    """Colour by sign, and opacity in [0, `STRONGEST`] by the root of the size; `scale` gets the strongest."""
    color = np.where((values > 0)[..., None], np.asarray(TOWARDS, float), np.asarray(AWAY, float))
    # The root: one strong cell would leave the others without a colour. A map of zeros has no largest value.
    return color, np.sqrt((np.abs(values) / (scale or 1.0)).clip(0, 1)) * STRONGEST


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
    pictures: Sequence[Image.Image],
    captions: Sequence[str],
    *,
    columns: int,
    side: int = 256,
    scale: float | None = None,
) -> Image.Image:
    """Pictures in rows, each fitted into a square of `side` pixels, with its caption below the highest of all.

    Args:
        scale: The value that the pictures' strongest tint stands for: a colour bar below says so.
    """
    font = ImageFont.load_default(14)
    wrapped = [_wrap(caption, font, side) for caption in captions]
    lines = max((len(caption) for caption in wrapped), default=1)
    fitted = [_fit(picture, (side, side)) for picture in pictures]
    height = max(picture.height for picture in fitted)
    step = (side + _GAP, height + _LINE * lines + 6 + _GAP)
    rows, foot = -(-len(pictures) // columns), 0 if scale is None else _BAR_HEIGHT + _LINE + _GAP
    sheet = Image.new("RGB", (columns * step[0] + _GAP, rows * step[1] + _GAP + foot), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (picture, caption) in enumerate(zip(fitted, wrapped, strict=True)):
        x, y = _GAP + index % columns * step[0], _GAP + index // columns * step[1]
        sheet.paste(picture, (x + (side - picture.width) // 2, y + (height - picture.height) // 2))
        for line, words in enumerate(caption):
            draw.text((x, y + height + 4 + line * _LINE), words, fill=_INK, font=font)
    if scale is not None:
        _draw_bar(sheet, (_GAP, rows * step[1] + _GAP), scale, font)
    return sheet


def _draw_bar(sheet: Image.Image, at: tuple[int, int], scale: float, font: _Font) -> None:
    """What each tint means, from the most against a text to the most for it."""
    width = min(_BAR_WIDTH, sheet.width - 2 * at[0])
    values = np.linspace(-scale, scale, width)[None].repeat(_BAR_HEIGHT, axis=0)
    color, opacity = tint(values, scale)
    bar = color * opacity[..., None] + 200 * (1 - opacity[..., None])
    sheet.paste(Image.fromarray(bar.astype(np.uint8)), at)
    draw, below = ImageDraw.Draw(sheet), at[1] + _BAR_HEIGHT + 2
    for place, anchor, words in ((0, "la", f"{-scale:.2g}"), (width / 2, "ma", "0"), (width, "ra", f"+{scale:.2g}")):
        draw.text((at[0] + place, below), words, fill=_INK, font=font, anchor=anchor)
    unit = "part of the cosine similarity, per token"
    if at[0] + width + _GAP + font.getlength(unit) < sheet.width:
        draw.text((at[0] + width + _GAP, at[1] - 3), unit, fill=_INK, font=font)


def _fit(picture: Image.Image, cell: tuple[int, int]) -> Image.Image:
    factor = min(cell[0] / picture.width, cell[1] / picture.height)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def _wrap(caption: str, font: _Font, width: int) -> list[str]:
    """A caption in at most `CAPTION_LINES` lines of some width."""
    words, lines = caption.split(), [""]
    while words:
        longer = f"{lines[-1]} {words[0]}".strip()
        # In the last line everything stands that is left, and is cut; so is a word wider than a line.
        if len(lines) == CAPTION_LINES or not lines[-1] or font.getlength(longer) <= width:
            lines[-1] = longer
            words.pop(0)
        else:
            lines.append("")
    return [_shorten(line, font, width) for line in lines]


def _shorten(line: str, font: _Font, width: int) -> str:
    while line and font.getlength(line) > width:
        # The ellipsis of the last round goes, and one letter with it.
        line = line[:-2].rstrip("…") + "…"
    return line


def _display_factor(size: tuple[int, int]) -> float:
    """Small images are enlarged until a heatmap can be read, enormous ones are made smaller."""
    return min(max(1.0, SMALLEST_SIDE / min(size)), LARGEST_SIDE / max(size))


def _resize(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear, NaN by the nearest pixel."""
    # Apart from the values: interpolated, one NaN would spoil all pixels around it.
    seen = Image.fromarray((~np.isnan(values)).astype(np.uint8) * 255).resize(size, Image.Resampling.NEAREST)
    smooth = Image.fromarray(np.nan_to_num(values).astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    return np.where(np.asarray(seen) > 127, np.asarray(smooth), np.nan)
