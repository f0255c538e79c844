"""Preprocessing as Hugging Face's `CLIPImageProcessor`, and all who read its file, describe it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from PIL import Image
from torch import Tensor

from ...editor.errors import ExportError
from ...editor.models.model import Model
from ..verify.reference import Reference
from .consumer import Preprocess
from .shipped import Statement, read_said

NAME = "preprocessor_config.json"
# What transformers' `CLIPImageProcessor` does where its file is silent.
DEFAULTS = {
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"shortest_edge": 224},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": list(OPENAI_DATASET_MEAN),
    "image_std": list(OPENAI_DATASET_STD),
}


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


def describe_preprocessor(preprocess: Mapping[str, Any], shape: tuple[int, int]) -> dict[str, Any]:
    """The content of `preprocessor_config.json`.

    Args:
        preprocess: A model's `preprocess_cfg`.
        shape: Height and width that it takes.
    """
    sides = {"height": shape[0], "width": shape[1]}
    squash = preprocess.get("resize_mode", "shortest") == "squash"
    bilinear = preprocess.get("interpolation") == "bilinear"
    return {
        # Both names: which key is read depends on the consumer's version.
        "image_processor_type": "CLIPImageProcessor",
        "feature_extractor_type": "CLIPFeatureExtractor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": sides if squash else {"shortest_edge": shape[0]},
        "resample": int(Image.Resampling.BILINEAR if bilinear else Image.Resampling.BICUBIC),
        # What was squashed to both sides has nothing left to cut.
        "do_center_crop": not squash,
        "crop_size": sides,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess["mean"]),
        "image_std": list(preprocess["std"]),
    }


def write_preprocessor(model: Model, folder: Path) -> None:
    """Write `preprocessor_config.json`."""
    content = describe_preprocessor(model.config["preprocess_cfg"], model.image_shape)
    (folder / NAME).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_preprocessor(path: Path) -> dict[str, Any]:
    """What the file says, what it leaves out filled in as `CLIPImageProcessor` does.

    Raises:
        VerificationError: If it cannot be read.
    """
    found = {**DEFAULTS, **read_said(path)}
    size, crop = found["size"], found["crop_size"]
    # Older files give a plain integer: of `size` it is the shorter side, of `crop_size` both.
    found["size"] = {"shortest_edge": size} if isinstance(size, int) else size
    found["crop_size"] = {"height": crop, "width": crop} if isinstance(crop, int) else crop
    return found


def tell_preprocessor(folder: Path, reference: Reference, inside: str = "") -> Statement:
    """What `preprocessor_config.json` says, in the folder or one inside it."""
    height, width = reference.pixels().shape[2:]
    path = f"{inside}/{NAME}" if inside else NAME
    wanted = describe_preprocessor(reference.config["preprocess_cfg"], (height, width))
    # The class is named in one of several ways, by version.
    wanted = {key: value for key, value in wanted.items() if not key.endswith("_type")}
    return Statement(path, wanted, read_preprocessor(folder / path))


def build_processor(path: Path) -> Preprocess:
    """Preprocessing as the file says it and `CLIPImageProcessor` does it: for consumers that are not installed.

    Raises:
        VerificationError: If the file cannot be read.
    """
    said = read_preprocessor(path)

    def preprocess(image: Image.Image) -> Float[Tensor, "3 height width"]:
        image = image.convert("RGB") if said["do_convert_rgb"] else image
        image = image.resize(_resized(image, said["size"]), said["resample"]) if said["do_resize"] else image
        # Cropped even after a squash, if the file says so: only its own word counts.
        image = _crop(image, said["crop_size"]) if said["do_center_crop"] else image
        pixels = torch.from_numpy(np.array(image, dtype=np.float32))
        pixels = pixels * said["rescale_factor"] if said["do_rescale"] else pixels
        if said["do_normalize"]:
            pixels = (pixels - torch.tensor(said["image_mean"])) / torch.tensor(said["image_std"])
        return pixels.permute(2, 0, 1).contiguous()  # [height, width, 3] -> [3, height, width]

    return preprocess


def _resized(image: Image.Image, size: Mapping[str, int]) -> tuple[int, int]:
    """Width and height: squashed, or the shorter side at a length and the longer one cut to whole pixels."""
    if "shortest_edge" not in size:
        return size["width"], size["height"]
    # Cut and not rounded; the maximum keeps the shorter side from losing a pixel to floating point.
    scale = size["shortest_edge"] / min(image.size)
    return max(size["shortest_edge"], int(image.width * scale)), max(size["shortest_edge"], int(image.height * scale))


def _crop(image: Image.Image, size: Mapping[str, int]) -> Image.Image:
    left, top = (image.width - size["width"]) // 2, (image.height - size["height"]) // 2
    return image.crop((left, top, left + size["width"], top + size["height"]))
