"""Pools: how tokens become one vector. With its attention frozen, a pool is linear in the normed tokens.

A pool has `copies`: the vector is `sum_p M_p sum_n a[p, n] y_n + constant`, one `p` a head of an attention pool. `M_p`
is kept as two factors, `left @ right`, since `right` is only `d_head` high; without factors it is the identity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class PoolWeights:
    """The projections of an attention pool; `query` `[copy, d_head]` is what its one query becomes, norms included."""

    query: Float[Tensor, "copy d_head"]
    key: Tensor
    key_bias: Tensor
    value: Tensor
    value_bias: Tensor
    output: Tensor
    output_bias: Tensor
    norm_keys: nn.Module


class MeanPool:
    """The mean of the readout tokens; of one token where a class token is read."""

    copies = 1
    has_mlp = False

    def weights(self, normed: Float[Tensor, "image token width"]) -> Float[Tensor, "image 1 token"]:
        """`1 / N`."""
        return normed.new_ones(()).expand(normed.shape[0], 1, normed.shape[1]) / normed.shape[1]

    def pool(
        self, normed: Float[Tensor, "image token width"], weights: Float[Tensor, "image copy token"]
    ) -> Float[Tensor, "image width"]:
        """The mean."""
        return normed.mean(1)

    def write_mlp(self, pooled: Tensor) -> Tensor:
        """There is none."""
        raise NotImplementedError

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """None: the identity."""
        return None

    def constant(self) -> Tensor | None:
        """None: zero."""
        return None


class AttentionPool:
    """One query that attends over all tokens. A subclass says where its module keeps the projections."""

    has_mlp = False

    def __init__(self, module: Any):
        self.module = module
        self.copies = len(self._projections().query)

    def _projections(self) -> PoolWeights:
        raise NotImplementedError

    def write_mlp(self, pooled: Float[Tensor, "image out"]) -> Float[Tensor, "image out"]:
        """What the pool's MLP adds to its output."""
        return self.module.mlp(self.module.norm(pooled))

    def weights(self, normed: Float[Tensor, "image token width"]) -> Float[Tensor, "image copy token"]:
        """The attention of each of the pool's heads; sums to one over tokens."""
        given = self._projections()
        keys = given.norm_keys(F.linear(normed, given.key, given.key_bias).unflatten(2, (self.copies, -1)))
        scale = given.query.shape[1] ** -0.5
        return (torch.einsum("pk,inpk->ipn", given.query, keys) * scale).softmax(-1)

    def pool(
        self, normed: Float[Tensor, "image token width"], weights: Float[Tensor, "image copy token"]
    ) -> Float[Tensor, "image out"]:
        """The pool's output before its MLP; tokens are contracted first."""
        given = self._projections()
        seen = torch.einsum("ipn,inm->ipm", weights, normed)
        value = given.value.unflatten(0, (self.copies, -1))
        # Attention sums to one over tokens, so the value bias passes whole.
        heads = torch.einsum("ipm,pkm->ipk", seen, value).flatten(1) + given.value_bias
        return F.linear(heads, given.output, given.output_bias)

    def factors(self) -> tuple[Float[Tensor, "copy out d_head"], Float[Tensor, "copy d_head width"]]:
        """`W_O[p]` and `W_V[p]`, float64."""
        given = self._projections()
        # [out, copy * d_head] -> [copy, out, d_head]
        left = given.output.detach().double().cpu().unflatten(1, (self.copies, -1)).transpose(0, 1)
        return left, given.value.detach().double().cpu().unflatten(0, (self.copies, -1))

    def constant(self) -> Float[Tensor, " out"]:
        """`W_O b_V + b_O`, float64."""
        given = self._projections()
        total = (
            given.output.detach().double() @ given.value_bias.detach().double() + given.output_bias.detach().double()
        )
        return total.cpu()


class LatentPool(AttentionPool):
    """timm's `AttentionPoolLatent` (SigLIP); its MLP, if it has one, is a component of its own."""

    def __init__(self, module: Any):
        super().__init__(module)
        self.has_mlp = module.mlp is not None

    @staticmethod
    def refusal(module: Any) -> str | None:
        """Why a pool cannot be read, or None."""
        if module.pos_embed is not None or module.latent_len != 1:
            return "its attention pool has positions or several queries of its own"
        if not isinstance(module.proj, nn.Linear):
            return "its attention pool has no output projection"
        return None

    def _projections(self) -> PoolWeights:
        module = self.module
        # [1, width] -> [copy, d_head]: no image enters, so the query is a weight.
        query = module.q_norm(module.q(module.latent[0]).unflatten(1, (module.num_heads, -1)))[0]
        # timm stacks keys on top of values.
        (key, value), (key_bias, value_bias) = module.kv.weight.chunk(2), _bias(module.kv).chunk(2)
        output = (module.proj.weight, _bias(module.proj))
        return PoolWeights(query, key, key_bias, value, value_bias, *output, norm_keys=module.k_norm)


class FirstQueryPool(AttentionPool):
    """open_clip's `AttentionalPooler` (CoCa), of which an embedding reads the first query only."""

    def _projections(self) -> PoolWeights:
        attention = self.module.attn
        # `MultiheadAttention` keeps three matrices where keys are not as wide as queries.
        if attention.in_proj_weight is not None:
            matrices = attention.in_proj_weight.chunk(3)
        else:
            matrices = (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
        biases = attention.in_proj_bias.chunk(3)
        query = F.linear(self.module.ln_q(self.module.query[:1]), matrices[0], biases[0])
        heads = query.unflatten(1, (attention.num_heads, -1))[0]
        output = (attention.out_proj.weight, attention.out_proj.bias)
        pairs = (matrices[1], biases[1], matrices[2], biases[2])
        return PoolWeights(heads, *pairs, *output, norm_keys=nn.Identity())


def _bias(linear: nn.Linear) -> Tensor:
    return linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias
