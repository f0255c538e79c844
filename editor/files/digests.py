"""A digest of every tensor, of a file or in memory: says which one changed, where the weight hash says that one did."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from .tensors import describe_bytes, hash_tensors, read_header, stored_entries


def digest_file(path: Path) -> dict[str, str]:
    """The digest of each tensor of a safetensors file, by its name there.

    Raises:
        ModelError: If the file cannot be read.
    """
    return {entry[0]: hash_tensors([entry]) for entry in stored_entries(path, read_header(path))}


def digest_files(paths: Iterable[Path]) -> dict[str, str]:
    """As `digest_file`, of several files that hold one model, each tensor in one of them."""
    return {name: digest for path in paths for name, digest in digest_file(path).items()}


def digest_state(state: Mapping[str, Tensor]) -> dict[str, str]:
    """As `digest_file`, of tensors in memory."""
    return {name: hash_tensors([describe_bytes(name, state[name])]) for name in sorted(state)}
