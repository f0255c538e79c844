"""refit: the readout that comes nearest to a directly edited embedding, in closed form from a scan's sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..components import HeadId
from ..models.model import Model
from ..scan.collect import place
from ..scan.scan import Scan
from ..scan.statistics import Statistics
from .head_maps import edited_groups
from .operations import AffineMap
from .parts import AblatedPart

# Relative to the mean of the Gram matrix's diagonal: half decades, from rounding to as much as the data.
RIDGES = tuple(10 ** (step / 2) for step in range(-12, 1))
# For scans without folds, where no ridge can be judged.
UNJUDGED_RIDGE = 1e-6


@dataclass(frozen=True)
class NormalEquations:
    """`gram @ change = -target`: least squares of `z' - z` on `g`, as sums over images.

    Attributes:
        gram: `sum g g^T`.
        target: `-sum g y^T`, where `y` is what the edit should change.
    """

    gram: Float[Tensor, "g g"]
    target: Float[Tensor, "g d_embed"]

    def __add__(self, other: NormalEquations) -> NormalEquations:
        return NormalEquations(self.gram + other.gram, self.target + other.target)


@dataclass(frozen=True)
class Refit:
    """A refitted readout.

    Attributes:
        readout, bias: `P'` and `c`.
        ridge: Relative to `tr G / (d + 1)`.
        judged: Whether the ridge was chosen on images that it was not fitted to.
    """

    readout: Float[Tensor, "d_model d_embed"]
    bias: Float[Tensor, " d_embed"]
    ridge: float
    judged: bool


def compute_distilled_readout(
    scan: Scan, model: Model, edits: Mapping[HeadId, AffineMap], parts: Mapping[str, AblatedPart] | None = None
) -> Refit:
    """The readout that comes nearest to the directly edited embedding: `min E |(P'^T f + c - z') / |z||^2`.

    `z' = z - sum_h R_h (u_h - u_h')` is linear in `f` and the features, so the answer is the solution of the normal
    equations. The last norm fixes one direction of `f`, and with about as many images as `f` is wide least squares
    explains the images at hand and nothing else: a ridge, chosen on the fold left out, keeps the change small where the
    images say little. No edit gives `P' = P` and `c = 0`, to the bit. Readouts are the model's own, of an aligned one
    too.

    Args:
        parts: Whole parts that are mean-ablated: the readout of each, and its mean contribution.
    """
    tower = model.editable.tower
    if not edits and not parts:
        return Refit(tower.readout(), torch.zeros(tower.d_embed).double(), UNJUDGED_RIDGE, scan.is_folded)
    readouts = tower.compute_readouts(edited_groups(edits, scan, model))
    folds = [_write_equations(fold, model, edits, parts or {}, readouts) for fold in scan.folds]
    ridge = choose_ridge(folds) if scan.is_folded else UNJUDGED_RIDGE
    # What ships is fitted to all folds; leaving one out served the choice of the ridge.
    change = solve_ridge(sum_equations(folds), ridge)
    return Refit(tower.readout() + change[:-1], change[-1], ridge, scan.is_folded)


def choose_ridge(folds: Sequence[NormalEquations]) -> float:
    """The ridge of least squared error over the folds, each judged by what the others gave.

    The error on a fold is `tr D^T G D + 2 tr D^T T + const`, where `D` is the change that the other folds give and `G`,
    `T` are the fold's own sums: no image is needed, and what does not depend on the ridge is left out.
    """
    errors = torch.zeros(len(RIDGES)).double()
    for number, fold in enumerate(folds):
        # Never the fold itself: a ridge judged by its own images would always be the smallest.
        rest = sum_equations([other for index, other in enumerate(folds) if index != number])
        for index, change in enumerate(_solve_all(rest)):
            # The sum of the elementwise product with D is the trace of a product with its transpose.
            errors[index] += ((fold.gram @ change + 2 * fold.target) * change).sum()
    return RIDGES[int(errors.argmin())]


def solve_ridge(equations: NormalEquations, ridge: float) -> Float[Tensor, "g d_embed"]:
    """`-(G + lambda I)^-1 T`."""
    return -torch.cholesky_solve(equations.target, factor_gram(equations.gram, ridge))


def factor_gram(gram: Float[Tensor, "g g"], ridge: float) -> Float[Tensor, "g g"]:
    """The Cholesky factor of `G + lambda I`, `lambda = ridge tr G / (d + 1)`."""
    # The last norm makes `G` singular: without the ridge there would be no factor.
    return torch.linalg.cholesky(gram + ridge * gram.trace() / len(gram) * torch.eye(len(gram)).double())


def sum_equations(folds: Sequence[NormalEquations]) -> NormalEquations:
    """The equations of all folds, added in their order."""
    total = folds[0]
    for fold in folds[1:]:
        total = total + fold
    return total


def fitted_columns(statistics: Statistics, d_model: int) -> list[int]:
    """The columns of `g` that a readout is fitted to: `f` and the constant.

    The scan of an aligned model holds `z^a` between them.
    """
    # `g = [f, 1, |z|] / |z|`: the constant is the last column but one.
    return [*range(d_model), len(statistics.gg) - 2]


def _solve_all(equations: NormalEquations) -> list[Float[Tensor, "g d_embed"]]:
    """The change that each ridge gives: one eigendecomposition serves all of them."""
    values, vectors = torch.linalg.eigh(equations.gram)
    seen, scale = vectors.T @ equations.target, equations.gram.trace() / len(values)
    # Rounding leaves small negative eigenvalues, which a small ridge would not outweigh.
    return [-vectors @ (seen / (values.clamp_min(0) + ridge * scale)[:, None]) for ridge in RIDGES]


def _write_equations(
    statistics: Statistics,
    model: Model,
    edits: Mapping[HeadId, AffineMap],
    parts: Mapping[str, AblatedPart],
    readouts: Mapping[str, Tensor],
) -> NormalEquations:
    tower = model.editable.tower
    fitted = fitted_columns(statistics, tower.d_model)
    gram = statistics.gg[fitted][:, fitted]
    target = torch.zeros(len(gram), tower.d_embed, dtype=torch.float64)
    for head, edit in edits.items():
        name = f"L{head.layer}.heads"
        # `u - u' = (I - B) u - offset`; the offset meets `sum g / |z|`, the constant's column of `G`.
        removed = torch.eye(len(edit.map[0])).double() - edit.map[0]
        # [k, g] -> [g, k]
        moments = statistics.groups[name].ug[head.head][:, fitted].T
        target += (moments @ removed.T - gram[:, -1:] * edit.offset) @ readouts[name][head.head].T
    for part, (readout, offset) in parts.items():
        name, index = place(part)
        target += statistics.groups[name].ug[index][:, fitted].T @ readout.T - gram[:, -1:] * offset
    return NormalEquations(gram, target)
