"""CLIPs that people deploy, at reduced width: contributions sum to the embedding, or the reason why there are none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
import transformers
from open_clip.model import CLIP, CustomTextCLIP
from torch import nn

import clipedit
from clipedit import ModelError
from clipedit.editor.edits.bind import bind_recipe
from clipedit.editor.edits.document import Base, RecipeDocument, Step
from clipedit.editor.images.demo import demo_calibration_source
from clipedit.editor.models.decompose import decompose
from clipedit.editor.models.model import Model
from clipedit.editor.towers.build import build_tower

SIZE = 32
VISION = {"image_size": SIZE, "patch_size": 8, "width": 48, "layers": 3, "head_width": 12}
TEXT = {"context_length": 16, "vocab_size": 100, "width": 32, "heads": 2, "layers": 3}
SMALL = {"img_size": SIZE, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 4, "num_classes": 24}
PREPROCESSOR = {"size": {"shortest_edge": SIZE}, "crop_size": SIZE, "image_processor_type": "CLIPImageProcessor"}
HF_TOWER = {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4}
HF_TEXT = {
    **HF_TOWER,
    "num_hidden_layers": 3,
    "vocab_size": 49408,
    "max_position_embeddings": 16,
    "eos_token_id": 49407,
}


def over(name: str, **options: Any) -> nn.Module:
    """open_clip's CLIP over a trunk of timm's own factory, at reduced width; a size of None is timm's own."""
    module = CustomTextCLIP(24, {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "token"}, TEXT)
    visual: Any = module.visual
    sizes = {key: value for key, value in {**SMALL, **options}.items() if value is not None}
    visual.trunk, visual.head = timm.create_model(name, **sizes), nn.Sequential()
    return module


def without(*norms: str) -> nn.Module:
    """A home-made CLIP: three layers, and no norm where open_clip has one."""
    module: Any = CLIP(24, VISION, TEXT)
    for norm in norms:
        owner, _, name = norm.rpartition(".")
        setattr(module.get_submodule(owner), name, nn.Identity())
    return module


def named(name: str) -> nn.Module:
    """A configuration of open_clip, every size but that of its heads reduced."""
    config = open_clip.get_model_config(name)
    assert config is not None
    vision = {**config["vision_cfg"], **VISION}
    return CLIP(24, vision, {**config["text_cfg"], **TEXT}, quick_gelu=config.get("quick_gelu", False))


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "MetaCLIP 2": lambda: named("ViT-H-14-worldwide-quickgelu"),
    "RemoteCLIP, StreetCLIP": lambda: named("ViT-L-14-336"),
    "MobileCLIP2-B": lambda: over("vit_base_mci_224", patch_size=None, embed_dim=None, num_heads=None),
    "MobileCLIP2-L-14": lambda: over("vit_large_patch14_clip_224"),
    "PE-Core-T": lambda: over("vit_pe_core_tiny_patch16_384", attn_pool_num_heads=4),
    "PE-Core-S": lambda: over("vit_pe_core_small_patch16_384", attn_pool_num_heads=4),
    "FashionSigLIP": lambda: over("vit_base_patch16_siglip_224", num_classes=0),
    "without ln_pre": lambda: CLIP(24, {**VISION, "no_ln_pre": True}, TEXT),
    "without ln_post": lambda: without("visual.ln_post"),
    "without both, and without ln_final": lambda: without("visual.ln_pre", "visual.ln_post", "ln_final"),
}


def as_model(module: nn.Module) -> Model:
    torch.manual_seed(0)
    with torch.no_grad():
        for key, parameter in module.named_parameters():
            if parameter.ndim <= 1 or any(part in key for part in ("token", "latent", "pos_embed")):
                parameter.add_(torch.randn_like(parameter) * 0.3)
            elif parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    config = {"preprocess_cfg": {"size": SIZE, "mean": [0.5] * 3, "std": [0.5] * 3}, "model_cfg": {"embed_dim": 24}}
    return Model("random", None, module.eval(), build_tower(module), config)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def require_sums(model: Model, given: torch.Tensor, expected: torch.Tensor) -> int:
    """The number of components; their contributions and the constant are the embedding."""
    parts = decompose(model, given)
    assert relative_error(parts.contributions.sum(1) + parts.constant, expected) < 1e-5
    return len(parts.components)


