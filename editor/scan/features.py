"""Cached features: what a scan saw of every image, kept on disk, so that edits can be tried without running the model.

One safetensors file, written as the images pass and read through memory maps: neither side holds the whole of it.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from ..components import ComponentGroup, Features, take_rows
from ..errors import ExportError, ImageError, ModelError, StatisticsError
from ..files.bounded import parse_json
from ..files.inputs import require_features_file
from ..files.tensors import StoredTensor, read_header
from ..files.whole import staged_file
from ..images.source import ImageSource
from ..models.model import Model

KIND = "clipedit-features-1"
_WIDTH = {"F32": 4, "U8": 1}
_NUMPY = {"F32": np.float32, "U8": np.uint8}
Layout = dict[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class CachedFeatures:
    """Features of many images; the tensors are memory maps, read from disk as they are used.

    Attributes:
        features: As a tower collects them, without `values`; a row an image.
        row_of: The row of each image that could be read, by name and size.
        weights_hash: The model they are of.
        layers: The layers whose heads they hold.
    """

    features: Features
    row_of: Mapping[str, int]
    weights_hash: str
    layers: tuple[int, ...]

    def select(self, source: ImageSource) -> tuple[Features, list[int]]:
        """The features of some of the images, and their positions in `source`; as `collect_features` gives them.

        Raises:
            ImageError: If none of the images is in the cache, or one is not that the scan did not skip.
        """
        keys = image_keys(source)
        kept = [index for index, key in enumerate(keys) if key in self.row_of]
        rows = [self.row_of[keys[index]] for index in kept]
        unknown = next((source.names[i] for i, key in enumerate(keys) if key not in self.row_of), None)
        # A scan may skip 1 % of its images as unreadable (`MAX_BAD`); where more are missing, these are other images.
        if len(kept) < 0.99 * len(keys):
            raise ImageError(
                f"cannot use the cached features: {unknown} is not in them, nor are {len(keys) - len(kept) - 1} more "
                f"of {len(keys)} images. Scan these images with --keep-features."
            )
        # All rows in their order: the memory maps themselves, without a copy.
        if rows == list(range(len(self.features.final))):
            return self.features, kept
        return take_rows(self.features, torch.tensor(rows)), kept

    def require(self, model: Model, layers: Sequence[int]) -> None:
        """Refuse features of another model or of other layers.

        Raises:
            StatisticsError: Saying which.
        """
        if model.weights_hash != self.weights_hash:
            raise StatisticsError(
                f"cannot use the cached features with {model.name}: they were made with weights "
                f"{self.weights_hash[:12]}, the model has {model.weights_hash[:12]}. Scan this model with "
                "--keep-features."
            )
        if not set(layers) <= set(self.layers):
            raise StatisticsError(
                f"cannot use the cached features: they hold layers {list(self.layers)}, {sorted(layers)} are needed. "
                "Scan with --layers."
            )


def features_path(scan: Path) -> Path:
    """Where a scan's features lie: `scan.features.safetensors` beside `scan.safetensors`."""
    return Path(scan).with_suffix("").with_suffix(".features.safetensors")


def compute_features_bytes(model: Model, groups: Sequence[ComponentGroup], images: int) -> int:
    """Bytes that the features of so many images take on disk, names not counted."""
    layout = _layout(model, groups, images, 0)
    return sum(_WIDTH[dtype] * int(np.prod(shape, dtype=np.int64)) for dtype, shape in layout.values())


@contextmanager
def write_features(
    path: Path, model: Model, groups: Sequence[ComponentGroup], source: ImageSource, layers: Sequence[int]
) -> Iterator[Callable[[Features, Sequence[int]], None]]:
    """Write features as they come: gives a function that takes a batch's features and their positions in the source.

    Raises:
        ExportError: If the disk has too little room, before anything is written, or the file cannot be written.
    """
    keys = json.dumps(image_keys(source)).encode()
    layout = _layout(model, groups, len(source), len(keys))
    described = {"weights_hash": model.weights_hash, "layers": list(layers)}
    header, places, total = _header(layout, described)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(Path(path).parent).free
    if total > free:
        raise ExportError(
            f"cannot write {path}: features of {len(source)} images take {total / 1e9:.1f} GB, {free / 1e9:.1f} GB are "
            "free. Scan fewer layers with --layers."
        )
    with staged_file(path) as temporary, temporary.open("wb") as stream:
        stream.write(header)
        # The whole size at once. Rows of images that cannot be read stay zero, and `read` tells which they are.
        stream.truncate(total)
        # [bytes] -> [1, bytes]: all names are one row.
        _write_rows(stream, places["names"], [0], np.frombuffer(keys, np.uint8)[None])

        def write(features: Features, indices: Sequence[int]) -> None:
            parts = {f"{group.name}.u": features.groups[group.name] for group in groups}
            parts |= {"final": features.final, "embedding": features.embedding}
            for name, tensor in parts.items():
                # [image, component, k] -> [image, component * k], as a row lies in the file.
                _write_rows(stream, places[name], indices, tensor.float().cpu().flatten(1).numpy())
            _write_rows(stream, places["read"], indices, np.ones((len(indices), 1), np.uint8))

        yield write
        stream.flush()


