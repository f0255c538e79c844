"""Thresholds: where a cosine cut must move so that the edited encoder lets the same share of pairs pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..errors import VectorError

QUANTILES = (0.5, 0.9, 0.95, 0.99)


@dataclass(frozen=True)
class ThresholdShift:
    """The cosine that a share of `quantile` of all pairs stays below, before and after the edit."""

    pairs: str
    quantile: float
    before: float
    after: float


def compute_threshold_shift(
    before: Float[Tensor, "image d_embed"],
    after: Float[Tensor, "image d_embed"],
    texts_before: Float[Tensor, "text d_embed"],
    texts_after: Float[Tensor, "text d_embed"],
    *,
    quantiles: Sequence[float] = QUANTILES,
) -> list[ThresholdShift]:
    """Quantiles of cosines between images and texts (search, tagging) and between images (duplicates), side by side.

    A system that cut at the `before` value cuts the same share of these pairs at the `after` value.

    Args:
        before, after: Embeddings of the same images by the unedited and the edited model; their norms do not matter.
        texts_before, texts_after: Those of the same texts.

    Raises:
        VectorError: If there are fewer than two images, or no text.
    """
    if len(before) < 2 or not len(texts_before):
        raise VectorError(
            f"cannot compare thresholds: {len(before)} images and {len(texts_before)} texts make no pairs. Give two "
            "images and a text at least."
        )
    pairs = {
        "image and text": (_cosines(before, texts_before), _cosines(after, texts_after)),
        "image and image": (_distinct(_cosines(before, before)), _distinct(_cosines(after, after))),
    }
    return [
        ThresholdShift(name, quantile, *(float(cosines.flatten().quantile(quantile)) for cosines in both))
        for name, both in pairs.items()
        for quantile in quantiles
    ]


def format_threshold_shift(rows: Sequence[ThresholdShift]) -> str:
    """The rows as a Markdown table."""
    lines = ["| pairs | share below | cosine before | cosine after |", "|---|---|---|---|"]
    lines += [f"| {row.pairs} | {row.quantile:.0%} | {row.before:.3f} | {row.after:.3f} |" for row in rows]
    return "\n".join(lines) + "\n"


def _cosines(
    images: Float[Tensor, "image d_embed"], others: Float[Tensor, "other d_embed"]
) -> Float[Tensor, "image other"]:
    return F.normalize(images.double(), dim=1) @ F.normalize(others.double(), dim=1).T


def _distinct(square: Float[Tensor, "image image"]) -> Float[Tensor, " pair"]:
    """Each pair of two different images once."""
    # Without the diagonal: an image's cosine to itself is 1, and would move every quantile.
    return square[tuple(torch.triu_indices(*square.shape, offset=1))]
