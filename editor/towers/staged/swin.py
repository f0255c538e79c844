"""timm's `SwinTransformer`: windows, shifted in every second block; stages begin by merging 2 x 2 tokens.

A merge is a LayerNorm over four tokens side by side and a linear map, so a head m merges below the top reaches the
output in `4^m` ways. Relative position bias is in the attention, which is frozen.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.models.swin_transformer import PatchMerging, SwinTransformer, SwinTransformerBlock, window_partition
from torch import Tensor, nn

from ..ends.timm_trunk import find_trunk
from .spatial_staged import SpatialStaged
from .staged import AttentionLayer, Plan, Source
from .staged_end import Recorded, StagedEnd


class Swin(SpatialStaged):
    """Adapter for Swin models of timm, and for open_clip models over them."""

    title: ClassVar[str] = "timm Swin"
    supports: ClassVar[str] = "timm SwinTransformer (Swin, S3), also as open_clip's image tower"

    @staticmethod
    def refusal(module: nn.Module) -> str | None:
        """Why this tower cannot read a module, or None if it can."""
        trunk = find_trunk(module)[0]
        if not isinstance(trunk, SwinTransformer):
            return f"the image tower is a {type(trunk).__name__}, not a SwinTransformer"
        return StagedEnd.refusal(module)

    def _plan(self) -> Plan:
        layers: list[AttentionLayer] = []
        sources: dict[str, Source] = {}
        for stage, blocks in enumerate(self.trunk.layers):
            for index, block in enumerate(blocks.blocks):
                path = f"layers.{stage}.blocks.{index}"
                # What leaves `drop_path2` is what the block adds to the stream.
                sources[f"L{len(layers)}.mlp"] = Source(stage, f"{path}.drop_path2", True)
                layers.append(
                    AttentionLayer(stage, block.attn.num_heads, f"{path}.attn.proj", True, _window_slots(block))
                )
        merges = [
            Merge(stage.downsample, f"layers.{index}.downsample")
            for index, stage in enumerate(self.trunk.layers)
            # The first stage begins without a merge.
            if index
        ]
        return Plan(tuple(layers), tuple(merges), {**sources, "embedding": Source(0, "patch_embed", True)})


class Merge:
    """2 x 2 tokens side by side, LayerNorm, linear map."""

    copies = 4

    def __init__(self, module: PatchMerging, path: str):
        self.module: Any = module
        self.inputs = (path, f"{path}.norm")

    def push(self, above: Float[Tensor, "copy row wide"]) -> Float[Tensor, "copies row narrow"]:
        """`push W diag(gamma) C`, one quarter of the columns for each of the four tokens."""
        gain = self.module.norm.weight.detach().to(above.dtype)
        joined = above @ self.module.reduction.weight.detach().to(above.dtype) * gain
        # The norm is over all four tokens at once, so its mean is too: centre before they are split.
        joined = joined - joined.mean(-1, keepdim=True)
        # [copy, row, 4 * narrow] -> [copy * 4, row, narrow]
        return joined.unflatten(2, (4, -1)).transpose(1, 2).flatten(0, 1)

    def spread(
        self, above: Float[Tensor, "image copy height width"], recorded: Recorded
    ) -> Float[Tensor, "image copies height_below width_below"]:
        """Divided by the norm's sigma; each of four tokens has a copy of its own, in the order in which they are
        joined.
        """
        below, joined = (recorded[path] for path in self.inputs)
        height, width = below.shape[1:3]
        sigma = (joined.var(-1, correction=0) + self.module.norm.eps).sqrt()
        weights = above / sigma[:, None]
        found = above.new_zeros(*above.shape[:2], 4, 2 * above.shape[2], 2 * above.shape[3])
        for quarter in range(4):
            # timm joins the four column by column: the row offset runs fastest.
            found[:, :, quarter, quarter % 2 :: 2, quarter // 2 :: 2] = weights
        # Where the grid is odd the last row or column was padding.
        return found.flatten(1, 2)[:, :, :height, :width]

    def bias(self) -> Float[Tensor, " wide"]:
        """The linear map of the norm's bias."""
        return self.module.reduction.weight.detach() @ self.module.norm.bias.detach()


def _window_slots(block: SwinTransformerBlock) -> Any:
    """The order in which a block's shifted windows hold the tokens of a grid."""

    def slots(height: int, width: int) -> Int[Tensor, " slot"]:
        # Counted from one, so that the zeros of padding become -1 in the end.
        tokens = torch.arange(1, height * width + 1).view(1, height, width, 1)
        rolled = torch.roll(tokens, shifts=(-block.shift_size[0], -block.shift_size[1]), dims=(1, 2))
        over = [-size % window for size, window in zip((height, width), block.window_size, strict=True)]
        # `F.pad` counts axes from the last: channels, width, height.
        padded = F.pad(rolled, (0, 0, 0, over[1], 0, over[0]))
        return window_partition(padded, block.window_size).flatten() - 1

    return slots