def load_features(path: str | Path) -> CachedFeatures:
    """Open cached features; nothing but the names is read until it is used.

    Raises:
        StatisticsError: If the file is missing or was not written by `scan --keep-features`.
    """
    path = Path(path)
    require_features_file(path)
    try:
        header = read_header(path)
        with safe_open(path, framework="pt") as stream:
            described = parse_json((stream.metadata() or {})[KIND])
        maps = {name: _map_tensor(path, entry) for name, entry in header.items()}
        keys, read = parse_json(maps.pop("names").numpy().tobytes()), maps.pop("read").tolist()
        _require_whole(maps, keys, read, described)
    except (ModelError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise StatisticsError(
            f"cannot read features from {path}: {error}. Write it with `clipedit scan --keep-features`."
        ) from None
    final, embedding = maps.pop("final"), maps.pop("embedding")
    features = Features({name.removesuffix(".u"): tensor for name, tensor in maps.items()}, {}, final, embedding)
    row_of = {key: row for row, key in enumerate(keys) if read[row]}
    return CachedFeatures(features, row_of, described["weights_hash"], tuple(described["layers"]))


def _require_whole(maps: Mapping[str, Tensor], keys: Any, read: Any, described: Any) -> None:
    """A row a name, everywhere."""
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError("its names are damaged")
    wrong = [name for name, tensor in maps.items() if tensor.dtype != torch.float32 or len(tensor) != len(keys)]
    wrong += [name for name in ("final", "embedding") if maps[name].ndim != 2]
    wrong += [name for name, tensor in maps.items() if name.endswith(".u") and tensor.ndim != 3]
    if wrong or not isinstance(read, list) or len(read) != len(keys) or not all(mark in (0, 1) for mark in read):
        raise ValueError(f"{(wrong or ['read'])[0]} does not have a row for each of {len(keys)} names")
    layers = described["layers"]
    # `isinstance` would take `true` for a layer.
    if not isinstance(described["weights_hash"], str) or not all(type(layer) is int for layer in layers):
        raise ValueError("its description is damaged")


def image_keys(source: ImageSource) -> list[str]:
    """What identifies each image of a source: its name and what `fingerprint` knows of it."""
    return [f"{name}\0{stamp}" for name, stamp in zip(source.names, source.stamps or source.names, strict=True)]


def _layout(model: Model, groups: Sequence[ComponentGroup], images: int, name_bytes: int) -> Layout:
    tower = model.tower
    found: Layout = {f"{group.name}.u": ("F32", (images, len(group.ids), group.k)) for group in groups}
    found |= {"final": ("F32", (images, tower.d_model)), "embedding": ("F32", (images, tower.d_embed))}
    # Bytes come last, so that every float tensor starts at a multiple of four.
    return found | {"read": ("U8", (images,)), "names": ("U8", (name_bytes,))}


def _header(layout: Layout, described: Any) -> tuple[bytes, dict[str, StoredTensor], int]:
    """The file's head, where each tensor lies in it, and its whole size."""
    entries: dict[str, Any] = {"__metadata__": {KIND: json.dumps(described)}}
    sizes = {name: _WIDTH[dtype] * int(np.prod(shape, dtype=np.int64)) for name, (dtype, shape) in layout.items()}
    at = 0
    for name, (dtype, shape) in layout.items():
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + sizes[name]]}
        at += sizes[name]
    text = json.dumps(entries).encode()
    # safetensors allows spaces after the header: the tensors then start at a multiple of eight bytes.
    text += b" " * (-len(text) % 8)
    # `data_offsets` count from the end of the header, a `StoredTensor` from the start of the file.
    base = 8 + len(text)
    places = {
        name: StoredTensor(dtype, shape, *(base + end for end in entries[name]["data_offsets"]))
        for name, (dtype, shape) in layout.items()
    }
    return struct.pack("<Q", len(text)) + text, places, base + at


def _write_rows(stream: IO[bytes], place: StoredTensor, indices: Sequence[int], rows: np.ndarray) -> None:
    """Rows of one tensor at their positions; one write for each run of neighbours."""
    width = rows.itemsize * rows.shape[1]
    starts = [at for at in range(len(indices)) if at == 0 or indices[at] != indices[at - 1] + 1]
    for first, last in zip(starts, [*starts[1:], len(indices)], strict=True):
        stream.seek(place.start + indices[first] * width)
        stream.write(np.ascontiguousarray(rows[first:last]).data)


def _map_tensor(path: Path, entry: StoredTensor) -> Tensor:
    # Copy-on-write: torch wants writable memory; nothing is ever written back.
    if not np.prod(entry.shape):
        return torch.zeros(entry.shape)
    return torch.from_numpy(np.memmap(path, _NUMPY[entry.dtype], "c", entry.start, entry.shape))
