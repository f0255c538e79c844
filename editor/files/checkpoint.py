"""Checkpoints as training leaves them: the model's tensors under prefixes of wrappers, beside averages of them and the
optimizer's state.

A model's own weights go before averages (EMA), which are taken where there is nothing else. Names without the wrappers'
prefixes are *own* names: all else in the house knows those only, and a file's hash is over them.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open
from torch import Tensor

from ..errors import ModelError
from .tensors import (
    ReadTensor,
    StoredTensor,
    copy_with_tensors,
    hash_checkpoint,
    patch_tensors,
    read_header,
    tensor_reader,
)
from .whole import staged_file

SAFE_SUFFIX = ".safetensors"
# Words that wrap all names of a model: DDP, torch.compile, DeepSpeed, Lightning, PEFT, the entries of a training file,
# and what people call a model that is a part of theirs.
_WRAPPERS = frozenset(
    {
        *("module", "_orig_mod", "_forward_module", "model", "state_dict", "model_state_dict"),
        *("student", "teacher", "clip", "clip_model", "net", "network", "backbone", "base_model", "model_without_ddp"),
    }
)
# Wrappers of parts, anywhere in a name: compiled, sharded, recomputed.
_INNER = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_TRAINING = frozenset({"optimizer", "optimizers", "optim", "scheduler", "schedulers", "scaler", "loops", "callbacks"})
_MAX_DEPTH = 8
_PIECE = 2**20


@dataclass(frozen=True)
class Layout:
    """Which tensors of a file are the model's.

    Attributes:
        names: The name in the file of each tensor of the model, by its own name.
        spare: The other names in the file: averages, the optimizer's state.
    """

    names: Mapping[str, str]
    spare: tuple[str, ...] = ()

    @property
    def is_plain(self) -> bool:
        """Whether the file holds the model's tensors under their own names, and nothing else."""
        return not self.spare and all(own == stored for own, stored in self.names.items())

    @property
    def is_tied(self) -> bool:
        """Whether one tensor of the file is several of the model's: an edit of one of them has no place there."""
        return len(set(self.names.values())) < len(self.names)

    @property
    def is_known_to_all(self) -> bool:
        """Whether other libraries find the model's tensors: under their own names, or all under DDP's prefix."""
        return any(all(f"{prefix}{own}" == stored for own, stored in self.names.items()) for prefix in ("", "module."))


def find_layout(stored: Iterable[str], origin: str) -> Layout:
    """Tell a model's tensors from the rest of a file by their names.

    Raises:
        ModelError: If there are two models in it, neither an average of the other.
    """
    found: dict[str, dict[str, str]] = {"model": {}, "average": {}, "training": {}}
    for name in stored:
        kind, own = _read_name(name)
        twin = found[kind].setdefault(own, name)
        if twin != name and kind == "model":
            raise ModelError(
                f"cannot load {origin}: {own} is there twice, as {twin} and as {name}. Keep the model that is meant."
            )
    names = found["model"] or found["average"]
    taken = set(names.values())
    return Layout(names, tuple(name for name in stored if name not in taken))


def read_layout(path: Path) -> Layout:
    """The layout of a safetensors file; tied tensors, of which it keeps one, are found under all of their names."""
    header = read_header(path)
    found = find_layout(header, str(path))
    with safe_open(path, framework="pt") as stream:
        # The library's `save_model` keeps one of several tied tensors, and says of which others it is one.
        tied = {_read_name(name)[1]: kept for name, kept in (stream.metadata() or {}).items() if kept in header}
    return Layout({**tied, **found.names}, found.spare)


def read_model_header(path: Path) -> dict[str, StoredTensor]:
    """The model's tensors in a safetensors file, by their own names."""
    header = read_header(path)
    return {own: header[stored] for own, stored in read_layout(path).names.items()}


def model_reader(path: Path) -> ReadTensor:
    """A function that reads one tensor by its own name."""
    read, names = tensor_reader(path), read_layout(path).names
    return lambda own: read(names.get(own, own))


def hash_model(path: Path) -> str:
    """The weight hash of a safetensors file: that of the same tensors in a plain file."""
    layout = read_layout(path)
    return hash_checkpoint(path) if layout.is_plain else hash_checkpoint(path, layout.names)


