"""Every family of vision transformers: contributions sum to the representation, folded edits edit the live model.

Random weights at reduced width; parameters that start at zero or one (norms, LayerScale, tokens, positions) are random
too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from open_clip.coca_model import CoCa
from open_clip.model import CLIP, CustomTextCLIP
from PIL import Image
from timm.models.eva import Eva
from timm.models.vision_transformer import ParallelScalingBlock, ParallelThingsBlock, ResPostBlock, VisionTransformer
from torch import nn

import clipedit
from clipedit.editor.components import HeadId
from clipedit.editor.edits.bind import bind_recipe
from clipedit.editor.edits.document import Base, RecipeDocument, Step
from clipedit.editor.images.source import ImageSource
from clipedit.editor.look.spatial import compute_token_shares
from clipedit.editor.models.decompose import decompose
from clipedit.editor.models.model import Model
from clipedit.editor.towers.build import build_tower

SIZE = 32
OPEN_CLIP = {"image_size": SIZE, "patch_size": 8, "width": 48, "layers": 3, "head_width": 12}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
SMALL = {"img_size": SIZE, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 4, "qkv_bias": True}
ROTARY = {"use_rot_pos_emb": True, "swiglu_mlp": True}


def vit(**options: Any) -> nn.Module:
    return VisionTransformer(**{**SMALL, "num_classes": 5, **options})


def eva(**options: Any) -> nn.Module:
    return Eva(**{**SMALL, "num_classes": 0, **options})


def in_clip(trunk: nn.Module, *, projection: bool | None = None) -> nn.Module:
    """As open_clip's `TimmModel` holds it; with `projection` a linear layer after the trunk, with or without a bias."""
    module = CustomTextCLIP(24, {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "token"}, TEXT)
    visual: Any = module.visual
    visual.trunk = trunk
    visual.head = nn.Sequential()
    if projection is not None:
        visual.head.add_module("proj", nn.Linear(48, 24, bias=projection))
    return module


def coca(**vision: Any) -> nn.Module:
    options = {"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 5, "output_tokens": True}
    text = {**TEXT, "embed_cls": True, "output_tokens": True}
    multimodal = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    return CoCa(24, {**multimodal, "attn_pooler_heads": 2}, text, {**OPEN_CLIP, **options, **vision})


DINO_V3 = {
    "rope_type": "dinov3",
    "num_reg_tokens": 4,
    "init_values": 0.1,
    "global_pool": "token",
    "qkv_bias": False,
    "use_abs_pos_emb": False,
    "attn_type": "rope",
    "rope_rotate_half": True,
    "use_rot_pos_emb": True,
}
INNER = {"scale_attn_inner": True, "scale_mlp": True, "qkv_fused": False, **ROTARY}
MAP: dict[str, Any] = {"global_pool": "map", "class_token": False}
FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "CLIP, DFN, MetaCLIP": lambda: CLIP(24, OPEN_CLIP, TEXT),
    "CLIPA": lambda: CLIP(
        24,
        {
            **OPEN_CLIP,
            "pos_embed_type": "sin_cos_2d",
            "no_ln_pre": True,
            "final_ln_after_pool": True,
            "pool_type": "avg",
        },
        TEXT,
    ),
    "CoCa": coca,
    "CoCa, other width": lambda: coca(width=72, attn_pooler_heads=4),
    "SigLIP, SigLIP 2": lambda: in_clip(vit(**MAP, num_classes=0)),
    "SigLIP with a projection": lambda: in_clip(vit(**MAP, num_classes=0), projection=False),
    "MobileCLIP-B": lambda: in_clip(vit(num_classes=24)),
    "gap trunk, projection": lambda: in_clip(vit(global_pool="avg", num_classes=0), projection=False),
    "EVA01-CLIP": lambda: in_clip(eva(global_pool="token", num_classes=24)),
    "EVA02-CLIP": lambda: in_clip(eva(global_pool="token", num_classes=24, **INNER)),
    "PE-Core": lambda: in_clip(
        eva(
            global_pool="map",
            attn_pool_num_heads=2,
            use_pre_transformer_norm=True,
            use_rot_pos_emb=True,
            num_classes=24,
        )
    ),
    "DeiT, AugReg, DINO": vit,
    "DeiT distilled": lambda: timm.create_model(
        "deit_tiny_distilled_patch16_224", img_size=SIZE, depth=2, num_classes=5
    ),
    "DeiT-3": lambda: vit(no_embed_class=True, init_values=0.1),
    "AugReg, average": lambda: vit(global_pool="avg", class_token=False),
    "average, norm before it": lambda: vit(global_pool="avg", fc_norm=False),
    "MAP classifier": lambda: vit(**MAP),
    "MAP, norm after it": lambda: vit(**MAP, fc_norm=True),
    "DINOv2": lambda: vit(num_classes=0, init_values=0.1),
    "DINOv2 with registers, SwiGLU": lambda: vit(
        num_classes=0, init_values=0.1, reg_tokens=4, no_embed_class=True, mlp_layer=timm.layers.SwiGLUPacked
    ),
    "qk-norm, pre-norm": lambda: vit(qk_norm=True, pre_norm=True),
    "norm inside attention": lambda: vit(scale_attn_norm=True, scale_mlp_norm=True),
    "RMS norms, no biases": lambda: vit(norm_layer="rmsnorm", proj_bias=False, qkv_bias=False),
    "EVA02": lambda: eva(num_classes=7, **INNER),
    "EVA, learned rotations": lambda: eva(rope_type="mixed", **ROTARY),
    "DINOv3": lambda: eva(**DINO_V3),
    "gated attention": lambda: _gated(),
}


