"""What lies inside the attention of an open_clip ViT: where heads look, what CLS takes from itself, and `W_O W_V`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ...components import ComponentGroup, ComponentId, Features
from ...errors import ModelError
from ..ends.norms import FrozenNorm
from .open_clip_vit import OpenClipViT


@torch.no_grad()
def collect_attention(
    tower: OpenClipViT, pixels: Float[Tensor, "image 3 height width"], layers: Sequence[int]
) -> Float[Tensor, "image layer head row column"]:
    """Attention of the readout (CLS, or the mean over pooled patches) on every patch; over all tokens it sums to 1."""
    found = []
    for layer, block, stream in _walk(tower, pixels):
        if layer in layers:
            query, key, _ = _project(tower, block, stream)
            # Only the tokens that the readout pools ask: CLS, or the patches, which follow it.
            query = query[:, :, :1] if tower.visual.pool_type == "tok" else query[:, :, 1:]
            # [image, head, query, token] -> [image, head, token]
            weights = (query @ key.transpose(2, 3) * tower.d_head**-0.5).softmax(-1).mean(2)
            # CLS has no place in the grid. It took part in the softmax, so patches sum to less than 1.
            found.append(weights[..., 1:])
    rows, columns = tower.visual.grid_size
    return torch.stack(found, 1).unflatten(-1, (rows, columns)).float()


def require_self_attention(tower: object, name: str) -> OpenClipViT:
    """The tower, if CLS attends to itself in it.

    Raises:
        ModelError: If not.
    """
    if not isinstance(tower, OpenClipViT) or tower.visual.pool_type != "tok":
        raise ModelError(f"cannot ablate self-attention of {name}: only open_clip ViTs with a CLS token tell it apart.")
    return tower


def self_attention_groups(tower: OpenClipViT, layers: Sequence[int]) -> list[ComponentGroup]:
    """A component a head, `L3H5.self`: what CLS takes from CLS. It is a part of the head, not one more component."""
    return [
        ComponentGroup(
            f"L{i}.self", tuple(ComponentId("self", i, head) for head in range(tower.heads_per_layer[0])), tower.d_head
        )
        for i in layers
    ]


@torch.no_grad()
def with_self_attention(
    tower: OpenClipViT, pixels: Float[Tensor, "image 3 height width"], layers: Sequence[int], features: Features
) -> Features:
    """The features with `u = a[CLS, CLS] V[CLS] / sigma` of heads of some layers; `L3.bias` groups give 1 / sigma."""
    parts = {}
    for layer, block, stream in _walk(tower, pixels):
        if layer in layers:
            query, key, value = _project(tower, block, stream)
            weights = (query[:, :, :1] @ key.transpose(2, 3) * tower.d_head**-0.5).softmax(-1)
            # [image, head, 1, 1] * [image, head, 1, d_head]
            own = weights[..., :1] * value[:, :, :1]
            # [image, head, d_head] * [image, 1, 1]
            parts[f"L{layer}.self"] = own[:, :, 0] * features.groups[f"L{layer}.bias"]
    return replace(features, groups={**features.groups, **parts})


def value_output_weights(
    tower: OpenClipViT, layer: int
) -> tuple[Float[Tensor, "head d_model d_head"], Float[Tensor, "head d_head d_model"]]:
    """`C W_O[h]` and `W_V[h] diag(gamma) C` of a layer's heads, float64: LayerNorms folded in, centred."""
    block = tower.visual.transformer.resblocks[layer]
    attention, gain = block.attn, block.ln_1.weight.detach().double().cpu()
    output = attention.out_proj.weight.detach().double().cpu().unflatten(1, (tower.heads_per_layer[0], tower.d_head))
    # [d_model, head, d_head] -> [head, d_model, d_head]
    output = output.permute(1, 0, 2)
    # Blocks without LayerScale have an `Identity` there.
    if hasattr(block.ls_1, "gamma"):
        output = output * block.ls_1.gamma.detach().double().cpu()[:, None]
    value = (
        attention.in_proj_weight.detach()
        .double()
        .cpu()
        # Queries, keys and values lie one below the other, in this order.
        .chunk(3)[2]
        .unflatten(0, (tower.heads_per_layer[0], tower.d_head))
    )
    value = value * gain
    # Later norms drop the mean of what is written, and this block's norm the mean of what is read.
    return output - output.mean(1, keepdim=True), value - value.mean(2, keepdim=True)


def residual_readout(tower: OpenClipViT) -> Float[Tensor, "d_embed d_model"]:
    """`P^T diag(gamma) C`: from a residual write, divided by sigma, to the embedding; float64."""
    return FrozenNorm(tower.visual.ln_post).push(tower.readout().T)


def _walk(tower: OpenClipViT, pixels: Tensor) -> Iterator[tuple[int, Any, Tensor]]:
    """Each layer's block with the residual stream that enters it."""
    stream = tower.visual._embeds(pixels.to(tower.visual.conv1.weight.dtype))
    for layer, block in enumerate(tower.visual.transformer.resblocks):
        yield layer, block, stream
        stream = block(stream)


def _project(tower: OpenClipViT, block: Any, stream: Tensor) -> Tensor:
    """Queries, keys and values, `[3, image, head, token, d_head]`."""
    projected = F.linear(block.ln_1(stream), block.attn.in_proj_weight, block.attn.in_proj_bias)
    return projected.unflatten(2, (3, tower.heads_per_layer[0], tower.d_head)).permute(2, 0, 3, 1, 4)
