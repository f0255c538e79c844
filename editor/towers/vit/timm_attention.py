"""Attention of timm's `Attention`, `EvaAttention` and `AttentionRope`, up to what each head hands to `W_O`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import apply_rot_embed_cat
from torch import Tensor, nn

from ..ends.norms import FrozenNorm
from .spatial_vit import Projected


def attention_refusal(attention: nn.Module, known: tuple[type[nn.Module], ...]) -> str | None:
    """Why an attention layer cannot be read, or None."""
    # Not `isinstance`: a subclass may attend in another way.
    if type(attention) not in known:
        return f"its attention is a {type(attention).__name__}"
    inner: Any = getattr(attention, "norm", nn.Identity())
    if getattr(attention, "gate", None) is not None and not isinstance(inner, nn.Identity):
        return "its attention has a norm and a gate"
    return FrozenNorm.refusal(inner)


def project_heads(attention: Any, normed: Float[Tensor, "image token d_model"], rotation: Tensor | None) -> Projected:
    """Queries, keys, values as they meet: normed, rotated, shared keys repeated; a gate is frozen like attention."""
    query, key, value = _project(attention, normed)
    query, key = attention.q_norm(query), attention.k_norm(key)
    if rotation is not None:
        # Rotations can be of a wider type than the model, and would widen queries and keys.
        query, key = (_rotate(attention, part, rotation).type_as(value) for part in (query, key))
    # Grouped queries: fewer keys and values than heads.
    shared = attention.num_heads // key.shape[1]
    if shared > 1:
        key, value = (part.repeat_interleave(shared, dim=1) for part in (key, value))
    if getattr(attention, "gate", None) is None:
        return Projected(query, key, value)
    return Projected(query, key, value, attention.gate(normed).sigmoid().unflatten(2, (attention.num_heads, -1)))


def _project(attention: Any, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, each `[image, head, token, d_head]`; keys and values may have fewer heads."""
    if attention.qkv is None:
        parts = [layer(normed) for layer in (attention.q_proj, attention.k_proj, attention.v_proj)]
        query, key, value = (part.unflatten(2, (-1, attention.head_dim)).transpose(1, 2) for part in parts)
        return query, key, value
    bias = attention.qkv.bias
    # EVA keeps three biases apart from the joint layer, which then has none.
    if getattr(attention, "q_bias", None) is not None:
        bias = torch.cat((attention.q_bias, attention.k_bias, attention.v_bias))
    projected = F.linear(normed, attention.qkv.weight, bias)
    # [image, token, 3 * head * d_head] -> three of [image, head, token, d_head]
    query, key, value = projected.unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    return query, key, value


def _rotate(attention: Any, part: Tensor, rotation: Tensor) -> Tensor:
    """Rotary positions; class and register tokens have none."""
    prefix = attention.num_prefix_tokens
    turned = apply_rot_embed_cat(part[:, :, prefix:], rotation, half=getattr(attention, "rotate_half", False))
    return torch.cat([part[:, :, :prefix], turned], dim=2)
