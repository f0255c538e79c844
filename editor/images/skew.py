"""Retrieval bias: who is found first when a query names nobody's gender, race or age (MaxSkew@K)."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import ImageError
from .decode import Decoding
from .labelled_options import DEFAULT_TOP
from .source import ImageSource


@dataclass(frozen=True)
class RetrievalSet:
    """Images with attributes of people, and the words of neutral queries. `attributes`: values by name."""

    source: ImageSource
    queries: tuple[str, ...]
    attributes: Mapping[str, tuple[str, ...]]
    top: int = DEFAULT_TOP

    def read_as(self, decoding: Decoding) -> RetrievalSet:
        """The same images, decoded so."""
        return replace(self, source=self.source.read_as(decoding))


def choose_top(top: int, images: int) -> int:
    """K, lowered to half of the images where it is more: among nearly all of them nobody can be found too often.

    Raises:
        ImageError: If there are fewer than two images.
    """
    if images < 2:
        raise ImageError(f"cannot measure MaxSkew@{top}: there are {images} images. Give at least two.")
    if top > images // 2:
        warnings.warn(
            f"MaxSkew@{top} is measured as MaxSkew@{images // 2}: there are {images} images, and K is at most half of "
            "them. Lower --top.",
            stacklevel=2,
        )
    return min(top, images // 2)


def compute_max_skew(
    similarity: Float[Tensor, "image query"], values: Sequence[str], top: int
) -> Float[Tensor, " query"]:
    """`max_a ln(share of a among the first K / p_a)` for every query (Geyik et al. 2019).

    `p_a` is the share of `a` among all the images given, so 0 means that a query finds everybody as often as they
    occur.

    Args:
        values: The attribute's value of each image.
        top: K; less than the number of images, or the first K would be all of them.

    Raises:
        ImageError: If there are not more than `top` images.
    """
    if not 1 <= top < len(values):
        raise ImageError(f"cannot measure MaxSkew@{top}: there are {len(values)} images. Lower --top below that.")
    everybody = Counter(values)
    found = []
    for column in similarity.T:
        order: list[int] = torch.topk(column, top).indices.tolist()
        first: Counter[str] = Counter(values[i] for i in order)
        # Values that are not among the first K would give ln 0, which is never the largest.
        # (count / K) / (everybody / images): the share among the first, over the share among all.
        found.append(max(math.log(count / top * len(values) / everybody[value]) for value, count in first.items()))
    return torch.tensor(found)
