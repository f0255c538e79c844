"""Hugging Face's tensor names beside open_clip's: both directions, against the models of both libraries."""

from __future__ import annotations

import open_clip
import pytest
import torch
import transformers
from open_clip.model import CLIP

from clipedit import ModelError
from clipedit.editor.models.hf.names import SameTensors, clip_names, convert_from_hf, convert_to_hf, siglip_names

TOWER = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3}
VISION = {**TOWER, "image_size": 32, "patch_size": 8}
TEXT = {**TOWER, "vocab_size": 100, "max_position_embeddings": 16, "bos_token_id": 98, "eos_token_id": 99}


def test_clip_names_are_those_of_both_libraries() -> None:
    theirs = transformers.CLIPModel(transformers.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=24))
    vision = {"image_size": 32, "layers": 2, "width": 48, "head_width": 16, "patch_size": 8, "mlp_ratio": 2}
    text = {"context_length": 16, "vocab_size": 100, "width": 48, "heads": 3, "layers": 2, "mlp_ratio": 2}
    check_names(theirs.state_dict(), CLIP(24, vision, text).state_dict(), clip_names(2, 2))


def test_siglip_names_are_those_of_both_libraries() -> None:
    vision = {
        **VISION,
        "image_size": 224,
        "patch_size": 16,
        "num_hidden_layers": 12,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
    }
    text = {**TEXT, "hidden_size": 768, "projection_size": 768, "max_position_embeddings": 64}
    theirs = transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=vision))
    config = open_clip.get_model_config("ViT-B-16-SigLIP")
    config["text_cfg"] |= {"vocab_size": 100, "layers": 2, "heads": 3, "mlp_ratio": 0.125, "hf_tokenizer_name": None}
    own = open_clip.CustomTextCLIP(**{key: value for key, value in config.items() if key != "custom_text"})
    check_names(theirs.state_dict(), own.state_dict(), siglip_names(12, 2))


def check_names(theirs: dict, own: dict, names: list[SameTensors]) -> None:
    """Every tensor of one library has its place in the other, of the same shape; there and back changes no bit."""
    converted = convert_from_hf(theirs, names)
    buffers = {"attn_mask", "text.attn_mask"}
    assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in own.items() if k not in buffers}
    back = convert_to_hf(converted, names)
    expected = {name: tensor for name, tensor in theirs.items() if not name.endswith("position_ids")}
    assert back.keys() == expected.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in expected.items())


def test_a_missing_tensor_and_one_too_many_are_refused() -> None:
    names = [SameTensors(("a",), ("x", "y"))]
    with pytest.raises(ModelError, match="has no tensor y"):
        convert_from_hf({"x": torch.ones(2)}, names)
    with pytest.raises(ModelError, match="z has no counterpart"):
        convert_from_hf({"x": torch.ones(2), "y": torch.ones(2), "z": torch.ones(2)}, names)
    with pytest.raises(ModelError, match="has no tensor a"):
        convert_to_hf({}, names)
