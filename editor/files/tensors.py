"""Checkpoint files: read one tensor at a time, hash, and copy with a few tensors replaced.

Nothing here loads a model. Memory stays near the size of the largest tensor.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import pickle
import re
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import ClipeditError, ModelError
from .bounded import load_json, parse_json
from .whole import staged_file, write_text

MAX_HEADER_BYTES, MAX_TENSORS = 100_000_000, 100_000
_CACHE_FROM_BYTES = 64 * 2**20
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_CONVERT = "Convert its state_dict to safetensors in a process that you trust."
ReadTensor = Callable[[str], Tensor]
# Name, type, shape and bytes of a tensor.
Entry = tuple[str, str, tuple[int, ...], bytes | memoryview]


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in a safetensors file: absolute byte offsets."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file.

    Its length, the number of tensors and their places in the file are checked here, before the library sees it; that
    they neither overlap nor leave holes, and have the sizes that their shapes say, is checked by the library.

    Raises:
        ModelError: If the file is missing, or is not safetensors (a pickle is never opened).
    """
    path = Path(path)
    try:
        found = _parse_header(path)
        with safe_open(path, framework="pt"):
            return found
    except FileNotFoundError:
        raise ModelError(f"cannot read {path}: no such file.") from None
    except (OSError, SafetensorError, ValueError, TypeError, KeyError, struct.error, RecursionError) as error:
        raise ModelError(
            f"cannot read {path} as safetensors: {str(error) or type(error).__name__}. Weights are only read as "
            "safetensors; convert the file in a process that you trust."
        ) from None


def _parse_header(path: Path) -> dict[str, StoredTensor]:
    size = path.stat().st_size
    if not path.is_file():
        raise ValueError("it is not a plain file")
    with path.open("rb") as stream:
        # Eight bytes of length, little-endian, then the header; offsets in it count from its end.
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > min(MAX_HEADER_BYTES, size - 8):
            raise ValueError(
                f"its header is said to have {length} bytes, the file has {size}, {MAX_HEADER_BYTES} are read"
            )
        header = json.loads(stream.read(length), object_pairs_hook=_unique)
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    # Free text of whoever wrote the file, the only entry that is no tensor.
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise ValueError(f"it has {len(header)} tensors, at most {MAX_TENSORS} are read")
    return {name: _place_tensor(name, entry, 8 + length, size) for name, entry in header.items()}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Readers differ in which of two equal names they take."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice in its header")
    return found


def _place_tensor(name: str, entry: Any, base: int, size: int) -> StoredTensor:
    start, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    # `type`, since `isinstance` would take `true` for a number.
    if not isinstance(entry["dtype"], str) or any(
        type(number) is not int or number < 0 for number in (*shape, start, end)
    ):
        raise ValueError(f"tensor {name} is not described by a type, a shape and offsets")
    if start > end or base + end > size:
        raise ValueError(f"tensor {name} lies outside of the file")
    return StoredTensor(entry["dtype"], shape, base + start, base + end)


@contextlib.contextmanager
def reading_weights(origin: str) -> Iterator[None]:
    """Turn what the libraries' readers raise into one kind of error.

    Raises:
        ModelError: Naming the origin.
    """
    try:
        yield
    except ClipeditError:
        raise
    except pickle.UnpicklingError as error:
        raise ModelError(f"cannot load {origin}: {_explain_pickle(str(error))}") from None
    except Exception as error:  # Readers raise nearly anything on a damaged file.
        if "TorchScript" in str(error):
            raise ModelError(f"cannot load {origin}: it is a TorchScript archive, which is code. {_CONVERT}") from None
        raise ModelError(f"cannot load {origin}: {first_line(error)}. Check the file, or fetch it again.") from error


def first_line(error: BaseException) -> str:
    """What an error says first, without the full stop; its class where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0].rstrip(".")


def _explain_pickle(said: str) -> str:
    """PyTorch's refusal in a sentence: what the pickle asks for, or that it is none."""
    asked = re.search(r"GLOBAL ([\w.]+)", said)
    if asked is None and "Unsupported class" not in said and "Unsupported global" not in said:
        return "it is no checkpoint of PyTorch, or a damaged one. Fetch it again."
    named = f" (it holds {asked[1]})" if asked else ""
    return f"the file is a pickle that could run code{named}, and was not opened. {_CONVERT}"


def tensor_reader(path: Path) -> ReadTensor:
    """A function that reads one named tensor of a safetensors file; a `ModelError` if it is not there."""

    def read(name: str) -> Tensor:
        with reading_weights(f"{name} of {path}"), safe_open(path, framework="pt") as stream:
            return stream.get_tensor(name)

    return read


def load_tensors(path: Path, *kinds: str) -> tuple[dict[str, Tensor], Any]:
    """All tensors of a file that `save_tensors` wrote, and the data kept with them.

    Raises:
        ModelError: If the file is missing, or was not written as one of these kinds; the newest is named.
    """
    # For its checks only, which come before the library opens the file.
    read_header(path)
    with reading_weights(str(path)), safe_open(path, framework="pt") as stream:
        metadata = stream.metadata() or {}
        kind = next((kind for kind in kinds if kind in metadata), None)
        if kind is None:
            raise ModelError(f"cannot read {path}: it is not a {kinds[0]} file.")
        try:
            described = parse_json(metadata[kind])
        except ValueError as error:
            raise ModelError(f"cannot read {path}: its metadata is damaged ({error}).") from None
        return {name: stream.get_tensor(name) for name in stream.keys()}, described  # noqa: SIM118


