"""A model's own preprocessing, from its configuration: resize, crop and normalisation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor

from .timm import timm_transform


def build_preprocess(config: Mapping[str, Any]) -> Callable[[Image.Image], Tensor]:
    """From a `Model.config` to a function from a PIL image to pixels `[3, height, width]`."""
    if "timm_cfg" in config:
        return timm_transform(config["preprocess_cfg"])
    keys = PreprocessCfg.__dataclass_fields__
    known = PreprocessCfg(**{key: value for key, value in config["preprocess_cfg"].items() if key in keys})
    return image_transform_v2(known, is_train=False)  # pyright: ignore[reportReturnType]


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