@pytest.mark.parametrize("name", FAMILIES)
def test_contributions_and_the_constant_sum_to_the_embedding(
    name: str, family_table: dict[str, tuple[str, int, float]]
) -> None:
    model, pixels = as_model(FAMILIES[name]()), torch.randn(3, 3, SIZE, SIZE)
    count = require_sums(model, pixels, model.encode_image(pixels))
    family_table[name] = (model.tower.title, count, 0.0)


def test_texts_without_a_last_norm_sum_too() -> None:
    model = as_model(FAMILIES["without both, and without ln_final"]()).with_tower("text")
    tokens = torch.randint(1, 99, (3, 16))
    require_sums(model, tokens, model.encode_tokens(tokens))


@pytest.mark.parametrize("name", [name for name in FAMILIES if name.startswith("without")])
def test_a_refit_without_norms_is_the_tensors_that_it_folds(name: str) -> None:
    model = as_model(FAMILIES[name]())
    assert model.tower.why_not("distilled") is None
    document = RecipeDocument(
        schema_version=1, name="t", base=Base(model="random"), steps=(Step(operation="zero-ablate", heads=("L2H1",)),)
    )
    scanned = clipedit.scan(model, demo_calibration_source(64), workers=0)
    recipe = bind_recipe(document, scanned, model)
    assert recipe.tensors is not None
    folded = {key.removeprefix("folded."): t for key, t in recipe.tensors.items() if key.startswith("folded.")}
    pixels = torch.randn(3, 3, SIZE, SIZE)
    edited = clipedit.apply_recipe(recipe, model).encode_image(pixels)
    final = model.tower.collect_features(pixels, []).final.double()
    assert relative_error(edited, model.tower.embed_final(final, folded).float()) < 1e-5
    assert relative_error(edited, model.encode_image(pixels)) > 1e-3


def save_hf(folder: Path, kind: str, text: dict[str, Any], vision: dict[str, Any]) -> Any:
    config = getattr(transformers, f"{kind}Config")(text_config=text, vision_config=vision, projection_dim=24)
    model: Any = getattr(transformers, f"{kind}Model")(config).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim == 1 else 0.1))
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    return model


@pytest.mark.parametrize(
    ("kind", "text", "vision"),
    [
        # TinyCLIP: fewer layers for texts, and towers of different widths.
        ("CLIP", {**HF_TEXT, "hidden_size": 32}, {"num_hidden_layers": 2, "hidden_act": "quick_gelu"}),
        # MetaCLIP 2: token 2 ends a text, which is an old mistake in CLIP's folders.
        ("MetaClip2", {**HF_TEXT, "vocab_size": 60, "eos_token_id": 2}, {"num_hidden_layers": 2}),
    ],
    ids=["TinyCLIP", "MetaCLIP 2"],
)
def test_folders_of_hugging_face_give_transformers_embeddings_and_sum(
    tmp_path: Path, kind: str, text: dict[str, Any], vision: dict[str, Any]
) -> None:
    theirs = save_hf(tmp_path, kind, text, {**HF_TOWER, "image_size": SIZE, "patch_size": 8, **vision})
    model, pixels = clipedit.load_model(tmp_path), torch.randn(3, 3, SIZE, SIZE)
    tokens = torch.tensor([[5, 59, 7, 2, 9, 1], [59, 2, 1, 1, 1, 1]])
    if text["vocab_size"] == 49408:
        tokens = torch.tensor([[5, 59, 7, 49407, 0, 0], [59, 49407, 0, 0, 0, 0]])
    tokens = torch.cat([tokens, tokens[:, -1:].expand(2, 10)], 1)
    with torch.no_grad():
        images = theirs.get_image_features(pixel_values=pixels).pooler_output
        texts = theirs.get_text_features(input_ids=tokens).pooler_output
    assert relative_error(model.encode_image(pixels), images) < 1e-5
    assert relative_error(model.encode_tokens(tokens), texts) < 1e-5
    require_sums(model, pixels, images)
    require_sums(model.with_tower("text"), tokens, texts)


