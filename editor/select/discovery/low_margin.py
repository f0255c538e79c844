"""In what images differ between whose classes a model hardly decides."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ...scan.sample import Sample, choose_folds

# The share of images that count as undecided, and the directions that are looked at.
UNDECIDED, DIRECTIONS = 0.25, 3
LEAST_IMAGES = 8


def find_low_margin_directions(
    sample: Sample | None,
    classes: Float[Tensor, "class d_embed"],
    span: Float[Tensor, "d_embed task"],
    *,
    fold: int | None,
) -> Float[Tensor, "d_embed direction"]:
    """The leading directions in which images of low margin differ, apart from the classes; none of too few images.

    Args:
        classes: Unit class weights.
        span: Orthonormal directions in which the classes differ.
        fold: Look at the images of this fold only; at all of them with None.
    """
    if sample is None:
        return classes.new_zeros(classes.shape[1], 0)
    embeddings = F.normalize(sample.features.embedding.double(), dim=1)
    if fold is not None:
        embeddings = embeddings[torch.tensor(choose_folds(sample.marks)) == fold]
    count = int(UNDECIDED * len(embeddings))
    if count < LEAST_IMAGES:
        return classes.new_zeros(classes.shape[1], 0)
    best = (embeddings @ classes.T).topk(2, dim=1).values
    low = embeddings[(best[:, 0] - best[:, 1]).argsort(stable=True)[:count]]
    rest = low - low.mean(0)
    return torch.linalg.svd(rest - rest @ span @ span.T, full_matrices=False)[2][:DIRECTIONS].T
