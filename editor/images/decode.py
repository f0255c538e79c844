"""How one image is decoded safely: few formats, bounded sizes, always 8-bit RGB."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..choices import Exif
from ..errors import ImageError

# Old builds of Pillow lack AVIF; HEIC is never part of it. Asked without importing: most folders hold neither.
_HAS_AVIF, _HAS_HEIF = find_spec("PIL._avif") is not None, find_spec("pillow_heif") is not None
AVIF_SUFFIXES, HEIF_SUFFIXES = frozenset({".avif"}), frozenset({".heic", ".heif", ".hif"})
SUFFIXES = (
    frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
    | (AVIF_SUFFIXES if _HAS_AVIF else frozenset())
    | (HEIF_SUFFIXES if _HAS_HEIF else frozenset())
)
# By content, not by suffix: what else Pillow reads would run Ghostscript, or code that nobody fuzzes.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", *(["AVIF"] if _HAS_AVIF else []))
# What is white, in pictures of floating point or of 32 bits; resizing may have carried values a little beyond.
_WHITES, _OVER = (1, 255, 65_535), 1 / 255
_ORIENTATION = 0x0112
# From what EXIF says of the stored picture to what makes it upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Twice Pillow's own `MAX_IMAGE_PIXELS`: beyond that Pillow itself takes a file for a bomb.
MAX_PIXELS, MAX_ASPECT, MAX_SCANS = 178_956_970, 100, 40


@dataclass(frozen=True)
class Decoding:
    """How files become pictures.

    Attributes:
        exif: Turned as EXIF says, as viewers do, or as they are stored.
        enough: So many pixels of the short side are enough: a JPEG is decoded at a half, a quarter or an eighth where
            that leaves no fewer. None for all pixels.
    """

    exif: Exif = "upright"
    enough: int | None = None


# Every pixel, as viewers show it.
UPRIGHT = Decoding()


def say_how_to_read(suffixes: Iterable[str]) -> list[str]:
    """What would read those of some suffixes that are images and are not read here: a few words for each package."""
    passed = set(suffixes)
    ways = (("pillow-heif", HEIF_SUFFIXES), ("-U pillow", AVIF_SUFFIXES))
    found = ((package, sorted(passed & known - SUFFIXES)) for package, known in ways)
    return [f"`pip install {package}` reads {', '.join(some)}" for package, some in found if some]


def open_image(path: Path, decoding: Decoding = UPRIGHT) -> Image.Image:
    """Read one image file as 8-bit RGB: first frame of animations, 16-bit scaled down, CMYK and palettes converted.

    Raises:
        ImageError: If the file is missing, corrupt, truncated, larger than `MAX_PIXELS`, or of an unknown range.
    """
    return read_image(path, str(path), decoding)


def read_image(content: Path | io.BytesIO, name: str, decoding: Decoding = UPRIGHT) -> Image.Image:
    """As `open_image`, from a file or its content; `name` is for messages."""
    try:
        _require_file(content, name)
        with Image.open(content, formats=_formats()) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(f"cannot read {name}: {image.width} x {image.height} pixels, at most {MAX_PIXELS}.")
            if max(image.size) > MAX_ASPECT * min(image.size):
                # Resizing its short side to the model's would make the long one enormous.
                raise ImageError(
                    f"cannot read {name}: {image.width} x {image.height} is longer than {MAX_ASPECT} to 1."
                )
            _require_few_scans(image, name)
            if decoding.enough is not None:
                # Only JPEG's own transform does this; Pillow leaves other formats as they are.
                image.draft(None, (decoding.enough, decoding.enough))
            # Inside the block: damaged data shows only when the pixels are decoded.
            image.load()
            picture = _to_rgb(image, name)
            turn = _TURNS.get(_read_orientation(image)) if decoding.exif == "upright" else None
            return picture if turn is None else picture.transpose(turn)
    except ImageError:
        raise
    except Exception as error:  # Decoders raise nearly anything on hostile bytes.
        raise ImageError(f"cannot read {name}: {error or type(error).__name__}.") from None


def _require_file(content: Path | io.BytesIO, name: str) -> None:
    if isinstance(content, Path) and not content.is_file():
        found = "it is a folder, not an image" if content.is_dir() else "there is no such file"
        raise ImageError(f"cannot read {name}: {found}.")


@cache
def _formats() -> tuple[str, ...]:
    if not _HAS_HEIF:
        return FORMATS
    import pillow_heif  # pyright: ignore[reportMissingImports]

    pillow_heif.register_heif_opener()
    return (*FORMATS, "HEIF")


def _require_few_scans(image: Image.Image, name: str) -> None:
    """A JPEG may go over all its pixels as often as it likes: a small file could take hours."""
    stream: Any = getattr(image, "fp", None)
    # Pillow names a JPEG that holds further pictures MPO.
    if image.format not in ("JPEG", "MPO") or stream is None:
        return
    at = stream.tell()
    stream.seek(0)
    # The marker at the start of a scan. In image data 0xFF is followed by 0x00, so hardly anything else is counted.
    scans = stream.read().count(b"\xff\xda")
    # Pillow goes on reading where it stopped.
    stream.seek(at)
    if scans > MAX_SCANS and scans * image.width * image.height > MAX_PIXELS:
        raise ImageError(f"cannot read {name}: a JPEG of {scans} scans, {MAX_SCANS} are read of so large a one.")


def _read_orientation(image: Image.Image) -> int:
    """1 to 8 as EXIF counts them; Pillow has turned TIFFs already, and HEIC files say it otherwise."""
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # A damaged EXIF block is no reason not to read the pixels.
        return 1


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    # Whole numbers of a TIFF in this mode have 32 bits, those of other formats 16.
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        return _scale_range(np.asarray(image), name)
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit values at 255.
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def _scale_range(values: np.ndarray, name: str) -> Image.Image:
    """Numbers whose type does not say what white is, by their range: up to 1, up to 255, or up to 65,535."""
    low, high = float(values.min()), float(values.max())
    whites = _WHITES[1:] if np.issubdtype(values.dtype, np.integer) else _WHITES
    white = next((white for white in whites if high <= white * (1 + _OVER)), None)
    # NaN compares with nothing, so it has no range either.
    if white is None or not low >= -white * _OVER:
        raise ImageError(
            f"cannot read {name}: its values go from {low:g} to {high:g}, where {', '.join(map(str, whites))} would be "
            "white. Save it in 8 or 16 bits."
        )
    scaled = (values.astype(np.float64) / white).clip(0, 1) * 255
    return Image.fromarray(scaled.round().astype(np.uint8)).convert("RGB")
