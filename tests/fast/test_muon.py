"""The demo's optimiser for processors without bf16 takes the steps of PyTorch's own."""

from __future__ import annotations

import pytest
import torch

from clipedit.demo.muon import Fp32Muon, orthogonalise


def test_singular_values_come_near_one() -> None:
    torch.manual_seed(0)
    for rows, columns in ((48, 16), (16, 48), (32, 32)):
        left, _, right = torch.linalg.svd(torch.randn(rows, columns), full_matrices=False)
        uneven = left * torch.linspace(0.1, 1, min(rows, columns)) @ right
        found = orthogonalise(uneven, (3.4445, -4.775, 2.0315), 5, 1e-7)
        values = torch.linalg.svdvals(found)
        assert found.shape == uneven.shape and values.min() > 0.5 and values.max() < 1.3


@pytest.mark.parametrize("nesterov", [True, False])
def test_steps_are_those_of_pytorch_up_to_bf16(nesterov: bool) -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(24, 40), torch.randn(3, 24, 40)
    ends = []
    for kind in (torch.optim.Muon, Fp32Muon):
        parameter = torch.nn.Parameter(start.clone())
        optimizer = kind([parameter], lr=0.02, weight_decay=0.05, nesterov=nesterov, adjust_lr_fn="match_rms_adamw")
        for gradient in gradients:
            parameter.grad = gradient
            optimizer.step()
        ends.append(parameter.detach() - start)
    assert (ends[0] - ends[1]).norm() < 0.02 * ends[0].norm()
