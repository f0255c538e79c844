"""Identity: what a model's answers depend on besides its weights, in one form for all ways to say it.

The same weights under another activation, pooling or preprocessing are another function: statistics and edits of one
are wrong for the other, although every tensor fits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import open_clip
import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from torch import Tensor

from ..files.tensors import hash_state

# Say where things come from, not what is computed.
_ORIGINS = frozenset({"hf_tokenizer_name", "hf_model_pretrained", "timm_model_pretrained", "tokenizer_kwargs"})
_NOT_OF_TEXTS = ("visual.", "text_decoder.", "logit_")
_SIZES = (
    *("layers", "width", "head_width", "heads", "mlp_ratio", "patch_size"),
    *("vocab_size", "context_length", "timm_model_name"),
)
_PREPROCESSING = {"interpolation": "bicubic", "resize_mode": "shortest"}


def describe_function(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a model computes with its weights, as plain data: architecture, activation, pooling and preprocessing.

    Defaults are filled in, so that a configuration that leaves them out equals one that spells them out.

    Args:
        config: As `Model.config`: `preprocess_cfg` with `model_cfg`, or with `timm_cfg`.
    """
    given = config.get("preprocess_cfg", {})
    size = given.get("size")
    preprocess = {key: given.get(key, default) for key, default in _PREPROCESSING.items()}
    # One number means a square, and must equal the pair that spells it out.
    preprocess |= {"size": [size, size] if isinstance(size, int) else size}
    preprocess |= {key: given.get(key) for key in ("mean", "std")}
    if "model_cfg" not in config:
        return _plain({"timm_cfg": config.get("timm_cfg"), "preprocess_cfg": preprocess})
    model = dict(config["model_cfg"])
    model["vision_cfg"] = _fill(CLIPVisionCfg, model.get("vision_cfg") or {})
    model["text_cfg"] = _fill(CLIPTextCfg, model.get("text_cfg") or {})
    model["quick_gelu"] = bool(model.get("quick_gelu", False))
    known = ("embed_dim", "quick_gelu", "vision_cfg", "text_cfg")
    return _plain({"model_cfg": {key: model.get(key) for key in known}, "preprocess_cfg": preprocess})


def hash_text_side(state: Mapping[str, Tensor], config: Mapping[str, Any], device: str) -> str:
    """What embeddings of token ids depend on: the weights of the text side, how they are used, and what computes."""
    weights = {name: tensor for name, tensor in state.items() if not name.startswith(_NOT_OF_TEXTS)}
    used = {key: value for key, value in describe_function(config)["model_cfg"].items() if key != "vision_cfg"}
    computed = {"device": device, "torch": torch.__version__, "open_clip": open_clip.__version__}
    return json.dumps([hash_state(weights), used, computed], sort_keys=True)


def find_function_difference(one: Mapping[str, Any], other: Mapping[str, Any], path: str = "") -> str | None:
    """The first setting in which two functions differ, in words: `preprocess_cfg.mean is [0.5] in one, [0.4] in the
    other`.
    """
    for key in sorted(one.keys() | other.keys()):
        mine, theirs = one.get(key), other.get(key)
        if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
            found = find_function_difference(mine, theirs, f"{path}{key}.")
            if found:
                return found
        elif mine != theirs:
            return f"{path}{key} is {json.dumps(mine)} there, {json.dumps(theirs)} here"
    return None


def find_size_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """The first size in which two of open_clip's `model_cfg` differ, in words; None if they hold the same tensors, as
    far as sizes say.
    """
    return find_function_difference(_sizes(one), _sizes(other))


def _sizes(model: Mapping[str, Any]) -> dict[str, Any]:
    described = describe_function({"model_cfg": model})["model_cfg"]
    towers = {side: {key: described[side].get(key) for key in _SIZES} for side in ("vision_cfg", "text_cfg")}
    return {"embed_dim": described["embed_dim"], **towers}


def _fill(kind: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """A tower's settings with open_clip's defaults; settings that it does not know stay as they are."""
    known = {field.name for field in fields(kind)}
    filled = asdict(kind(**{key: value for key, value in given.items() if key in known}))
    rest = {key: value for key, value in given.items() if key not in known}
    return {key: value for key, value in (filled | rest).items() if key not in _ORIGINS}


def _plain(value: Any) -> Any:
    """As JSON gives it back: lists for tuples."""
    return json.loads(json.dumps(value, default=list, sort_keys=True))
