"""timm's `MaxxVit`: MaxViT and MaxxViT (convolution, window attention, grid attention) and CoAtNet.

Stage changes are an average pool and a 1 x 1 convolution on the way past the first block, so features are `d_head`
wide. What the convolutional blocks write are components of their own, batch norms and all.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from timm.models import maxxvit
from torch import Tensor, nn

from ..ends.timm_trunk import find_trunk
from .spatial_staged import SpatialStaged
from .staged import AttentionLayer, Plan, Source
from .staged_end import Recorded, StagedEnd


class MaxViT(SpatialStaged):
    """Adapter for MaxViT, MaxxViT and CoAtNet models of timm, and for open_clip models over them."""

    title: ClassVar[str] = "timm MaxViT"
    supports: ClassVar[str] = "timm MaxxVit (MaxViT, MaxxViT, CoAtNet)"

    @staticmethod
    def refusal(module: nn.Module) -> str | None:
        """Why this tower cannot read a module, or None if it can."""
        trunk: Any = find_trunk(module)[0]
        if not isinstance(trunk, maxxvit.MaxxVit):
            return f"the image tower is a {type(trunk).__name__}, not a MaxxVit"
        for part in trunk.modules():
            if isinstance(part, maxxvit.ParallelMaxxVitBlock):
                return "its window and grid attention write side by side"
            if isinstance(part, maxxvit.Downsample2d) and not isinstance(part.pool, nn.AvgPool2d):
                return f"a stage change pools by {type(part.pool).__name__}, which is not linear"
        if not any(isinstance(part, maxxvit.AttentionCl | maxxvit.Attention2d) for part in trunk.modules()):
            return "it has no attention"
        return StagedEnd.refusal(module)

    def _plan(self) -> Plan:
        return _PlanBuilder(self.trunk).plan()


class _PlanBuilder:
    """Walks the blocks in forward order."""

    def __init__(self, trunk: Any):
        self.trunk = trunk
        self.layers: list[AttentionLayer] = []
        self.junctions: list[Change] = []
        self.sources: dict[str, Source] = {"embedding": Source(0, "stem", False)}

    def plan(self) -> Plan:
        for stage, blocks in enumerate(self.trunk.stages):
            for index, block in enumerate(blocks.blocks):
                self._block(block, f"stages.{stage}.blocks.{index}")
        return Plan(tuple(self.layers), tuple(self.junctions), self.sources)

    def _block(self, block: Any, path: str) -> None:
        if isinstance(block, maxxvit.TransformerBlock2d):
            # The shortcut comes first: what attention writes is added to the changed grid.
            self._shortcut(block, path)
            self._attention(block, path, _every_slot, channels_last=False)
        elif not isinstance(block, maxxvit.MaxxVitBlock):
            self._convolution(block, path)
        else:
            self._convolution(block.conv, f"{path}.conv")
            for name in ("attn_block", "attn_grid"):
                part = getattr(block, name)
                if part is not None:
                    self._attention(part, f"{path}.{name}", _partition_slots(part), channels_last=not block.nchw_attn)

    def _convolution(self, block: Any, path: str) -> None:
        self._shortcut(block, path)
        number = sum(name.startswith("conv") for name in self.sources)
        # What leaves `drop_path` is what the block adds to its shortcut.
        self.sources[f"conv{number}"] = Source(len(self.junctions), f"{path}.drop_path", False)

    def _shortcut(self, block: Any, path: str) -> None:
        if not isinstance(block.shortcut, nn.Identity):
            self.junctions.append(Change(block.shortcut, f"{path}.shortcut"))

    def _attention(self, block: Any, path: str, slots: Any, *, channels_last: bool) -> None:
        stretch = len(self.junctions)
        scale = None if isinstance(block.ls1, nn.Identity) else f"{path}.ls1"
        self.sources[f"L{len(self.layers)}.mlp"] = Source(stretch, f"{path}.drop_path2", channels_last)
        self.layers.append(
            AttentionLayer(stretch, block.attn.num_heads, f"{path}.attn.proj", channels_last, slots, scale)
        )


class Change:
    """An average pool, a 1 x 1 convolution, or both."""

    copies = 1

    def __init__(self, module: nn.Module, path: str):
        self.inputs = (path,)
        self.pool: Any = getattr(module, "pool", nn.Identity())
        self.expand: Any = getattr(module, "expand", module)

    def push(self, above: Float[Tensor, "copy row wide"]) -> Float[Tensor, "copy row narrow"]:
        """`push W`."""
        if isinstance(self.expand, nn.Identity):
            return above
        # [wide, narrow, 1, 1] -> [wide, narrow]
        return above @ self.expand.weight.detach().flatten(1).to(above.dtype)

    def spread(
        self, above: Float[Tensor, "image copy height width"], recorded: Recorded
    ) -> Float[Tensor, "image copy height_below width_below"]:
        """The pool, transposed: its gradient, since it is linear."""
        below = recorded[self.inputs[0]]
        # A caller's inference mode would leave nothing to differentiate; its tensors count only once copied out of it.
        with torch.inference_mode(False), torch.enable_grad():
            # Zeros do: the gradient of a linear map does not depend on where it is taken.
            grid = torch.zeros(
                below.shape[0], 1, *below.shape[2:], dtype=below.dtype, device=below.device, requires_grad=True
            )
            return torch.autograd.grad(self.pool(grid), grid, above.clone())[0]

    def bias(self) -> Float[Tensor, " wide"] | None:
        """The convolution's bias."""
        bias = getattr(self.expand, "bias", None)
        return None if bias is None else bias.detach()


def _every_slot(height: int, width: int) -> Int[Tensor, " slot"]:
    return torch.arange(height * width)


def _partition_slots(block: Any) -> Any:
    """The order in which a block's windows, or the cells of its grid, hold the tokens."""
    partition = maxxvit.window_partition if block.partition_block else maxxvit.grid_partition

    def slots(height: int, width: int) -> Int[Tensor, " slot"]:
        return partition(torch.arange(height * width).view(1, height, width, 1), block.partition_size).flatten()

    return slots
