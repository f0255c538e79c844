"""A model's own preprocessing, from its configuration: resize, crop and normalisation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torchvision.transforms.v2.functional as F
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode

from .timm import timm_transform

# A key of `preprocess_cfg` beside open_clip's: whose rules hold where the libraries differ by a pixel.
FOLLOWS, TRANSFORMERS = "follows", "transformers"


def build_preprocess(config: Mapping[str, Any]) -> Callable[[Image.Image], Tensor]:
    """From a `Model.config` to a function from a PIL image to pixels `[3, height, width]`."""
    if "timm_cfg" in config:
        return timm_transform(config["preprocess_cfg"])
    keys = PreprocessCfg.__dataclass_fields__
    known = PreprocessCfg(**{key: value for key, value in config["preprocess_cfg"].items() if key in keys})
    if config["preprocess_cfg"].get(FOLLOWS) == TRANSFORMERS:
        return AsTransformers(known)
    return image_transform_v2(known, is_train=False)  # pyright: ignore[reportReturnType]


def find_resized_side(config: Mapping[str, Any]) -> int:
    """From a `Model.config` to the longest side that its resizing makes of a square picture, in pixels."""
    size = config["preprocess_cfg"]["size"]
    longest = size if isinstance(size, int) else max(size)
    # timm resizes to more than it keeps, and crops.
    return math.ceil(longest / min(1.0, config["preprocess_cfg"].get("crop_pct") or 1.0))


def drop_rules(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without the key that open_clip does not know."""
    preprocess = {key: value for key, value in config["preprocess_cfg"].items() if key != FOLLOWS}
    return {**config, "preprocess_cfg": preprocess}


def require_preprocess(config: Mapping[str, Any], image_size: Any = None) -> None:
    """Try the preprocessing on one image: what is wrong with it should be said now, not at the first image.

    Raises:
        ValueError: If it gives no finite pixels, or others than the image tower takes.
    """
    # Not square: a resize without the crop that has to follow it shows at once.
    pixels = build_preprocess(config)(Image.new("RGB", (24, 16)))
    if pixels.ndim != 3 or len(pixels) != 3 or not pixels.isfinite().all():
        raise ValueError(f"its preprocessing gives pixels of shape {tuple(pixels.shape)}, or no finite ones")
    wanted = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size or pixels.shape[1:])
    if tuple(pixels.shape[1:]) != wanted:
        raise ValueError(f"its preprocessing gives {tuple(pixels.shape[1:])} pixels, its image tower takes {wanted}")


class AsTransformers:
    """Images as transformers makes pixels of them: resized as 8-bit tensors, which rounds otherwise than Pillow, and
    cropped from a corner that is rounded down.
    """

    def __init__(self, config: PreprocessCfg):
        self.size: Any = config.input_size[1:]
        self.squashes = config.resize_mode == "squash"
        self.filter = InterpolationMode(config.interpolation)
        # Of levels, not of shares: pixels are integers until here.
        self.mean, self.std = ([255 * value for value in values] for values in (config.mean, config.std))

    def __call__(self, image: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.array(_to_rgb(image))).permute(2, 0, 1).contiguous()
        (height, width), short = self.size, min(image.size)
        # The shorter side of a square target; the other one is rounded down.
        sides = self.size if self.squashes else [int(height * side / short) for side in pixels.shape[1:]]
        resized = F.resize(pixels, list(sides), self.filter, antialias=True)
        top, left = ((side - wanted) // 2 for side, wanted in zip(sides, self.size, strict=True))
        return F.normalize(F.crop(resized, top, left, height, width).float(), self.mean, self.std)


def _to_rgb(image: Image.Image) -> Image.Image:
    """As transformers does it, before anything is resized: what is transparent is white."""
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    layered = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), layered).convert("RGB")
