"""Texts that people type: checked against the model's context, then unit directions of the joint space."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..errors import ConceptError
from ..images.texts import load_texts
from ..models.model import Model

POOL_SAMPLE = 96


def encode_unit(model: Model, texts: Sequence[str]) -> Float[Tensor, "text d_embed"]:
    """Unit embeddings of texts, float64; nothing is checked."""
    return F.normalize(model.encode_text(list(texts)).cpu().double(), dim=-1)


def encode_means(model: Model, instances: Iterable[Sequence[str]]) -> Float[Tensor, "instance d_embed"]:
    """The mean unit embedding of the texts of every instance: each text weighs the same."""
    return torch.stack([encode_unit(model, texts).mean(0) for texts in instances])


def encode_queries(model: Model, texts: Sequence[str]) -> Float[Tensor, "text d_embed"]:
    """Normalised embeddings of texts.

    Raises:
        ConceptError: If a text is empty, or longer than the model's context.
    """
    for text in texts:
        require_text_fits(model, text)
    return encode_unit(model, texts)


def encode_contrast(
    model: Model, texts: Sequence[str], against: Sequence[str] | None = None, *, among_themselves: bool = True
) -> Float[Tensor, "text d_embed"]:
    """What each text says that others do not: its unit embedding minus the mean of others'.

    Args:
        against: What the mean is taken over. By default, the texts themselves if there are several, else a sample of
            the general pool: every text shares "a photo of", which would cover each heatmap with the same pattern.
        among_themselves: Whether several texts are measured against each other by default.

    Raises:
        ConceptError: As `encode_queries`.
    """
    found = encode_queries(model, texts)
    if against is None and len(texts) > 1 and among_themselves:
        return found - found.mean(0)
    if against is None:
        return found - encode_sample(model).mean(0)
    return found - encode_queries(model, against).mean(0) if against else found


def require_text_fits(model: Model, text: str) -> None:
    """Refuse a text that the tokenizer would cut.

    Raises:
        ConceptError: If it is empty or too long.
    """
    plain = text.strip()
    if not plain:
        raise ConceptError("cannot use an empty text. Describe what to look for, as in `a photo of a circle`.")
    # A row of a short text ends in the token that fills it up.
    tokens, shorter, padding = model.tokenizer([plain, plain[:-1], "a"])
    # A full row that does not change with its last letter lost that letter.
    if tokens[-1] != padding[-1] and torch.equal(tokens, shorter):
        raise ConceptError(
            f"cannot use the text {plain[:60]!r}...: {model.name} reads {len(tokens)} tokens, the rest would be cut. "
            "Shorten it."
        )


def encode_sample(model: Model) -> Float[Tensor, "text d_embed"]:
    """Unit embeddings of about a hundred texts of the general pool, evenly taken."""
    texts = load_texts(model_folder=model.folder)
    return encode_unit(model, texts[:: max(1, len(texts) // POOL_SAMPLE)])
