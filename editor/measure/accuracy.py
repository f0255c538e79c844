"""How often answers are right: over all images, in each group, and in the worst of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import ImageError
from ..images.source import LabelledImages

GROUP = "group: "


@dataclass(frozen=True)
class Accuracies:
    """Shares of right answers, in [0, 1]. `mean_of_groups` weighs groups equally, `overall` weighs images equally."""

    overall: float
    worst_group: float
    mean_of_groups: float
    groups: Mapping[str, float]
    sizes: Mapping[str, int]


def predict(
    similarity: Float[Tensor, "image class"], kept: Sequence[int], task: LabelledImages
) -> Int[Tensor, " image"]:
    """The class of highest similarity, among those that are asked at each image; `kept` are their positions."""
    if not task.options:
        return similarity.argmax(1)
    options = torch.tensor([task.options[index] for index in kept])
    # [image, option]: which of an image's own classes, then which class that is.
    best = similarity.gather(1, options).argmax(1, keepdim=True)
    return options.gather(1, best).squeeze(1)


def compute_predictions(
    embeddings: Float[Tensor, "image d_embed"], weights: Float[Tensor, "class d_embed"]
) -> Int[Tensor, " image"]:
    """The class of highest cosine similarity."""
    return (embeddings @ weights.T).argmax(1)


def compute_accuracies(
    predictions: Int[Tensor, " image"], labels: Int[Tensor, " image"], groups: Sequence[str]
) -> Accuracies:
    """Accuracy over all images and in each group.

    Raises:
        ImageError: If there are no images.
    """
    if not len(labels):
        raise ImageError("cannot measure: no labelled image is left. Check the split and the labels.")
    right = (predictions == labels).numpy()
    names = np.asarray(groups)
    shares = {str(name): float(right[names == name].mean()) for name in np.unique(names)}
    sizes = {name: int((names == name).sum()) for name in shares}
    return Accuracies(float(right.mean()), min(shares.values()), float(np.mean(list(shares.values()))), shares, sizes)
