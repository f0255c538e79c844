"""Drift of concepts: what images show of a concept, and whether the heads that held it still do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from ..concepts.concepts import Concept, load_concept
from ..concepts.directions import concept_directions
from ..models.model import Model
from ..scan.scan import Scan
from ..scan.statistics import Statistics
from ..select.selectivity import build_probe, compute_selectivity

Moments = tuple[Float[Tensor, " d_embed"], Float[Tensor, "d_embed d_embed"]]


@dataclass(frozen=True)
class ConceptDrift:
    """A concept in the images of a scan, then, and in new ones, now. Embeddings are taken at length 1.

    Attributes:
        selectivity_then, selectivity_now: How much more of the concept than of anything else its few best heads hold
            (`editor/select/selectivity.py`); None for stored vectors, which tell nothing of heads.
        share_then, share_now: Of the embeddings' variance, the share along the concept's directions.
        mean_shift: Distance of the means along these directions, in standard deviations of the calibration images.
    """

    selectivity_then: float | None
    selectivity_now: float | None
    share_then: float
    share_now: float
    mean_shift: float


def find_concepts(concepts: Sequence[str | Concept], model: Model) -> list[Concept]:
    """Concepts by name, or as they are.

    Raises:
        ConceptError: If one is unknown.
    """
    return [one if isinstance(one, Concept) else load_concept(one, model.folder) for one in concepts]


def compare_scanned_concepts(
    concepts: Sequence[Concept], scan: Scan, model: Model, blocks: Sequence[Statistics]
) -> dict[str, ConceptDrift]:
    """Concepts in a scan and in new images that the model has seen, `blocks` being their statistics."""
    if not concepts:
        return {}
    # The same model, layers and heads: only the sums are of other images.
    now = replace(scan, folds=tuple(blocks), sample=None)
    found = compare_concepts(concepts, model, unit_moments(scan.statistics, model), unit_moments(now.statistics, model))
    probes = build_probe(scan, model), build_probe(now, model)
    for concept in concepts:
        then, since = (compute_selectivity(probe, concept).value for probe in probes)
        found[concept.name] = replace(found[concept.name], selectivity_then=then, selectivity_now=since)
    return found


def compare_concepts(concepts: Sequence[Concept], model: Model, then: Moments, now: Moments) -> dict[str, ConceptDrift]:
    """Concepts in two sets of unit embeddings, by their moments: without the heads."""
    return {concept.name: _compare(concept_directions(concept, model), then, now) for concept in concepts}


def unit_moments(statistics: Statistics, model: Model) -> Moments:
    """Mean and covariance of the embeddings `z / |z|` of scanned images, from the sums alone."""
    # z / |z| = read^T g: `f`'s columns first, and whatever follows takes no part.
    read = torch.zeros(len(statistics.gg), model.tower.d_embed).double()
    readout = model.tower.readout()
    read[: len(readout)] = readout
    return center_moments(statistics.n, statistics.gg[-1] @ read, read.T @ statistics.gg @ read)


def center_moments(count: int, total: Float[Tensor, " d_embed"], squares: Float[Tensor, "d_embed d_embed"]) -> Moments:
    """Mean and covariance from sums over `count` vectors, and over their outer products."""
    mean = total / count
    return mean, squares / count - mean[:, None] * mean


def _compare(directions: Float[Tensor, "d_embed concept"], then: Moments, now: Moments) -> ConceptDrift:
    directions = directions.double()
    (old_mean, old), (new_mean, new) = then, now
    along = [float((directions * (covariance @ directions)).sum()) for covariance in (old, new)]
    then_share, now_share = (
        part / max(float(whole.trace()), 1e-30) for part, whole in zip(along, (old, new), strict=True)
    )
    shift = float((directions.T @ (new_mean - old_mean)).norm()) / max(along[0], 1e-30) ** 0.5
    return ConceptDrift(None, None, then_share, now_share, shift)
