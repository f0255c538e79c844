"""Components: the parts an embedding is a sum of.

A tower writes every embedding as a sum of components, `contribution = R @ u`: features `u` that depend on the image and
a readout `R` that depends on the weights only. Components with features of equal width are kept together in a group, so
that every later stage is a batched matrix product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from .identities import ComponentId, HeadId  # noqa: F401  both are known by this module's name


@dataclass(frozen=True)
class ComponentGroup:
    """Components of one kind and layer, whose features share the width `k`. `name` is the key used in scans.

    Attributes:
        d_head: For groups of heads, the width of their values `v`; 0 for others.
        copies: How many ways a head's value takes to the readout (heads of an attention pool, tokens that a later layer
            merges): `k = copies * d_head`, copy by copy. 0 where that would be wider than the embedding and the
            features are the contribution itself: `k = d_embed`, `R = I`.
    """

    name: str
    ids: tuple[ComponentId, ...]
    k: int
    d_head: int = 0
    copies: int = 1


@dataclass(frozen=True)
class Features:
    """What a tower collects from one batch, at the readout.

    Attributes:
        groups: Features `u` a group, divided by the frozen sigma of the last norm, so that `R @ u` is the contribution.
        values: For groups of heads, `v`: the heads' outputs at the readout token before `W_O`, not divided by sigma;
            the mean over the tokens where several are pooled.
        final: `f`, the last norm's output (pooled), gain and bias included; `P.T @ f` is the embedding.
        embedding: `z`, unnormalised.
    """

    groups: Mapping[str, Float[Tensor, "image component k"]]
    values: Mapping[str, Float[Tensor, "image head d_head"]]
    final: Float[Tensor, "image d_model"]
    embedding: Float[Tensor, "image d_embed"]


def take_rows(features: Features, rows: Tensor) -> Features:
    """The features of some images of a batch: positions, or a mask with one entry per image."""
    return Features(
        {name: tensor[rows] for name, tensor in features.groups.items()},
        {name: tensor[rows] for name, tensor in features.values.items()},
        features.final[rows],
        features.embedding[rows],
    )


@dataclass(frozen=True)
class TokenReading:
    """What the heads of some layers took from each token of a batch's images.

    Attributes:
        shares: By layer, `[image, head, token, text]`: over all tokens, also those without a place on the image (class
            token, registers, padding), they sum to what the head's features say about each text.
        grid: Rows and columns of the tokens that lie on the image: the last ones, row by row, the same for all layers.
        embedding: `z`, unnormalised.
    """

    shares: Mapping[int, Float[Tensor, "image head token text"]]
    grid: tuple[int, int]
    embedding: Float[Tensor, "image d_embed"]


@dataclass(frozen=True)
class Decomposition:
    """Contributions of every component to the embeddings of a batch; they and the constant sum to the embedding."""

    components: Sequence[ComponentId]
    contributions: Float[Tensor, "image component d_embed"]
    constant: Float[Tensor, " d_embed"]
    embedding: Float[Tensor, "image d_embed"]
