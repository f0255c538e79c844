"""Tensors kept on disk from run to run, so that commands which need the same ones compute them once.

One file per key, written under a temporary name and renamed: several processes may share the folder. Where it grows too
large, the files that were not read for longest go. What cannot be read or written is computed: no command fails by it.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..choices import CACHE_VARIABLE
from ..errors import ClipeditError
from .tensors import load_tensors
from .whole import save_tensors

MAX_BYTES = 2**30
_KIND, _NAME, _SUFFIX = "clipedit_kept", "kept", ".safetensors"


@dataclass(frozen=True)
class TensorCache:
    """A folder of tensors by key; `most_bytes` is what all files in it may take."""

    folder: Path
    most_bytes: int = MAX_BYTES

    def recall(self, key: str, compute: Callable[[], Tensor]) -> Tensor:
        """The tensor that was kept under a key, or else what `compute` gives, which is then kept."""
        found = self._read(key)
        if found is None:
            found = compute()
            self._write(key, found)
        return found

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"

    def _read(self, key: str) -> Tensor | None:
        try:
            tensors, _ = load_tensors(self._path(key), _KIND)
        except (ClipeditError, OSError):
            return None
        with contextlib.suppress(OSError):
            # Its time of writing tells when it was last needed: the oldest go first.
            os.utime(self._path(key))
        return tensors.get(_NAME)

    def _write(self, key: str, tensor: Tensor) -> None:
        if tensor.nbytes > self.most_bytes:
            return
        with contextlib.suppress(ClipeditError, OSError):
            # Nobody else's business: a text can be recognised by its embedding.
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            save_tensors(self._path(key), {_NAME: tensor}, _KIND)
            self._trim()

    def _trim(self) -> None:
        found = []
        for path in self.folder.glob(f"*{_SUFFIX}"):
            # Another process may be trimming too.
            with contextlib.suppress(FileNotFoundError):
                state = path.stat()
                found.append((state.st_mtime_ns, state.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self.most_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size


def find_cache() -> TensorCache | None:
    """The cache in the folder that `CLIPEDIT_CACHE` names, by default the platform's own; None where that is empty."""
    named = os.environ.get(CACHE_VARIABLE)
    if named == "":
        return None
    try:
        return TensorCache((Path(named) if named else _platform_folder() / "clipedit") / "texts")
    except RuntimeError:
        # A user without a home.
        return None


def _platform_folder() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    # The XDG base directory specification: a relative path there is to be ignored.
    named = os.environ.get("XDG_CACHE_HOME", "")
    return Path(named) if os.path.isabs(named) else Path.home() / ".cache"
