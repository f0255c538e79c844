"""Pre-norm vision transformers that can also say what each head took from each token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ...components import TokenReading
from .pre_norm_vit import PreNormViT


@dataclass(frozen=True)
class Projected:
    """Queries, keys and values of one layer's heads; `gate` multiplies what a query reads, channel by channel."""

    query: Float[Tensor, "image head token d_head"]
    key: Float[Tensor, "image head token d_head"]
    value: Float[Tensor, "image head token d_head"]
    gate: Float[Tensor, "image token head d_head"] | None = None

    def attend(self, queries: slice) -> Float[Tensor, "image query head d_head"]:
        """What each head reads."""
        found = F.scaled_dot_product_attention(self.query[:, :, queries], self.key, self.value).transpose(1, 2)
        return found if self.gate is None else found * self.gate[:, queries]

    def attention(self, queries: slice) -> Float[Tensor, "image head query token"]:
        """The weights that it reads with."""
        # `scaled_dot_product_attention` keeps its weights to itself: the same scale, once more.
        return (self.query[:, :, queries] @ self.key.mT * self.query.shape[3] ** -0.5).softmax(-1)


@dataclass(frozen=True)
class Look:
    """How the readout tokens of one layer look at all tokens, until it is known how they themselves are read."""

    attention: Float[Tensor, "image head read token"]
    value: Float[Tensor, "image head token d_head"]
    gate: Float[Tensor, "image read head d_head"] | None

    def share(
        self, weights: Float[Tensor, "image copy read"], asked: Float[Tensor, "head text copy d_head"]
    ) -> Float[Tensor, "image head token text"]:
        """`a_i (R^T t) . V_i / sigma`: attention on token i, times what its value says about each text."""
        if self.gate is None:
            # [image, head, copy, token, text]
            said = torch.einsum("ihnd,htpd->ihpnt", self.value, asked)
            # [image, 1, copy, read] @ [image, head, read, token] -> [image, head, copy, token]
            return torch.einsum("ihpn,ihpnt->ihnt", weights[:, None] @ self.attention, said)
        # What a gate lets through differs a readout token: these are contracted first, text by text.
        # [image, head, text, read, d_head]
        passed = torch.einsum("ipr,htpd->ihtrd", weights, asked) * self.gate.transpose(1, 2)[:, :, None]
        # [image, head, token, read] @ [image, head, read, d_head]
        taken = [(self.attention.mT @ text * self.value).sum(-1) for text in passed.unbind(2)]
        return torch.stack(taken, -1)


class SpatialViT(PreNormViT):
    """Adds the members of `SpatialTower` to a tower that gives `_project` and `_grid`."""

    def _project(self, block: Any, stream: Float[Tensor, "image token d_model"], rotation: Tensor | None) -> Projected:
        raise NotImplementedError

    def _grid(self, pixels: Tensor) -> tuple[int, int]:
        """Rows and columns of patches: the last tokens, row by row."""
        raise NotImplementedError

    def _head_values(
        self,
        block: Any,
        stream: Float[Tensor, "image token d_model"],
        *,
        queries: slice,
        rotation: Tensor | None = None,
    ) -> Float[Tensor, "image query head d_head"]:
        return self._project(block, stream, rotation).attend(queries)

    def project_directions(
        self, directions: Float[Tensor, "text d_embed"], layers: Sequence[int]
    ) -> dict[int, Float[Tensor, "head text k"]]:
        """`R^T t` of every head of some layers, float64."""
        pulled = self.out.pull(directions)
        found = {}
        for layer in layers:
            # [copy, text, head * d_head]
            heads = (pulled @ self._block(layer).matrix()).unflatten(2, (-1, self.d_head))
            # [copy, text, head, d_head] -> [head, text, copy * d_head]
            found[layer] = heads.permute(2, 1, 0, 3).flatten(2)
        return found

    @torch.no_grad()
    def collect_token_shares(self, pixels: Tensor, seen: Mapping[int, Float[Tensor, "head text k"]]) -> TokenReading:
        """One forward pass over pixels `[image, 3, height, width]`.

        `k = copies * d_head`: where the readout has several ways to a value (heads of an attention pool), their sum.
        """
        tokens, copies = self.out.tokens, self.out.copies
        looks: dict[int, Look] = {}
        stream, rotations = self._embed_tokens(pixels.to(next(self.module.parameters()).dtype))
        for layer, block in enumerate(self.blocks):
            last, weights = layer == self.n_layers - 1, self._block(layer)
            projected = self._project(block, stream, rotations[layer])
            values = projected.attend(tokens if last else slice(None))
            if layer in seen:
                inner = weights.inner.sigma((values if last else values[:, tokens]).flatten(2))
                gate = None if projected.gate is None else projected.gate[:, tokens]
                # [image, head, read, token] / [image, 1, read, 1]
                looks[layer] = Look(projected.attention(tokens) / inner[:, None, :, None], projected.value, gate)
            stream = (stream[:, tokens] if last else stream) + weights.write(values)
            stream = stream + weights.write_mlp(stream)
        # How readout tokens are weighed is known only here, at the end: until then a layer's look is kept.
        frozen = self.out.read(stream)
        shares = {
            layer: look.share(frozen.weights, seen[layer].to(look.value).unflatten(2, (copies, self.d_head)))
            for layer, look in looks.items()
        }
        return TokenReading(shares, self._grid(pixels), frozen.final @ self.readout().to(frozen.final))
