"""Encoders: one tower of a model as a module of one input and one output: what graphs are traced from."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...editor.models.model import Model


class ImageEncoder(nn.Module):
    """Pixels to embeddings, a direct edit included; unnormalised. The text tower's weights are not its own."""

    def __init__(self, model: Model):
        super().__init__()
        # timm models have no `visual`: the whole module is the tower.
        self.visual = getattr(model.module, "visual", model.module)
        self.tower, self.edit = model.tower, model.readout_edit

    def forward(self, pixels: Tensor) -> Tensor:
        return self.edit(self.tower, pixels) if self.edit is not None else self.tower.embed(pixels)


class TextEncoder(nn.Module):
    """Token ids to embeddings, unnormalised; `fitted_to` is the context that inputs of other lengths are brought to."""

    def __init__(self, model: Model, *, fitted_to: int | None = None):
        super().__init__()
        # A shallow copy with its own table of children: the text graph must not carry the image tower's weights.
        self.module: Any = copy.copy(model.module)
        children = {name: child for name, child in model.module.named_children() if name != "visual"}
        self.module.__dict__["_modules"] = children
        self.fitted_to = fitted_to
        self.end: int = getattr(model.tokenizer, "eot_token_id", 0)

    def forward(self, tokens: Tensor) -> Tensor:
        if self.fitted_to is not None:
            tokens = self._fit(tokens, self.fitted_to)
        return self.module.encode_text(tokens.long(), normalize=False)

    def _fit(self, tokens: Tensor, context: int) -> Tensor:
        """Padded or cut to the context. Towers pool at the text's end, under a causal mask: padding changes nothing."""
        # Of the full context, so that even the shortest text is long enough to be cut back.
        padding = torch.zeros_like(tokens[:, :1]).expand(-1, context)
        tokens = torch.cat([tokens, padding], dim=1)[:, :context]
        # transformers.js cuts the end of the text off where it cuts at all.
        endless = (tokens != self.end).all(dim=1, keepdim=True)
        last = torch.where(endless, torch.full_like(tokens[:, :1], self.end), tokens[:, -1:])
        return torch.cat([tokens[:, :-1], last], dim=1)


class Normalised(nn.Module):
    """An encoder whose embeddings are divided by their norm."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def forward(self, inputs: Tensor) -> Tensor:
        return F.normalize(self.encoder(inputs), dim=1)


class HalfPrecision(nn.Module):
    """An encoder with half weights; float32 goes in and comes out, so that no consumer has to know."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = copy_encoder(encoder, _halve)

    def forward(self, inputs: Tensor) -> Tensor:
        # Token ids stay integers.
        return self.encoder(inputs.half() if inputs.is_floating_point() else inputs).float()


def copy_encoder(encoder: nn.Module, convert: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> nn.Module:
    """A copy whose weights are shared, or what `convert` makes of them; the model's other weights are never copied."""
    # An image encoder holds the tower, and the tower the whole model: without the memo, deepcopy would copy the text
    # tower.
    tower: Any = getattr(encoder, "tower", None)
    whole = encoder if tower is None else tower.module
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*whole.parameters(), *whole.buffers())}
    # After the line above, so that the encoder's own tensors are converted and all others shared.
    memo |= {id(tensor): convert(tensor) for tensor in (*encoder.parameters(), *encoder.buffers())}
    return copy.deepcopy(encoder, memo)


def _halve(tensor: Tensor) -> Tensor:
    if isinstance(tensor, nn.Parameter):
        # deepcopy takes the memo's entry as it is, so that a parameter must stay a parameter.
        return nn.Parameter(tensor.detach().half(), requires_grad=False)
    return tensor.half() if tensor.is_floating_point() else tensor
