"""A norm read as a linear map: with sigma frozen at its measured value, `y = gain * C x / sigma + bias`."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from timm.layers import RmsNorm
from torch import Tensor, nn


class FrozenNorm:
    """A LayerNorm (`C` centres), an RMS norm (`C = I`), or none at all."""

    def __init__(self, module: nn.Module):
        self.module: Any = module

    @staticmethod
    def refusal(module: nn.Module) -> str | None:
        """Why a norm is not linear once its sigma is frozen, or None."""
        known = isinstance(module, (nn.LayerNorm, nn.RMSNorm, RmsNorm, nn.Identity))
        return None if known else f"its norm is a {type(module).__name__}"

    @property
    def is_identity(self) -> bool:
        """Whether there is no norm."""
        return isinstance(self.module, nn.Identity)

    def sigma(self, tokens: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch"]:
        """What the norm divides by; ones without a norm."""
        if self.is_identity:
            return tokens.new_ones(()).expand(tokens.shape[:-1])
        centred = isinstance(self.module, nn.LayerNorm)
        # `LayerNorm` divides by the biased variance.
        square = tokens.var(-1, correction=0) if centred else tokens.square().mean(-1)
        return (square + (self.module.eps or 0.0)).sqrt()

    def push(self, matrix: Float[Tensor, "row width"]) -> Float[Tensor, "row width"]:
        """`M diag(gain) C`: `M` applied after the norm, as a map of what goes into it."""
        weight = None if self.is_identity else self.module.weight
        pushed = matrix if weight is None else matrix * weight.detach().to(matrix)
        # `C` is symmetric: centring the rows is the product with it.
        return pushed - pushed.mean(1, keepdim=True) if isinstance(self.module, nn.LayerNorm) else pushed

    def bias(self, width: int) -> Float[Tensor, " width"]:
        """The norm's bias, float64; zeros where there is none."""
        bias = getattr(self.module, "bias", None)
        return torch.zeros(width).double() if bias is None else bias.detach().double().cpu()
