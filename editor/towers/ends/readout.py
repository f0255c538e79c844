"""From the last residual stream to the embedding: a norm, a pool, a second norm, a linear map; any may be missing.

With both sigmas and the pool's attention frozen, `z` is linear in the stream:
`z = sum_p left[p] right[p] sum_n (a[p, n] / (sigma_n sigma_post)) x_n + ...`. The weights of that sum are the same for
every component, so a component's features are its writes contracted over tokens, and its readout is `left[p] right[p]
W_O[h]`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ...components import ComponentGroup, ComponentId
from .final_map import FinalMap
from .norms import FrozenNorm
from .pools import AttentionPool, MeanPool


@dataclass(frozen=True)
class FrozenReadout:
    """What one batch froze.

    Attributes:
        weights: Of the readout tokens, `a[p, n] / (sigma_n sigma_post)`.
        inverse: `1 / sigma_post`; ones without a second norm.
        pool_mlp: What the pool's MLP writes, divided by `sigma_post`.
        final: `f`.
    """

    weights: Float[Tensor, "image copy token"]
    inverse: Float[Tensor, " image"]
    pool_mlp: Float[Tensor, "image out"] | None
    final: Float[Tensor, "image d_model"]


@dataclass(frozen=True)
class Readout:
    """The end of a vision transformer; `tokens` are those that it reads."""

    tokens: slice
    before: FrozenNorm
    pool: MeanPool | AttentionPool
    after: FrozenNorm
    final: FinalMap
    width: int

    @property
    def copies(self) -> int:
        """How many ways a head's value takes."""
        return self.pool.copies

    def groups(self) -> list[ComponentGroup]:
        """The pool's own components: its constant, which varies with the second norm's sigma, and its MLP."""
        found: list[ComponentGroup] = []
        # Without a second norm it is the same for every image, and part of `constant`.
        if not self.after.is_identity and self._pooled_constant().any():
            found.append(ComponentGroup("pool.bias", (ComponentId("pool.bias"),), 1))
        if self.pool.has_mlp:
            d_embed = self.final.shape[1]
            found.append(ComponentGroup("pool.mlp", (ComponentId("pool.mlp"),), d_embed))
        return found

    def read(self, stream: Float[Tensor, "image token width"]) -> FrozenReadout:
        """Pool the readout tokens, and keep what is frozen."""
        sigma = self.before.sigma(stream)
        normed = self.before.module(stream)
        attention = self.pool.weights(normed)
        pooled = self.pool.pool(normed, attention)
        mlp = self.pool.write_mlp(pooled) if self.pool.has_mlp else None
        pooled = pooled if mlp is None else pooled + mlp
        inverse = 1 / self.after.sigma(pooled)
        return FrozenReadout(
            # [image, copy, token] * [image, 1, token]
            attention * (inverse[:, None] / sigma)[:, None],
            inverse,
            None if mlp is None else mlp * inverse[:, None],
            self.final.extend(self.after.module(pooled)),
        )

    def push(self, writes: Float[Tensor, "width column"]) -> Float[Tensor, "copy d_embed column"]:
        """Readouts of columns of the stream, one a copy, float64."""
        top, factors = self._top(), self.pool.factors()
        if factors is None:
            return (self.before.push(top) @ writes)[None]
        left, right = factors
        right = self.before.push(right.flatten(0, 1)).unflatten(0, (self.copies, -1))
        # Grouped so that `d_head`, the narrowest side, is in the middle.
        return (top @ left) @ (right @ writes)

    def pull(self, directions: Float[Tensor, "text d_embed"]) -> Float[Tensor, "copy text width"]:
        """`R^T t` for a readout of the stream itself, one a copy, float64: cheaper than `push` for a few directions."""
        top, factors = directions.double().cpu() @ self._top(), self.pool.factors()
        if factors is None:
            return self.before.push(top)[None]
        left, right = factors
        return self.before.push(((top @ left) @ right).flatten(0, 1)).unflatten(0, (self.copies, -1))

    def push_features(
        self, writes: Float[Tensor, "image token width"], frozen: FrozenReadout
    ) -> Float[Tensor, "image d_embed"]:
        """Contributions of writes that are as wide as the stream (MLPs, the embedding)."""
        # Tokens go first: [image, copy, width].
        seen = torch.einsum("ipn,inm->ipm", frozen.weights, writes)
        top, factors = self._top(), self.pool.factors()
        if factors is None:
            return seen[:, 0] @ self.before.push(top).T.to(seen)
        left, right = factors
        right = self.before.push(right.flatten(0, 1)).unflatten(0, (self.copies, -1)).to(seen)
        return torch.einsum("ipk,pek->ie", torch.einsum("ipm,pkm->ipk", seen, right), (top @ left).to(seen))

    def pool_features(self, name: str, frozen: FrozenReadout) -> Float[Tensor, "image 1 k"]:
        """Features of the components of `groups`."""
        if name == "pool.bias":
            return frozen.inverse[:, None, None]
        assert frozen.pool_mlp is not None
        return (frozen.pool_mlp @ self._top().T.to(frozen.pool_mlp))[:, None]

    def pool_bias(self) -> Float[Tensor, "d_embed 1"]:
        """The readout of `pool.bias`, float64."""
        return (self._top() @ self._pooled_constant())[:, None]

    def constant(self) -> Float[Tensor, " d_embed"]:
        """What the embedding holds of no component, float64."""
        readout = self.final.readout()
        bias = readout[-1] if self.final.has_bias else torch.zeros(readout.shape[1]).double()
        if self.after.is_identity:
            # A second norm would divide it by sigma; without one it reaches every embedding unchanged.
            return bias + readout[: self.width].T @ self._pooled_constant()
        return bias + readout[: self.width].T @ self.after.bias(self.width)

    def _top(self) -> Float[Tensor, "d_embed out"]:
        """`P^T` after the second norm, float64."""
        # The row below `width` belongs to the constant 1 of `f`, which no norm sees.
        return self.after.push(self.final.readout()[: self.width].T)

    def _pooled_constant(self) -> Float[Tensor, " out"]:
        """What the pool gives for a stream of zeros: the first norm's bias, pooled, and the pool's own."""
        factors, constant = self.pool.factors(), self.pool.constant()
        if factors is None or constant is None:
            return self.before.bias(self.width)
        left, right = factors
        return (left @ (right @ self.before.bias(right.shape[2]))[:, :, None]).sum(0)[:, 0] + constant
