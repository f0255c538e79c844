"""What heads write, and how much of that known concepts explain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...components import HeadId
from ...concepts.textspan import compute_text_span
from ...edits.step_directions import factor_written
from ...models.model import Model
from ...scan.scan import Scan

# A head is strong where it writes at least so much of what the mean head writes.
STRONG = 0.5
# Of what as many TextSpan texts hold of a head, a concept that explains it holds so much.
EXPLAINED = 0.5


@dataclass(frozen=True)
class Writings:
    """What heads write into the embedding, divided by `|z|`: head h has the covariance `F_h F_h^T`."""

    heads: tuple[HeadId, ...]
    factors: Float[Tensor, "head d_embed k"]

    @cached_property
    def variance(self) -> Float[Tensor, " head"]:
        """Of everything that a head writes."""
        return self.factors.square().sum((1, 2))

    @property
    def is_strong(self) -> Bool[Tensor, " head"]:
        """Whether a head writes enough to be asked what."""
        return self.variance >= STRONG * self.variance.mean()

    def shares_along(self, directions: Float[Tensor, "d_embed direction"]) -> Float[Tensor, " head"]:
        """Share of each head's variance within the span of orthonormal directions; 0 for a head that never varies."""
        seen = torch.einsum("ed,hek->hdk", directions, self.factors)
        return seen.square().sum((1, 2)) / self.variance.clamp_min(torch.finfo(seen.dtype).tiny)

    def label(
        self, texts: Float[Tensor, "text d_embed"], steps: int
    ) -> tuple[Int[Tensor, "head step"], Float[Tensor, "head step"]]:
        """TextSpan of every head: indices of texts, and the shares of variance that they explain."""
        # In terms of the factors a head's features are white.
        white = torch.eye(self.factors.shape[2]).double().expand(len(self.heads), -1, -1)
        return compute_text_span(self.factors, white, texts, steps=steps)


def build_writings(scan: Scan, model: Model) -> Writings:
    """The factors of every scanned head.

    Raises:
        StatisticsError: If the scan is not of this model.
    """
    groups = [group for group in scan.groups(model) if group.ids[0].kind == "head"]
    readouts = model.tower.compute_readouts(groups)
    factors = [factor_written(readouts[group.name], scan.statistics.feature_covariance(group.name)) for group in groups]
    heads = tuple(HeadId.parse(str(identity)) for group in groups for identity in group.ids)
    return Writings(heads, torch.cat(factors))


def explain_heads(
    writings: Writings,
    # `_`: each is as wide as its own texts need.
    concepts: Mapping[str, Float[Tensor, "d_embed _"]],
    held: Float[Tensor, "head step"],
) -> Float[Tensor, " head"]:
    """How much of each head a single concept explains at best: its share over that of as many TextSpan texts.

    Args:
        concepts: Orthonormal directions.
        held: Shares of TextSpan's first texts together: column k - 1 is that of the first k.
    """
    best = torch.zeros(len(writings.heads)).double()
    for directions in concepts.values():
        width = min(directions.shape[1], held.shape[1])
        best = best.maximum(writings.shares_along(directions) / held[:, width - 1].clamp_min(1e-9))
    return best
