"""Where a staged trunk ends: last norm, average pooling, and what follows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from timm.layers.classifier import NormMlpClassifierHead
from torch import Tensor, nn

from ..ends.final_map import FinalMap
from ..ends.timm_trunk import find_trunk

Recorded = Mapping[str, Tensor]


def as_tokens(given: Tensor, channels_last: bool) -> Float[Tensor, "image token channel"]:
    """A feature map as a list of tokens, row by row; a list stays as it is."""
    if given.ndim == 3:
        return given
    return given.flatten(1, 2) if channels_last else given.flatten(2).transpose(1, 2)


class StagedEnd:
    """The end of a trunk, bare or in an open_clip model.

    Bare, the embedding is the pooled normalised vector, and a classifier reads it; in an open_clip model a linear map
    to the joint space follows. The `_tf` models of MaxViT pool first, and their head goes on with a `tanh`: it comes
    behind the embedding.
    """

    def __init__(self, module: nn.Module):
        self.trunk, self.prefix = find_trunk(module)
        self.pools_first = isinstance(self.trunk.head, NormMlpClassifierHead)
        self._norm_path = "head.norm" if self.pools_first else "norm"
        self.norm: Any = self.trunk.get_submodule(self._norm_path)
        self.inputs = (self._norm_path, "head.global_pool")
        self._channels_last = getattr(self.trunk, "output_fmt", "NCHW") == "NHWC"
        self.map = self._find_map(module)

    def _find_map(self, module: Any) -> FinalMap:
        width, own = self.trunk.num_features, isinstance(self.trunk.head.fc, nn.Linear)
        if not self.prefix:
            return FinalMap(module, width, classifier="head.fc" if own and not self.pools_first else None)
        linear = f"{self.prefix}head.fc" if own else "visual.head.proj"
        return FinalMap(module, width, linear=linear, shift=f"{self.prefix}{self._norm_path}.bias")

    @staticmethod
    def refusal(module: nn.Module) -> str | None:
        """Why the end of a trunk cannot be read, or None if it can."""
        trunk: Any = find_trunk(module)[0]
        if trunk.head.global_pool.pool_type not in ("avg", "fast", "fastavg"):
            return f"it pools by {trunk.head.global_pool.pool_type!r}"
        pools_first = isinstance(trunk.head, NormMlpClassifierHead)
        if not isinstance(trunk.head.norm if pools_first else trunk.norm, nn.LayerNorm):
            return "its last norm is no LayerNorm"
        if trunk is module:
            return None
        if pools_first:
            return "a tanh stands between its last norm and the projection"
        visual: Any = module.visual
        linear = isinstance(trunk.head.fc, nn.Linear) or isinstance(getattr(visual.head, "proj", None), nn.Linear)
        return None if linear else "no linear projection follows the trunk"

    def pool(self, features: Tensor) -> Float[Tensor, "image d_model"]:
        """`f`: what `forward_features` gives, pooled, and normalised where the trunk has not done it."""
        pooled = self.trunk.head.global_pool(features)
        return self.map.extend((self.norm(pooled) if self.pools_first else pooled).flatten(1))

    def project(self, final: Float[Tensor, "image d_model"]) -> Float[Tensor, "image d_embed"]:
        """`z` from `f`."""
        return final if self.map.linear is None else self.map.project(final)

    def spread(self, recorded: Recorded) -> Float[Tensor, "image 1 height width"]:
        """`1 / (tokens * sigma)`; sigma of each token, or of their mean where the norm comes after the pool."""
        pooled, normed = recorded["head.global_pool"], recorded[self._norm_path]
        height, width = pooled.shape[1:3] if self._channels_last else pooled.shape[2:4]
        # [image, height, width]; [image, 1, 1] where the pool comes first. LayerNorm divides by the biased variance.
        sigma = (normed.var(-1 if self._channels_last else 1, correction=0) + self.norm.eps).sqrt()
        return (1 / (height * width * sigma))[:, None].expand(-1, 1, height, width)

    def push(self, dtype: torch.dtype) -> Float[Tensor, "1 d_embed width"]:
        """`P^T diag(gamma) C`."""
        push = self.readout()[: self.map.width].T.to(self.norm.weight.device, dtype) * self.norm.weight.detach().to(
            dtype
        )
        # `C` is symmetric: centring the rows is the product with it.
        return (push - push.mean(1, keepdim=True))[None]

    def readout(self) -> Float[Tensor, "d_model d_embed"]:
        """`P`, float64."""
        return self.map.readout()

    def constant(self) -> Float[Tensor, " d_embed"]:
        """`P^T beta`, and the bias of the final map, float64."""
        return self.readout().T @ self.map.extend(self.norm.bias.detach().double().cpu()[None])[0]
