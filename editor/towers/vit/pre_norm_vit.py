"""What pre-norm vision transformers share: residual blocks; only readout tokens matter after the last attention.

A tower of this kind says how tokens are embedded, how a block attends, and where its weights are; the end of the model
is a `Readout`. The forward pass is written over the module's own parameters: the value of each head is a by-product of
attention. `tests/fast/test_families.py` holds it to the module's own code within 1e-5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...components import ComponentGroup, ComponentId, Features
from ..ends.norms import FrozenNorm
from ..ends.readout import FrozenReadout, Readout


@dataclass(frozen=True)
class BlockWeights:
    """Where a block's attention writes to the stream.

    Attributes:
        output: `W_O` and `b_O`.
        scale: LayerScale, if there is one.
        inner: A norm over all heads at once, before `W_O` (EVA02); none in most models.
        norm, mlp, mlp_scale: The second half of the block.
    """

    output: nn.Linear
    scale: Tensor | None
    inner: FrozenNorm
    norm: nn.Module
    mlp: nn.Module
    mlp_scale: Tensor | None

    def write(self, values: Float[Tensor, "image token head d_head"]) -> Float[Tensor, "image token d_model"]:
        """What the heads add to the stream."""
        return _scaled(self.output(self.inner.module(values.flatten(2))), self.scale)

    def write_mlp(self, stream: Float[Tensor, "image token d_model"]) -> Float[Tensor, "image token d_model"]:
        """What the MLP adds to the stream."""
        return _scaled(self.mlp(self.norm(stream)), self.mlp_scale)

    def matrix(self) -> Float[Tensor, "d_model attention"]:
        """`W_O` with LayerScale and the inner norm in it, float64."""
        # The inner norm acts on columns (what goes in), LayerScale on rows (what comes out).
        weight = self.inner.push(self.output.weight.detach().double().cpu())
        return weight if self.scale is None else weight * self.scale.detach().double().cpu()[:, None]

    def bias(self) -> Float[Tensor, " d_model"]:
        """`b_O`, and what the inner norm's bias adds to it, float64."""
        weight = self.output.weight.detach().double().cpu()
        total = weight @ self.inner.bias(weight.shape[1])
        total = total if self.output.bias is None else total + self.output.bias.detach().double().cpu()
        return total if self.scale is None else total * self.scale.detach().double().cpu()


