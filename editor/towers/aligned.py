"""An aligned tower: another tower's components, read in the joint space of a CLIP through one map each.

To every later stage it is a tower like any other: the readout of a component is `W_c R_c`, the embedding is
`z^a = sum_c W_c R_c u_c + b`, and contributions and `b` sum to it exactly. Only two things differ.

`z^a` is no linear function of `f`, the last norm's output, because every component has a map of its own. Scores need
the covariance of features with `z^a`, and the distilled refit of the model's own readout needs it with `f`. Both are
kept by letting the scan's `f` be `[f, z^a]`: the "readout" of that is the selection of its second half, so scores are
the same formula as for a CLIP, and the refit takes the first half (`editor/edits/bind.py`). A scan grows by `d_clip`
columns and no stage gains a case. What is divided by `|z|` elsewhere is divided by `|z^a|` here; in the refit that is
only a weight on images.

Edits act on the features of heads, which are the model's own: they are folded by the model's own tower, never by this
one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from ..components import ComponentGroup, Features, TokenReading
from ..errors import ModelError, RecipeError
from .staged.spatial_staged import SpatialStaged
from .tower import Tower
from .vit.spatial_vit import SpatialViT


class AlignedTower:
    """The tower `own`, read through `maps` (by component in its groups' order, or one for all) and `bias`."""

    title = "aligned"
    supports = "any of these after `clipedit align`"

    def __init__(self, own: Tower, maps: Float[Tensor, "map d_clip d_own"], bias: Float[Tensor, " d_clip"]):
        self.own, self.maps, self.bias = own, maps.double(), bias.double()
        self.n_layers, self.heads_per_layer, self.d_head = own.n_layers, own.heads_per_layer, own.d_head
        self.d_embed = len(bias)
        self.d_model = own.d_model + self.d_embed

    @staticmethod
    def refusal(module: object) -> str | None:
        """No module is aligned by itself."""
        return "an aligner makes it, from a tower and maps"

    def groups(self, layers: Sequence[int], *, mlps: bool) -> list[ComponentGroup]:
        """The own tower's."""
        return self.own.groups(layers, mlps=mlps)

    def embed(self, pixels: Float[Tensor, "image 3 height width"]) -> Float[Tensor, "image d_clip"]:
        """`z^a`, unnormalised."""
        return self.collect_features(pixels, []).embedding

    @torch.no_grad()
    def collect_features(
        self, pixels: Float[Tensor, "image 3 height width"], groups: Sequence[ComponentGroup]
    ) -> Features:
        """The own tower's features of these groups; `final` is `[f, z^a]`, `embedding` is `z^a`."""
        # All groups, whichever are wanted: `z^a` is the sum over every component.
        features = self.own.collect_features(pixels, self._all_groups)
        aligned = self.bias.to(features.final).expand(pixels.shape[0], -1)
        for name, readouts in self._aligned_readouts.items():
            # Not in place: `expand` gave a view of one row.
            aligned = aligned + torch.einsum("cek,ick->ie", readouts.to(features.final), features.groups[name])
        wanted = {group.name for group in groups}
        return Features(
            {name: u for name, u in features.groups.items() if name in wanted},
            {name: v for name, v in features.values.items() if name in wanted},
            torch.cat([features.final, aligned], dim=1),
            aligned,
        )

    def compute_readouts(self, groups: Sequence[ComponentGroup]) -> dict[str, Float[Tensor, "component d_clip k"]]:
        """`W_c R_c`, float64."""
        return {group.name: self._aligned_readouts[group.name].double() for group in groups}

    def project_directions(
        self, directions: Float[Tensor, "text d_clip"], layers: Sequence[int]
    ) -> dict[int, Float[Tensor, "head text k"]]:
        """`R_c^T W_c^T t`, float64."""
        readouts = {layer: self._aligned_readouts[f"L{layer}.heads"].double() for layer in layers}
        return {
            layer: torch.einsum("te,hek->htk", directions.double().cpu(), found) for layer, found in readouts.items()
        }

    @torch.no_grad()
    def collect_token_shares(self, pixels: Tensor, seen: Mapping[int, Float[Tensor, "head text k"]]) -> TokenReading:
        """The own tower's, whose values they are shares of; a second forward pass for `z^a`."""
        # This class has the members of `SpatialTower` whatever its own tower is, so the own one is asked.
        if not isinstance(self.own, SpatialStaged | SpatialViT):
            raise ModelError(f"cannot look into an aligned {self.own.title}: it keeps no shares of tokens.")
        return replace(self.own.collect_token_shares(pixels, seen), embedding=self.embed(pixels))

    def constant(self) -> Float[Tensor, " d_clip"]:
        """`b`."""
        return self.bias

    def readout(self) -> Float[Tensor, "d_model d_clip"]:
        """The selection of `z^a` from `[f, z^a]`, float64."""
        kept = torch.zeros(self.d_model, self.d_embed, dtype=torch.float64)
        kept[self.own.d_model :] = torch.eye(self.d_embed, dtype=torch.float64)
        return kept

    def why_not(self, effect: str) -> str | None:
        """As the own tower: edits are made there."""
        return self.own.why_not(effect)

    def fold_readout(self, readout: Tensor, bias: Tensor) -> dict[str, Tensor]:
        """Refused: `z^a` is no output of the checkpoint."""
        raise RecipeError("cannot fold an aligned readout: it is no part of the checkpoint. Edit the model itself.")

    def embed_final(self, final: Tensor, folded: dict[str, Tensor]) -> Tensor:
        """Refused, as `fold_readout`."""
        raise RecipeError("cannot fold an aligned readout: it is no part of the checkpoint. Edit the model itself.")

    def tensor_names(self) -> dict[str, str]:
        """The own tower's, without its output: nothing of the joint space is projected there."""
        return {key: name for key, name in self.own.tensor_names().items() if key.startswith("L")}

    @cached_property
    def _all_groups(self) -> list[ComponentGroup]:
        return self.own.groups(range(self.n_layers), mlps=True)

    @cached_property
    def _aligned_readouts(self) -> dict[str, Tensor]:
        """`W_c R_c` of every component, float32: computed once, the weights of an aligned model are never edited."""
        found, start = {}, 0
        for name, readouts in self.own.compute_readouts(self._all_groups).items():
            # Maps lie in the order of `_all_groups`, component by component.
            maps = self.maps if len(self.maps) == 1 else self.maps[start : start + len(readouts)]
            # [component, d_clip, d_own] @ [component, d_own, k]; one shared map broadcasts.
            found[name] = (maps @ readouts).float()
            start += len(readouts)
        return found
