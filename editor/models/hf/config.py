"""Configurations of Hugging Face `CLIPModel` and `SiglipModel` as open_clip's: sizes and activation.

Pure functions from the dictionary of `config.json`. Keys that a file leaves out have the values that transformers gives
them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ...errors import ModelError
from .kinds import read_kind

Config = Mapping[str, Any]

_LAYERS = {"num_hidden_layers": 12, "num_attention_heads": 12}
_CLIP_VISION = {
    **_LAYERS,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
_CLIP_TEXT = {
    **_LAYERS,
    "num_attention_heads": 8,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
}
_SIGLIP = {
    **_LAYERS,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
_SIGLIP_VISION = {**_SIGLIP, "image_size": 224, "patch_size": 16, "vision_use_head": True}
_SIGLIP_TEXT = {**_SIGLIP, "vocab_size": 32000, "max_position_embeddings": 64}
_DEFAULTS = {"clip": (_CLIP_VISION, _CLIP_TEXT), "siglip": (_SIGLIP_VISION, _SIGLIP_TEXT)}
# open_clip's `quick_gelu` is a flag of the whole model; the tanh form is an argument of each tower.
_ACTIVATIONS: dict[str, dict[str, Any]] = {
    "quick_gelu": {},
    "gelu": {},
    "gelu_pytorch_tanh": {"act_kwargs": {"approximate": "tanh"}},
    "gelu_new": {"act_kwargs": {"approximate": "tanh"}},
}


def read_sections(config: Config) -> tuple[dict[str, Any], dict[str, Any]]:
    """The vision and the text section of a `config.json`, defaults filled in.

    Raises:
        ModelError: If it is of another kind of model.
    """
    defaults = _DEFAULTS[read_kind(config).family]
    vision, text = defaults
    # Old files hold the sections twice; transformers lets what is under `_dict` win.
    given = [
        {**(config.get(f"{name}_config") or {}), **(config.get(f"{name}_config_dict") or {})}
        for name in ("vision", "text")
    ]
    sections = {**vision, **given[0]}, {**text, **given[1]}
    for section, known in zip(sections, defaults, strict=True):
        wrong = next((key for key, value in known.items() if not _is_like(section[key], value)), None)
        if wrong is not None and wrong != "eos_token_id":
            raise ModelError(f"cannot convert the model: its {wrong} is {section[wrong]!r}. Fetch config.json again.")
    return sections


def _is_like(value: Any, usual: Any) -> bool:
    """Whether a value has the type of the usual one; a number above zero stands for any number."""
    if isinstance(usual, str | bool):
        return isinstance(value, type(usual))
    number = isinstance(value, int | float if isinstance(usual, float) else int) and not isinstance(value, bool)
    return number and 0 < value < 2**31


def convert_clip_config(config: Config) -> dict[str, Any]:
    """open_clip's `model_cfg` of a `CLIPModel`.

    Raises:
        ModelError: If an activation is unknown, or is not the same in both towers.
    """
    vision, text = read_sections(config)
    if (vision["hidden_act"] == "quick_gelu") != (text["hidden_act"] == "quick_gelu"):
        raise ModelError(
            f"cannot convert the model: its towers use {vision['hidden_act']} and {text['hidden_act']}, open_clip has "
            "one for both."
        )
    text_config = {
        "context_length": text["max_position_embeddings"],
        "vocab_size": text["vocab_size"],
        **_text_sizes(text),
    }
    # The token of highest number ends a text in CLIP's own vocabulary; `2` is an old mistake that transformers keeps
    # for CLIP, and a token of MetaCLIP 2.
    if text["eos_token_id"] not in ((2,) if config["model_type"] == "clip" else ()) + (text["vocab_size"] - 1,):
        text_config |= {"pool_type": "eos", "eos_id": text["eos_token_id"]}
    return {
        "embed_dim": config.get("projection_dim", 512),
        "quick_gelu": vision["hidden_act"] == "quick_gelu",
        "vision_cfg": {
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "width": vision["hidden_size"],
            "layers": vision["num_hidden_layers"],
            # open_clip takes the width of a head, and divides to get their number.
            "head_width": vision["hidden_size"] // vision["num_attention_heads"],
            **_shared(vision, default_eps=1e-5),
        },
        "text_cfg": text_config,
    }


def convert_siglip_config(config: Config) -> dict[str, Any]:
    """open_clip's `model_cfg` of a `SiglipModel`; the name of timm's image tower is left to the caller.

    Raises:
        ModelError: If it pools without a head, or an activation is unknown.
    """
    vision, text = read_sections(config)
    if not vision["vision_use_head"]:
        raise ModelError(
            "cannot convert the model: its image tower has no pooling head (`vision_use_head` is false), so it gives "
            "tokens and no embedding of an image. Give the `SiglipModel` that it was taken from, edit that, and take "
            "its tower again."
        )
    if vision["layer_norm_eps"] != _SIGLIP["layer_norm_eps"]:
        raise ModelError(
            f"cannot convert the model: its layer_norm_eps is {vision['layer_norm_eps']}, timm's SigLIP has 1e-6."
        )
    return {
        "embed_dim": text.get("projection_size") or text["hidden_size"],
        "custom_text": True,
        # Without a first value open_clip makes no `logit_bias` that the weights could fill.
        "init_logit_bias": -10,
        "vision_cfg": {
            "image_size": vision["image_size"],
            "timm_model_name": None,
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {
            "context_length": text["max_position_embeddings"],
            "vocab_size": text["vocab_size"],
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            **_text_sizes(text, default_eps=None),
        },
    }


def siglip_trunk_arguments(config: Config) -> dict[str, Any]:
    """Arguments for timm's `VisionTransformer` that make it a `SiglipModel`'s image tower."""
    vision, _ = read_sections(config)
    return {
        "img_size": vision["image_size"],
        "patch_size": vision["patch_size"],
        "embed_dim": vision["hidden_size"],
        "depth": vision["num_hidden_layers"],
        "num_heads": vision["num_attention_heads"],
        "mlp_ratio": mlp_ratio(vision),
        "act_layer": "gelu_tanh" if _ACTIVATIONS[vision["hidden_act"]] else "gelu",
    }


def mlp_ratio(section: Config) -> float:
    """The ratio for which `int(width * ratio)` is the MLP's width, as open_clip and timm compute it."""
    width, hidden = section["hidden_size"], section["intermediate_size"]
    ratio = hidden / width
    # A quotient that was rounded down makes `int` lose one.
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def _text_sizes(text: Config, default_eps: float | None = 1e-5) -> dict[str, Any]:
    sizes = {"width": text["hidden_size"], "heads": text["num_attention_heads"], "layers": text["num_hidden_layers"]}
    return {**sizes, **_shared(text, default_eps=default_eps)}


def _shared(section: Config, *, default_eps: float | None) -> dict[str, Any]:
    """MLP width, activation and epsilon of a tower."""
    if section["hidden_act"] not in _ACTIVATIONS:
        raise ModelError(
            f"cannot convert the model: its activation is {section['hidden_act']!r}, known are "
            f"{', '.join(_ACTIVATIONS)}."
        )
    found = {"mlp_ratio": mlp_ratio(section), **_ACTIVATIONS[section["hidden_act"]]}
    eps = section["layer_norm_eps"]
    return found if eps == default_eps else {**found, "norm_kwargs": {"eps": eps}}
