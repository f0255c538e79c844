"""Operations: every edit is an affine map on the features of one head, `u' = B u + (I - B) m`.

An operation is one function that returns `(B, keep_mean)` for a batch of heads; `m` is the mean of the features where
`keep_mean` holds, else 0. Strength and composition are the same for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..components import ComponentGroup
from ..errors import PluginError, RecipeError, nearest_names
from ..plugins import OPERATION, Plugin, find_plugins, load_plugin, why_no_function


@dataclass(frozen=True)
class AffineMap:
    """`x -> x @ map.T + offset` for each of several heads (or one output), float64."""

    map: Float[Tensor, "head k k"]
    offset: Float[Tensor, "head k"]

    def then(self, maps: Float[Tensor, "head k k"], keep_mean: bool, mean: Float[Tensor, "head k"]) -> AffineMap:
        """This map followed by one more operation; `mean` is that of the unedited features."""
        # Affine maps take the mean with them: this is the mean of what the next operation gets.
        after = _apply(self.map, mean) + self.offset
        kept = after - _apply(maps, after) if keep_mean else torch.zeros_like(after)
        return AffineMap(maps @ self.map, _apply(maps, self.offset) + kept)


@dataclass(frozen=True)
class SingularDirections:
    """Of one head, `W_O W_V = A S E^T` (LayerNorms folded in, centred), and a weight for each direction."""

    output: Float[Tensor, "d_model d_head"]
    left: Float[Tensor, "d_model d_head"]
    weights: Float[Tensor, " d_head"]


@dataclass(frozen=True)
class OperationInput:
    """What an operation may use: the heads' readouts, and what the step names."""

    readouts: Float[Tensor, "head d_embed k"]
    directions: Float[Tensor, "d_embed concept"] | None = None
    factor: float | None = None
    singular: SingularDirections | None = None


Operation = Callable[[OperationInput], tuple[Float[Tensor, "head k k"], bool]]


def identity_map(heads: int, k: int) -> AffineMap:
    """The edit that changes nothing."""
    return AffineMap(torch.eye(k, dtype=torch.float64).repeat(heads, 1, 1), torch.zeros(heads, k, dtype=torch.float64))


def mean_ablate(given: OperationInput) -> tuple[Tensor, bool]:
    """`B = 0`, mean kept: the head writes what it writes on average."""
    return torch.zeros_like(_identity(given.readouts)), True


def zero_ablate(given: OperationInput) -> tuple[Tensor, bool]:
    """`B = 0`: the head writes nothing."""
    return torch.zeros_like(_identity(given.readouts)), False


def scale(given: OperationInput) -> tuple[Tensor, bool]:
    """`B = factor I`, mean kept: the head's deviations from its mean are multiplied by `factor`.

    Raises:
        RecipeError: If the step has no factor.
    """
    if given.factor is None:
        raise RecipeError("cannot scale: the step has no `factor`. Add one, for example `factor: 0.5`.")
    return _identity(given.readouts) * given.factor, True


def project_out(given: OperationInput) -> tuple[Tensor, bool]:
    """`B = I - N^+ N` with `N = U^T R`, mean kept: what the head writes has no variance along `U` (under `direct`).

    Raises:
        RecipeError: If the step names no directions.
    """
    if given.directions is None:
        raise RecipeError(
            "cannot project out: the step names no directions. Add `concept`, `texts` or `along` to the step."
        )
    # [head, concept, k]; a pseudoinverse, since a head may not see every direction.
    seen = given.directions.T @ given.readouts
    return _identity(given.readouts) - torch.linalg.pinv(seen) @ seen, True


def keep_only(given: OperationInput) -> tuple[Tensor, bool]:
    """`B = N^+ N`, mean kept: the complement of `project_out`; the head varies along `U` alone.

    Raises:
        RecipeError: If the step names no directions.
    """
    removed, keep_mean = project_out(given)
    return _identity(given.readouts) - removed, keep_mean


def reweight(given: OperationInput) -> tuple[Tensor, bool]:
    """`B = W_O^+ A diag(s) A^T W_O`, mean kept: the singular directions of what the head moves, each scaled (SITH,
    2026).

    Weights of one give the identity, to the bit.

    Raises:
        RecipeError: If the step gives neither weights nor a concept to find them with.
    """
    if given.singular is None:
        raise RecipeError("cannot reweight: the step has no weights. Add `concept`, or `weights` by head.")
    output, left, weights = given.singular.output, given.singular.left, given.singular.weights
    # `I - W_O^+ A diag(1 - s) A^T W_O`: the same map, exact where nothing is scaled.
    scaled = torch.linalg.pinv(output) @ (left * (1 - weights)) @ (left.T @ output)
    return torch.eye(output.shape[1]).to(output)[None] - scaled, True


