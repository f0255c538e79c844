"""Readings: how the shares of several heads become one map an image and text.

`contrast` is the papers' protocol: the sum. Heads disagree, and what one says for a class another takes back;
`positive` sums what speaks for the text, head by head. `evidence` asks for no class at all: how far apart the texts are
in what each head took from a token (standard deviation over texts), so where the heads look to tell them apart. Either
can weigh heads by what they carry of a concept: a class's text also says what usually surrounds it, and heads that
carry the place show the place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor

from ..choices import Reading
from ..components import HeadId
from ..concepts.concepts import load_concept
from ..concepts.scores import score_heads
from ..errors import ConceptError
from ..models.model import Model
from ..scan.scan import Scan

READINGS = get_args(Reading)


def weigh_heads(scan: Scan, model: Model, *, concept: str, keep: str | None = None) -> dict[HeadId, float]:
    """Every scanned head's score for a concept where it is positive, else 0: no number of heads is chosen.

    Args:
        keep: A concept whose score is taken off, as for `score_heads`: here what surrounds the objects.

    Raises:
        ConceptError: If a concept is unknown.
        StatisticsError: If the scan is not of this model.
    """
    known = [load_concept(name, model.folder) if name else None for name in (concept, keep)]
    assert known[0] is not None
    scores = score_heads(scan, model, concept=known[0], keep=known[1])
    return {HeadId.parse(row.component): max(row.score, 0.0) for row in scores if "H" in row.component}


def combine_shares(
    shares: Float[Tensor, "head row column text"], reading: Reading, weights: Float[Tensor, " head"]
) -> Float[Tensor, "row column text"]:
    """One map a text; of `evidence` the same for all of them."""
    if reading == "evidence":
        spread = shares.std(3, correction=0, keepdim=True).expand_as(shares)
        return torch.einsum("h,hrct->rct", weights, spread)
    return torch.einsum("h,hrct->rct", weights, shares.clamp_min(0) if reading == "positive" else shares)


def require_texts(reading: Reading, texts: Sequence[str]) -> None:
    """Refuse evidence of a single text.

    Raises:
        ConceptError: If there is nothing to tell it from.
    """
    if reading == "evidence" and len(texts) < 2:
        raise ConceptError(
            f"cannot read evidence for {texts[0]!r} alone: it is where texts are told apart. Add another --text."
        )


def weights_of(heads: Sequence[HeadId], weights: Mapping[HeadId, float] | None) -> Float[Tensor, " head"]:
    """In the order of the heads; ones without weights, 0 for a head that has none."""
    return torch.tensor([1.0 if weights is None else weights.get(head, 0.0) for head in heads])
