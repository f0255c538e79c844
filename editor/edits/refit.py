"""refit: the readout that comes nearest to a directly edited embedding, in closed form from a scan's sums."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from ..components import HeadId
from ..models.model import Model
from ..scan.collect import place
from ..scan.scan import Scan
from .head_maps import edited_groups
from .operations import AffineMap
from .parts import AblatedPart


def compute_distilled_readout(
    scan: Scan, model: Model, edits: Mapping[HeadId, AffineMap], parts: Mapping[str, AblatedPart] | None = None
) -> tuple[Float[Tensor, "d_model d_embed"], Float[Tensor, " d_embed"]]:
    """The readout that comes nearest to the directly edited embedding: `min E |(P'^T f + c - z') / |z||^2`.

    `z' = z - sum_h R_h (u_h - u_h')` is linear in `f` and the features, so the answer is the solution of the normal
    equations, a ridge of `1e-6 tr G / (d + 1)` added because the last norm fixes one direction of `f`. No edit gives
    `P' = P` and `c = 0`, to the bit. Readouts are the model's own, of an aligned one too.

    Args:
        parts: Whole parts that are mean-ablated: the readout of each, and its mean contribution.
    """
    statistics, tower = scan.statistics, model.editable.tower
    # `f` and the constant; the scan of an aligned model holds `z^a` between them.
    fitted = [*range(tower.d_model), len(statistics.gg) - 2]
    gram = statistics.gg[fitted][:, fitted]
    target = torch.zeros(len(gram), tower.d_embed, dtype=torch.float64)
    readouts = tower.compute_readouts(edited_groups(edits, scan, model))
    for head, edit in edits.items():
        name = f"L{head.layer}.heads"
        readout = readouts[name][head.head]
        removed = torch.eye(len(edit.map[0])).double() - edit.map[0]
        moments = statistics.groups[name].ug[head.head][:, fitted].T
        target += (moments @ removed.T - gram[:, -1:] * edit.offset) @ readout.T
    for part, (readout, offset) in (parts or {}).items():
        name, index = place(part)
        target += statistics.groups[name].ug[index][:, fitted].T @ readout.T - gram[:, -1:] * offset
    ridge = 1e-6 * gram.trace() / len(gram) * torch.eye(len(gram)).double()
    change = -torch.cholesky_solve(target, torch.linalg.cholesky(gram + ridge)) if edits or parts else target
    return tower.readout() + change[:-1], change[-1]
