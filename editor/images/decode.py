"""How one image is decoded safely: few formats, bounded sizes, always 8-bit RGB."""

from __future__ import annotations

import io
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

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
# Twice Pillow's own `MAX_IMAGE_PIXELS`: beyond that Pillow itself takes a file for a bomb.
MAX_PIXELS, MAX_ASPECT, MAX_SCANS = 178_956_970, 100, 40


def say_how_to_read(suffixes: Iterable[str]) -> list[str]:
    """What would read those of some suffixes that are images and are not read here: a few words for each package."""
    passed = set(suffixes)
    ways = (("pillow-heif", HEIF_SUFFIXES), ("-U pillow", AVIF_SUFFIXES))
    found = ((package, sorted(passed & known - SUFFIXES)) for package, known in ways)
    return [f"`pip install {package}` reads {', '.join(some)}" for package, some in found if some]


def open_image(path: Path) -> Image.Image:
    """Read one image file as 8-bit RGB: first frame of animations, 16-bit scaled down, CMYK and palettes converted.

    Raises:
        ImageError: If the file is missing, corrupt, truncated, or larger than `MAX_PIXELS`.
    """
    return read_image(path, str(path))


def read_image(content: Path | io.BytesIO, name: str) -> Image.Image:
    """As `open_image`, from a file or its content; `name` is for messages."""
    try:
        if isinstance(content, Path) and not content.is_file():
            raise ImageError(f"cannot read {name}: there is no such file.")
        with Image.open(content, formats=_formats()) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(f"cannot read {name}: {image.width} x {image.height} pixels, at most {MAX_PIXELS}.")
            if max(image.size) > MAX_ASPECT * min(image.size):
                # Resizing its short side to the model's would make the long one enormous.
                raise ImageError(
                    f"cannot read {name}: {image.width} x {image.height} is longer than {MAX_ASPECT} to 1."
                )
            _require_few_scans(image, name)
            # Inside the block: damaged data shows only when the pixels are decoded.
            image.load()
            return _to_rgb(image)
    except ImageError:
        raise
    except Exception as error:  # Decoders raise nearly anything on hostile bytes.
        raise ImageError(f"cannot read {name}: {error or type(error).__name__}.") from None


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


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit values at 255.
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")
