"""A digest of every tensor, of a file or in memory: says which one changed, where the weight hash says that one did."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from .tensors import describe_bytes, hash_tensors, read_header


def digest_file(path: Path) -> dict[str, str]:
    """The digest of each tensor of a safetensors file, by its name there.

    Raises:
        ModelError: If the file cannot be read.
    """
    header = read_header(path)
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:
        whole = memoryview(view)
        found = {
            name: hash_tensors([(name, tensor.dtype, tensor.shape, whole[tensor.start : tensor.end])])
            for name, tensor in sorted(header.items())
        }
        # The map cannot be closed while something looks into it.
        whole.release()
        return found


def digest_state(state: Mapping[str, Tensor]) -> dict[str, str]:
    """As `digest_file`, of tensors in memory."""
    return {name: hash_tensors([describe_bytes(name, state[name])]) for name in sorted(state)}
