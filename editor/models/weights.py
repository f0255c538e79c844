"""Weights from a checkpoint file into a module: wrappers' names are taken off, positions resized, and what does not fit
is said by name.
"""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from open_clip.convert import convert_state_dict
from open_clip.factory import load_checkpoint
from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed, resize_text_pos_embed
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import ModelError
from ..files.checkpoint import SAFE_SUFFIX, Layout, read_layout, read_model_header, read_state
from .fitting import POSITIONS, Shapes, describe_mismatch, name_architecture, shapes_of

# Google's own format, which open_clip and timm read themselves.
NUMPY_SUFFIXES = (".npz", ".npy")
_DISTRIBUTIONS = ("uniform", "normal", "kaiming_uniform", "kaiming_normal", "xavier_uniform", "trunc_normal")


class Undrawn(TorchFunctionMode):
    """Inside, modules are built with zeros where they would draw: seconds of a large model, for weights to come."""

    # Of `nn.init` too: what its functions call is not seen here any more.
    _DRAWS = (Tensor.normal_, Tensor.uniform_, *(getattr(nn.init, f"{kind}_") for kind in _DISTRIBUTIONS))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func not in self._DRAWS:
            return func(*args, **given)
        with torch.no_grad():
            return (args[0] if args else given["tensor"]).zero_()


def read_weights(path: Path) -> dict[str, Tensor] | None:
    """The tensors of a file of safetensors or of PyTorch without code; None for one of NumPy, which open_clip reads.

    Before a module is built: what is wrong with a file is said at once.
    """
    return None if path.suffix in NUMPY_SUFFIXES else read_state(path)


def load_open_clip_weights(module: Any, weights: dict[str, Tensor] | None, path: Path, against: str) -> None:
    """Fill an open_clip module as open_clip does.

    Args:
        weights: From `read_weights`. path: Where they came from.
        against: What describes the module, for messages: a name, or the configuration beside the file.

    Raises:
        ModelError: If the tensors are not the module's, with names, shapes and the architecture that they fit.
    """
    if weights is None:
        load_checkpoint(module, str(path))
        return
    state = _convert(module, dict(weights))
    # Before positions are resized, which asks for the same widths.
    _require_same(module, state, path, against)
    for name in [name for name in state if name.endswith(POSITIONS)]:
        # Half precision cannot be interpolated on the CPU.
        state[name] = state[name].float()
    resize_pos_embed(state, module)
    resize_text_pos_embed(state, module)
    fill_module(module, state, path, against)


def fill_module(module: nn.Module, state: dict[str, Tensor], path: Path, against: str) -> None:
    """Load tensors that must be exactly the module's.

    Raises:
        ModelError: As `load_open_clip_weights`.
    """
    found, wanted = shapes_of(state), shapes_of(module.state_dict())
    mismatch = describe_mismatch(found, wanted)
    if mismatch is not None:
        raise ModelError(_say_mismatch(path, against, mismatch, found, wanted))
    module.load_state_dict(state)


def find_rewritable(checkpoint: Path | None, module: nn.Module) -> Layout | None:
    """The layout of a checkpoint that can be copied with some of the module's tensors replaced; None where the module's
    tensors are not all there by their names, or where several of them are one.
    """
    if checkpoint is None or checkpoint.suffix != SAFE_SUFFIX:
        return None
    layout = read_layout(checkpoint)
    header = read_model_header(checkpoint)
    known = all(
        name in header and (header[name].shape == tuple(tensor.shape) or name.endswith(POSITIONS))
        for name, tensor in module.state_dict().items()
    )
    return layout if known and not layout.is_tied else None


def _convert(module: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names and shapes of older and foreign checkpoints as open_clip's."""
    state = convert_state_dict(module, state)
    if "positional_embedding" in state and not hasattr(module, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    for name in ("logit_scale", "logit_bias"):
        own = getattr(module, name, None)
        # A scalar or one number in a list, by the library's version.
        if own is not None and name in state and state[name].numel() == 1:
            state[name] = state[name].reshape(own.shape)
    if getattr(module, "logit_bias", None) is not None and "logit_scale" in state:
        state.setdefault("logit_bias", torch.zeros_like(state["logit_scale"]))
    # Only counts, and is no tensor of the module any more.
    state.pop("text.transformer.embeddings.position_ids", None)
    return state


def _require_same(module: nn.Module, state: dict[str, Tensor], path: Path, against: str) -> None:
    """As `fill_module`, of all but the positions' lengths."""
    found, wanted = shapes_of(state), shapes_of(module.state_dict())
    given = {name: wanted.get(name, shape) if name.endswith(POSITIONS) else shape for name, shape in found.items()}
    mismatch = describe_mismatch(given, wanted)
    if mismatch is not None:
        raise ModelError(_say_mismatch(path, against, mismatch, found, wanted))


def _say_mismatch(path: Path, against: str, mismatch: str, found: Shapes, wanted: Shapes) -> str:
    others = {name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name)}
    resized = all(name.endswith(POSITIONS) for name in others)
    words = zip(*(name.split(".") for name in found), strict=False)
    prefix = "".join(f"{word[0]}." for word in takewhile(lambda word: len(set(word)) == 1, words))
    if resized:
        advice = "It is of another image size: give the one that it was trained for."
    elif {name.removeprefix(prefix) for name in found} & wanted.keys() and not found.keys() & wanted.keys():
        advice = f"All its names begin with `{prefix}`: write it without, and it can be read."
    else:
        advice = name_architecture(found)
    return f"cannot load {path}: its tensors are not those of {against}: {mismatch}. {advice}"
