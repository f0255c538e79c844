"""Muon for processors without bf16 instructions, where PyTorch's own spends most of a training step.

The optimiser is Jordan et al. 2024 as `torch.optim.Muon` has it; only the iteration runs in the dtype of the
parameters.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def orthogonalise(
    update: Float[Tensor, "rows columns"], coefficients: tuple[float, float, float], steps: int, eps: float
) -> Float[Tensor, "rows columns"]:
    """The update with all its singular values near one, by quintic Newton-Schulz steps."""
    a, b, c = coefficients
    tall = update.shape[0] > update.shape[1]
    x = update.T if tall else update
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class Fp32Muon(torch.optim.Muon):
    """`torch.optim.Muon` with `match_rms_adamw`, its iteration in the dtype of the parameters."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for parameter in group["params"]:
                buffer = self.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
                buffer.lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer
                update = orthogonalise(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-0.2 * group["lr"] * math.sqrt(max(parameter.shape)))
