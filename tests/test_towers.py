"""The decomposition is exact, for every configuration of open_clip's ViT."""

from __future__ import annotations

from types import MethodType
from typing import Any

import open_clip
import pytest
import torch
from open_clip.model import CLIP
from open_clip.transformer import ResidualAttentionBlock

from clipedit import ModelError
from clipedit.editor.models.decompose import decompose
from clipedit.editor.models.model import Model
from clipedit.editor.towers.build import build_tower

VISION = {"image_size": 32, "patch_size": 8, "width": 48, "layers": 3, "head_width": 12}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
CONFIGURATIONS = {
    "ViT-B-32 and others: CLS pooling": {},
    "OpenAI: QuickGELU": {"quick_gelu": True},
    "LayerScale": {"vision_cfg": {"ls_init_value": 0.3}},
    "no_ln_pre": {"vision_cfg": {"no_ln_pre": True}},
    "average pooling, norm before it": {"vision_cfg": {"pool_type": "avg"}},
    "average pooling, norm after it": {"vision_cfg": {"pool_type": "avg", "final_ln_after_pool": True}},
    "CLS pooling, norm after it": {"vision_cfg": {"final_ln_after_pool": True}},
    "CLIPA: sine positions, average pooling, no_ln_pre": {
        "vision_cfg": {
            "pos_embed_type": "sin_cos_2d",
            "no_ln_pre": True,
            "final_ln_after_pool": True,
            "pool_type": "avg",
        }
    },
    "bigG: wide heads": {"vision_cfg": {"width": 104, "head_width": 52}},
    "other norm eps and mlp_ratio": {"vision_cfg": {"norm_kwargs": {"eps": 1e-3}, "mlp_ratio": 1.5}},
}


def random_model(overrides: dict) -> Model:
    torch.manual_seed(0)
    vision = {**VISION, **overrides.get("vision_cfg", {})}
    module = CLIP(24, vision, TEXT, quick_gelu=overrides.get("quick_gelu", False)).eval()
    with torch.no_grad():
        for parameter in module.visual.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    config = {"model_cfg": {"text_cfg": TEXT}, "preprocess_cfg": {"size": 32}}
    return Model("random", None, module, build_tower(module), config)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_contributions_sum_to_the_embedding(name: str) -> None:
    model = random_model(CONFIGURATIONS[name])
    pixels = torch.randn(3, 3, 32, 32)
    expected = model.encode_image(pixels)
    parts = decompose(model, pixels)
    total = parts.contributions.sum(1) + parts.constant
    assert relative_error(parts.embedding, expected) < 1e-5
    assert relative_error(total, expected) < 1e-5
    assert len(parts.components) == parts.contributions.shape[1] == sum(model.tower.heads_per_layer) + 3 + 3 + 1


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_token_shares_sum_to_each_heads_contribution(name: str, check_token_shares) -> None:  # type: ignore[no-untyped-def]
    assert check_token_shares(random_model(CONFIGURATIONS[name]), torch.randn(3, 3, 32, 32)).grid == (4, 4)


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16-quickgelu"])
def test_contributions_sum_to_the_embedding_at_real_size(name: str) -> None:
    import clipedit

    model = clipedit.load_model(name)
    pixels = torch.randn(2, 3, 224, 224)
    parts = decompose(model, pixels)
    expected = model.encode_image(pixels)
    assert relative_error(parts.contributions.sum(1) + parts.constant, expected) < 1e-5


def test_contributions_sum_to_the_embedding_of_the_demo(demo_model: Model) -> None:
    pixels = torch.randn(4, 3, 64, 64)
    parts = decompose(demo_model, pixels)
    assert relative_error(parts.contributions.sum(1) + parts.constant, demo_model.encode_image(pixels)) < 1e-5
    assert [str(identity) for identity in parts.components[:9]] == [*(f"L0H{i}" for i in range(8)), "L0.bias"]
    assert [str(identity) for identity in parts.components[-2:]] == ["L3.mlp", "embedding"]


def test_a_convolutional_tower_is_refused_with_the_reason() -> None:
    from clipedit import ModelError

    module = open_clip.create_model("RN50", load_weights=False)
    with pytest.raises(ModelError, match="ModifiedResNet, not a VisionTransformer.*Supported: open_clip Vision"):
        build_tower(module)


def test_custom_attention_blocks_are_refused_with_the_reason() -> None:
    from clipedit import ModelError

    with pytest.raises(ModelError, match="attention blocks are custom"):
        random_model({"vision_cfg": {"qk_norm": True}})


def test_two_attention_pools_are_refused_with_the_reason() -> None:
    from clipedit import ModelError

    with pytest.raises(ModelError, match="pools by attention twice"):
        random_model({"vision_cfg": {"attentional_pool": "parallel"}})


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


class PostNormStream(ResidualAttentionBlock):
    """The original transformer's order."""

    def forward(self, q_x, k_x=None, v_x=None, attn_mask=None):  # type: ignore[no-untyped-def]
        stream = self.ln_1(q_x + self.attention(q_x, attn_mask=attn_mask))
        return self.ln_2(stream + self.mlp(stream))


class PostNormBranch(ResidualAttentionBlock):
    def forward(self, q_x, k_x=None, v_x=None, attn_mask=None):  # type: ignore[no-untyped-def]
        stream = q_x + self.ln_1(self.attention(q_x, attn_mask=attn_mask))
        return stream + self.ln_2(self.mlp(stream))


class NoAttentionResidual(ResidualAttentionBlock):
    def forward(self, q_x, k_x=None, v_x=None, attn_mask=None):  # type: ignore[no-untyped-def]
        stream = self.attention(self.ln_1(q_x), attn_mask=attn_mask)
        return stream + self.mlp(self.ln_2(stream))


class Doubled(ResidualAttentionBlock):
    def forward(self, q_x, k_x=None, v_x=None, attn_mask=None):  # type: ignore[no-untyped-def]
        return super().forward(q_x, k_x, v_x, attn_mask) + 2 * self.mlp(self.ln_2(q_x))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (PostNormStream, r"its blocks \(PostNormStream\) are post-norm: the residual stream itself is normalised"),
        (PostNormBranch, r"its blocks \(PostNormBranch\) are post-norm: what a head writes is normalised"),
        (NoAttentionResidual, r"its blocks \(NoAttentionResidual\) have no residual around attention"),
        (Doubled, "its blocks are of class Doubled"),
    ],
)
def test_blocks_of_ones_own_are_refused_with_what_they_do(kind: type, reason: str) -> None:
    for side in ("image", "text"):
        model = random_model({})
        owner: Any = model.module.visual if side == "image" else model.module
        for block in owner.transformer.resblocks:
            block.__class__ = kind
        with pytest.raises(ModelError, match=reason):
            build_tower(model.module) if side == "image" else model.with_tower("text")


def test_a_block_whose_forward_was_replaced_is_refused() -> None:
    model = random_model({})
    block: Any = model.module.visual.transformer.resblocks[-1]
    block.forward = lambda stream, **_: block.attention(block.ln_1(stream))
    with pytest.raises(ModelError, match=r"the `forward` of its blocks \(ResidualAttentionBlock\) was replaced"):
        build_tower(model.module)
    block.forward = MethodType(NoAttentionResidual.forward, block)
    with pytest.raises(ModelError, match="have no residual around attention"):
        build_tower(model.module)
