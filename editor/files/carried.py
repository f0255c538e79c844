"""Carried over: the mark on vectors that were mapped already, in a Parquet file's metadata or beside a `.npy`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from .bounded import load_json
from .whole import write_text

# In Parquet's metadata, a key for each column; the sidecar of `vectors.npy` is `vectors.npy.clipedit.json`.
MARK_KEY, SIDECAR_SUFFIX = "clipedit.reindexed", ".clipedit.json"
_HEAD_BYTES = 2**20


def write_sidecar(path: Path, mark: Mapping[str, str]) -> None:
    """Write the mark of a `.npy` file, with what tells the file from another of that name."""
    write_text(_sidecar(path), json.dumps({**mark, "file": _fingerprint(path)}, indent=2) + "\n")


def read_sidecar(path: Path) -> dict[str, str] | None:
    """The mark of a `.npy` file; None without one, or where the file was replaced since."""
    try:
        found = load_json(_sidecar(path))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("file") == _fingerprint(path) else None


def name_metadata(column: str) -> bytes:
    """The key of a column's mark in a Parquet schema's metadata."""
    return f"{MARK_KEY}.{column}".encode()


def read_metadata(metadata: Mapping[bytes, bytes] | None, column: str) -> dict[str, str] | None:
    """A column's mark in a Parquet schema's metadata; None without one."""
    try:
        found = json.loads((metadata or {})[name_metadata(column)])
    except (KeyError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + SIDECAR_SUFFIX)


def _fingerprint(path: Path) -> str:
    """Of the size and the first megabyte: what is copied or replaced is told, a large file is not read twice."""
    with path.open("rb") as stream:
        return f"{path.stat().st_size}:{hashlib.sha256(stream.read(_HEAD_BYTES)).hexdigest()}"
