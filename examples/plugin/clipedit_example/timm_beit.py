"""The tower of timm's `Beit` (BEiT, BEiT v2): pre-norm, with relative positions in its attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.models.beit import Attention, Beit, Block
from torch import Tensor, nn

from clipedit.editor.towers.ends.final_map import FinalMap
from clipedit.editor.towers.ends.norms import FrozenNorm
from clipedit.editor.towers.ends.pools import MeanPool
from clipedit.editor.towers.ends.readout import Readout
from clipedit.editor.towers.ends.timm_trunk import embed_image
from clipedit.editor.towers.refusals import blocks_refusal
from clipedit.editor.towers.vit.pre_norm_vit import BlockWeights
from clipedit.editor.towers.vit.spatial_vit import Projected, SpatialViT


@dataclass(frozen=True)
class Placed(Projected):
    """Queries, keys and values whose attention also knows where tokens lie: `bias` `[1, head, query, token]`."""

    bias: Tensor | None = None

    def attend(self, queries: slice) -> Tensor:
        """What each head reads, `[image, query, head, d_head]`."""
        bias = None if self.bias is None else self.bias[:, :, queries]
        found = F.scaled_dot_product_attention(self.query[:, :, queries], self.key, self.value, attn_mask=bias)
        return found.transpose(1, 2)

    def attention(self, queries: slice) -> Tensor:
        """The weights that it reads with, `[image, head, query, token]`."""
        scores = self.query[:, :, queries] @ self.key.mT * self.query.shape[3] ** -0.5
        return (scores if self.bias is None else scores + self.bias[:, :, queries]).softmax(-1)


class TimmBeit(SpatialViT):
    """A bare `Beit`."""

    title: ClassVar[str] = "timm BEiT"
    supports: ClassVar[str] = "timm Beit"

    def __init__(self, module: Any):
        blocks, attention = list(module.blocks), module.blocks[0].attn
        d_head = attention.proj.in_features // attention.num_heads
        super().__init__(module, blocks, _build_readout(module), d_head=d_head)
        self.trunk = module

    @staticmethod
    def refusal(module: nn.Module) -> str | None:
        """Why this tower cannot read a module, or None if it can."""
        trunk: Any = module
        # Not `isinstance`: a subclass may compute something else.
        if type(trunk) is not Beit:
            return f"the image tower is a {type(trunk).__name__}, not timm's Beit"
        if trunk.global_pool not in ("token", "avg"):
            return f"it pools by {trunk.global_pool!r}"
        if reason := blocks_refusal(trunk.blocks, Block, trunk.embed_dim, {}):
            return reason
        other = next((block.attn for block in trunk.blocks if type(block.attn) is not Attention), None)
        if other is not None:
            return f"its attention is a {type(other).__name__}"
        return next(filter(None, map(FrozenNorm.refusal, (trunk.norm, trunk.fc_norm))), None)

    def embed(self, pixels: Tensor) -> Tensor:
        """The representation before the classifier, by the module's own code."""
        return embed_image(self.module, pixels)

    def _embed_tokens(self, pixels: Tensor) -> tuple[Tensor, Sequence[Tensor | None]]:
        patches = self.trunk.patch_embed(pixels)
        tokens = torch.cat([self.trunk.cls_token.expand(len(patches), -1, -1), patches], 1)
        # What takes the place of rotations: the positions that all layers share.
        shared = None if self.trunk.rel_pos_bias is None else self.trunk.rel_pos_bias()[None]
        return tokens if self.trunk.pos_embed is None else tokens + self.trunk.pos_embed, [shared] * self.n_layers

    def _project(self, block: Any, stream: Tensor, rotation: Tensor | None) -> Projected:
        attention = block.attn
        biases = None
        if attention.q_bias is not None:
            biases = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
        joint = F.linear(block.norm1(stream), attention.qkv.weight, biases)
        # [image, token, 3 * head * d_head] -> three of [image, head, token, d_head]
        query, key, value = joint.unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
        own = None if attention.relative_position_bias_table is None else attention._get_rel_pos_bias()
        places = [bias for bias in (own, rotation) if bias is not None]
        return Placed(query, key, value, bias=torch.stack(places).sum(0) if places else None)

    def _grid(self, pixels: Tensor) -> tuple[int, int]:
        return self.trunk.patch_embed.grid_size

    def _block(self, layer: int) -> BlockWeights:
        block = self.blocks[layer]
        inner = FrozenNorm(nn.Identity())
        return BlockWeights(block.attn.proj, block.gamma_1, inner, block.norm2, block.mlp, block.gamma_2)

    def _output_name(self, layer: int) -> str:
        return f"blocks.{layer}.attn.proj"


def _build_readout(module: Any) -> Readout:
    classifier = "head" if isinstance(module.head, nn.Linear) else None
    tokens = slice(0, 1) if module.global_pool == "token" else slice(1, None)
    before, after = FrozenNorm(module.norm), FrozenNorm(module.fc_norm)
    final = FinalMap(module, module.embed_dim, classifier=classifier)
    return Readout(tokens, before, MeanPool(), after, final, module.embed_dim)
