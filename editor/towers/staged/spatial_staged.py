"""Staged towers that can also say what each head took from each token.

With its weights frozen, attention is linear in the values; so the share of one token is its value times the gradient of
`seen . u` in that value. The attention modules of the wanted layers run once more on what they were given in the
forward pass, and are differentiated between their output projection and their values: relative positions, shifted
windows and masks need no code here. Tokens are contracted first: nothing is wider than the values themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from ...components import TokenReading
from .staged import AttentionLayer, StagedTower, recording
from .staged_end import as_tokens


class Call(NamedTuple):
    """What a module was called with."""

    given: tuple[Any, ...]
    named: dict[str, Any]

    def copied(self) -> Call:
        """The same call on copies of its tensors."""
        return Call(tuple(map(_copy, self.given)), {name: _copy(value) for name, value in self.named.items()})


class SpatialStaged(StagedTower):
    """Adds the members of `SpatialTower` to a staged tower."""

    def project_directions(
        self, directions: Float[Tensor, "text d_embed"], layers: Sequence[int]
    ) -> dict[int, Float[Tensor, "head text k"]]:
        """`R^T t` of every head of some layers, float64; `t` itself where a head's features are its contribution."""
        directions = directions.double().cpu()
        lowest = min((self.plan.layers[layer].stretch for layer in layers), default=len(self.plan.junctions))
        pushes = self._pushes(lowest, torch.float64, directions)
        found = {}
        for layer, group in zip(layers, self._head_groups(layers), strict=True):
            if not group.copies:
                # Features are the contribution itself there, so `R = I`.
                found[layer] = directions.expand(len(group.ids), -1, -1)
                continue
            weight, _ = self._projection(layer, torch.float64)
            push = pushes[self.plan.layers[layer].stretch] * self._scale(layer, torch.float64)
            # [head, text, copy, d_head] -> [head, text, copy * d_head]
            found[layer] = torch.einsum("xtc,chk->htxk", push.to(weight.device), weight).flatten(2).detach().cpu()
        return found

    @torch.no_grad()
    def collect_token_shares(self, pixels: Tensor, seen: Mapping[int, Float[Tensor, "head text k"]]) -> TokenReading:
        """One forward pass over pixels `[image, 3, height, width]`, and the attention of the wanted layers once more.

        Layers of a coarser grid are spread over the finest one, each share in equal parts; what attention took from
        padding has no place and comes first.
        """
        modules = {layer: self.plan.layers[layer].projection.removesuffix(".proj") for layer in seen}
        with recording(self.trunk, self._inputs([]), ()) as recorded, _calls(self.trunk, modules.values()) as calls:
            final = self.end.pool(self.trunk.forward_features(self._cast(pixels)))
        lowest = min((self.plan.layers[layer].stretch for layer in seen), default=len(self.plan.junctions))
        spreads, pushes = self._spreads(recorded, lowest), self._pushes(lowest, final.dtype)
        found, grids = {}, {}
        for layer, vectors in seen.items():
            plan = self.plan.layers[layer]
            spread = spreads[plan.stretch]
            asked = self._ask(layer, vectors.to(final), pushes[plan.stretch])
            attention: Any = self.trunk.get_submodule(modules[layer])
            found[layer] = _share_tokens(plan, attention, calls[modules[layer]], spread, asked)
            grids[layer] = (spread.shape[2], spread.shape[3])
        finest = max(grids.values(), default=(1, 1))
        shares = {layer: _place(part, grids[layer], finest) for layer, part in found.items()}
        return TokenReading(shares, finest, self.end.project(final))

    def _head_groups(self, layers: Sequence[int]) -> list[Any]:
        return [group for group in self.groups(layers, mlps=False) if group.ids[0].kind == "head"]

    def _ask(
        self, layer: int, vectors: Float[Tensor, "head text k"], push: Float[Tensor, "copy d_embed channel"]
    ) -> Float[Tensor, "copy head text d_head"]:
        """What is asked of the values, one a copy."""
        (group,) = self._head_groups([layer])
        if group.copies:
            # [head, text, copy * d_head] -> [copy, head, text, d_head]
            return vectors.unflatten(2, (group.copies, group.d_head)).permute(2, 0, 1, 3)
        weight, _ = self._projection(layer, push.dtype)
        # Features are contributions there: directions of the joint space still have to come down.
        pushed = torch.einsum("hte,xec->xhtc", vectors, push * self._scale(layer, push.dtype))
        return torch.einsum("xhtc,chk->xhtk", pushed, weight)


