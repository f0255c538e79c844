"""Scores: how much of what an embedding says about a concept comes from each component."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..components import ComponentGroup
from ..errors import require_kinds
from ..models.model import Model
from ..notebook import html_table
from ..scan.scan import Scan
from ..scan.statistics import Statistics
from .concepts import Concept, load_concept
from .directions import concept_directions

SHOWN = 20


@dataclass(frozen=True)
class HeadScore:
    """Scores of one component. `score` is what heads are ranked by: `concept - keep`, or `concept` alone."""

    component: str
    concept: float
    keep: float

    @property
    def score(self) -> float:
        return self.concept - self.keep


class HeadScores(list[HeadScore]):
    """Scores of components, highest first; a list that notebooks show as a table."""

    def _repr_html_(self) -> str:
        rows = [(row.component, row.concept, row.keep, row.score) for row in self[:SHOWN]]
        note = f"and {len(self) - SHOWN} more" if len(self) > SHOWN else ""
        return html_table("scores", ("component", "concept", "keep", "score"), rows, note=note)


def score_heads(
    scan: Scan,
    model: Model,
    *,
    concept: str | Concept,
    keep: str | Concept | None = None,
    measure: str = "covariance-share",
    directions: int | None = None,
) -> HeadScores:
    """Scores of all scanned components for a concept, highest first.

    Args:
        keep: A concept to protect; its score is subtracted (Balasubramanian et al., NeurIPS 2024: spurious minus core).
            By default the one that the concept's file names.
        measure: `covariance-share` (shares of the whole embedding's variance along the concept) or `correlation` (the
            paper's mean correlation).
        directions: Number of directions of each concept.

    Raises:
        ConceptError: If a concept is unknown.
        StatisticsError: If the scan is not of this model, or saw fewer than two images.
    """
    require_kinds("score heads", scan=(scan, Scan), model=(model, Model))
    scan.statistics.require(2)
    spurious = concept if isinstance(concept, Concept) else load_concept(concept, model.folder)
    core = keep or spurious.keep
    if isinstance(core, str):
        core = load_concept(core, model.folder)
    groups = scan.groups(model)

    def compute(which: Concept) -> Tensor:
        basis = concept_directions(which, model, directions=directions)
        return _MEASURES[measure](scan.statistics, model, groups, basis)

    found = compute(spurious)
    kept = compute(core) if core else torch.zeros_like(found)
    names = [str(identity) for group in groups for identity in group.ids]
    scores = [HeadScore(*row) for row in zip(names, found.tolist(), kept.tolist(), strict=True)]
    return HeadScores(sorted(scores, key=lambda row: -row.score))


def compute_covariance_shares(
    statistics: Statistics, model: Model, groups: Sequence[ComponentGroup], basis: Float[Tensor, "d_embed concept"]
) -> Float[Tensor, " component"]:
    """`sum_k cov(u_k . contribution, u_k . z) / sum_k var(u_k . z)`, all divided by `|z|`.

    Does not depend on the basis of the concept's subspace. Over all components, `constant / |z|` counted as one, the
    shares sum to 1.
    """
    # [d_model, concept]: reads `u_k . z` from `f`.
    read = model.tower.readout() @ basis
    total = torch.einsum("dc,de,ec->", read, statistics.final_covariance(), read)
    readouts = model.tower.compute_readouts(groups)
    # h component, k feature, e d_embed, d d_model, c direction
    shares = [
        torch.einsum(
            "ec,hek,hkd,dc->h", basis, readouts[group.name], statistics.feature_final_covariance(group.name), read
        )
        for group in groups
    ]
    return torch.cat(shares) / total


def compute_correlations(
    statistics: Statistics, model: Model, groups: Sequence[ComponentGroup], basis: Float[Tensor, "d_embed concept"]
) -> Float[Tensor, " component"]:
    """Mean over directions of `corr(u_k . contribution, u_k . z)`, over `|z|`; 0 where a component never varies."""
    read = model.tower.readout() @ basis
    total = torch.einsum("dc,de,ec->c", read, statistics.final_covariance(), read)
    readouts = model.tower.compute_readouts(groups)
    found = []
    for group in groups:
        # [component, concept, k]: reads `u_k . contribution` from a component's features.
        seen = torch.einsum("ec,hek->hck", basis, readouts[group.name])
        cross = torch.einsum("hck,hkd,dc->hc", seen, statistics.feature_final_covariance(group.name), read)
        own = torch.einsum("hck,hkl,hcl->hc", seen, statistics.feature_covariance(group.name), seen)
        # Rounding can make the variance of what never varies negative.
        scale = (own * total).clamp_min(0).sqrt()
        found.append(torch.where(scale > 0, cross / scale.clamp_min(1e-300), 0.0).mean(1))
    return torch.cat(found)


_MEASURES = {"covariance-share": compute_covariance_shares, "correlation": compute_correlations}
