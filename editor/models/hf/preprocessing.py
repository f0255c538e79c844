"""`preprocessor_config.json` as open_clip's `preprocess_cfg`, every field as transformers reads it.

A field that is absent has the value of the class; a flag that is null is off. What open_clip cannot hold, and what
transformers itself refuses, is refused by the names of the file and the field.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

from ...errors import ModelError
from ..preprocessing import FOLLOWS, TRANSFORMERS

_FLAGS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_pad", "do_convert_rgb", "default_to_square")
_COMMON: dict[str, Any] = {
    "do_resize": True,
    "do_center_crop": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "do_pad": False,
    "do_convert_rgb": True,
    "default_to_square": True,
    "resample": 3,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}
_OPENAI = {"image_mean": list(OPENAI_DATASET_MEAN), "image_std": list(OPENAI_DATASET_STD)}
_CROPPED = {"do_center_crop": True, "crop_size": {"height": 224, "width": 224}}
_CLIP = {**_COMMON, **_OPENAI, **_CROPPED, "size": {"shortest_edge": 224}, "default_to_square": False}
# What each class of transformers does where its file is silent.
CLASSES: dict[str, dict[str, Any]] = {
    "CLIPImageProcessor": _CLIP,
    "ChineseCLIPImageProcessor": _CLIP,
    "BitImageProcessor": _CLIP,
    "SiglipImageProcessor": {**_COMMON, "size": {"height": 224, "width": 224}, "default_to_square": False},
    "ViTImageProcessor": {**_COMMON, "size": {"height": 224, "width": 224}, "resample": 2},
    "DeiTImageProcessor": {**_COMMON, **_CROPPED, "size": {"height": 256, "width": 256}},
    "BlipImageProcessor": {**_COMMON, **_OPENAI, "size": {"height": 384, "width": 384}},
}
_CLASS_OF_MODEL = {"clip": "CLIPImageProcessor", "metaclip_2": "CLIPImageProcessor", "siglip": "SiglipImageProcessor"}
# Pillow's numbers of its filters.
_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
_HELD_FILTERS = {2: "bilinear", 3: "bicubic"}
_SIZES = ({"height", "width"}, {"shortest_edge"})


def convert_preprocessing(settings: Mapping[str, Any], model: Mapping[str, Any], image_size: int, path: Path) -> dict:
    """open_clip's `preprocess_cfg` of the content of a `preprocessor_config.json`.

    Args:
        settings: What the file says. model: What `config.json` says, which decides the class where the file does not.
        image_size: Of the image tower.
        path: The file, for messages.

    Raises:
        ModelError: If a field cannot be used, naming it and the file.
    """
    name = find_class(settings, model)
    if name not in CLASSES:
        raise ModelError(
            f"cannot use {path}: its image processor is {name}, known are {', '.join(CLASSES)}. Preprocess as one of "
            "these does, and name that one."
        )
    fields = _Fields(settings, name, path)
    mean, std = fields.normalisation()
    return {
        "size": image_size,
        "mode": "RGB",
        "mean": mean,
        "std": std,
        "interpolation": fields.interpolation(),
        "resize_mode": fields.resize_mode(image_size),
        "fill_color": 0,
        FOLLOWS: TRANSFORMERS,
    }


def find_class(settings: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    """The processor's class, in the order in which transformers looks for it; without `Fast` and `Pil`, which compute
    the same.
    """
    found = settings.get("image_processor_type")
    if found is None and "AutoImageProcessor" not in (settings.get("auto_map") or {}):
        # Files of before 4.26 have feature extractors.
        old = settings.get("feature_extractor_type")
        found = old and str(old).replace("FeatureExtractor", "ImageProcessor")
    found = found or model.get("image_processor_type") or _CLASS_OF_MODEL.get(str(model.get("model_type")))
    return str(found).removesuffix("Fast").removesuffix("Pil")


@dataclass(frozen=True)
class _Fields:
    """The fields of a file: its own values, and those of the class where it has none."""

    given: Mapping[str, Any]
    name: str
    path: Path

    def flag(self, field: str) -> bool:
        """A switch; null is off, as in transformers."""
        found = self.value(field)
        if found is not None and not isinstance(found, bool):
            self.refuse(field, "true or false is needed")
        return bool(found)

    def value(self, field: str) -> Any:
        return self.given[field] if field in self.given else CLASSES[self.name].get(field)

    def needed(self, field: str) -> Any:
        """A value that is used; null is refused by transformers too, where older versions took the class's."""
        found = self.value(field)
        if found is None:
            self.refuse(field, f"transformers refuses it. Remove the field for what is {self.name}'s own")
        return found

    def refuse(self, field: str, why: str) -> NoReturn:
        found = json.dumps(self.value(field))
        said = found if field in self.given else f"absent, and {self.name}'s own is {found}"
        raise ModelError(f"cannot use {self.path}: `{field}` is {said}: {why}.")

    def normalisation(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of pixels in [0, 1], with which open_clip computes what the fields ask for."""
        for field in _FLAGS:
            self.flag(field)
        factor = self.number("rescale_factor") if self.flag("do_rescale") else 1.0
        mean = self.channels("image_mean") if self.flag("do_normalize") else [0.0] * 3
        std = self.channels("image_std") if self.flag("do_normalize") else [1.0] * 3
        if 0 in std:
            self.refuse("image_std", "numbers other than 0 are needed")
        # (255 x factor - mean) / std with x in [0, 1]; files round 1 / 255.
        scale = 1.0 if math.isclose(255 * factor, 1, rel_tol=1e-6) else 255 * factor
        return [value / scale for value in mean], [value / scale for value in std]

    def number(self, field: str) -> float:
        found = self.needed(field)
        if not _is_number(found) or found == 0:
            self.refuse(field, "a number other than 0 is needed")
        return float(found)

    def channels(self, field: str) -> list[float]:
        """One number for each channel; transformers also takes one for all three."""
        found = self.needed(field)
        values = found if isinstance(found, list) else [found]
        if len(values) not in (1, 3) or not all(map(_is_number, values)):
            self.refuse(field, "three numbers are needed")
        return [float(value) for value in (values * 3 if len(values) == 1 else values)]

    def interpolation(self) -> str:
        found = self.needed("resample")
        if isinstance(found, bool) or not isinstance(found, int) or found not in range(len(_FILTERS)):
            self.refuse("resample", "2 (bilinear) or 3 (bicubic) is needed")
        if found not in _HELD_FILTERS:
            self.refuse("resample", f"{_FILTERS[found]}, where open_clip has 2 (bilinear) and 3 (bicubic)")
        return _HELD_FILTERS[found]

    def resize_mode(self, side: int) -> str:
        """`squash` or `shortest`: the two that open_clip has for what gives `side` x `side` pixels of any image."""
        if not self.flag("do_resize"):
            self.refuse("do_resize", f"the model takes {side} x {side} pixels, whatever the image's own size is")
        if self.given.get("use_square_size"):
            self.refuse("use_square_size", "only Kosmos-2 has it")
        if self.flag("do_pad") and self.value("pad_size") not in (None, side, _square(side)):
            self.refuse("pad_size", f"the model takes {side} x {side} pixels")
        cropped = self.flag("do_center_crop")
        crop = self.size("crop_size", square=True) if cropped else None
        size = self.size("size", square=self.flag("default_to_square"))
        if crop is not None and crop != _square(side):
            self.refuse("crop_size", f"the model takes {side} x {side} pixels")
        if size.keys() == {"shortest_edge"} and not cropped:
            self.refuse(
                "size", "only the shorter side is resized, and without `do_center_crop` images keep their shape"
            )
        if set(size.values()) != {side}:
            self.refuse("size", f"the model takes {side} x {side} pixels, and open_clip crops none from a larger image")
        return "shortest" if "shortest_edge" in size else "squash"

    def size(self, field: str, *, square: bool) -> dict[str, int]:
        """A size in the form that transformers makes of it; `square`: whether one number means both sides."""
        found = self.needed(field)
        if isinstance(found, int) and not isinstance(found, bool):
            found = _square(found) if square else {"shortest_edge": found}
        elif isinstance(found, list) and len(found) == 2:
            found = {"height": found[0], "width": found[1]}
        if not isinstance(found, dict) or not all(isinstance(side, int) for side in found.values()):
            self.refuse(field, "an integer, or whole numbers by name, are needed")
        if found.keys() not in _SIZES[: 1 if field == "crop_size" else 2]:
            self.refuse(field, '{"height", "width"} or {"shortest_edge"} can be held by open_clip, nothing else')
        return found


def _square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
