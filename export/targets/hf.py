"""Target `hf`: a folder that `transformers.CLIPModel` and `CLIPProcessor` read. Nothing here needs transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...editor.errors import ExportError
from ...editor.files.tensors import round_to_storage
from ...editor.files.whole import save_tensors
from ...editor.models.hf_names import clip_names, convert_to_hf
from ...editor.models.model import Model
from ..consumers.preprocessor_config import NAME as PREPROCESSOR_NAME
from ..consumers.preprocessor_config import require_clip_preprocessing, write_preprocessor
from ..consumers.tokenizer_files import SIDECARS as TOKENIZER_FILES
from ..consumers.tokenizer_files import require_clip_text, write_tokenizer_files
from ..graphs.profile import Profile, require_plain

WEIGHTS_NAME, CONFIG_NAME = "model.safetensors", "config.json"
SIDECARS = (CONFIG_NAME, PREPROCESSOR_NAME, *TOKENIZER_FILES)
_ACTIVATIONS = {"QuickGELU": "quick_gelu", "GELU": "gelu"}


def write_hf(model: Model, folder: Path, profile: Profile) -> None:
    """Write weights under Hugging Face's names, and all that the processor reads.

    The weights are float32, or float16 if that was asked for, whatever they were: transformers computes in the type it finds.

    Raises:
        ExportError: If the model carries a direct edit, or has parts that `CLIPModel` has not.
    """
    require_plain(model, profile.target)
    state = require_hf_clip(model, profile.target)
    dtype = torch.float16 if profile.precision == "fp16" else torch.float32
    stored = {name: round_to_storage(name, tensor, dtype) for name, tensor in state.items()}
    save_tensors(folder / WEIGHTS_NAME, stored, "format", "pt")
    write_hf_sidecars(model, folder, profile)


def write_hf_sidecars(model: Model, folder: Path, profile: Profile) -> None:
    """Write configuration, preprocessing and tokenizer.

    Raises:
        ExportError: If the target cannot hold the preprocessing or the tokenizer.
    """
    require_clip_preprocessing(model, profile.target)
    require_clip_text(model, profile.target)
    config = describe_hf_config(model) | {"torch_dtype": "float16" if profile.precision == "fp16" else "float32"}
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    write_preprocessor(model, folder)
    write_tokenizer_files(model, folder)


def require_hf_clip(model: Model, target: str) -> dict[str, Tensor]:
    """The weights under the names of `CLIPModel`.

    Raises:
        ExportError: If the model has parts that `CLIPModel` has not, naming the first.
    """
    reason = _describe_difference(model)
    if reason is not None:
        raise ExportError(
            f"cannot export to {target}: {reason}, which transformers' CLIPModel does not have. "
            "Use --target open-clip or onnx."
        )
    return convert_to_hf(model.stored_state(), _names(model))


def describe_hf_config(model: Model) -> dict[str, Any]:
    """`config.json`; sizes are read off the weights."""
    visual, text = model.module.visual, getattr(model.module, "text", model.module)
    d_embed = model.tower.d_embed
    vision = _describe_transformer(visual, d_embed) | {
        "model_type": "clip_vision_model",
        "image_size": model.image_size,
        "patch_size": visual.conv1.kernel_size[0],
        "num_channels": 3,
    }
    textual = _describe_transformer(text, d_embed) | {
        "model_type": "clip_text_model",
        "vocab_size": text.token_embedding.num_embeddings,
        "max_position_embeddings": len(text.positional_embedding),
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "pad_token_id": 49407,
    }
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": d_embed,
        "vision_config": vision,
        "text_config": textual,
    }


def _describe_transformer(tower: Any, d_embed: int) -> dict[str, Any]:
    first = tower.transformer.resblocks[0]
    return {
        "hidden_size": first.mlp.c_fc.in_features,
        "intermediate_size": first.mlp.c_fc.out_features,
        "num_hidden_layers": len(tower.transformer.resblocks),
        "num_attention_heads": first.attn.num_heads,
        "hidden_act": _ACTIVATIONS[type(first.mlp.gelu).__name__],
        "layer_norm_eps": first.ln_1.eps,
        "projection_dim": d_embed,
    }


def _names(model: Model) -> list[Any]:
    visual, text = model.module.visual, getattr(model.module, "text", model.module)
    prefix = "text." if text is not model.module else ""
    return clip_names(len(visual.transformer.resblocks), len(text.transformer.resblocks), text_prefix=prefix)


def _describe_difference(model: Model) -> str | None:
    """What the model has and `CLIPModel` has not, or None."""
    visual, text = model.module.visual, getattr(model.module, "text", model.module)
    if type(visual).__name__ != "VisionTransformer":
        return f"the image tower is a {type(visual).__name__}"
    if visual.pool_type != "tok" or visual.attn_pool is not None:
        return f"the image tower pools by {visual.pool_type!r} or attention"
    if not hasattr(getattr(text, "transformer", None), "resblocks"):
        return f"the text tower is a {type(text).__name__}"
    for tower in (visual, text):
        activation = type(tower.transformer.resblocks[0].mlp.gelu)
        if activation.__name__ not in _ACTIVATIONS:
            return f"the activation is {activation.__name__}"
    known = {name for entry in _names(model) for name in entry.own}
    spare = sorted(set(model.module.state_dict()) - known)
    return f"the model has {spare[0]}" if spare else None


PROFILE = Profile(target="hf", write=write_hf, sidecars=SIDECARS, precisions=("fp32", "fp16"), resizing=0.95)
