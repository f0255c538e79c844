"""open_clip's text transformers, read at the token that the embedding is made of (the end of the text in most models).

Tokens are put in an order that begins with that one, and the causal mask with them: attention does not care about
order, and the readout token is then the first, as a class token is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from open_clip.transformer import ResidualAttentionBlock, TextTransformer
from torch import Tensor, nn

from ..ends.final_map import FinalMap
from ..ends.norms import FrozenNorm
from ..ends.pools import MeanPool
from ..ends.readout import Readout
from ..refusals import blocks_refusal
from .open_clip_vit import CUSTOM_BLOCKS, find_shift
from .pre_norm_vit import BlockWeights, PreNormViT
from .text_context import count_needed, find_readout, pool_type, text_owner

_POOLS = ("argmax", "eos", "first", "last")


class OpenClipText(PreNormViT):
    """Adapter for the text side of `open_clip.CLIP`, of `CustomTextCLIP` whose `text` is a `TextTransformer`, and for
    such a `text` alone.
    """

    title: ClassVar[str] = "open_clip text transformer"
    supports: ClassVar[str] = "the text transformers of open_clip's CLIP and CustomTextCLIP"

    def __init__(self, module: nn.Module):
        self.owner, self.prefix = text_owner(module)
        blocks = list(self.owner.transformer.resblocks)
        projection = self.owner.text_projection
        # Stable Diffusion's text encoder ends with the norm: what is pooled is the embedding.
        name = f"{self.prefix}text_projection" if projection is not None else None
        plain = isinstance(projection, nn.Parameter)
        width = blocks[0].attn.embed_dim
        final = FinalMap(
            module,
            width,
            matrix=name if plain else None,
            linear=None if plain else name,
            shift=find_shift(self.owner, self.prefix, "ln_final"),
        )
        norm, none = FrozenNorm(self.owner.ln_final), FrozenNorm(nn.Identity())
        out = Readout(slice(0, 1), norm, MeanPool(), none, final, width)
        super().__init__(module, blocks, out, d_head=blocks[0].attn.head_dim)

    @staticmethod
    def refusal(module: nn.Module) -> str | None:
        """Why this tower cannot read a module, or None if it can."""
        if not hasattr(module, "encode_text"):
            return "it has no text tower"
        owner, _ = text_owner(module)
        if hasattr(module, "text") and not isinstance(owner, TextTransformer):
            kind = type(owner).__name__
            return f"its texts are encoded by a {kind} (a Hugging Face model), not by open_clip's transformer"
        if getattr(owner, "cls_emb", None) is not None or getattr(owner, "use_pad_mask", False):
            return "it reads a class token of its own, or masks padding (CoCa)"
        if pool_type(owner) not in _POOLS:
            return f"it pools texts by {pool_type(owner)!r}"
        width = owner.token_embedding.embedding_dim
        return blocks_refusal(owner.transformer.resblocks, ResidualAttentionBlock, width, CUSTOM_BLOCKS)

    def embed(self, pixels: Int[Tensor, "text context"]) -> Float[Tensor, "text d_embed"]:
        """`encode_text` of the module, on tokens."""
        return self.module.encode_text(pixels, normalize=False)  # pyright: ignore[reportCallIssue]

    def tensor_names(self) -> dict[str, str]:
        """As for images; what is `output` here is `texts` there."""
        return {key: name for key, name in super().tensor_names().items() if not key.startswith("texts")}

    def _embed_tokens(self, pixels: Tensor) -> tuple[Float[Tensor, "text token d_model"], Sequence[Tensor | None]]:
        """The stream with the readout token first; in place of rotations, the mask in the same order."""
        length = int(count_needed(self.module, pixels).max())
        pixels = pixels[:, :length]
        stream = self.owner.token_embedding(pixels) + self.owner.positional_embedding[:length]
        first = find_readout(self.owner, pixels)[:, None] != torch.arange(length, device=pixels.device)
        # The readout token sorts first as the only 0; a stable sort leaves the others in their order.
        order = first.long().argsort(dim=1, stable=True)
        stream = stream.gather(1, order[:, :, None].expand_as(stream))
        mask = self.owner.attn_mask
        # Some text towers attend in both directions and have no mask.
        if mask is None:
            return stream, [None] * self.n_layers
        # [token, token] -> [text, query, token]; attention wants the mask in the dtype of its queries.
        return stream, [mask[order[:, :, None], order[:, None, :]].to(stream)] * self.n_layers

    def _head_values(
        self,
        block: Any,
        stream: Float[Tensor, "text token d_model"],
        *,
        queries: slice,
        rotation: Tensor | None = None,
    ) -> Float[Tensor, "text query head d_head"]:
        attention = block.attn
        projected = F.linear(block.ln_1(stream), attention.in_proj_weight, attention.in_proj_bias)
        # [text, token, 3 * d_model] -> three of [text, head, token, d_head]
        query, key, value = projected.unflatten(2, (3, -1, self.d_head)).permute(2, 0, 3, 1, 4)
        # [text, 1, query, token]: the same for all heads.
        mask = None if rotation is None else rotation[:, None, queries]
        return F.scaled_dot_product_attention(query[:, :, queries], key, value, attn_mask=mask).transpose(1, 2)

    def _block(self, layer: int) -> BlockWeights:
        block = self.blocks[layer]
        scales = (getattr(block.ls_1, "gamma", None), getattr(block.ls_2, "gamma", None))
        return BlockWeights(block.attn.out_proj, scales[0], FrozenNorm(nn.Identity()), block.ln_2, block.mlp, scales[1])

    def _output_name(self, layer: int) -> str:
        return f"{self.prefix}transformer.resblocks.{layer}.attn.out_proj"