def stack_copies(given: OperationInput, group: ComponentGroup) -> OperationInput:
    """The input for values `v`, which reach the readout in several copies: `N = stack_p U^T R_p` for projections.

    Readouts become `[head, copies * d_embed, d_head]` and directions block-diagonal. Where the copies are not told
    apart (`copies == 0`) there are more of them than `d_head`, and what a head writes along any direction is all of it.
    """
    if group.copies == 1:
        return given
    if group.copies == 0:
        eye = torch.eye(group.d_head).to(given.readouts)
        return replace(given, readouts=eye.repeat(len(given.readouts), 1, 1), directions=eye)
    # [head, d_embed, copy * d_head] -> [head, copy * d_embed, d_head]
    stacked = given.readouts.unflatten(2, (group.copies, group.d_head)).transpose(1, 2).flatten(1, 2)
    directions = given.directions
    if directions is not None:
        directions = torch.block_diag(*[directions] * group.copies)
    return replace(given, readouts=stacked, directions=directions)


OPERATIONS: dict[str, Operation] = {
    "mean-ablate": mean_ablate,
    "zero-ablate": zero_ablate,
    "scale": scale,
    "project-out": project_out,
    "keep-only": keep_only,
    "reweight": reweight,
}


def find_operation(name: str) -> Operation:
    """The operation of a name: clipedit's own, or a plugin's, whose answers are checked.

    Raises:
        RecipeError: If there is none.
        PluginError: If a plugin's cannot be used.
    """
    if name in OPERATIONS:
        return OPERATIONS[name]
    plugin = find_plugins(OPERATION).get(name)
    if plugin is None:
        raise RecipeError(
            f"no operation {name!r}: is the plugin that has it installed? {nearest_names(name, OPERATIONS)}"
        )
    loaded = load_plugin(plugin, why_no_function)
    return lambda given: _require_map(plugin, plugin.call(loaded, given), given)


def _require_map(plugin: Plugin, answer: Any, given: OperationInput) -> tuple[Tensor, bool]:
    heads, _, k = given.readouts.shape
    found: tuple[Any, Any] = answer if isinstance(answer, tuple) and len(answer) == 2 else (answer, None)
    maps, keep_mean = found
    fits = isinstance(maps, Tensor) and maps.shape == (heads, k, k) and isinstance(keep_mean, bool)
    if not fits or not maps.isfinite().all():
        raise PluginError(
            f"cannot use {plugin}: it must answer `(B, keep_mean)`, `B` finite and of shape {[heads, k, k]}. Report it "
            "to its authors."
        )
    return maps.to(given.readouts), keep_mean


def with_strength(maps: Float[Tensor, "head k k"], strength: float) -> Float[Tensor, "head k k"]:
    """`I - a (I - B)`: none of the edit at 0, all of it at 1."""
    eye = torch.eye(maps.shape[-1]).to(maps)
    return eye - strength * (eye - maps)


def project_output(basis: Float[Tensor, "d_embed concept"], strength: float) -> Float[Tensor, "d_embed d_embed"]:
    """`I - a U U^T` on the embedding itself; the coordinates along `U` shrink by `1 - a`, their mean included."""
    return torch.eye(len(basis)).to(basis) - strength * basis @ basis.T


def project_jointly(
    bases: Sequence[Float[Tensor, "d_embed _"]], strengths: Sequence[float]
) -> Float[Tensor, "d_embed d_embed"]:
    """Several projections at once, in no order: `P (I + sum_i c_i U_i U_i^T)^-1 P`, with `c = a / (1 - a)`.

    `P` takes out whatever is projected out whole. Of one it is `project_output`, of orthogonal ones the product; where
    they overlap a product would depend on the order.
    """
    if len(bases) == 1:
        return project_output(bases[0], strengths[0])
    pairs = list(zip(bases, strengths, strict=True))
    eye = torch.eye(len(bases[0])).to(bases[0])
    whole = torch.cat([eye[:, :0], *(basis for basis, strength in pairs if strength == 1)], 1)
    left, singular, _ = torch.linalg.svd(whole, full_matrices=False)
    # Directions that two of them share would come back as noise.
    span = left[:, singular > 1e-6]
    away = eye - span @ span.T
    inner = eye
    for basis, strength in pairs:
        if strength < 1:
            seen = away @ basis
            inner = inner + strength / (1 - strength) * seen @ seen.T
    return away @ torch.linalg.solve(inner, away)


def _identity(readouts: Float[Tensor, "head d_embed k"]) -> Float[Tensor, "head k k"]:
    return torch.eye(readouts.shape[2]).to(readouts).repeat(len(readouts), 1, 1)


def _apply(maps: Float[Tensor, "head k k"], vectors: Float[Tensor, "head k"]) -> Float[Tensor, "head k"]:
    return torch.einsum("hkl,hl->hk", maps, vectors)