def test_biomedclips_images_are_decomposed_and_its_texts_refused_with_the_reason(tmp_path: Path) -> None:
    sizes = {**HF_TOWER, "num_hidden_layers": 2, "vocab_size": 60, "max_position_embeddings": 20}
    transformers.BertConfig(**sizes).save_pretrained(tmp_path)
    text = {"hf_model_name": str(tmp_path), "hf_proj_type": "mlp", "hf_pooler_type": "cls_last_hidden_state_pooler"}
    vision = {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear", "image_size": 160}
    module: Any = CustomTextCLIP(24, vision, {**text, "hf_model_pretrained": False})
    module.visual.trunk = timm.create_model("vit_base_patch16_224", **{**SMALL, "num_classes": 0})
    module.visual.head = nn.Sequential()
    module.visual.head.add_module("proj", nn.Linear(48, 24, bias=False))
    model, pixels = as_model(module), torch.randn(3, 3, SIZE, SIZE)
    require_sums(model, pixels, model.encode_image(pixels))
    assert model.encode_tokens(torch.randint(1, 59, (2, 12))).shape == (2, 24)
    with pytest.raises(ModelError, match="its texts are encoded by a HFTextEncoder .a Hugging Face model."):
        model.with_tower("text")


def test_naflex_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "siglip2"}')
    with pytest.raises(ModelError, match="type 'siglip2': its images are any number of patches with a mask"):
        clipedit.load_model(tmp_path)
    with torch.device("meta"):
        module = timm.create_model("naflexvit_base_patch16_siglip", num_classes=0)
    with pytest.raises(ModelError, match="a NaFlexVit takes images of any number of patches with a mask"):
        build_tower(module)


def own_folder(folder: Path, **text: Any) -> None:
    """An open_clip folder of a home-made CLIP of three layers, without `ln_pre`."""
    text_config = {**TEXT, **text}
    torch.manual_seed(0)
    module = CLIP(24, {**VISION, "no_ln_pre": True}, {k: v for k, v in text_config.items() if "hf_" not in k})
    folder.mkdir()
    torch.save(module.state_dict(), folder / "open_clip_pytorch_model.bin")
    preprocess = {"size": SIZE, "mean": [0.5] * 3, "std": [0.5] * 3}
    model_config = {"embed_dim": 24, "vision_cfg": {**VISION, "no_ln_pre": True}, "text_cfg": text_config}
    described = {"model_cfg": model_config, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(described))


def test_a_home_made_folder_brings_its_own_tokenizer(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    own_folder(tmp_path / "own", hf_tokenizer_name="own")
    with pytest.raises(ModelError, match="tokenizer"):
        clipedit.load_model(tmp_path / "own").tokenizer(["water"])
    words = {"[PAD]": 0, "[UNK]": 1, "water": 2, "bird": 99}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(tmp_path / "own")
    model = clipedit.load_model(tmp_path / "own")
    assert model.tokenizer(["water bird"])[0].tolist() == [2, 99, *[0] * 14]
    assert model.tower.heads_per_layer == (4, 4, 4)


def test_a_home_made_folder_without_a_last_norm_is_told_what_is_missing(tmp_path: Path) -> None:
    own_folder(tmp_path / "own")
    path = tmp_path / "own" / "open_clip_pytorch_model.bin"
    state = {name: tensor for name, tensor in torch.load(path).items() if "ln_post" not in name}
    torch.save(state, path)
    with pytest.raises(ModelError, match="2 missing .visual.ln_post.weight, visual.ln_post.bias"):
        clipedit.load_model(tmp_path / "own")