def _gated() -> nn.Module:
    module = eva(global_pool="token")
    for block in module.blocks:  # type: ignore[union-attr]
        block.attn.gate = nn.Linear(48, 48)
    return module


def random_model(name: str) -> Model:
    torch.manual_seed(0)
    return as_model(FAMILIES[name]())


def as_model(module: nn.Module, size: int = SIZE) -> Model:
    with torch.no_grad():
        for key, parameter in module.named_parameters():
            if parameter.ndim <= 1 or any(part in key for part in ("token", "latent", "pos_embed", "query")):
                parameter.add_(torch.randn_like(parameter) * 0.3)
            else:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    return Model("random", None, module.eval(), build_tower(module), {"preprocess_cfg": {"size": size}})


def pixel_source(count: int) -> tuple[torch.Tensor, ImageSource]:
    generator = torch.Generator().manual_seed(7)
    data = torch.randint(0, 256, (count, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)
    images = [Image.fromarray(array.numpy()) for array in data]
    return data, ImageSource(tuple(f"{i}.png" for i in range(count)), lambda index: images[index])


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", FAMILIES)
def test_contributions_and_the_constant_sum_to_the_representation(
    name: str, family_table: dict[str, tuple[str, int, float]]
) -> None:
    model = random_model(name)
    pixels = torch.randn(3, 3, SIZE, SIZE)
    expected = model.encode_image(pixels)
    parts = decompose(model, pixels)
    error = relative_error(parts.contributions.sum(1) + parts.constant, expected)
    family_table[name] = (model.tower.title, len(parts.components), error)
    assert relative_error(parts.embedding, expected) < 1e-5
    assert error < 1e-5
    # Nothing passes by being zero: every component but the constants of bias-free models says something.
    silent = [str(c) for c, x in zip(parts.components, parts.contributions.norm(dim=(0, 2)), strict=True) if x == 0]
    assert not silent or (name.startswith("RMS") and all(identity.endswith("bias") for identity in silent))


@pytest.mark.parametrize("name", FAMILIES)
def test_token_shares_sum_to_each_heads_contribution(name: str, check_token_shares) -> None:  # type: ignore[no-untyped-def]
    found = check_token_shares(random_model(name), torch.randn(3, 3, SIZE, SIZE))
    assert found.grid == ((2, 2) if name == "DeiT distilled" else (4, 4))


@pytest.mark.parametrize("name", ["SigLIP, SigLIP 2", "DINOv2 with registers, SwiGLU", "DINOv3", "gated attention"])
def test_a_token_without_a_value_has_no_share(name: str) -> None:
    """The norm's output is blank at one patch, and so is the bias of values: nothing can be taken from there."""
    model = random_model(name)
    block: Any = model.module.visual.trunk.blocks[1] if "SigLIP" in name else model.module.blocks[1]
    directions = torch.randn(1, model.tower.d_embed, dtype=torch.float64)
    with torch.no_grad():
        for bias in (block.attn.qkv.bias, getattr(block.attn, "v_bias", None)):
            if bias is not None:
                bias.zero_()

    def blank(_: nn.Module, __: Any, result: torch.Tensor) -> torch.Tensor:
        result = result.clone()
        result[:, result.shape[1] - 16 + 6] = 0
        return result

    handle = block.norm1.register_forward_hook(blank)
    found = compute_token_shares(model, torch.randn(2, 3, SIZE, SIZE), directions, heads=[HeadId(1, 2)]).on_image()
    handle.remove()
    assert [tuple(place) for place in (found[:, 0, :, :, 0] == 0).nonzero().tolist()] == [(0, 1, 2), (1, 1, 2)]


def recipe_document(effect: str, *steps: Step) -> RecipeDocument:
    return RecipeDocument(schema_version=1, name="test", base=Base(model="random"), effect=effect, steps=steps)  # type: ignore[arg-type]


def to_pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 64.0 - 2


def scan_random(model: Model) -> clipedit.Scan:
    _, source = pixel_source(12)
    object.__setattr__(model, "preprocess", to_pixels)
    return clipedit.scan(model, source, layers=range(model.tower.n_layers), workers=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_folded_edits_equal_edits_made_by_hooks_on_the_live_model(name: str) -> None:
    model = random_model(name)
    reason = model.tower.why_not("total")
    steps = (
        Step(operation="mean-ablate", heads=("L1H0", "L2H2"), strength=0.8),
        Step(operation="scale", heads=("L0H1", "L2H2"), factor=0.5),
    )
    if model.tower.n_layers == 2:
        steps = (Step(operation="mean-ablate", heads=("L0H1", "L1H2"), strength=0.8),)
    document = recipe_document("total", *steps)
    scanned = scan_random(model)
    if reason is not None:
        with pytest.raises(clipedit.RecipeError, match="cannot make a total edit of random: .*--effect"):
            bind_recipe(document, scanned, model)
        return
    recipe = bind_recipe(document, scanned, model)
    edited = clipedit.apply_recipe(recipe, model)
    pixels = torch.randn(3, 3, SIZE, SIZE)
    expected = encode_with_hooks(model, recipe, pixels)
    assert relative_error(edited.encode_image(pixels), expected) < 1e-5
    assert relative_error(model.encode_image(pixels), expected) > 1e-3


def encode_with_hooks(model: Model, recipe: clipedit.Recipe, pixels: torch.Tensor) -> torch.Tensor:
    """The module's own forward pass, with the heads' values edited where the output projection reads them."""
    assert recipe.tensors is not None
    tensors, handles = recipe.tensors, []

    def make_hook(layer: int) -> Callable[[nn.Module, tuple[torch.Tensor]], tuple[torch.Tensor]]:
        def hook(_: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
            values = inputs[0].clone().unflatten(-1, (-1, model.tower.d_head))
            for head in map(HeadId.parse, recipe.heads):
                if head.layer == layer:
                    maps = tensors.get(f"heads.{head}.value_map", tensors[f"heads.{head}.map"])
                    values[..., head.head, :] = (
                        values[..., head.head, :] @ maps.T + tensors[f"heads.{head}.value_offset"]
                    )
            return (values.flatten(-2),)

        return hook

    for layer in range(model.tower.n_layers):
        path = model.tower.tensor_names()[f"L{layer}.weight"].removesuffix(".weight")
        handles.append(model.module.get_submodule(path).register_forward_pre_hook(make_hook(layer)))
    try:
        if "resblocks" in path:
            return model.tower.collect_features(pixels, []).embedding  # MultiheadAttention hides its projection
        return model.encode_image(pixels)
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("name", FAMILIES)
def test_distilled_is_the_direct_edit_fitted_or_refused_with_its_reason(name: str) -> None:
    model = random_model(name)
    scanned = scan_random(model)
    # One fold: no ridge is chosen then, and the fit is as near as these images allow.
    scanned = dataclasses.replace(scanned, folds=(scanned.statistics,))
    heads = ("L1H0", "L0H2")
    document = recipe_document("distilled", Step(operation="mean-ablate", heads=heads))
    if model.tower.why_not("distilled"):
        with pytest.raises(clipedit.RecipeError, match="cannot make a distilled edit .* no final linear map.*direct"):
            bind_recipe(document, scanned, model)
        return
    edited = clipedit.apply_recipe(bind_recipe(document, scanned, model), model)
    direct = clipedit.apply_recipe(bind_recipe(document.model_copy(update={"effect": "direct"}), scanned, model), model)
    pixels = torch.stack([model.preprocess(pixel_source(12)[1].open(i)) for i in range(12)])
    # With fewer images than widths the fit is exact on them.
    encode = Model.classify if hasattr(model.module, "forward_head") else Model.encode_image
    change, wanted = encode(edited, pixels) - encode(model, pixels), encode(direct, pixels) - encode(model, pixels)
    assert float(wanted.norm()) > 1e-3
    assert relative_error(change, wanted) < 0.02


def test_an_attention_pool_reads_a_head_in_copies_and_total_projections_warn() -> None:
    model = random_model("SigLIP, SigLIP 2")
    (group, *_) = model.tower.groups([1], mlps=False)
    assert (group.k, group.d_head, group.copies) == (48, 12, 4)
    scanned = scan_random(model)
    assert scanned.statistics.mean_features("L1.heads").shape == (4, 48)
    assert scanned.statistics.mean_values("L1.heads").shape == (4, 12)


def test_a_projection_under_total_acts_on_every_copy_of_a_head() -> None:
    from clipedit.editor.edits.operations import OperationInput, project_out, stack_copies

    model = random_model("SigLIP, SigLIP 2")
    (group, *_) = model.tower.groups([1], mlps=False)
    readouts = model.tower.compute_readouts([group])[group.name]
    for count, rank_left in ((1, 8), (3, 0)):
        directions = torch.linalg.qr(torch.randn(48, count).double())[0]
        given = OperationInput(readouts, directions)
        values, _ = project_out(stack_copies(given, group))
        assert values.shape == (4, 12, 12)
        assert torch.linalg.matrix_rank(values[2], atol=1e-9) == rank_left
        seen = torch.einsum("ec,hepk->hcpk", directions, readouts.unflatten(2, (4, 12)))
        assert float((seen @ values[:, None]).norm()) < 1e-9 * float(seen.norm())


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: vit(block_fn=ResPostBlock), "timm ViT: its blocks are post-norm"),
        (lambda: vit(block_fn=ParallelScalingBlock), "run attention and MLP in parallel"),
        (lambda: vit(block_fn=ParallelThingsBlock), "several attentions in parallel"),
        (lambda: vit(attn_layer="diff"), "its attention is a DiffAttention"),
        (lambda: vit(global_pool="max", class_token=False), "it pools by 'max'"),
        (lambda: eva(use_post_norm=True), "timm Eva: its blocks are post-norm"),
        (lambda: timm.create_model("resnet18"), "the image tower is a ResNet, not timm's VisionTransformer"),
        (lambda: in_clip(vit(num_classes=0), projection=None).visual, "timm ViT"),
    ],
)
def test_other_architectures_are_refused_with_the_reason(build: Callable[[], nn.Module], reason: str) -> None:
    with pytest.raises(clipedit.ModelError, match=f"cannot decompose .*{reason}.*Supported: "):
        build_tower(build())


