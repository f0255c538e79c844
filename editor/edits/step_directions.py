"""Directions that a step works along: from its texts, a head's own labels, its main components, or labels."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ..components import HeadId
from ..concepts.concepts import load_concept
from ..concepts.directions import (
    compute_concept_directions,
    compute_mean_differences,
    concept_directions,
    encode_pool,
    spare_directions,
)
from ..concepts.textspan import compute_text_span
from ..errors import ConceptError, RecipeError
from ..models.model import Model
from ..scan.collect import LabelledEmbeddings
from ..scan.scan import Scan
from .document import Step

NAMED_SHARE = 0.5


def step_directions(
    step: Step, model: Model, labelled: LabelledEmbeddings | None = None
) -> Float[Tensor, "d_embed concept"] | None:
    """Orthonormal directions of the step's own texts, else of the concept it names, or of labelled images; None
    without. What the step spares is taken out of them.

    Raises:
        ConceptError: If more directions are asked for than there are.
        RecipeError: If the step needs labelled images and there are none.
    """
    directions = _given_directions(step, model, labelled)
    if directions is None or step.spared is None:
        return directions
    kept = compute_concept_directions(model.encode_text(list(step.spared)).cpu(), most=max(1, model.tower.d_head // 4))
    return spare_directions(directions, kept)


def _given_directions(
    step: Step, model: Model, labelled: LabelledEmbeddings | None
) -> Float[Tensor, "d_embed concept"] | None:
    if step.along == "labels":
        found = require_labels(labelled, step)
        return compute_mean_differences(found.embedding, found.labels, directions=step.directions)
    if step.texts is not None:
        texts = model.encode_text(list(step.texts)).cpu()
        return compute_concept_directions(texts, most=max(1, model.tower.d_head // 4), directions=step.directions)
    if step.concept is not None:
        return concept_directions(load_concept(step.concept, model.folder), model, directions=step.directions)
    return None


def head_directions(
    step: Step,
    head: HeadId,
    readout: Float[Tensor, "d_embed k"],
    scan: Scan,
    model: Model,
    *,
    pool: Float[Tensor, "text d_embed"] | None = None,
) -> Float[Tensor, "d_embed concept"]:
    """Directions of one head: its main components (`pca`), or those of its TextSpan labels that name the concept.

    A label names the concept if at least half of it (centred on the pool's mean) lies in the span of the concept's
    texts; there may be none.

    Args:
        pool: As `encode_pool` gives it, which is called without one.

    Raises:
        RecipeError: If the step names no concept.
    """
    covariance = scan.statistics.feature_covariance(f"L{head.layer}.heads")[head.head]
    most = step.directions or max(1, model.tower.d_head // 4)
    if step.along == "pca":
        return principal_directions(readout, covariance)[:, :most]
    concept = step_directions(step, model)
    if concept is None:
        raise RecipeError("cannot find a head's labels that name the concept: the step names none. Add `concept`.")
    pool = encode_pool(model) if pool is None else pool
    steps = min(20, readout.shape[1], len(pool))
    chosen, _ = compute_text_span(readout[None], covariance[None], pool, steps=steps)
    # Centred, or what all texts have in common would count for the concept.
    labels = (pool - pool.mean(0))[chosen[0]]
    named = labels[(labels @ concept).square().sum(1) >= NAMED_SHARE * labels.square().sum(1)][:most]
    # Labels are not orthogonal, and projections want an orthonormal basis; none is a basis of width 0.
    return torch.linalg.qr(named.T)[0] if len(named) else torch.zeros(len(readout), 0).to(readout)


def principal_directions(
    readout: Float[Tensor, "d_embed k"], covariance: Float[Tensor, "k k"]
) -> Float[Tensor, "d_embed component"]:
    """Orthonormal principal components of what a head writes, from the covariance of its features; largest first."""
    return torch.linalg.svd(factor_written(readout, covariance), full_matrices=False)[0]


def factor_written(
    readout: Float[Tensor, "*head d_embed k"], covariance: Float[Tensor, "*head k k"]
) -> Float[Tensor, "*head d_embed k"]:
    """`F` of which `F F^T = R cov(u) R^T`, the contribution's covariance, which is never built: it is d_embed wide."""
    values, vectors = torch.linalg.eigh(covariance)
    # Rounding leaves tiny negative values of what never varies.
    return readout @ (vectors * values.clamp_min(0).sqrt()[..., None, :])


def require_labels(labelled: LabelledEmbeddings | None, step: Step) -> LabelledEmbeddings:
    """The labelled images of a step that needs them.

    Raises:
        RecipeError: If there are none.
    """
    if labelled is None:
        raise RecipeError(
            f"cannot {step.operation} the {step.target} along labels: no labelled images were given. Add --labelled "
            "DIR and --erase COLUMN."
        )
    return labelled


def require_room(directions: Float[Tensor, "d_embed concept"], step: Step, head: HeadId, k: int) -> None:
    """Refuse more directions than a head has dimensions.

    Raises:
        ConceptError: Naming the head.
    """
    if directions.shape[1] > k:
        raise ConceptError(
            f"cannot {step.operation} {directions.shape[1]} directions of {head}: the head has {k} dimensions. Lower "
            "--directions, or use mean-ablate."
        )
