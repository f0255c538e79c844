"""Class margins: how much of what tells classes apart lies along a concept, over images without labels.

Unlabelled images cannot tell a fair correlation from a spurious one: classes are said to lean on a concept, never to be
biased. The share is set beside that of random texts, since the words of any concept may fall near those of the classes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..models.model import Model
from .class_weights import compute_class_weights
from .concepts import Concept, plain_words
from .directions import differences

NULL_DRAWS, NULL_SEED = 200, 0
# A concept is leant on if margins lie along it more than along so many percent of random texts, and clearly is not
# where they lie along nearly all of those more (benchmarks/results/leans.csv).
LEANS_FROM, LEANS_NOT_BELOW = 95.0, 5.0
# Of more classes the pairs are too many: each class is then compared with the mean of all.
MOST_PAIRED = 16
# A concept whose texts say so many of the classes is the task itself.
NAMES_CLASSES = 0.5
LEAST_POOL = 64


@dataclass(frozen=True)
class Lean:
    """How much of class margins lies along a concept.

    Attributes:
        share: Of the variance of a margin over the scanned images, mean over the margins.
        percentile: In percent, the share of random texts along which margins lie less.
        in_heads: How much of that goes with the heads that would be removed.
    """

    share: float
    percentile: float
    in_heads: float = 0.0

    @property
    def is_leant_on(self) -> bool:
        """Whether the classes lean on the concept, beyond what they do on random texts."""
        return self.percentile >= LEANS_FROM

    @property
    def is_clearly_not(self) -> bool:
        """Whether they lean on nearly every random text more: removing the concept has nothing to give."""
        return self.percentile < LEANS_NOT_BELOW

    def describe(self, concept: str) -> str:
        """Whether the classes lean on the concept of this name, with the figures."""
        return f"the classes {'lean' if self.is_leant_on else 'do not lean'} on {concept}: {self}"

    def report(self, concept: str) -> dict[str, Any]:
        """Plain data, as a recipe keeps it."""
        return {
            "concept": concept,
            "share": self.share,
            "percentile": self.percentile,
            "leant_on": self.is_leant_on,
            "because": self.describe(concept),
        }

    def __str__(self) -> str:
        lies = f"{100 * self.share:.0f} % of the variance of their margins lies along it"
        return f"{lies}, more than along {self.percentile:.0f} % of random texts"


@dataclass(frozen=True)
class Margins:
    """Class margins over the images of a scan.

    Attributes:
        covariance: Of unit embeddings.
        directions: Differences of class weights.
        pool: General texts that name no class, centred: what random concepts are drawn from.
    """

    covariance: Float[Tensor, "d_embed d_embed"]
    directions: Float[Tensor, "d_embed margin"]
    pool: Float[Tensor, "text d_embed"]

    @cached_property
    def moved(self) -> Float[Tensor, "d_embed margin"]:
        """`C m`, which every share and all draws of the null ask for."""
        return self.covariance @ self.directions

    def share(self, span: Float[Tensor, "d_embed concept"]) -> float:
        """`m^T C U (U^T C U)^-1 U^T C m / (m^T C m)`, mean over margins m: how much of their variance lies along U."""
        total = (self.directions * self.moved).sum(0).clamp_min(torch.finfo(self.moved.dtype).tiny)
        return float(((self.along(span) * self.moved).sum(0) / total).mean())

    def rank(self, span: Float[Tensor, "d_embed concept"], texts: int) -> Lean:
        """The share, beside that of random texts of the pool: as many texts, as many directions."""
        generator, own = torch.Generator().manual_seed(NULL_SEED), self.share(span)
        below = 0
        for _ in range(NULL_DRAWS):
            drawn = self.pool[torch.randperm(len(self.pool), generator=generator)[:texts]]
            right = torch.linalg.svd(drawn - drawn.mean(0), full_matrices=False)[2]
            below += self.share(right[: span.shape[1]].T) < own
        return Lean(own, 100 * below / NULL_DRAWS)

    def along(self, span: Float[Tensor, "d_embed concept"]) -> Float[Tensor, "d_embed margin"]:
        """What of each margin is read along a concept: `U (U^T C U)^-1 U^T C m`."""
        return span @ torch.linalg.pinv(span.T @ self.covariance @ span, hermitian=True) @ (span.T @ self.moved)


def build_margins(
    model: Model,
    classes: Sequence[str],
    templates: Sequence[str],
    *,
    covariance: Float[Tensor, "d_embed d_embed"],
    pool: Float[Tensor, "text d_embed"],
    pool_texts: Sequence[str],
) -> Margins:
    """The margins of some classes over images of which the covariance of unit embeddings is known.

    Random texts are the pool's without those that say a class: margins lie along those by what they are, whatever a
    model learned. All of it where hardly any other text is left.

    Raises:
        ImageError: As `compute_class_weights`.
    """
    weights = compute_class_weights(model, classes, templates).double()
    # [margin, d_embed]; a single class has no other.
    rows = differences(weights) if 1 < len(classes) <= MOST_PAIRED else weights - weights.mean(0)
    words = _class_words(classes)
    apart = [index for index, text in enumerate(pool_texts) if not _says(text, words)]
    return Margins(covariance, rows.T, pool[apart] if len(apart) >= LEAST_POOL else pool)


def name_classes(concept: Concept, classes: Sequence[str]) -> bool:
    """Whether a concept's texts say most of the classes by their words."""
    words = _class_words(classes)
    named = [word for word in words if any(_says(text, [word]) for text in concept.texts)]
    return bool(words) and len(named) >= NAMES_CLASSES * len(words)


def _class_words(classes: Sequence[str]) -> list[str]:
    return [word for word in map(plain_words, classes) if word]


def _says(text: str, words: Sequence[str]) -> bool:
    """Whether a text has one of these words, as such or in the plural."""
    plain = plain_words(text)
    return any(re.search(rf"\b{re.escape(word)}(e?s)?\b", plain) for word in words)
