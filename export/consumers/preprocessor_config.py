"""Preprocessing as Hugging Face's `CLIPImageProcessor`, and all who read its file, describe it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from ...editor.errors import ExportError
from ...editor.models.model import Model

NAME = "preprocessor_config.json"


def require_clip_preprocessing(model: Model, target: str) -> None:
    """Refuse preprocessing that these files cannot say.

    Raises:
        ExportError: Naming what was found.
    """
    mode, (height, width) = model.config["preprocess_cfg"].get("resize_mode", "shortest"), model.image_shape
    if mode not in ("shortest", "squash") or (mode == "shortest" and height != width):
        raise ExportError(
            f"cannot export to {target}: images are resized by {mode!r} to {height} x {width}, the target resizes the "
            "shorter side and crops a square, or squashes. Use --target open-clip or onnx."
        )


def describe_preprocessor(model: Model) -> dict[str, Any]:
    """The content of `preprocessor_config.json`."""
    config, (height, width) = model.config["preprocess_cfg"], model.image_shape
    shape = {"height": height, "width": width}
    squash = config.get("resize_mode", "shortest") == "squash"
    bilinear = config.get("interpolation") == "bilinear"
    return {
        "image_processor_type": "CLIPImageProcessor",
        "feature_extractor_type": "CLIPFeatureExtractor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": shape if squash else {"shortest_edge": height},
        "resample": int(Image.Resampling.BILINEAR if bilinear else Image.Resampling.BICUBIC),
        "do_center_crop": not squash,
        "crop_size": shape,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config["mean"]),
        "image_std": list(config["std"]),
    }


def write_preprocessor(model: Model, folder: Path) -> None:
    """Write `preprocessor_config.json`."""
    (folder / NAME).write_text(json.dumps(describe_preprocessor(model), indent=2) + "\n", encoding="utf-8")
