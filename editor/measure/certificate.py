"""Certificates of an edit: bounds on what it can change, from sums and a sample, for any query and new image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import TypeAdapter
from torch import Tensor

from ..edits.held_out import HeldOut, hold_out
from ..edits.recipe import Recipe, require_bound
from ..edits.refit import fitted_columns
from ..models.model import Model
from ..scan.collect import LabelledEmbeddings
from ..scan.scan import Scan

LEVELS = (0.95, 0.99)


@dataclass(frozen=True)
class Certificate:
    """What an edit can change at most.

    Attributes:
        probe_change: The most that any unit linear probe or text changes by in mean square, in units of `|z|^2`; None
            for edits that the sums do not determine.
        mean_square: Mean square movement of an embedding, in the same units; None likewise.
        turns: By level, the angle in radians that a new image of the same kind turns by at most, with that probability;
            a level is left out where the sample is too small for it.
        images: How many left-out images the angles come from.
    """

    probe_change: float | None
    mean_square: float | None
    turns: dict[str, float]
    images: int

    def cosine_changes(self) -> dict[str, float]:
        """By level, how much the cosine of any text changes at most: `2 sin(theta / 2)`."""
        return {level: 2 * math.sin(angle / 2) for level, angle in self.turns.items()}

    def report(self) -> dict[str, object]:
        """Plain data."""
        return {
            "probe_change": self.probe_change,
            "mean_square": self.mean_square,
            "turns": self.turns,
            "cosine_changes": self.cosine_changes(),
            "images": self.images,
        }


def certify_recipe(
    recipe: Recipe,
    scan: Scan,
    model: Model,
    *,
    labelled: LabelledEmbeddings | None = None,
    held: HeldOut | None = None,
) -> Certificate | None:
    """Bounds for a bound `distilled` or `direct` recipe; None where `hold_out` gives nothing.

    Args:
        held: What `hold_out` gives, where it is known already.
    """
    held = held or hold_out(recipe, scan, model, labelled=labelled)
    if held is None:
        return None
    angles = compute_turns(held.before, held.after)
    turns = {f"{level:g}": bound for level in LEVELS if (bound := bound_turn(angles, level)) is not None}
    moved = compute_movement(recipe, scan, model)
    probe, mean_square = (float(moved[-1]), float(moved.sum())) if moved is not None else (None, None)
    return Certificate(probe, mean_square, turns, len(angles))


def read_certificate(measured: Mapping[str, Any] | None) -> Certificate | None:
    """The certificate among the figures of a recipe; None where it holds none that can be read."""
    evidence = (measured or {}).get("evidence")
    found = evidence.get("certificate") if isinstance(evidence, Mapping) else None
    try:
        read = TypeAdapter(Certificate).validate_python(found)
        figures = [*read.turns.values(), *map(float, read.turns), read.probe_change or 0.0, read.mean_square or 0.0]
    except ValueError:
        return None
    return read if all(map(math.isfinite, figures)) else None


def describe_certificate(found: Certificate | None) -> list[str]:
    """What a certificate promises, in sentences; none without one."""
    if found is None:
        return []
    bounds = [f"{change:.3f} ({float(level):.0%})" for level, change in found.cosine_changes().items()]
    said = []
    if bounds:
        said.append(
            f"certificate: on a new image like those of the calibration, the cosine of any text changes by at most "
            f"{' or '.join(bounds)}, from {found.images} images left out; two images keep their order for every query "
            "whose cosines differ by more than twice that"
        )
    if found.probe_change is not None and found.mean_square is not None:
        said.append(
            f"any linear probe of unit length changes by at most {found.probe_change:.3g} in mean square, an embedding "
            f"moves by {found.mean_square:.3g} (of its squared length)"
        )
    return said


def compute_movement(recipe: Recipe, scan: Scan, model: Model) -> Float[Tensor, " d_embed"] | None:
    """Ascending eigenvalues of `M = W^T G W / n`, where the edit moves `z / |z|` by `W^T g`; None for `direct`."""
    if recipe.document.effect != "distilled":
        return None
    tower = model.editable.tower
    folded = {k.removeprefix("folded."): v for k, v in require_bound(recipe).items() if k.startswith("folded.")}
    # The edited readout is affine: zero gives the constant c, unit vectors the rows of P' with c added.
    units = torch.cat([torch.zeros(1, tower.d_model), torch.eye(tower.d_model)]).double()
    after = tower.embed_final(units, {name: tensor.double() for name, tensor in folded.items()})
    # [d + 1, d_embed]: what f and the constant move by
    # W = [P' - P; c]
    change = torch.cat([after[1:] - after[:1] - tower.readout(), after[:1]])
    columns = fitted_columns(scan.statistics, tower.d_model)
    # G / n over f and the constant, in units of |z|^2.
    gram = scan.statistics.gg[columns][:, columns] / scan.statistics.n
    # Ascending: the last one bounds any unit probe, the sum is the trace. Rounding may leave small negative ones.
    return torch.linalg.eigvalsh(change.T @ gram @ change).clamp_min(0)


def compute_turns(
    before: Float[Tensor, "image d_embed"], after: Float[Tensor, "image d_embed"]
) -> Float[Tensor, " image"]:
    """The angle between an image's embeddings, in radians; accurate for small ones, where a cosine rounds to 1."""
    one, two = F.normalize(before, dim=1), F.normalize(after, dim=1)
    # Of unit vectors |a - b| = 2 sin(theta / 2) and |a + b| = 2 cos(theta / 2).
    return 2 * torch.atan2((one - two).norm(dim=1), (one + two).norm(dim=1))


def bound_turn(angles: Float[Tensor, " image"], level: float) -> float | None:
    """The angle that a new image of the same kind does not exceed with probability `level` at least.

    The k-th largest of n exchangeable angles bounds the next one with probability `1 - k / (n + 1)` (conformal
    prediction: Vovk et al. 2005); k is the largest that suffices. None where even the largest of n does not.
    """
    # The largest k with k / (n + 1) <= 1 - level; the small term keeps rounding from losing a whole rank.
    rank = math.floor((1 - level) * (len(angles) + 1) + 1e-9)
    return float(angles.sort(descending=True).values[rank - 1]) if rank >= 1 else None
