"""What each head adds to some readings of an image. An edit at the readout is then a sum, and so are its figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Int16
from torch import Tensor

from ....editor.components import Features, HeadId
from ....editor.models.model import Model
from ....editor.scan.scan import Scan
from ....editor.select.tables import scanned_heads

# Whole numbers of 16 bits are finer than half a float's 11 bits. Eight bits serve what is averaged over images: with
# eight heads removed, rounding adds less than 1e-3 of a variance. Every browser has arrays of both.
FINE, COARSE = np.int16, np.int8


@dataclass(frozen=True)
class HeadParts:
    """The scanned heads, the mean of each head's features, and what they are read out by."""

    heads: tuple[HeadId, ...]
    means: tuple[Float[Tensor, " k"], ...]
    readouts: tuple[Float[Tensor, "d_embed k"], ...]

    def vary(self, features: Features) -> list[Float[Tensor, "image k"]]:
        """What ablation takes: features less their mean over the calibration images."""
        return [
            features.groups[f"L{head.layer}.heads"][:, head.head].double() - mean
            for head, mean in zip(self.heads, self.means, strict=True)
        ]


@dataclass(frozen=True)
class Terms:
    """Readings of images: `base - sum_h s_h * terms[h] * scales[h]` under ablation of heads with strengths `s`.

    Attributes:
        terms: Whole numbers of 8 or 16 bits, times `scales`; what a head adds to a reading beyond its mean.
    """

    base: Float32[np.ndarray, "reading image"]
    terms: Int[np.ndarray, "head reading image"]
    scales: Float32[np.ndarray, "head reading"]


@dataclass(frozen=True)
class Lengths:
    """Inner products of the embedding and of every head's part, image by image: what lengths and angles come from.

    Pairs in the order of `combinations_with_replacement`, the embedding itself first.
    """

    terms: Int16[np.ndarray, "pair image"]
    scales: Float32[np.ndarray, " pair"]


def find_parts(scan: Scan, model: Model) -> HeadParts:
    """The heads of a scan."""
    groups = [group for group in scan.groups(model) if group.ids[0].kind == "head"]
    readouts = model.tower.compute_readouts(groups)
    means = {group.name: scan.statistics.mean_features(group.name) for group in groups}
    heads = scanned_heads(scan, model)
    return HeadParts(
        heads,
        # As a recipe stores them, so that the desk shows what the recipe gives.
        tuple(means[f"L{head.layer}.heads"][head.head].float().double() for head in heads),
        tuple(readouts[f"L{head.layer}.heads"][head.head].double() for head in heads),
    )


def read_terms(
    parts: HeadParts, features: Features, readings: Float[Tensor, "reading d_embed"]
) -> tuple[Float[Tensor, "reading image"], Float[Tensor, "head reading image"]]:
    """Readings of the unedited embeddings, and what each head adds to them beyond its mean; float64."""
    readings = readings.double()
    # [reading, d_embed] @ [d_embed, k] @ [k, image]
    added = [
        readings @ readout @ varies.T for readout, varies in zip(parts.readouts, parts.vary(features), strict=True)
    ]
    return readings @ features.embedding.double().T, torch.stack(added)


def pack_terms(
    parts: HeadParts, features: Features, readings: Float[Tensor, "reading d_embed"], *, kind: type[np.signedinteger]
) -> Terms:
    """As `read_terms`, in whole numbers of a kind."""
    base, added = read_terms(parts, features, readings)
    whole, scales = _to_steps(added.numpy(), kind)
    return Terms(base.numpy().astype(np.float32), whole, scales)


def pack_lengths(parts: HeadParts, features: Features) -> Lengths:
    """Inner products of all pairs."""
    contributions = [features.embedding.double()]
    contributions += [varies @ readout.T for readout, varies in zip(parts.readouts, parts.vary(features), strict=True)]
    products = [(one * other).sum(1) for one, other in combinations_with_replacement(contributions, 2)]
    return Lengths(*_to_steps(torch.stack(products).numpy(), FINE))


def _to_steps(values: np.ndarray, kind: type[np.signedinteger]) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers and the size of a step, one for every row along the last axis."""
    most = np.iinfo(kind).max
    # What is zero everywhere has no largest value to divide by.
    scales = np.maximum(np.abs(values).max(-1), np.finfo(np.float32).tiny * most) / most
    return np.rint(values / scales[..., None]).astype(kind), scales.astype(np.float32)


def choose_rows(features: Features, most: int) -> Sequence[int]:
    """At most so many images, spread over all."""
    count = len(features.embedding)
    return range(0, count, max(1, -(-count // most)))
