"""`preprocessor_config.json`: every field as transformers reads it, or refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor

import clipedit
from clipedit import ModelError
from clipedit.editor.models.hf.preprocessing import CLASSES

TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT = {**TOWER, "vocab_size": 40, "max_position_embeddings": 8, "eos_token_id": 39, "bos_token_id": 38}
SIDE = 32
# Odd sides: half of all crops have a corner between two pixels.
SHAPES = ((37, 61), (101, 67), (32, 32), (203, 64), (33, 131), (90, 91))
OPENAI = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
PLAIN = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": SIDE},
    "crop_size": {"height": SIDE, "width": SIDE},
}
SQUARE = {"height": SIDE, "width": SIDE}
NONE: dict[str, Any] = {"image_processor_type": None, "feature_extractor_type": None}
# What is changed in `PLAIN`; "-" leaves the field out.
HONOURED: dict[str, dict[str, Any]] = {
    "mean and std are CLIP's own": {},
    "mean and std": {"image_mean": [0.3, 0.5, 0.6], "image_std": [0.1, 0.2, 0.5]},
    "a number for all channels": {"image_mean": 0.4, "image_std": [0.3]},
    "not normalised": {"do_normalize": False},
    "not normalised, null": {"do_normalize": None},
    "not rescaled": {"do_rescale": False},
    "neither": {"do_normalize": False, "do_rescale": None},
    "rescaled to [0, 2]": {"rescale_factor": 1 / 127.5},
    "rescaled to [0, 2], not normalised": {"rescale_factor": 1 / 127.5, "do_normalize": False},
    "1 / 255, rounded": {"rescale_factor": 0.0039215686},
    "squashed, then cropped": {"size": SQUARE},
    "squashed": {"size": SQUARE, "do_center_crop": False, "crop_size": "-"},
    "a pair": {"size": [SIDE, SIDE], "crop_size": [SIDE, SIDE]},
    "integers": {"size": SIDE, "crop_size": SIDE},
    "an integer is both sides": {"size": SIDE, "default_to_square": True},
    "bilinear": {"resample": 2},
    "no conversion": {"do_convert_rgb": False},
    "padding without a size": {"do_pad": True},
    "an old file": {"feature_extractor_type": "CLIPFeatureExtractor", "image_processor_type": "-"},
    "neither class": {"image_processor_type": "-"},
    "the fast class": {"image_processor_type": "CLIPImageProcessorFast"},
    "the class of Pillow": {"image_processor_type": "CLIPImageProcessorPil"},
    "both names": {
        "image_processor_type": "ViTImageProcessor",
        "feature_extractor_type": "CLIPFeatureExtractor",
        "size": SIDE,
    },
    "ViT": {"image_processor_type": "ViTImageProcessor", "size": SIDE},
    "ViT, an old file": {"feature_extractor_type": "ViTFeatureExtractor", "image_processor_type": "-", "size": SIDE},
    "ViT that crops": {"image_processor_type": "ViTImageProcessor", "do_center_crop": True},
    "SigLIP": {"image_processor_type": "SiglipImageProcessor", "size": SQUARE},
    "DeiT": {"image_processor_type": "DeiTImageProcessor", "size": SIDE},
    "BLIP": {"image_processor_type": "BlipImageProcessor", "size": SIDE},
    "BiT": {"image_processor_type": "BitImageProcessor"},
    "Chinese CLIP": {"image_processor_type": "ChineseCLIPImageProcessor"},
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no mean": ({"image_mean": None}, "`image_mean` is null"),
    "no std": ({"image_std": None}, "`image_std` is null"),
    "two means": ({"image_mean": [0.5, 0.5]}, "`image_mean` is .*three numbers"),
    "a word": ({"image_std": "0.5"}, "`image_std` is .*three numbers"),
    "std zero": ({"image_std": [0.5, 0, 0.5]}, "`image_std` is .*other than 0"),
    "factor zero": ({"rescale_factor": 0}, "`rescale_factor` is 0"),
    "factor null": ({"rescale_factor": None}, "`rescale_factor` is null"),
    "another size": ({"size": {"shortest_edge": 40}}, "`size` is .*40.*takes 32 x 32"),
    "another size, cropped": ({"size": {"height": 40, "width": 40}}, "`size` is .*40"),
    "sides that differ": ({"size": {"height": 32, "width": 40}}, "`size` is .*40"),
    "size absent": ({"size": "-"}, "`size` is absent, and CLIPImageProcessor's own is .*224"),
    "size null": ({"size": None}, "`size` is null"),
    "longest edge": ({"size": {"longest_edge": 32}}, "`size` is .*longest_edge"),
    "both edges": ({"size": {"shortest_edge": 32, "longest_edge": 64}}, "`size` is .*longest_edge"),
    "at most": ({"size": {"max_height": 32, "max_width": 32}}, "`size` is .*max_height"),
    "a word for a size": ({"size": "32"}, '`size` is "32"'),
    "crop absent": ({"crop_size": "-"}, "`crop_size` is absent, and CLIPImageProcessor's own is .*224"),
    "crop null": ({"crop_size": None}, "`crop_size` is null"),
    "crop by an edge": ({"crop_size": {"shortest_edge": 32}}, "`crop_size` is .*shortest_edge"),
    "a smaller crop": ({"crop_size": 24}, "`crop_size` is 24"),
    "no crop": ({"do_center_crop": False}, "`size` is .*without `do_center_crop`"),
    "crop switched off by null": ({"do_center_crop": None}, "`size` is .*without `do_center_crop`"),
    "an integer for SigLIP": ({"image_processor_type": "SiglipImageProcessor", "size": 32}, "`size` is 32"),
    "no resize": ({"do_resize": False}, "`do_resize` is false"),
    "resize null": ({"do_resize": None}, "`do_resize` is null"),
    "a crop from a larger image": ({"size": {"shortest_edge": 256}, "crop_size": SIDE}, "`size` is .*256.*crops none"),
    "nearest": ({"resample": 0}, "`resample` is 0: nearest"),
    "lanczos": ({"resample": 1}, "`resample` is 1: lanczos"),
    "resample null": ({"resample": None}, "`resample` is null"),
    "resample by name": ({"resample": "bicubic"}, '`resample` is "bicubic"'),
    "a flag in words": ({"do_normalize": "false"}, '`do_normalize` is "false": true or false'),
    "padded": ({"do_pad": True, "pad_size": {"height": 64, "width": 64}}, "`pad_size` is "),
    "an unknown class": ({"image_processor_type": "ConvNextImageProcessor"}, "its image processor is ConvNextImage"),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("hf") / "base", SIDE)


def write_model(folder: Path, side: int) -> Path:
    torch.manual_seed(0)
    vision = {**TOWER, "image_size": side, "patch_size": side // 4}
    config = transformers.CLIPConfig(text_config=TEXT, vision_config=vision, projection_dim=16)
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Larger than at the start of training: embeddings of two images must not be alike.
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim == 1 else 0.2))
    model.save_pretrained(folder)
    return folder


def describe(base: Path, folder: Path, changes: Mapping[str, Any]) -> Path:
    shutil.copytree(base, folder, dirs_exist_ok=True)
    settings = {key: value for key, value in {**PLAIN, **changes}.items() if value != "-"}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def pictures() -> list[Image.Image]:
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 256, (*shape, 3), dtype=np.uint8)) for shape in SHAPES]


def require_same(folder: Path) -> None:
    """Pixels and embeddings of transformers, for every picture."""
    own = clipedit.load_model(f"hf:{folder}")
    theirs = transformers.CLIPModel.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    wanted = torch.cat([processor(images=image, return_tensors="pt")["pixel_values"] for image in pictures()]).float()
    pixels = torch.stack([own.preprocess(image) for image in pictures()])
    assert float((pixels - wanted).abs().max() / wanted.std()) < 1e-5
    with torch.no_grad():
        found = pooled(theirs.get_image_features(pixel_values=wanted))
    cosines = torch.cosine_similarity(own.encode_image(pixels), found)
    assert float(cosines.min()) > 0.9999
    # Of other pictures it is not: the figure above says something.
    assert float(torch.cosine_similarity(found, found.roll(1, 0)).max()) < 0.999


def pooled(answer: Any) -> Tensor:
    return getattr(answer, "pooler_output", answer)


@pytest.mark.parametrize("name", HONOURED)
def test_a_field_is_honoured_as_in_transformers(name: str, base: Path, tmp_path: Path) -> None:
    require_same(describe(base, tmp_path / "changed", HONOURED[name]))


@pytest.mark.parametrize("name", REFUSED)
def test_a_field_that_cannot_be_held_is_refused_by_name(name: str, base: Path, tmp_path: Path) -> None:
    changes, message = REFUSED[name]
    folder = describe(base, tmp_path / "changed", changes)
    with pytest.raises(ModelError, match=f"preprocessor_config.json: {message}") as caught:
        clipedit.load_model(f"hf:{folder}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["CLIPImageProcessor", "SiglipImageProcessor", "ViTImageProcessor"])
def test_a_file_with_a_class_only_has_all_of_the_class(kind: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", 224)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": kind}))
    require_same(folder)


def test_settings_inside_the_processors_file_go_first(base: Path, tmp_path: Path) -> None:
    folder = describe(base, tmp_path / "changed", {"image_mean": [0.9, 0.9, 0.9], **NONE})
    require_same(folder)
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "CLIPProcessor"}))
    require_same(folder)
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": {**PLAIN, "image_std": [0.1] * 3}}))
    require_same(folder)
    assert clipedit.load_model(f"hf:{folder}").config["preprocess_cfg"]["std"] == [0.1] * 3


def test_what_is_transparent_is_white_as_in_transformers(base: Path, tmp_path: Path) -> None:
    folder = describe(base, tmp_path / "changed", {})
    own, processor = clipedit.load_model(f"hf:{folder}"), transformers.AutoImageProcessor.from_pretrained(folder)
    layers = np.random.default_rng(0).integers(0, 256, (45, 70, 4), dtype=np.uint8)
    image = Image.fromarray(layers, "RGBA")
    for shown in (image, image.convert("RGB").quantize(16), image.convert("L")):
        wanted = processor(images=shown, return_tensors="pt")["pixel_values"][0]
        assert torch.allclose(own.preprocess(shown), wanted, atol=1e-5)


def test_the_defaults_of_each_class_are_those_of_transformers() -> None:
    for name, own in CLASSES.items():
        theirs = getattr(transformers, name)()
        for field, value in own.items():
            found = getattr(theirs, field)
            plain = dict(found) if field in ("size", "crop_size") else found
            # Off and absent are one; colours are converted by us in any case.
            assert (list(plain) if isinstance(plain, tuple) else plain or False) == value or field == "do_convert_rgb"
