"""timm's `Eva`: EVA, EVA02, DINOv3; in open_clip EVA01-CLIP, EVA02-CLIP and PE-Core."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from jaxtyping import Float
from timm.layers import AttentionRope
from timm.models.eva import Eva, EvaAttention, EvaBlock, EvaBlockPostNorm
from torch import Tensor, nn

from ..ends.norms import FrozenNorm
from ..ends.timm_trunk import build_readout, embed_image, find_grid, find_trunk, trunk_refusal
from ..refusals import blocks_refusal
from .pre_norm_vit import BlockWeights
from .spatial_vit import Projected, SpatialViT
from .timm_attention import attention_refusal, project_heads

_REASONS: dict[type[nn.Module], str] = {
    EvaBlockPostNorm: "its blocks are post-norm: what a head writes is normalised before it is added"
}


class TimmEva(SpatialViT):
    """Adapter for a bare `Eva`, and for open_clip models whose trunk is one."""

    title: ClassVar[str] = "timm Eva"
    supports: ClassVar[str] = "timm Eva (rotary positions, SwiGLU, norms inside attention), bare or in open_clip"

    def __init__(self, module: nn.Module):
        self.trunk, self.prefix = find_trunk(module)
        blocks = list(self.trunk.blocks)
        super().__init__(module, blocks, build_readout(module), d_head=blocks[0].attn.head_dim)

    @staticmethod
    def refusal(module: nn.Module) -> str | None:
        """Why this tower cannot read a module, or None if it can."""
        reason = trunk_refusal(module, Eva)
        if reason is not None:
            return reason
        trunk = find_trunk(module)[0]
        if reason := blocks_refusal(trunk.blocks, EvaBlock, trunk.embed_dim, _REASONS):
            return reason
        known = (EvaAttention, AttentionRope)
        return next(filter(None, (attention_refusal(block.attn, known) for block in trunk.blocks)), None)

    def embed(self, pixels: Float[Tensor, "image 3 height width"]) -> Float[Tensor, "image d_embed"]:
        """`encode_image` of a CLIP; of a bare model the representation before its classifier."""
        return embed_image(self.module, pixels)

    def _embed_tokens(self, pixels: Tensor) -> tuple[Float[Tensor, "image token d_model"], Sequence[Tensor | None]]:
        tokens, rotation = self.trunk._pos_embed(self.trunk.patch_embed(pixels))
        # Learned rotations differ a layer: [layer, ...].
        layers = list(rotation) if self.trunk.rope_mixed and rotation is not None else [rotation] * self.n_layers
        return self.trunk.norm_pre(tokens), layers

    def _project(self, block: Any, stream: Float[Tensor, "image token d_model"], rotation: Tensor | None) -> Projected:
        return project_heads(block.attn, block.norm1(stream), rotation)

    def _grid(self, pixels: Tensor) -> tuple[int, int]:
        return find_grid(self.trunk, pixels)

    def _block(self, layer: int) -> BlockWeights:
        block = self.blocks[layer]
        inner = FrozenNorm(block.attn.norm)
        return BlockWeights(block.attn.proj, block.gamma_1, inner, block.norm2, block.mlp, block.gamma_2)

    def _output_name(self, layer: int) -> str:
        return f"{self.prefix}blocks.{layer}.attn.proj"
