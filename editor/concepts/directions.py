"""Directions of the joint space: those that a concept's texts span, and those in which labelled images differ."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import ConceptError
from ..images.texts import load_texts
from ..models.model import Model
from .concepts import Concept
from .queries import encode_unit

VARIANCE_KEPT, ROUNDING = 0.9, 1e-4
# The sine below which a direction lies within a kept concept: what is left of it would be noise at full strength.
SPARED = 0.1


def compute_concept_directions(
    texts: Float[Tensor, "text d_embed"], *, most: int, directions: int | None = None
) -> Float[Tensor, "d_embed concept"]:
    """Orthonormal directions of a concept: what its texts differ in.

    Text embeddings are normalised and centred on their mean (or every concept would share "a photo of"); then the
    leading right singular vectors that hold 90 % of the variance are taken.

    Args:
        texts: Embeddings of the concept's texts; their norms do not matter.
        most: Upper bound on the number of directions: with more, small heads would be spanned completely.
        directions: Take exactly this many instead.

    Raises:
        ConceptError: If more directions are asked for than the texts span.
    """
    unit = F.normalize(texts.double(), dim=-1)
    _, singular, right = torch.linalg.svd(unit - unit.mean(0), full_matrices=False)
    # Texts of equal tokens differ by rounding only.
    rank = int((singular > max(float(singular[0]) * 1e-6, ROUNDING)).sum())
    if rank == 0:
        raise ConceptError(
            f"cannot find what {len(texts)} texts differ in: to the model they are one, by case, spaces or a context "
            "that cuts them. Add texts that differ."
        )
    if rank == 0 or (directions is not None and not 1 <= directions <= rank):
        raise ConceptError(f"cannot take {directions or 1} directions: the texts span {rank}. Add texts that differ.")
    return right[: directions or max(1, min(count_leading(singular), most))].T


def count_leading(singular: Float[Tensor, " rank"]) -> int:
    """How many of some singular values, largest first, hold 90 % of the variance."""
    held = (singular.square().cumsum(0) / singular.square().sum()).tolist()
    # The tolerance is for a share that is the limit but for rounding.
    return next(i + 1 for i, share in enumerate(held) if share >= VARIANCE_KEPT - 1e-12)


def concept_directions(concept: Concept, model: Model, *, directions: int | None = None) -> Tensor:
    """Directions `[d_embed, concept]` of a concept in a model's joint space; at most `d_head / 4` by default."""
    texts = model.encode_text(list(concept.texts)).cpu()
    return compute_concept_directions(texts, most=max(1, model.tower.d_head // 4), directions=directions)


def spare_directions(
    directions: Float[Tensor, "d_embed concept"], kept: Float[Tensor, "d_embed kept"]
) -> Float[Tensor, "d_embed left"]:
    """Orthonormal directions of what `directions` span outside a kept concept: projecting them out leaves it as it is.

    Directions that lie within the kept ones (a sine below `SPARED`) are left out; there may be none.
    """
    basis = torch.linalg.qr(kept)[0]
    # Of orthonormal directions, so the singular values are the sines of their angles to the kept concept.
    left, singular, _ = torch.linalg.svd(directions - basis @ (basis.T @ directions), full_matrices=False)
    return left[:, singular > SPARED]


def encode_pool(model: Model) -> Float[Tensor, "text d_embed"]:
    """Unit embeddings of the model's pool of texts, float64; encode once for many heads."""
    return encode_unit(model, load_texts(model_folder=model.folder))


def differences(vectors: Float[Tensor, "vector d_embed"]) -> Float[Tensor, "pair d_embed"]:
    """`v_i - v_j` of every two of some vectors, i < j."""
    rows, columns = torch.triu_indices(len(vectors), len(vectors), offset=1)
    return vectors[rows] - vectors[columns]


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
    # Centred means span one direction fewer than there are classes.
    most = len(means) - 1
    if most < 1 or (directions or 1) > most:
        raise ConceptError(f"cannot take {directions or 1} directions from labels: {len(means)} classes give {most}.")
    return left[:, : directions or most]
