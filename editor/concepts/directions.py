"""Directions of the joint space that a step works along: from texts, a head's own labels, its main components, or labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..components import HeadId
from ..edits.document import Step
from ..errors import ConceptError, RecipeError
from ..models.model import Model
from ..scan.scan import Scan
from .concepts import Concept, load_concept, load_texts
from .textspan import compute_text_span

NAMED_SHARE, VARIANCE_KEPT = 0.5, 0.9


@dataclass(frozen=True)
class LabelledEmbeddings:
    """Images with the label that is to be erased: what the last norm gave, the embedding, and the label of each."""

    final: Float[Tensor, "image d_model"]
    embedding: Float[Tensor, "image d_embed"]
    labels: Int[Tensor, " image"]


def compute_concept_directions(
    texts: Float[Tensor, "text d_embed"], *, most: int, directions: int | None = None
) -> Float[Tensor, "d_embed concept"]:
    """Orthonormal directions of a concept: what its texts differ in.

    Text embeddings are normalised and centred on their mean (or every concept would share "a photo of"); then the leading
    right singular vectors that hold 90 % of the variance are taken.

    Args:
        texts: Embeddings of the concept's texts; their norms do not matter.
        most: Upper bound on the number of directions: with more, small heads would be spanned completely.
        directions: Take exactly this many instead.

    Raises:
        ConceptError: If more directions are asked for than the texts span.
    """
    unit = F.normalize(texts.double(), dim=-1)
    _, singular, right = torch.linalg.svd(unit - unit.mean(0), full_matrices=False)
    rank = int((singular > singular[0] * 1e-6).sum())
    if rank == 0 or (directions is not None and not 1 <= directions <= rank):
        raise ConceptError(f"cannot take {directions or 1} directions: the texts span {rank}. Add texts that differ.")
    held = (singular.square().cumsum(0) / singular.square().sum()).tolist()
    needed = next(i + 1 for i, share in enumerate(held) if share >= VARIANCE_KEPT - 1e-12)
    return right[: directions or max(1, min(needed, most))].T


def concept_directions(concept: Concept, model: Model, *, directions: int | None = None) -> Tensor:
    """Directions `[d_embed, concept]` of a concept in a model's joint space; at most `d_head / 4` by default."""
    texts = model.encode_text(list(concept.texts)).cpu()
    return compute_concept_directions(texts, most=max(1, model.tower.d_head // 4), directions=directions)


def step_directions(
    step: Step, model: Model, labelled: LabelledEmbeddings | None = None
) -> Float[Tensor, "d_embed concept"] | None:
    """Orthonormal directions of the step's own texts, else of the concept it names, or of labelled images; None without.

    Raises:
        ConceptError: If more directions are asked for than there are.
        RecipeError: If the step needs labelled images and there are none.
    """
    if step.along == "labels":
        found = require_labels(labelled, step)
        return compute_mean_differences(found.embedding, found.labels, directions=step.directions)
    if step.texts is not None:
        texts = model.encode_text(list(step.texts)).cpu()
        return compute_concept_directions(texts, most=max(1, model.tower.d_head // 4), directions=step.directions)
    if step.concept is not None:
        return concept_directions(load_concept(step.concept, model.folder), model, directions=step.directions)
    return None


def encode_pool(model: Model) -> Float[Tensor, "text d_embed"]:
    """Unit embeddings of the model's pool of texts, float64; encode once for many heads."""
    return F.normalize(model.encode_text(list(load_texts(model_folder=model.folder))).cpu().double(), dim=-1)


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

    A label names the concept if at least half of it (centred on the pool's mean) lies in the span of the concept's texts;
    there may be none.

    Args:
        pool: As `encode_pool` gives it, which is called without one.

    Raises:
        RecipeError: If the step names no concept.
    """
    covariance = scan.statistics.feature_covariance(f"L{head.layer}.heads")[head.head]
    most = step.directions or max(1, model.tower.d_head // 4)
    if step.along == "pca":
        values, vectors = torch.linalg.eigh(covariance)
        spread = readout @ (vectors * values.clamp_min(0).sqrt())
        return torch.linalg.svd(spread, full_matrices=False)[0][:, :most]
    concept = step_directions(step, model)
    if concept is None:
        raise RecipeError("cannot find a head's labels that name the concept: the step names none. Add `concept`.")
    pool = encode_pool(model) if pool is None else pool
    steps = min(20, readout.shape[1], len(pool))
    chosen, _ = compute_text_span(readout[None], covariance[None], pool, steps=steps)
    labels = (pool - pool.mean(0))[chosen[0]]
    named = labels[(labels @ concept).square().sum(1) >= NAMED_SHARE * labels.square().sum(1)][:most]
    return torch.linalg.qr(named.T)[0] if len(named) else torch.zeros(len(readout), 0).to(readout)


def compute_mean_differences(
    embeddings: Float[Tensor, "image d_embed"], labels: Int[Tensor, " image"], *, directions: int | None = None
) -> Float[Tensor, "d_embed concept"]:
    """Orthonormal directions in which the means of labelled images (normalised embeddings) differ, at most classes - 1.

    Raises:
        ConceptError: If more are asked for, or there is only one class.
    """
    unit = F.normalize(embeddings.double(), dim=-1)
    means = torch.stack([unit[labels == label].mean(0) for label in labels.unique()])
    left = torch.linalg.svd((means - means.mean(0)).T, full_matrices=False)[0]
    most = len(means) - 1
    if most < 1 or (directions or 1) > most:
        raise ConceptError(f"cannot take {directions or 1} directions from labels: {len(means)} classes give {most}.")
    return left[:, : directions or most]


def require_labels(labelled: LabelledEmbeddings | None, step: Step) -> LabelledEmbeddings:
    """The labelled images of a step that needs them.

    Raises:
        RecipeError: If there are none.
    """
    if labelled is None:
        raise RecipeError(
            f"cannot {step.operation} the {step.target} along labels: no labelled images were given. Add --labelled DIR "
            "and --erase COLUMN."
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