def hash_tensors(entries: Iterable[Entry]) -> str:
    """SHA-256 over `(name, dtype, shape, bytes)` of tensors that come sorted by name."""
    digest = hashlib.sha256()
    for name, dtype, shape, data in entries:
        digest.update(f"{name}\0{dtype}\0{','.join(map(str, shape))}\0".encode())
        digest.update(data)
    return digest.hexdigest()


def hash_state(state: Mapping[str, Tensor]) -> str:
    """The weight hash of tensors in memory."""
    return hash_tensors(describe_bytes(name, state[name]) for name in sorted(state))


def describe_bytes(name: str, tensor: Tensor) -> Entry:
    """A tensor as `hash_tensors` takes it."""
    tensor = tensor.detach().cpu().contiguous()
    # As bytes, since NumPy has no bfloat16; a scalar needs an axis for that.
    data = tensor.reshape(-1).view(torch.uint8).numpy().data
    return name, _DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), data


def hash_checkpoint(path: Path, names: Mapping[str, str] | None = None) -> str:
    """The weight hash of a safetensors file, cached beside large files by size, times and place on the disk.

    Args:
        names: Hash these tensors only, under the names that they stand for; not cached.
    """
    path = Path(path)
    if names is not None:
        header = read_header(path)
        return _hash_file(path, {own: header[stored] for own, stored in names.items()})
    cached = _read_cached_hash(path)
    return cached or _store_cached_hash(path, _hash_file(path, read_header(path)))


def _hash_file(path: Path, header: Mapping[str, StoredTensor]) -> str:
    return hash_tensors(stored_entries(path, header))


def stored_entries(path: Path, header: Mapping[str, StoredTensor]) -> Iterator[Entry]:
    """Tensors of a safetensors file as `hash_tensors` takes them, by name; each until the next is asked for."""
    page = mmap.PAGESIZE
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:
        for name, tensor in sorted(header.items()):
            # The map cannot be closed while something looks into it.
            with memoryview(view) as whole, whole[tensor.start : tensor.end] as data:
                yield name, tensor.dtype, tensor.shape, data
            # Whole pages are given back after each tensor, so that resident memory stays near the largest one.
            # Only pages that are wholly this tensor's: its neighbours share the outer ones.
            first, last = -(-tensor.start // page) * page, tensor.end // page * page
            if last > first and hasattr(mmap, "MADV_DONTNEED"):
                view.madvise(mmap.MADV_DONTNEED, first, last - first)


def copy_with_tensors(source: Path, target: Path, tensors: Mapping[str, Tensor]) -> None:
    """Copy a safetensors file, replacing some tensors; every other byte stays as it was.

    Raises:
        ModelError: If a tensor is not in the file or has another shape.
    """
    with staged_file(target) as temporary:
        shutil.copyfile(source, temporary)
        patch_tensors(temporary, tensors, source)


def patch_tensors(path: Path, tensors: Mapping[str, Tensor], origin: Path) -> None:
    """Replace some tensors of a safetensors file where they lie; `origin` is for messages.

    Raises:
        ModelError: If a tensor is not in the file or has another shape.
    """
    header = read_header(path)
    patches = [(header_entry(header, name, origin), name, tensor) for name, tensor in tensors.items()]
    with path.open("r+b") as stream:
        for entry, name, tensor in patches:
            if entry.shape != tuple(tensor.shape):
                raise ModelError(
                    f"cannot replace {name} in {origin}: it is {entry.shape}, the edit is {tuple(tensor.shape)}."
                )
            stored = round_to_storage(name, tensor, stored_dtype(entry)).contiguous()
            stream.seek(entry.start)
            stream.write(stored.reshape(-1).view(torch.uint8).numpy().data)


def header_entry(header: Mapping[str, StoredTensor], name: str, source: Path) -> StoredTensor:
    """One tensor's place in the file.

    Raises:
        ModelError: If the file has no tensor of that name.
    """
    if name not in header:
        raise ModelError(f"cannot edit {source}: it has no tensor {name}. Give an open_clip checkpoint.")
    return header[name]


def stored_dtype(entry: StoredTensor) -> torch.dtype:
    """The torch dtype of a stored tensor.

    Raises:
        ModelError: If it is one that edits do not know (8-bit floats, for example).
    """
    if entry.dtype not in _DTYPES:
        raise ModelError(
            f"cannot use a tensor of type {entry.dtype}: known are {', '.join(_DTYPES)}. Convert the weights."
        )
    return _DTYPES[entry.dtype]


def round_to_storage(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor in the dtype it has on disk.

    Raises:
        ModelError: If its values do not fit.
    """
    stored = tensor.to(dtype)
    if not torch.isfinite(stored).all():
        raise ModelError(f"cannot write {name}: the edited values do not fit {dtype}. Lower the strength of the edit.")
    return stored


def _cache_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.sha256.json")


def _stamp(path: Path) -> dict[str, int]:
    stat = path.stat()
    # A folder from elsewhere can bring a cache with it, but cannot know its place on this disk.
    return {key: getattr(stat, f"st_{key}") for key in ("size", "mtime_ns", "ctime_ns", "ino", "dev")}


def _read_cached_hash(path: Path) -> str | None:
    try:
        cached = load_json(_cache_path(path))
        known = all(cached[key] == value for key, value in _stamp(path).items())
        return cached["hash"] if known and re.fullmatch("[0-9a-f]{64}", cached["hash"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _store_cached_hash(path: Path, value: str) -> str:
    if path.stat().st_size >= _CACHE_FROM_BYTES and os.access(path.parent, os.W_OK):
        with contextlib.suppress(ClipeditError):  # The cache only saves time.
            write_text(_cache_path(path), json.dumps({**_stamp(path), "hash": value}))
    return value
