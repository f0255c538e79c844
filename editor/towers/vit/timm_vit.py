"""timm's `VisionTransformer`: DeiT, DeiT-3, DINO, DINOv2, AugReg; in open_clip SigLIP, SigLIP 2, MobileCLIP-B."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from jaxtyping import Float
from timm.layers import Attention
from timm.models.vision_transformer import (
    Block,
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
    VisionTransformer,
)
from torch import Tensor, nn

from ..ends.norms import FrozenNorm
from ..ends.timm_trunk import build_readout, embed_image, find_grid, find_trunk, trunk_refusal
from ..refusals import blocks_refusal
from .pre_norm_vit import BlockWeights
from .spatial_vit import Projected, SpatialViT
from .timm_attention import attention_refusal, project_heads

_REASONS: dict[type[nn.Module], str] = {
    ResPostBlock: "its blocks are post-norm: what a head writes is normalised before it is added",
    ParallelScalingBlock: "its blocks run attention and MLP in parallel through one projection",
    ParallelThingsBlock: "its blocks run several attentions in parallel",
}


class TimmViT(SpatialViT):
    """Adapter for a bare `VisionTransformer`, and for open_clip models whose trunk is one."""

    title: ClassVar[str] = "timm ViT"
    supports: ClassVar[str] = "timm VisionTransformer (CLS, average or MAP pooling), bare or in open_clip"

    def __init__(self, module: nn.Module):
        self.trunk, self.prefix = find_trunk(module)
        blocks = list(self.trunk.blocks)
        super().__init__(module, blocks, build_readout(module), d_head=blocks[0].attn.head_dim)

    @staticmethod
    def refusal(module: nn.Module) -> str | None:
        """Why this tower cannot read a module, or None if it can."""
        reason = trunk_refusal(module, VisionTransformer)
        if reason is not None:
            return reason
        trunk = find_trunk(module)[0]
        if reason := blocks_refusal(trunk.blocks, Block, trunk.embed_dim, _REASONS):
            return reason
        return next(filter(None, (attention_refusal(block.attn, (Attention,)) for block in trunk.blocks)), None)

    def embed(self, pixels: Float[Tensor, "image 3 height width"]) -> Float[Tensor, "image d_embed"]:
        """`encode_image` of a CLIP; of a bare model the representation before its classifier."""
        return embed_image(self.module, pixels)

    def _embed_tokens(self, pixels: Tensor) -> tuple[Float[Tensor, "image token d_model"], Sequence[Tensor | None]]:
        tokens = self.trunk._pos_embed(self.trunk.patch_embed(pixels))
        # In the order of timm's `forward_features`.
        return self.trunk.norm_pre(self.trunk.patch_drop(tokens)), [None] * self.n_layers

    def _project(self, block: Any, stream: Float[Tensor, "image token d_model"], rotation: Tensor | None) -> Projected:
        return project_heads(block.attn, block.norm1(stream), rotation)

    def _grid(self, pixels: Tensor) -> tuple[int, int]:
        return find_grid(self.trunk, pixels)

    def _block(self, layer: int) -> BlockWeights:
        block = self.blocks[layer]
        # Blocks without LayerScale have an `Identity` there.
        scales = (getattr(block.ls1, "gamma", None), getattr(block.ls2, "gamma", None))
        return BlockWeights(block.attn.proj, scales[0], FrozenNorm(block.attn.norm), block.norm2, block.mlp, scales[1])

    def _output_name(self, layer: int) -> str:
        return f"{self.prefix}blocks.{layer}.attn.proj"