def test_a_timm_model_has_no_texts_and_says_what_to_do() -> None:
    model = random_model("DeiT, AugReg, DINO")
    with pytest.raises(
        clipedit.ModelError, match="cannot encode texts with random: it has no text tower.*clipedit align"
    ):
        model.encode_text(["a photo"])


def test_a_classifier_of_a_timm_checkpoint_gives_its_logits() -> None:
    model = random_model("DeiT, AugReg, DINO")
    pixels = torch.randn(3, 3, SIZE, SIZE)
    assert torch.equal(model.classify(pixels), model.module(pixels))
    with pytest.raises(clipedit.ModelError, match="no linear classifier"):
        random_model("DINOv2").classify(pixels)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["ViT-B-16-SigLIP", "vit_base_patch14_dinov2", "EVA02-B-16", "coca_ViT-B-32", "MobileCLIP-B", "PE-Core-B-16"],
)
def test_contributions_sum_to_the_representation_at_real_size(name: str) -> None:
    torch.manual_seed(0)
    create = open_clip.create_model if name in open_clip.list_models() else timm.create_model
    module = create(name)
    model = as_model(module)
    size = clipedit.load_model(name).image_size if name.startswith("vit_") else module.visual.image_size[0]  # type: ignore[union-attr]
    pixels = torch.randn(3, 3, size, size)
    expected = model.encode_image(pixels)
    parts = decompose(model, pixels)
    assert relative_error(parts.contributions.sum(1) + parts.constant, expected) < 1e-5
