"""Pruning: heads that write a constant leave the graph, rows of their queries, keys and values and columns of the output.

A `total` edit that ablates a head leaves zeros in its columns of the output projection and its constant in the bias. That is
what is looked for, in the weights, so that it does not matter who made them so. Only graphs can be pruned: a checkpoint of
the same architecture has no place for layers of unequal width.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn

from ..editor.errors import ExportError
from ..editor.model import Model
from .encoders import copy_encoder


class _PrunedAttention(nn.Module):
    """Self-attention with the kept heads only; with none it gives its bias. Called as `nn.MultiheadAttention` is."""

    def __init__(self, attention: nn.MultiheadAttention, kept: Sequence[int]):
        super().__init__()
        heads, width = attention.num_heads, attention.head_dim
        self.heads = list(kept)
        # [3 * head * d_head, d_model] -> the kept heads' rows
        rows = attention.in_proj_weight.detach().unflatten(0, (3, heads, width))[:, self.heads]
        biases = attention.in_proj_bias.detach().unflatten(0, (3, heads, width))[:, self.heads]
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
        projected = F.linear(query, self.in_weight, self.in_bias).unflatten(2, (3, len(self.heads), -1))
        # [image, token, 3, head, d_head] -> three of [image, head, token, d_head]
        queries, keys, values = projected.permute(2, 0, 3, 1, 4)
        found = F.scaled_dot_product_attention(queries, keys, values, attn_mask=attn_mask)
        return F.linear(found.transpose(1, 2).flatten(2), self.out_weight, self.out_bias), None


def find_constant_heads(module: nn.Module) -> dict[str, list[int]]:
    """Heads whose columns of the output projection are zero, by the path of their attention; the others are left out."""
    found = {}
    for path, block in module.named_modules():
        # Self-attention only: poolers and cross-attention are never edited.
        if type(block) is ResidualAttentionBlock and not hasattr(block, "ln_1_kv") and block.attn.batch_first:
            columns = block.attn.out_proj.weight.detach().unflatten(1, (block.attn.num_heads, block.attn.head_dim))
            heads = (columns.abs().amax((0, 2)) == 0).nonzero().flatten().tolist()
            found |= {f"{path}.attn": heads} if heads else {}
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
    pruned = copy_encoder(encoder)
    for path, heads in find_constant_heads(pruned).items():
        owner_path, _, leaf = path.rpartition(".")
        attention: Any = pruned.get_submodule(path)
        kept = [head for head in range(attention.num_heads) if head not in heads]
        setattr(pruned.get_submodule(owner_path), leaf, _PrunedAttention(attention, kept))
    return pruned


def _label(path: str) -> str:
    tower = "" if path.startswith("visual.") else "text "
    layer = re.search(r"\.(\d+)\.", path)
    return f"{tower}L{layer[1]}" if layer else f"{tower}{path} "
