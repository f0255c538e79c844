"""Pre-norm vision transformers that can also say what each head took from each token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .pre_norm_vit import PreNormViT


class SpatialViT(PreNormViT):
    """Adds the members of `SpatialTower` to a tower that gives `_project` and `grid`."""

    def _project(
        self, block: Any, stream: Float[Tensor, "image token d_model"], rotation: Tensor | None
    ) -> tuple[
        Float[Tensor, "image head token d_head"],
        Float[Tensor, "image head token d_head"],
        Float[Tensor, "image head token d_head"],
    ]:
        """Queries, keys and values."""
        raise NotImplementedError

    @torch.no_grad()
    def collect_token_shares(
        self,
        pixels: Float[Tensor, "image 3 height width"],
        seen: Mapping[int, Float[Tensor, "head text k"]],
    ) -> tuple[dict[int, Float[Tensor, "image head token text"]], Float[Tensor, "image d_embed"]]:
        """`a_i (R^T t) . V_i / sigma`: the readout's attention on token i, times what its value says about each text.

        `k = copies * d_head`: where the readout has several ways to a value (heads of an attention pool), their sum.
        """
        tokens, copies = self.out.tokens, self.out.copies
        attention: dict[int, Tensor] = {}
        said: dict[int, Tensor] = {}
        stream, rotations = self._embed_tokens(pixels.to(next(self.module.parameters()).dtype))
        for layer, block in enumerate(self.blocks):
            last, weights = layer == self.n_layers - 1, self._block(layer)
            values = self._head_values(
                block, stream, queries=tokens if last else slice(None), rotation=rotations[layer]
            )
            if layer in seen:
                query, key, value = self._project(block, stream, rotations[layer])
                inner = weights.inner.sigma((values if last else values[:, tokens]).flatten(2))
                looked = (query[:, :, tokens] @ key.mT * self.d_head**-0.5).softmax(-1)
                attention[layer] = looked / inner[:, None, :, None]
                asked = seen[layer].to(value).unflatten(2, (copies, self.d_head))
                said[layer] = torch.einsum("ihnd,htpd->ihpnt", value, asked)
            stream = (stream[:, tokens] if last else stream) + weights.write(values)
            stream = stream + weights.write_mlp(stream)
        reading = self.out.read(stream)
        shares = {
            layer: torch.einsum("ihpn,ihpnt->ihnt", reading.weights[:, None] @ attention[layer], said[layer])
            for layer in attention
        }
        return shares, reading.final @ self.readout().to(reading.final)
