"""Texts are mostly far shorter than a text tower's context: what cannot reach an embedding is not computed.

In long lists neither is what texts have in common computed twice (`text_prefixes`).

A causal tower that reads the end of a text never looks behind it. A tower with padding masked out gives it no weight.
All others (SigLIP, CLIPA, MobileCLIP) attend to the padding, and compute their whole context.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Float, Int
from open_clip.hf_model import HFTextEncoder
from torch import Tensor, nn

from .text_prefixes import build_tree, embed_tree, shares_prefixes

# Few, so that hardly a text is filled up to a longer one; more are no faster on a processor.
TEXTS_PER_BATCH = 64
# Neighbours in the order of their tokens share a tree; in shorter lists there is little to share.
TEXTS_PER_TREE = 256
# With less in common than this, gathering what is before each token costs more than it saves.
MOST_DIFFERENT = 0.6


def text_owner(module: nn.Module) -> tuple[Any, str]:
    """The module that holds the text transformer, and its path as a prefix."""
    text = getattr(module, "text", None)
    return (module, "") if text is None else (text, "text.")


def pool_type(owner: Any) -> str:
    """How the embedding is read from the tokens: `argmax` and `eos` are the end of a text."""
    # `CLIP` and `TextTransformer` name it differently; old models, without either, take the end of text.
    return getattr(owner, "text_pool_type", None) or getattr(owner, "pool_type", "argmax")


def find_readout(owner: Any, tokens: Int[Tensor, "text context"]) -> Int[Tensor, " text"]:
    """The column of tokens that the embedding is read from."""
    kind = pool_type(owner)
    if kind in ("first", "last"):
        return torch.full_like(tokens[:, 0], 0 if kind == "first" else tokens.shape[1] - 1)
    if kind == "argmax":
        # The end of text has the largest id of CLIP's vocabulary.
        return tokens.argmax(1)
    eos = getattr(owner, "eos_id", getattr(owner, "text_eos_id", None))
    # `argmax` gives the first of equal values: the first end of text, as in open_clip's own pool.
    return (tokens == eos).int().argmax(1)


def count_needed(module: nn.Module, tokens: Int[Tensor, "text context"]) -> Int[Tensor, " text"]:
    """How many of the first tokens each text's embedding depends on."""
    owner, _ = text_owner(module)
    context = tokens.shape[1]
    if isinstance(owner, HFTextEncoder):
        # Masked in attention and in the pool; positions count from the left.
        return _length(tokens, getattr(owner.config, "pad_token_id", None))
    if getattr(owner, "attn_mask", None) is None:
        return torch.full_like(tokens[:, 0], context)
    if getattr(owner, "cls_emb", None) is not None:
        # CoCa's mask of padding is shifted by one token, as its weights were trained: one column of padding stays.
        return (_length(tokens, owner.pad_id) + 1).clamp(max=context)
    return find_readout(owner, tokens) + 1


@torch.no_grad()
def embed_tokens(
    module: nn.Module, tokens: Int[Tensor, "text context"], device: torch.device
) -> Float[Tensor, "text d_embed"]:
    """`encode_text` of an open_clip module in the order given, unnormalised, on a device."""
    owner, _ = text_owner(module)
    if len(tokens) < TEXTS_PER_TREE or not shares_prefixes(module, owner):
        return _embed_batches(module, tokens, device)
    # Sorted by their tokens, so that those with the same beginning are neighbours.
    different, index = tokens.unique(dim=0, return_inverse=True)
    parts = []
    for rows in different.split(TEXTS_PER_TREE):
        needed = count_needed(module, rows)
        tree = build_tree(rows, needed)
        alike = len(tree.tokens) <= MOST_DIFFERENT * int(needed.sum())
        parts.append(embed_tree(owner, tree, device).float() if alike else _embed_batches(module, rows, device))
    return torch.cat(parts)[index.to(device)]


def _embed_batches(
    module: nn.Module, tokens: Int[Tensor, "text context"], device: torch.device
) -> Float[Tensor, "text d_embed"]:
    needed = count_needed(module, tokens)
    # Texts of like length share a batch. Stable: the same list always makes the same batches.
    order = needed.argsort(stable=True)
    parts = []
    for rows in order.split(TEXTS_PER_BATCH):
        length = int(needed[rows[-1]])
        batch = tokens[rows, :length].to(device)
        shown: Any = module if length == tokens.shape[1] else _shorten(module, length)
        parts.append(shown.encode_text(batch, normalize=False).float())
    return torch.cat(parts)[order.argsort().to(device)]


def _length(tokens: Int[Tensor, "text context"], padding: int | None) -> Int[Tensor, " text"]:
    """Tokens up to the last one that is no padding; at least one."""
    if padding is None:
        return torch.full_like(tokens[:, 0], tokens.shape[1])
    columns = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
    return ((tokens != padding) * columns).amax(1).clamp(min=1)


def _shorten(module: Any, length: int) -> Any:
    """The module with a text tower of so many tokens: a shallow copy, so that open_clip's own code runs on all weights.

    Nothing of the module itself changes: other threads may be using it.
    """
    owner, _ = text_owner(module)
    if isinstance(owner, HFTextEncoder):
        # It takes any length as it is.
        return module
    short, positions, total = copy.copy(owner), owner.positional_embedding, length
    if getattr(owner, "cls_emb", None) is not None:
        # The class token comes after the text, at the last place of the whole context.
        positions, total = torch.cat([positions[:length], positions[-1:]]), length + 1
    # A shallow copy shares these dictionaries with the original.
    short._parameters = owner._parameters | {"positional_embedding": nn.Parameter(positions[:total])}
    short._buffers = owner._buffers | {"attn_mask": owner.attn_mask[:total, :total]}
    if owner is module:
        return short
    whole = copy.copy(module)
    whole._modules = module._modules | {"text": short}
    return whole
