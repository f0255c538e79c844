"""decompose: a batch's embeddings as the sum of what each component contributed."""

from __future__ import annotations

import torch
from torch import Tensor

from ..components import Decomposition
from ..errors import require_kinds
from .model import Model


@torch.no_grad()
def decompose(model: Model, pixels: Tensor) -> Decomposition:
    """Every component's contribution to the embeddings of a batch of pixels `[image, 3, height, width]`, or of tokens.

    Contributions and the constant sum to `model.encode_image(pixels)`; in the joint space, unnormalised. The array has
    `image x component x d_embed` numbers: for many images use `scan`.
    """
    require_kinds("decompose embeddings", model=(model, Model))
    groups = model.tower.groups(range(model.tower.n_layers), mlps=True)
    features = model.tower.collect_features(pixels.to(model.device), groups)
    readouts = model.tower.compute_readouts(groups)
    parts = [
        # [component, d_embed, k], [image, component, k] -> [image, component, d_embed]
        torch.einsum("cek,ick->ice", readouts[group.name].to(features.final), features.groups[group.name])
        for group in groups
    ]
    return Decomposition(
        components=[identity for group in groups for identity in group.ids],
        contributions=torch.cat(parts, dim=1),
        constant=model.tower.constant().to(features.final),
        embedding=features.embedding,
    )
