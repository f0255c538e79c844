"""Texts that begin alike share their beginnings: a token of a causal tower sees only what is before it.

A list of texts is a tree with one node for each different beginning, and its tokens are computed once a node. A pool of
texts for TextSpan ("a photo of a cat", "a photo of a car") has about a third as many nodes as tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.transformer import ResidualAttentionBlock, TextTransformer
from torch import Tensor, nn

# Nodes that go through an MLP together: its hidden layer is four times as wide as the stream.
NODES_PER_BATCH = 512
# Of these the tower's own code runs; it is told from its subclasses, whose code may do anything.
_ENCODERS = (CLIP.encode_text, CustomTextCLIP.encode_text)


@dataclass(frozen=True)
class PrefixTree:
    """The different beginnings of some texts, shortest first.

    Attributes:
        tokens: The last token of each.
        paths: For every length, of each beginning of that length the nodes from the first token to itself,
            `[node, length]`.
        leaves: The node that each text's embedding is read from, `[text]`.
    """

    tokens: Int[Tensor, " node"]
    paths: list[Int[Tensor, "_ _"]]
    leaves: Int[Tensor, " text"]


def build_tree(tokens: Int[Tensor, "text context"], needed: Int[Tensor, " text"]) -> PrefixTree:
    """The tree of the first `needed` tokens of every text; its readout is the last of them."""
    node = torch.zeros(len(tokens), dtype=torch.long)
    last, paths = [], []
    path, first, start = torch.zeros(1, 0, dtype=torch.long), 0, 0
    for depth in range(int(needed.max())):
        alive = (needed > depth).nonzero()[:, 0]
        # Two texts share a node where they came from the same one and go on with the same token.
        steps = torch.stack([node[alive], tokens[alive, depth]], dim=1)
        steps, found = steps.unique(dim=0, return_inverse=True)
        here = start + torch.arange(len(steps))
        path = torch.cat([path[steps[:, 0] - first], here[:, None]], dim=1)
        node[alive] = here[found]
        last.append(steps[:, 1])
        paths.append(path)
        first, start = start, start + len(steps)
    return PrefixTree(torch.cat(last), paths, node)


def shares_prefixes(module: nn.Module, owner: Any) -> bool:
    """Whether a text transformer is open_clip's own and causal, so that a tree of beginnings stands for the texts."""
    if getattr(type(module), "encode_text", None) not in _ENCODERS:
        return False
    if owner is not module and type(owner) is not TextTransformer:
        return False
    # CoCa reads a class token and masks padding.
    if getattr(owner, "cls_emb", None) is not None or getattr(owner, "use_pad_mask", False):
        return False
    mask = getattr(owner, "attn_mask", None)
    if mask is None or not torch.equal(mask.isinf(), torch.ones_like(mask, dtype=torch.bool).triu(1)):
        return False
    return all(type(block) is ResidualAttentionBlock for block in owner.transformer.resblocks)


@torch.no_grad()
def embed_tree(owner: Any, tree: PrefixTree, device: torch.device) -> Float[Tensor, "text d_embed"]:
    """`encode_text` of the texts of a tree, unnormalised."""
    paths, leaves = [path.to(device) for path in tree.paths], tree.leaves.to(device)
    dtype = owner.transformer.get_cast_dtype()
    depths = torch.cat([torch.full((len(path),), path.shape[1] - 1) for path in tree.paths]).to(device)
    stream = owner.token_embedding(tree.tokens.to(device)).to(dtype) + owner.positional_embedding[depths].to(dtype)
    *blocks, final = owner.transformer.resblocks
    for block in blocks:
        stream = _finish(block, stream, _attend(block, stream, paths))
    # Nothing reads the last block but at the end of texts.
    stream = _finish(final, stream[leaves], _attend(final, stream, paths)[leaves])
    pooled, projection = owner.ln_final(stream), owner.text_projection
    if projection is None:
        return pooled
    return projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection


def _attend(
    block: ResidualAttentionBlock, stream: Float[Tensor, "node d_model"], paths: list[Int[Tensor, "_ _"]]
) -> Float[Tensor, "node d_model"]:
    """What the heads of every node read from the nodes before it and from itself, before their output matrix."""
    attention, heads = block.attn, block.attn.num_heads

    def project(nodes: Tensor) -> Tensor:
        return F.linear(block.ln_1(nodes), attention.in_proj_weight, attention.in_proj_bias)

    query, key_value = _in_batches(project, stream).split([stream.shape[1], 2 * stream.shape[1]], dim=1)
    # [node, d_model] -> [node, head, 1, d_head]
    query = query.unflatten(1, (heads, 1, -1))
    read = []
    for path in paths:
        # [node, length, 2 * d_model] -> two of [node, head, length, d_head]; a beginning holds nothing to be masked.
        key, value = key_value[path].unflatten(2, (2, heads, -1)).permute(2, 0, 3, 1, 4)
        read.append(F.scaled_dot_product_attention(query[path[:, -1]], key, value).flatten(1))
    return torch.cat(read)


def _finish(
    block: ResidualAttentionBlock, stream: Float[Tensor, "node d_model"], read: Float[Tensor, "node d_model"]
) -> Float[Tensor, "node d_model"]:
    """The stream behind a block, from the stream before it and what its heads read."""

    def finish(nodes: Tensor) -> Tensor:
        before, heads = nodes.chunk(2, dim=1)
        middle = before + block.ls_1(block.attn.out_proj(heads))
        return middle + block.ls_2(block.mlp(block.ln_2(middle)))

    return _in_batches(finish, torch.cat([stream, read], dim=1))


def _in_batches(step: Callable[[Tensor], Tensor], nodes: Tensor) -> Tensor:
    return torch.cat([step(batch) for batch in nodes.split(NODES_PER_BATCH)])
