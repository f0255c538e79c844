"""open_clip's `VisionTransformer`: ViT-B-32 to bigG; OpenAI, LAION, DataComp, MetaCLIP, DFN, CLIPA weights; CoCa."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from open_clip.transformer import CustomResidualAttentionBlock, ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from ..ends.final_map import FinalMap
from ..ends.norms import FrozenNorm
from ..ends.pools import FirstQueryPool, MeanPool
from ..ends.readout import Readout
from ..refusals import blocks_refusal
from .pre_norm_vit import BlockWeights
from .spatial_vit import Projected, SpatialViT

CUSTOM_BLOCKS: dict[type[nn.Module], str] = {
    CustomResidualAttentionBlock: "its attention blocks are custom (norms or scales inside attention)"
}


class OpenClipViT(SpatialViT):
    """Adapter for `open_clip.CLIP`, `CoCa` and `CustomTextCLIP` models whose `visual` is a `VisionTransformer`."""

    title: ClassVar[str] = "open_clip ViT"
    supports: ClassVar[str] = "open_clip VisionTransformer with CLS, average or attention pooling"

    def __init__(self, module: nn.Module):
        self.visual: Any = module.visual
        blocks = list(self.visual.transformer.resblocks)
        super().__init__(module, blocks, _build_readout(module, self.visual), d_head=blocks[0].attn.head_dim)

    @staticmethod
    def refusal(module: nn.Module) -> str | None:
        """Why this tower cannot read a module, or None if it can."""
        visual = getattr(module, "visual", None)
        if not isinstance(visual, VisionTransformer):
            return f"the image tower is a {type(visual).__name__}, not a VisionTransformer"
        if getattr(visual, "attn_pool_contrastive", None) is not None:
            return "it pools by attention twice"
        if visual.pool_type not in (("tok",) if visual.attn_pool is not None else ("tok", "avg")):
            return f"it pools by {visual.pool_type!r}"
        if visual.proj is None and visual.attn_pool is not None:
            return "it pools by attention, and has no final projection"
        width = visual.conv1.out_channels
        return blocks_refusal(visual.transformer.resblocks, ResidualAttentionBlock, width, CUSTOM_BLOCKS)

    def embed(self, pixels: Float[Tensor, "image 3 height width"]) -> Float[Tensor, "image d_embed"]:
        """`encode_image` of the module."""
        return self.module.encode_image(pixels, normalize=False)  # pyright: ignore[reportCallIssue]

    def _embed_tokens(self, pixels: Tensor) -> tuple[Float[Tensor, "image token d_model"], Sequence[Tensor | None]]:
        return self.visual._embeds(pixels), [None] * self.n_layers

    def _project(self, block: Any, stream: Float[Tensor, "image token d_model"], rotation: Tensor | None) -> Projected:
        projected = F.linear(block.ln_1(stream), block.attn.in_proj_weight, block.attn.in_proj_bias)
        # [image, token, 3 * d_model] -> three of [image, head, token, d_head]
        return Projected(*projected.unflatten(2, (3, -1, self.d_head)).permute(2, 0, 3, 1, 4))

    def _grid(self, pixels: Tensor) -> tuple[int, int]:
        return self.visual.grid_size

    def _block(self, layer: int) -> BlockWeights:
        block = self.blocks[layer]
        scales = (getattr(block.ls_1, "gamma", None), getattr(block.ls_2, "gamma", None))
        return BlockWeights(block.attn.out_proj, scales[0], FrozenNorm(nn.Identity()), block.ln_2, block.mlp, scales[1])

    def _output_name(self, layer: int) -> str:
        return f"visual.transformer.resblocks.{layer}.attn.out_proj"


def find_shift(tower: Any, prefix: str, norm: str) -> str | None:
    """A bias that adds to what the last norm gives: its own, or the last MLP's where there is no norm."""
    if getattr(getattr(tower, norm), "bias", None) is not None:
        return f"{prefix}{norm}.bias"
    last = len(tower.transformer.resblocks) - 1
    block = tower.transformer.resblocks[last]
    # A LayerScale would shrink it, a norm without a bias would rescale it.
    plain = isinstance(getattr(tower, norm), nn.Identity) and not hasattr(block.ls_2, "gamma")
    return f"{prefix}transformer.resblocks.{last}.mlp.c_proj.bias" if plain else None


def _build_readout(module: nn.Module, visual: Any) -> Readout:
    norm, none = FrozenNorm(visual.ln_post), FrozenNorm(nn.Identity())
    # A `CLIPVisionModel` ends with the norm: what is pooled is the embedding.
    width = visual.conv1.out_channels if visual.proj is None else len(visual.proj)
    matrix = None if visual.proj is None else "visual.proj"
    final = FinalMap(module, width, matrix=matrix, shift=find_shift(visual, "visual.", "ln_post"))
    if visual.attn_pool is not None:
        # The pooler norms its keys and values itself, so `ln_post` is the norm after the pool.
        before, pool = FrozenNorm(visual.attn_pool.ln_k), FirstQueryPool(visual.attn_pool)
        return Readout(slice(None), before, pool, norm, final, width)
    tokens = slice(0, 1) if visual.pool_type == "tok" else slice(1, None)
    # `final_ln_after_pool` decides whether sigma belongs to each token or to their mean.
    before, after = (none, norm) if visual.final_ln_after_pool else (norm, none)
    return Readout(tokens, before, MeanPool(), after, final, width)