class PreNormViT:
    """The members of `Tower` that do not depend on the architecture."""

    module: nn.Module
    blocks: Sequence[Any]
    out: Readout

    def __init__(self, module: nn.Module, blocks: Sequence[Any], out: Readout, *, d_head: int):
        self.module, self.blocks, self.out = module, blocks, out
        self.n_layers, self.d_head = len(blocks), d_head
        # What goes into `W_O`: all heads side by side.
        width = self._block(0).output.in_features
        self.heads_per_layer = (width // d_head,) * self.n_layers
        self.d_model, self.d_embed = out.final.shape

    def _embed_tokens(self, pixels: Tensor) -> tuple[Float[Tensor, "image token d_model"], Sequence[Tensor | None]]:
        """The first stream, and the rotations of each layer's queries and keys."""
        raise NotImplementedError

    def _head_values(
        self,
        block: Any,
        stream: Float[Tensor, "image token d_model"],
        *,
        queries: slice,
        rotation: Tensor | None = None,
    ) -> Float[Tensor, "image query head d_head"]:
        raise NotImplementedError

    def _block(self, layer: int) -> BlockWeights:
        raise NotImplementedError

    def _output_name(self, layer: int) -> str:
        raise NotImplementedError

    def groups(self, layers: Sequence[int], *, mlps: bool) -> list[ComponentGroup]:
        """Heads and attention bias of the given layers; with `mlps` every layer's MLP, the embedding and the pool's
        own.
        """
        found: list[ComponentGroup] = []
        copies = self.out.copies
        for layer in layers:
            heads = tuple(ComponentId("head", layer, head) for head in range(self.heads_per_layer[layer]))
            found.append(ComponentGroup(f"L{layer}.heads", heads, copies * self.d_head, self.d_head, copies))
            found.append(ComponentGroup(f"L{layer}.bias", (ComponentId("bias", layer),), copies))
        if mlps:
            found += [ComponentGroup(f"L{i}.mlp", (ComponentId("mlp", i),), self.d_embed) for i in range(self.n_layers)]
            found.append(ComponentGroup("embedding", (ComponentId("embedding"),), self.d_embed))
            found += self.out.groups()
        return found

    @torch.no_grad()
    def collect_features(self, pixels: Tensor, groups: Sequence[ComponentGroup]) -> Features:
        """One forward pass over pixels (or tokens), in the module's own dtype, that keeps what components need."""
        wanted = {group.name for group in groups}
        tokens = self.out.tokens
        kept: dict[str, Tensor] = {}
        dtype = next(self.module.parameters()).dtype
        # A text tower is given token ids, which stay whole numbers.
        stream, rotations = self._embed_tokens(pixels.to(dtype) if pixels.is_floating_point() else pixels)
        if "embedding" in wanted:
            kept["embedding"] = stream[:, tokens]
        for layer, block in enumerate(self.blocks):
            # After the last attention only the readout tokens matter; CLS pooling leaves one of them.
            last = layer == self.n_layers - 1
            weights = self._block(layer)
            values = self._head_values(
                block, stream, queries=tokens if last else slice(None), rotation=rotations[layer]
            )
            # The last layer's stream holds nothing but readout tokens: it must not be cut again.
            read = slice(None) if last else tokens
            if f"L{layer}.heads" in wanted:
                # A sigma inside attention is frozen too, so it divides the features; its gain is in `R`.
                inner = weights.inner.sigma(values[:, read].flatten(2))
                # [image, read, head, d_head] / [image, read, 1, 1]
                kept[f"L{layer}.heads"] = values[:, read] / inner[..., None, None]
            stream = (stream[:, tokens] if last else stream) + weights.write(values)
            mlp = weights.write_mlp(stream)
            if f"L{layer}.mlp" in wanted:
                kept[f"L{layer}.mlp"] = mlp[:, read]
            stream = stream + mlp
        return self._read_out(self.out.read(stream), kept, groups)

    def compute_readouts(self, groups: Sequence[ComponentGroup]) -> dict[str, Float[Tensor, "component d_embed k"]]:
        """`left[p] right[p] W_O[h]` a head, of `b_O` a bias (LayerScale folded in), else the identity."""
        return {group.name: self._readout_of(group).detach() for group in groups}

    def constant(self) -> Float[Tensor, " d_embed"]:
        """The last norm's bias, read out, or the pool's."""
        return self.out.constant()

    def readout(self) -> Float[Tensor, "d_model d_embed"]:
        """`P`, float64; the identity without a final linear map."""
        return self.out.final.readout()

    def why_not(self, effect: str) -> str | None:
        """`distilled` needs a final linear map; `total` heads that only `W_O` reads, and a bias for their means."""
        if effect == "distilled":
            return self.out.final.why_not_distilled()
        blocks = [self._block(layer) for layer in range(self.n_layers)] if effect == "total" else []
        if any(not block.inner.is_identity for block in blocks):
            return "a norm across heads inside attention lets every head see the change"
        if any(block.output.bias is None for block in blocks):
            return "its attention has no output bias to hold the heads' means"
        return None

    def fold_readout(
        self, readout: Float[Tensor, "d_model d_embed"], bias: Float[Tensor, " d_embed"]
    ) -> dict[str, Tensor]:
        """As `FinalMap.fold`."""
        return self.out.final.fold(readout, bias)

    def embed_final(
        self, final: Float[Tensor, "image d_model"], folded: Mapping[str, Tensor]
    ) -> Float[Tensor, "image d_embed"]:
        """As `FinalMap.embed`."""
        return self.out.final.embed(final, folded)

    def tensor_names(self) -> dict[str, str]:
        """The output projection of every layer, the final map and the text tower's."""
        names = {**self.out.final.names(), **text_projection_names(self.module)}
        for layer in range(self.n_layers):
            for leaf in ("weight", "bias"):
                names[f"L{layer}.{leaf}"] = f"{self._output_name(layer)}.{leaf}"
        return names

    def _readout_of(self, group: ComponentGroup) -> Float[Tensor, "component d_embed k"]:
        kind, layer = group.ids[0].kind, group.ids[0].layer
        if kind == "head":
            pushed = self.out.push(self._block(layer).matrix())
            # [copy, d_embed, head * d_head] -> [head, d_embed, copy * d_head]
            return pushed.unflatten(2, (-1, self.d_head)).permute(2, 1, 0, 3).flatten(2)
        if kind == "bias":
            # [copy, d_embed, 1] -> [1, d_embed, copy]
            return self.out.push(self._block(layer).bias()[:, None])[:, :, 0].T[None]
        return self.out.pool_bias()[None] if kind == "pool.bias" else torch.eye(self.d_embed).double()[None]

    def _read_out(self, frozen: FrozenReadout, kept: dict[str, Tensor], groups: Sequence[ComponentGroup]) -> Features:
        features: dict[str, Tensor] = {}
        values: dict[str, Tensor] = {}
        for group in groups:
            kind = group.ids[0].kind
            if kind == "head":
                # Popped, so that a layer's tokens are freed once they are contracted.
                v = kept.pop(group.name)
                # [image, head, copy, d_head] -> [image, head, copy * d_head]
                features[group.name] = torch.einsum("ipn,inhk->ihpk", frozen.weights, v).flatten(2)
                # `total` edits keep this mean. With an inner norm it is not that of `v`, but `total` is refused there.
                values[group.name] = v.mean(1)
            elif kind == "bias":
                # [image, 1, copy]: the bias is the same at every token, so its feature is the sum of weights.
                features[group.name] = frozen.weights.sum(2)[:, None]
            elif group.name in kept:
                features[group.name] = self.out.push_features(kept.pop(group.name), frozen)[:, None]
            else:
                features[group.name] = self.out.pool_features(group.name, frozen)
        return Features(features, values, frozen.final, self.out.final.project(frozen.final))


def text_projection_names(module: nn.Module) -> dict[str, str]:
    """`texts`, or `texts.weight` and `texts.bias`: the last map of the text tower, if it is a plain one."""
    for prefix, owner in (("", module), ("text.", getattr(module, "text", None))):
        projection = getattr(owner, "text_projection", None)
        if isinstance(projection, nn.Parameter):
            return {"texts": f"{prefix}text_projection"}
        if isinstance(projection, nn.Linear):
            leaves = ("weight",) if projection.bias is None else ("weight", "bias")
            return {f"texts.{leaf}": f"{prefix}text_projection.{leaf}" for leaf in leaves}
    return {}


def _scaled(write: Tensor, scale: Tensor | None) -> Tensor:
    return write if scale is None else write * scale