def copy_model(source: Path, target: Path, tensors: Mapping[str, Tensor]) -> None:
    """Copy a safetensors file with some tensors replaced, under the names that they have there.

    Averages and the optimizer's state are left out: they are of the unedited model, and a reader might prefer them.
    """
    layout = read_layout(source)
    stored = {layout.names.get(own, own): tensor for own, tensor in tensors.items()}
    if not layout.spare:
        copy_with_tensors(source, target, stored)
        return
    with staged_file(target) as temporary:
        _copy_part(source, temporary, set(layout.names.values()))
        patch_tensors(temporary, stored, source)


def read_state(path: Path) -> dict[str, Tensor]:
    """The model's tensors in a file of safetensors, or of PyTorch without code, by their own names.

    Raises:
        ModelError: If nothing in it is a tensor.
    """
    if path.suffix == SAFE_SUFFIX:
        return _read_safe(path, read_layout(path).names)
    return pick_model(read_tensors(path), str(path))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, under the names that they have there; of nested dictionaries, keys joined by dots."""
    if path.suffix == SAFE_SUFFIX:
        return _read_safe(path, {name: name for name in read_header(path)})
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    flat = dict(_flatten(loaded, "", _MAX_DEPTH))
    if not flat:
        raise ModelError(f"cannot load {path}: it holds no tensors, but a {type(loaded).__name__}. Give a checkpoint.")
    return flat


def pick_model(tensors: Mapping[str, Tensor], origin: str) -> dict[str, Tensor]:
    """The model's tensors among others, by their own names."""
    return {own: tensors[stored] for own, stored in find_layout(tensors, origin).names.items()}


def _read_safe(path: Path, names: Mapping[str, str]) -> dict[str, Tensor]:
    # The header is checked by `read_header` before the library sees the file, which is opened once for all tensors.
    with safe_open(path, framework="pt") as stream:
        return {own: stream.get_tensor(stored) for own, stored in names.items()}


def _read_name(name: str) -> tuple[str, str]:
    """Whether a tensor is the model's, an average's or the training's, and its name without wrappers."""
    parts, average = name.split("."), False
    while len(parts) > 1 and (parts[0] in _WRAPPERS or _is_average(parts[0])):
        average |= _is_average(parts[0])
        parts = parts[1:]
    own = _INNER.sub("", ".".join(parts))
    # `n_averaged` counts the steps of PyTorch's own AveragedModel.
    if _TRAINING & set(parts[0].split("_")) or own == "n_averaged" or _is_average(own):
        return "training", own
    return ("average" if average else "model"), own


def _is_average(word: str) -> bool:
    return "ema" in word.split("_") or word in ("swa", "averaged_model")


def _flatten(value: Any, prefix: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested dictionaries, by its keys joined by dots."""
    if isinstance(value, Tensor) and prefix:
        yield prefix.removesuffix("."), value
    elif isinstance(value, Mapping) and depth:
        for key, inner in value.items():
            yield from _flatten(inner, f"{prefix}{key}.", depth - 1)


def _copy_part(source: Path, target: Path, names: Iterable[str]) -> None:
    """Write some tensors of a safetensors file, in the order in which they lie there, byte for byte."""
    header = read_header(source)
    chosen = sorted(names, key=lambda name: header[name].start)
    with safe_open(source, framework="pt") as stream:
        metadata = stream.metadata()
    described: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    at = 0
    for name in chosen:
        entry = header[name]
        end = at + entry.end - entry.start
        described[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [at, end]}
        at = end
    content = json.dumps(described, separators=(",", ":")).encode()
    # The data begin at a multiple of eight bytes, as the format wants.
    content += b" " * (-len(content) % 8)
    with source.open("rb") as reader, target.open("wb") as writer:
        writer.write(struct.pack("<Q", len(content)) + content)
        for name in chosen:
            _copy_bytes(reader, writer, header[name])


def _copy_bytes(reader: BinaryIO, writer: BinaryIO, entry: StoredTensor) -> None:
    reader.seek(entry.start)
    left = entry.end - entry.start
    while left:
        # In pieces: memory stays below the largest tensor.
        piece = reader.read(min(left, _PIECE))
        if not piece:
            raise OSError(f"the file ends {left} bytes before its tensor")
        writer.write(piece)
        left -= len(piece)
