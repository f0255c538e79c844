"""timm towers in stages (Swin, MaxViT, CoAtNet): the residual stream changes its grid and its width on the way.

A stretch is what lies between two such changes, the junctions. With the sigmas of norms frozen a junction is linear, on
tokens and on channels apart; so what a token of any stretch adds to the embedding is `push[copy] @ write * spread[copy,
token]`, summed over copies. `push` depends on the weights only, `spread` on the image; there is one copy for each way
through the merges of 2 x 2 tokens above. Tokens are contracted with `spread` before anything else: no array of tokens x
channels x components is ever built. The forward pass is the module's own; hooks keep what the wanted components need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ...components import ComponentGroup, ComponentId, Features
from ..vit.pre_norm_vit import text_projection_names
from .staged_end import Recorded, StagedEnd, as_tokens


@runtime_checkable
class Junction(Protocol):
    """Where one stretch becomes the next. `copies` is 4 for a merge, else 1; `inputs`: the modules to be recorded."""

    copies: int
    inputs: tuple[str, ...]

    def push(self, above: Float[Tensor, "copy row wide"]) -> Float[Tensor, "copies row narrow"]:
        """The channel map of the stretch below, from that of the stretch above; row by row."""
        ...

    def spread(
        self, above: Float[Tensor, "image copy height width"], recorded: Recorded
    ) -> Float[Tensor, "image copies height_below width_below"]:
        """The weights of the tokens below, from the weights of the tokens above."""
        ...

    def bias(self) -> Float[Tensor, " wide"] | None:
        """What is added to every token above, whatever comes in."""
        ...


class Source(NamedTuple):
    """A module of the trunk whose output is written to a stretch of the residual stream."""

    stretch: int
    path: str
    channels_last: bool


@dataclass(frozen=True)
class AttentionLayer:
    """An attention layer.

    Attributes:
        stretch: Where it writes.
        projection: Its `W_O`, a linear layer or a 1 x 1 convolution; the input holds the values of all heads, side by
            side.
        slots: For a height and width, the token that each place of `projection`'s input holds; -1 for padding.
        scale: LayerScale of the write, where there is one.
    """

    stretch: int
    n_heads: int
    projection: str
    channels_last: bool
    slots: Callable[[int, int], Int[Tensor, " slot"]]
    scale: str | None = None


@dataclass(frozen=True)
class Plan:
    """A trunk's residual stream. Junction i leads from stretch i to i + 1; `sources`: all writes but attention's."""

    layers: tuple[AttentionLayer, ...]
    junctions: tuple[Junction, ...]
    sources: Mapping[str, Source]


class StagedTower:
    """A tower whose trunk is described by a `Plan`."""

    title: ClassVar[str]
    supports: ClassVar[str]

    def __init__(self, module: nn.Module):
        self.module = module
        self.end = StagedEnd(module)
        self.trunk: Any = self.end.trunk
        self.plan = self._plan()
        self.n_layers = len(self.plan.layers)
        self.heads_per_layer = tuple(layer.n_heads for layer in self.plan.layers)
        self.d_head = self._d_head(self.n_layers - 1)
        self.d_model, self.d_embed = self.end.map.shape

    def _plan(self) -> Plan:
        raise NotImplementedError

    def groups(self, layers: Sequence[int], *, mlps: bool) -> list[ComponentGroup]:
        """Heads and attention bias of layers; with `mlps` also MLPs, convolutions, embedding and junctions' biases."""
        found: list[ComponentGroup] = []
        for layer in layers:
            heads = tuple(ComponentId("head", layer, head) for head in range(self.heads_per_layer[layer]))
            copies, width = self._copies(self.plan.layers[layer].stretch), self._d_head(layer)
            # Far below the top there are 4^m copies: then the contribution itself is the narrower feature.
            wide = copies * width > self.d_embed
            k = self.d_embed if wide else copies * width
            found.append(ComponentGroup(f"L{layer}.heads", heads, k, width, 0 if wide else copies))
            found.append(ComponentGroup(f"L{layer}.bias", (ComponentId("bias", layer),), copies))
        if mlps:
            changes = [f"change{i}" for i, junction in enumerate(self.plan.junctions) if junction.bias() is not None]
            found += [ComponentGroup(name, (_identity(name),), self.d_embed) for name in [*self.plan.sources, *changes]]
        return found

    @torch.no_grad()
    def embed(self, pixels: Float[Tensor, "image 3 height width"]) -> Float[Tensor, "image d_embed"]:
        """The pooled, normalised features, through the final projection where there is one."""
        return self.end.project(self.end.pool(self.trunk.forward_features(self._cast(pixels))))

    @torch.no_grad()
    def collect_features(
        self, pixels: Float[Tensor, "image 3 height width"], groups: Sequence[ComponentGroup]
    ) -> Features:
        """One forward pass of the module itself, in its own dtype; tokens are contracted when it is over."""
        with recording(self.trunk, self._inputs(groups), self._outputs(groups)) as recorded:
            final = self.end.pool(self.trunk.forward_features(self._cast(pixels)))
        # Spreads and pushes go from the top down; below the lowest wanted stretch none is needed.
        lowest = min((self._stretch(group) for group in groups), default=len(self.plan.junctions))
        spreads, pushes = self._spreads(recorded, lowest), self._pushes(lowest, final.dtype)
        features: dict[str, Tensor] = {}
        values: dict[str, Tensor] = {}
        for group in groups:
            name, kind, stretch = group.name, group.ids[0].kind, self._stretch(group)
            spread, push = spreads[stretch], pushes[stretch]
            if kind == "head":
                features[name], values[name] = self._head_features(group, recorded, spread, push)
            elif kind == "bias":
                # [image, 1, copy]: the same bias at every token.
                features[name] = spread.sum((2, 3))[:, None]
            elif name in self.plan.sources:
                source = self.plan.sources[name]
                # [image, copy, token] @ [image, token, channel]
                written = spread.flatten(2) @ as_tokens(recorded[source.path], source.channels_last)
                features[name] = torch.einsum("ixc,xec->ie", written, push)[:, None]
            else:
                # [copy, d_embed]: like attention's bias, it is the same at every token.
                uniform = push @ self._change_bias(name).to(push.dtype)
                features[name] = (spread.sum((2, 3)) @ uniform)[:, None]
        return Features(features, values, final, self.end.project(final))

    @torch.no_grad()
    def compute_readouts(self, groups: Sequence[ComponentGroup]) -> dict[str, Float[Tensor, "component d_embed k"]]:
        """`push[copy] @ W_O[h]` a head, `push[copy] @ b_O` a bias, copy by copy (LayerScale folded in), else the
        identity.
        """
        found: dict[str, Tensor] = {}
        pushes = self._pushes(min((self._stretch(group) for group in groups), default=0), torch.float64)
        for group in groups:
            kind, layer = group.ids[0].kind, group.ids[0].layer
            if kind not in ("head", "bias") or (kind == "head" and group.copies == 0):
                found[group.name] = torch.eye(self.d_embed, dtype=torch.float64).repeat(len(group.ids), 1, 1)
                continue
            weight, bias = self._projection(layer, torch.float64)
            push = pushes[self._stretch(group)] * self._scale(layer, torch.float64)
            if kind == "bias":
                # [copy, d_embed] -> [1, d_embed, copy]
                found[group.name] = (push @ bias).T[None]
            else:
                # [head, d_embed, copy, d_head] -> [head, d_embed, copy * d_head]
                found[group.name] = torch.einsum("xec,chk->hexk", push, weight).flatten(2)
        return {name: readout.cpu() for name, readout in found.items()}

    def constant(self) -> Float[Tensor, " d_embed"]:
        """The last norm's bias, read out, and the projection's."""
        return self.end.constant()

    def readout(self) -> Float[Tensor, "d_model d_embed"]:
        """The final projection, or the identity, float64."""
        return self.end.readout()

    def why_not(self, effect: str) -> str | None:
        """`distilled` needs a final linear map or a classifier."""
        return self.end.map.why_not_distilled() if effect == "distilled" else None

    def fold_readout(
        self, readout: Float[Tensor, "d_model d_embed"], bias: Float[Tensor, " d_embed"]
    ) -> dict[str, Tensor]:
        """The final linear map, or the classifier."""
        return self.end.map.fold(readout, bias)

    def embed_final(
        self, final: Float[Tensor, "image d_model"], folded: Mapping[str, Tensor]
    ) -> Float[Tensor, "image d_embed"]:
        """The embedding under the folded map; of a classifier, what its new logits stand for."""
        return self.end.map.embed(final, folded)

    def tensor_names(self) -> dict[str, str]:
        """`attn.proj` of every layer, and the projections of images and texts to the joint space."""
        names = {**self.end.map.names(), **text_projection_names(self.module)}
        for index, layer in enumerate(self.plan.layers):
            for leaf in ("weight", "bias"):
                names[f"L{index}.{leaf}"] = f"{self.end.prefix}{layer.projection}.{leaf}"
        return names

    def _cast(self, pixels: Tensor) -> Tensor:
        return pixels.to(next(self.trunk.parameters()).dtype)

    def _copies(self, stretch: int) -> int:
        copies = 1
        for junction in self.plan.junctions[stretch:]:
            copies *= junction.copies
        return copies

    def _d_head(self, layer: int) -> int:
        projection = self.trunk.get_submodule(self.plan.layers[layer].projection)
        return projection.weight.shape[1] // self.plan.layers[layer].n_heads

    def _stretch(self, group: ComponentGroup) -> int:
        if group.ids[0].layer >= 0 and group.ids[0].kind != "mlp":
            return self.plan.layers[group.ids[0].layer].stretch
        if group.name in self.plan.sources:
            return self.plan.sources[group.name].stretch
        # A junction's bias is written to the stretch above it.
        return int(group.name.removeprefix("change")) + 1

    def _inputs(self, groups: Sequence[ComponentGroup]) -> set[str]:
        heads = [self.plan.layers[group.ids[0].layer].projection for group in groups if group.ids[0].kind == "head"]
        return {*self.end.inputs, *heads, *(path for junction in self.plan.junctions for path in junction.inputs)}

    def _outputs(self, groups: Sequence[ComponentGroup]) -> set[str]:
        return {self.plan.sources[group.name].path for group in groups if group.name in self.plan.sources}

    def _spreads(self, recorded: Recorded, lowest: int) -> dict[int, Float[Tensor, "image copy height width"]]:
        found = {len(self.plan.junctions): self.end.spread(recorded)}
        for stretch in reversed(range(lowest, len(self.plan.junctions))):
            found[stretch] = self.plan.junctions[stretch].spread(found[stretch + 1], recorded)
        return found

    def _pushes(
        self, lowest: int, dtype: torch.dtype, directions: Float[Tensor, "text d_embed"] | None = None
    ) -> dict[int, Float[Tensor, "copy row channel"]]:
        """The channel map of every stretch; with directions, what they become in its channels instead."""
        # [1, d_embed, channel], the one copy of the top
        top = self.end.push(dtype)
        found = {len(self.plan.junctions): top if directions is None else directions.to(top) @ top}
        for stretch in reversed(range(lowest, len(self.plan.junctions))):
            found[stretch] = self.plan.junctions[stretch].push(found[stretch + 1])
        return found

    def _projection(
        self, layer: int, dtype: torch.dtype
    ) -> tuple[Float[Tensor, "channel head d_head"], Float[Tensor, " channel"]]:
        projection = self.trunk.get_submodule(self.plan.layers[layer].projection)
        # Flattened first, since some projections are 1 x 1 convolutions.
        heads = projection.weight.flatten(1).unflatten(1, (self.heads_per_layer[layer], -1))
        return heads.to(dtype), projection.bias.to(dtype)

    def _scale(self, layer: int, dtype: torch.dtype) -> Float[Tensor, " channel"] | float:
        scale = self.plan.layers[layer].scale
        return 1.0 if scale is None else self.trunk.get_submodule(scale).gamma.to(dtype)

    def _change_bias(self, name: str) -> Float[Tensor, " channel"]:
        bias = self.plan.junctions[int(name.removeprefix("change"))].bias()
        assert bias is not None
        return bias

    def _head_features(
        self,
        group: ComponentGroup,
        recorded: Recorded,
        spread: Float[Tensor, "image copy height width"],
        push: Float[Tensor, "copy d_embed channel"],
    ) -> tuple[Float[Tensor, "image head k"], Float[Tensor, "image head d_head"]]:
        """`u` (copy by copy, or the contribution where that is narrower), and `v` averaged over the tokens."""
        index = group.ids[0].layer
        layer = self.plan.layers[index]
        # [image x window, slot, channel] -> [image, slot, channel], as the module has them
        held = as_tokens(recorded[layer.projection], layer.channels_last)
        held = held.reshape(spread.shape[0], -1, held.shape[-1])
        tokens = spread.shape[2] * spread.shape[3]
        # The mean over tokens goes along as one more copy: one product gives `u` and `v`.
        mean = spread.new_full((spread.shape[0], 1, tokens), 1 / tokens)
        # Padding has slot -1, which picks the zero that is appended here.
        weights = F.pad(torch.cat([spread.flatten(2), mean], dim=1), (0, 1))
        slots = layer.slots(*spread.shape[2:]).to(weights.device)
        # [image, copy + 1, head, d_head]
        contracted = (weights[:, :, slots] @ held).unflatten(2, (layer.n_heads, -1))
        copies, value = contracted[:, :-1], contracted[:, -1]
        if group.copies:
            # [image, copy, head, d_head] -> [image, head, copy * d_head]
            return copies.transpose(1, 2).flatten(2), value
        weight, _ = self._projection(index, push.dtype)
        written = torch.einsum("ixhk,chk->ixhc", copies, weight)
        # LayerScale is in the features here, because these groups have the identity as readout.
        return torch.einsum("ixhc,xec->ihe", written, push * self._scale(index, push.dtype)), value


def _identity(name: str) -> ComponentId:
    return ComponentId("mlp", int(name[1:].removesuffix(".mlp"))) if name.endswith(".mlp") else ComponentId(name)


@contextmanager
def recording(trunk: nn.Module, inputs: Iterable[str], outputs: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Keep what goes into some modules and what comes out of others while the trunk runs."""
    kept: dict[str, Tensor] = {}

    def keep_input(path: str) -> Callable[[nn.Module, Any], None]:
        return lambda _, given: kept.__setitem__(path, given[0])

    def keep_output(path: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda _, __, result: kept.__setitem__(path, result)

    handles = [trunk.get_submodule(path).register_forward_pre_hook(keep_input(path)) for path in inputs]
    handles += [trunk.get_submodule(path).register_forward_hook(keep_output(path)) for path in outputs]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()