def _share_tokens(
    layer: AttentionLayer,
    attention: Any,
    call: Call,
    spread: Float[Tensor, "image copy height width"],
    asked: Float[Tensor, "copy head text d_head"],
) -> Float[Tensor, "image head token text"]:
    """The shares of padding, which is the first token, and of every token of the layer's grid."""
    # A caller's inference mode would leave nothing to differentiate; its tensors count only once copied out of it.
    with torch.inference_mode(False), torch.enable_grad():
        projected, held = _attend_again(attention, call.copied())
        # [image x window, slot, channel] -> [image, slot, channel]
        held = as_tokens(held, layer.channels_last)
        held = held.reshape(spread.shape[0], -1, held.shape[-1])
    slots = layer.slots(*spread.shape[2:]).to(held.device)
    # Padding has slot -1, which picks the zero that is appended here.
    weights = F.pad(spread.flatten(2), (0, 1))[:, :, slots]
    values = _values(projected.detach(), attention, layer)
    found = []
    for text in asked.unbind(2):
        # [image, slot, head * d_head], as `held`
        wanted = torch.einsum("ixs,xhk->ishk", weights, text).flatten(2)
        # One backward pass a text, all through one graph.
        (gradient,) = torch.autograd.grad(held, projected, wanted, retain_graph=True)
        # Attention counts as frozen, so the gradient in queries and keys is left aside.
        shares = (_values(gradient, attention, layer) * values).sum(-1)
        tokens = shares.new_zeros(spread.shape[0], spread.shape[2] * spread.shape[3] + 1, layer.n_heads)
        # Slot -1, padding, becomes token 0.
        found.append(tokens.index_add_(1, slots + 1, shares.reshape(spread.shape[0], -1, layer.n_heads)))
    # [image, token, head, text] -> [image, head, token, text]
    return torch.stack(found, -1).transpose(1, 2)


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _values(projected: Tensor, attention: Any, layer: AttentionLayer) -> Float[Tensor, "window slot head d_head"]:
    """The values in what `qkv` gives: head by head in most models of MaxViT, else all queries and keys first."""
    tokens = as_tokens(projected, layer.channels_last)
    if getattr(attention, "head_first", False):
        # [window, slot, head, 3, d_head]
        return tokens.unflatten(-1, (layer.n_heads, 3, -1))[..., 2, :]
    # [window, slot, 3, head, d_head]
    return tokens.unflatten(-1, (3, layer.n_heads, -1))[..., 2, :, :]


def _normal_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Copies of a module's tensors that were made under `torch.inference_mode()`: nothing is differentiated there."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return {name: tensor.clone() for name, tensor in tensors if tensor.is_inference()}


def _attend_again(attention: Any, call: Call) -> tuple[Tensor, Tensor]:
    """Queries, keys and values, cut off from what made them, and what attention makes of them before `proj`."""
    kept: dict[str, Tensor] = {}

    def cut(_: nn.Module, __: Any, result: Tensor) -> Tensor:
        # A leaf; what a forward hook returns takes the place of the module's output.
        kept["projected"] = result.detach().requires_grad_()
        return kept["projected"]

    handles = [
        attention.qkv.register_forward_hook(cut),
        attention.proj.register_forward_pre_hook(lambda _, given: kept.__setitem__("held", given[0])),
    ]
    try:
        functional_call(attention, _normal_tensors(attention), call.given, call.named)
    finally:
        for handle in handles:
            handle.remove()
    return kept["projected"], kept["held"]


def _place(
    shares: Float[Tensor, "image head token text"], grid: tuple[int, int], finest: tuple[int, int]
) -> Float[Tensor, "image head finer text"]:
    """The same sums on a finer grid: a token's share goes to the tokens it lies over, in equal parts."""
    if grid == finest:
        return shares
    rows, columns = (
        torch.arange(fine, device=shares.device) * own // fine for own, fine in zip(grid, finest, strict=True)
    )
    # How many fine tokens lie over the same coarse one: grids need not divide each other.
    parts = rows.bincount()[rows][:, None] * columns.bincount()[columns]
    # Token 0 is padding and has no place.
    placed = shares[:, :, 1:].unflatten(2, grid)[:, :, rows[:, None], columns] / parts[..., None]
    return torch.cat([shares[:, :, :1], placed.flatten(2, 3)], 2)


@contextmanager
def _calls(trunk: nn.Module, paths: Iterable[str]) -> Iterator[dict[str, Call]]:
    """Keep what some modules are called with while the trunk runs."""
    kept: dict[str, Call] = {}

    def keep(path: str) -> Any:
        return lambda _, given, named: kept.__setitem__(path, Call(given, named))

    handles = [trunk.get_submodule(p).register_forward_pre_hook(keep(p), with_kwargs=True) for p in paths]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()
