"""LEACE (Belrose et al., NeurIPS 2023) on the embedding: no linear probe finds the label any more."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import RecipeError


def fit_leace(
    embeddings: Float[Tensor, "image d_embed"], labels: Int[Tensor, " image"], strength: float
) -> tuple[Float[Tensor, "d_embed d_embed"], Float[Tensor, " d_embed"]]:
    """Map `A` and offset `b` of the eraser, `z' = A z + b`: means stay, labels cannot be read linearly at strength 1.

    A plain checkpoint holds `A`; `b` lies along the erased directions, and only `direct` keeps it.

    Raises:
        RecipeError: If concept-erasure is missing, or there is one label only.
    """
    try:
        from concept_erasure import LeaceFitter
    except ImportError:
        raise RecipeError(
            'cannot erase with LEACE: concept-erasure is missing. `pip install "clipedit[leace]"`.'
        ) from None
    if len(labels.unique()) < 2:
        raise RecipeError("cannot erase with LEACE: all labelled images have one label, at least two are needed.")
    # `one_hot` wants 0, 1, 2, ...; labels may have gaps.
    found = labels.unique(return_inverse=True)[1]
    # Shrinkage would trade the guarantee on these images for a better guess of the covariance.
    eraser = LeaceFitter.fit(embeddings.double(), F.one_hot(found).double(), shrinkage=False, svd_tol=1e-6).eraser
    # The eraser is `z - L R (z - mean)`: the mean along what is erased comes back as the offset.
    removed = strength * (eraser.proj_left @ eraser.proj_right)
    mean = embeddings.double().mean(0)
    return -removed + removed.new_ones(len(removed)).diag(), removed @ mean
