"""What excites a head: the images that it takes most of towards its first text, and where on them it looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ...editor.components import Features, HeadId
from ...editor.concepts.queries import encode_queries
from ...editor.concepts.textspan import HeadLabel
from ...editor.look.spatial import compute_seen, compute_token_shares
from ...editor.models.model import Model

SHOWN, IMAGES_PER_BATCH = 4, 8


def encode_first_texts(
    model: Model, labels: Mapping[str, Sequence[HeadLabel]], heads: Sequence[HeadId]
) -> dict[HeadId, Float[Tensor, "1 d_embed"]]:
    """The first text of each head that has any: a head that never varies has none."""
    named = [head for head in heads if labels[str(head)]]
    if not named:
        return {}
    embedded = encode_queries(model, [labels[str(head)][0].text for head in named])
    return dict(zip(named, embedded.split(1), strict=True))


def project_texts(model: Model, texts: Mapping[HeadId, Tensor]) -> dict[HeadId, Float[Tensor, "text k"]]:
    """`R^T t` of each head and its own text."""
    return {head: compute_seen(model, text, [head])[head.layer][head.head] for head, text in texts.items()}


def find_exciting(features: Features, head: HeadId, seen: Float[Tensor, " k"]) -> list[tuple[int, float]]:
    """Positions of the images with the largest part of the cosine, and that part."""
    u = features.groups[f"L{head.layer}.heads"][:, head.head].double()
    # [image, k] @ [k] over |z|: the head's part of the cosine to its text.
    strength = u @ seen / features.embedding.double().norm(dim=1)
    best = strength.topk(min(SHOWN, len(strength)))
    return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))


def see_heads(
    model: Model, pixels: Float[Tensor, "image 3 height width"], queries: Mapping[HeadId, Float[Tensor, "text k"]]
) -> Float[Tensor, "image head row column text"]:
    """Every head towards its own texts, in one forward pass: parts of the cosine."""
    heads = list(queries)
    seen = {}
    for head, query in queries.items():
        # Zeros for the layer's other heads, which are not looked at.
        empty = torch.zeros(model.tower.heads_per_layer[head.layer], *query.shape, dtype=torch.float64)
        seen.setdefault(head.layer, empty)[head.head] = query
    # One per text, and empty: the queries say what to look for.
    nothing = torch.zeros(len(queries[heads[0]]), model.tower.d_embed)
    return compute_token_shares(model, pixels, nothing, heads=heads, seen=seen).on_image()
