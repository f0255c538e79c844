"""Pruning: heads that write a constant leave the graph, rows of queries, keys and values, columns of the output.

A `total` edit that ablates a head leaves zeros in its columns of the output projection and its constant in the bias.
That is what is looked for, in the weights, so that it does not matter who made them so. Only graphs can be pruned: a
checkpoint of the same architecture has no place for layers of unequal width.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from jaxtyping import Float
from open_clip.transformer import ResidualAttentionBlock
from timm.layers.attention import Attention as TimmAttention
from torch import Tensor, nn

from ...editor.errors import ExportError
from ...editor.models.model import Model
from .encoders import copy_encoder


class _PrunedAttention(nn.Module):
    """Self-attention with the kept heads only; with none it gives its bias. Called as `nn.MultiheadAttention` is."""

    def __init__(self, attention: nn.MultiheadAttention, kept: Sequence[int]):
        super().__init__()
        heads, width = attention.num_heads, attention.head_dim
        self.heads = list(kept)
        # [3 * head * d_head, d_model] -> the kept heads' rows
        # [3 * head * d_head, d_model] -> [3, kept, d_head, d_model]
        rows = attention.in_proj_weight.detach().unflatten(0, (3, heads, width))[:, self.heads]
        biases = attention.in_proj_bias.detach().unflatten(0, (3, heads, width))[:, self.heads]
        # [d_model, head * d_head] -> [d_model, kept, d_head]
        columns = attention.out_proj.weight.detach().unflatten(1, (heads, width))[:, self.heads]
        if self.heads:
            self.in_weight, self.in_bias = nn.Parameter(rows.flatten(0, 2)), nn.Parameter(biases.flatten())
            self.out_weight = nn.Parameter(columns.flatten(1))
        self.out_bias = nn.Parameter(attention.out_proj.bias.detach())

    def forward(
        self, query: Float[Tensor, "image token d_model"], *_: Tensor, attn_mask: Tensor | None = None, **__: Any
    ) -> tuple[Tensor, None]:
        if not self.heads:
            return self.out_bias.expand_as(query), None
        # [image, token, 3 * head * d_head] -> [image, token, 3, head, d_head]
        projected = F.linear(query, self.in_weight, self.in_bias).unflatten(2, (3, len(self.heads), -1))
        # [image, token, 3, head, d_head] -> three of [image, head, token, d_head]
        queries, keys, values = projected.permute(2, 0, 3, 1, 4)
        found = F.scaled_dot_product_attention(queries, keys, values, attn_mask=attn_mask)
        # [image, head, token, d_head] -> [image, token, head * d_head]
        return F.linear(found.transpose(1, 2).flatten(2), self.out_weight, self.out_bias), None


class _ConstantAttention(nn.Module):
    """timm's attention without heads: its bias, whatever the image."""

    def __init__(self, bias: Tensor):
        super().__init__()
        self.bias = nn.Parameter(bias.detach())

    def forward(self, stream: Float[Tensor, "image token d_model"], *_: Any, **__: Any) -> Tensor:
        return self.bias.expand_as(stream)


def find_constant_heads(module: nn.Module) -> dict[str, list[int]]:
    """Heads whose columns of the output projection are zero, by the path of their attention; others are left out."""
    found = {}
    for path, part in module.named_modules():
        # Self-attention only: poolers and cross-attention are never edited.
        if type(part) is ResidualAttentionBlock and not hasattr(part, "ln_1_kv") and part.attn.batch_first:
            path, projection, heads = f"{path}.attn", part.attn.out_proj, part.attn.num_heads
        elif _is_plain_timm(part):
            projection, heads = part.proj, part.num_heads
        else:
            continue
        # [d_model, head * d_head] -> [d_model, head, d_head]; exactly zero, as an ablation leaves it: no tolerance
        # guesses.
        constant = projection.weight.detach().unflatten(1, (heads, -1)).abs().amax((0, 2)) == 0
        found |= {path: constant.nonzero().flatten().tolist()} if constant.any() else {}
    return found


def require_constant_heads(model: Model) -> list[str]:
    """The heads that pruning removes, `L3H5`; those of the text tower as `text L3H5`.

    Raises:
        ExportError: If there are none.
    """
    found = find_constant_heads(model.module)
    if model.readout_edit is not None or not found:
        why = "its edit is direct" if model.readout_edit is not None else "no head of it writes a constant"
        raise ExportError(
            f"cannot prune {model.name}: {why}. Only ablation with --effect total empties heads in the weights; "
            "leave out --prune, or edit with --effect total."
        )
    return [f"{_label(path)}H{head}" for path, heads in found.items() for head in heads]


def prune_heads(encoder: nn.Module) -> nn.Module:
    """A copy without the heads that write a constant; it shares all other weights with the one given."""
    # Modules are replaced below: the model in memory keeps its own.
    pruned = copy_encoder(encoder)
    for path, heads in find_constant_heads(pruned).items():
        owner_path, _, leaf = path.rpartition(".")
        attention: Any = pruned.get_submodule(path)
        # Read before the module is replaced, since a pruned one knows its new number only.
        kept = [head for head in range(attention.num_heads) if head not in heads]
        shrink: Any = _shrink_timm if isinstance(attention, TimmAttention) else _PrunedAttention
        setattr(pruned.get_submodule(owner_path), leaf, shrink(attention, kept))
    return pruned


def _is_plain_timm(part: nn.Module) -> TypeGuard[TimmAttention]:
    """timm's attention without a norm or a gate across heads, which would have to be cut as well."""
    return type(part) is TimmAttention and isinstance(part.norm, nn.Identity) and part.gate is None


def _shrink_timm(attention: TimmAttention, kept: Sequence[int]) -> nn.Module:
    """The same attention with the kept heads; its norms of queries and keys act within a head and stay."""
    bias = attention.proj.bias
    if not kept:
        return _ConstantAttention(torch.zeros(len(attention.proj.weight)) if bias is None else bias)
    # A shallow copy shares its table of children with the original: it gets a table of its own before any is replaced.
    shrunk, shape = copy.copy(attention), (3, attention.num_heads, attention.head_dim)
    shrunk.__dict__["_modules"] = dict(attention._modules)
    # timm's forward reshapes by both.
    shrunk.num_heads, shrunk.attn_dim = len(kept), len(kept) * attention.head_dim
    # [3 * head * d_head, d_model] -> [3 * kept * d_head, d_model]
    rows = attention.qkv.weight.detach().unflatten(0, shape)[:, kept].flatten(0, 2)
    biases = None if attention.qkv.bias is None else attention.qkv.bias.detach().unflatten(0, shape)[:, kept].flatten()
    shrunk.qkv = _linear(rows, biases)
    shrunk.proj = _linear(attention.proj.weight.detach().unflatten(1, shape[1:])[:, kept].flatten(1), bias)
    return shrunk


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    # On `meta`: the random weights would be thrown away at once.
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach())
    return layer


def _label(path: str) -> str:
    tower = "" if path.startswith("visual.") else "text "
    layer = re.search(r"\.(\d+)\.", path)
    return f"{tower}L{layer[1]}" if layer else f"{tower}{path} "
