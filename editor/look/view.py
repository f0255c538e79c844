"""Where on the original image the model looks: its real resize and crop, measured instead of assumed.

Two ramps of the original's size go through the model's own preprocessing; a line through what comes out says which
pixel of the original each pixel of the input is. This holds for every resize, crop and pad there is, and for those to
come.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor

_INSIDE = 128  # The third channel: padding is black or white.
# Below 255, so that a shifted ramp is not cut off at its bright end.
_TOP = 254
_SHIFTS = (0.0, 0.25, 0.5, 0.75)


@dataclass(frozen=True)
class View:
    """The box that the model's input covers, in pixels of the original, which is `width` x `height`.

    Larger than the image where the preprocessing pads, smaller where it crops.
    """

    left: float
    top: float
    right: float
    bottom: float
    width: int
    height: int

    def project(self, values: Float[np.ndarray, "row column"]) -> Float[np.ndarray, "height width"]:
        """Values on a grid over the input, at every pixel of the original: bilinear, NaN where nothing was seen."""
        rows, seen_rows = _weights(self.top, self.bottom, self.height, values.shape[0])
        columns, seen_columns = _weights(self.left, self.right, self.width, values.shape[1])
        projected = rows @ values @ columns.T
        return np.where(seen_rows[:, None] & seen_columns, projected, np.nan)


@lru_cache(maxsize=256)
def find_view(preprocess: Callable[[Image.Image], Tensor], size: tuple[int, int]) -> View:
    """The view of an image of this size, `(width, height)`; right to a tenth of a pixel of the input.

    Remembered: images of one size share it, and it costs several times the preprocessing of an image.
    """
    width, height = size
    # Ramps shifted by fractions of a grey level: their mean has a quarter of the rounding.
    ramps = np.mean([_levels(preprocess, _ramps(width, height, shift)) - [[[shift]]] for shift in _SHIFTS], axis=0)
    inside = np.abs(ramps[2] - _INSIDE) < _INSIDE / 8
    left, right = _fit(ramps[0], inside, axis=1, length=width)
    top, bottom = _fit(ramps[1], inside, axis=0, length=height)
    return View(left, top, right, bottom, width, height)


def _ramps(width: int, height: int, shift: float) -> Image.Image:
    ramps = np.full((height, width, 3), _INSIDE, np.uint8)
    # Pixel centres: half a pixel from the edges.
    ramps[..., 0] = np.rint((np.arange(width) + 0.5) / width * _TOP + shift)
    ramps[..., 1] = np.rint((np.arange(height) + 0.5) / height * _TOP + shift)[:, None]
    return Image.fromarray(ramps)


def _levels(preprocess: Callable[[Image.Image], Tensor], image: Image.Image) -> np.ndarray:
    """What comes out of the preprocessing, its normalisation undone: `[channel, row, column]` in [0, 255]."""
    # Two flat images show what the normalisation does to the ends of the scale.
    black, white = (preprocess(Image.new("RGB", (32, 32), (level,) * 3)).numpy() for level in (0, 255))
    # At the centre, since the edges may be padding.
    middle = (slice(None), black.shape[1] // 2, black.shape[2] // 2)
    low, high = black[middle][:, None, None], white[middle][:, None, None]
    return (preprocess(image).numpy() - low) / (high - low) * 255


def _fit(ramp: np.ndarray, inside: np.ndarray, *, axis: int, length: int) -> tuple[float, float]:
    """Where the first and the last edge of the input lie along one axis of the original."""
    across = 1 - axis
    valid = np.flatnonzero(inside.any(across))
    # Near its edges an image is resampled from one side only, two pixels deep: no straight line.
    edge = min(len(valid) // 4, max(2, -(-2 * len(valid) // length)))
    chosen = valid[edge : len(valid) - edge]
    # Too few points for a line: the whole side is taken to lie on the valid pixels.
    if length < 3 or len(chosen) < 2:
        step = length / max(1, len(valid))
        start = -valid[0] * step if len(valid) else 0.0
        return float(start), float(start + inside.shape[axis] * step)
    kept = np.where(inside, ramp, np.nan)
    # Padding is NaN here, so that it does not pull the mean.
    line = np.nanmean(kept[:, chosen] if axis else kept[chosen], across)
    slope, offset = np.polyfit(chosen + 0.5, line / _TOP * length, 1)
    return float(offset), float(offset + slope * inside.shape[axis])


def _weights(start: float, end: float, pixels: int, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Bilinear weights `[pixel, cell]`, and which pixels the model saw."""
    at = (np.arange(pixels) + 0.5 - start) / (end - start) * cells - 0.5
    # The edges come from a fitted line, so the outermost pixels get a little room for rounding.
    seen = (at >= -0.5 - 1e-3) & (at <= cells - 0.5 + 1e-3)
    # Beyond the outermost centres there is nothing to interpolate with: the outermost value goes on.
    at = at.clip(0, cells - 1)
    low = np.floor(at).astype(int).clip(0, max(0, cells - 2))
    weights = np.zeros((pixels, cells))
    weights[np.arange(pixels), low] = 1 - (at - low)
    # Added, not set: with a single cell both neighbours are that cell.
    weights[np.arange(pixels), np.minimum(low + 1, cells - 1)] += at - low
    return weights, seen
