"""Erasers that are fitted to labels: of the concept alone (LEACE), or of the concept and the classes (SPLINCE)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..edits.erasure import fit_leace
from .setting import ROUNDING, Rival, Setting, ship_map, span_of


def erase(setting: Setting) -> Rival:
    """LEACE (Belrose et al., NeurIPS 2023) of the concept's labels."""
    found = setting.erased
    return ship_map(fit_leace(found.embedding, found.labels, 1.0)[0], setting.model)


def erase_and_keep(setting: Setting) -> Rival:
    """SPLINCE (NeurIPS 2025): the concept's labels are erased, the covariance with the classes stays.

    As with LEACE a checkpoint holds the map and not the offset, which lies along what is erased.
    """
    found = setting.erased
    maps = fit_splince(found.embedding, F.one_hot(found.labels), F.one_hot(setting.class_labels))
    return ship_map(maps, setting.model)


def fit_splince(
    embeddings: Float[Tensor, "image d_embed"], erased: Tensor, kept: Tensor
) -> Float[Tensor, "d_embed d_embed"]:
    """`W^+ V (U^T V)^-1 U^T W`, `W` the whitening: an oblique projection.

    Its kernel is what covaries with the erased labels, so that no linear probe finds them. Its range holds what
    covaries with the kept ones, and is at right angles to both elsewhere.

    Args:
        erased, kept: One column per label.
    """
    centred = (embeddings - embeddings.mean(0)).double()
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    real = values > ROUNDING * values[-1]
    values, vectors = values[real], vectors[:, real]
    whiten, unwhiten = vectors / values.sqrt(), vectors * values.sqrt()
    # In whitened coordinates [rank, label]: what covaries with each.
    away, stay = (whiten.T @ centred.T @ (one.double() - one.double().mean(0)) / len(centred) for one in (erased, kept))
    both = torch.cat([span_of(stay), _complement(torch.cat([away, stay], 1))], 1)
    reader = _complement(away)
    oblique = both @ torch.linalg.pinv(reader.T @ both) @ reader.T
    return unwhiten @ oblique @ whiten.T


def _complement(columns: Float[Tensor, "rank label"]) -> Float[Tensor, "rank rest"]:
    """An orthonormal basis of everything at right angles to some columns."""
    span = span_of(columns)
    return torch.linalg.qr(torch.cat([span, torch.eye(len(span)).double()], 1))[0][:, span.shape[1] :]
