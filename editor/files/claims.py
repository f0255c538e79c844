"""One writer at a time: a path is claimed for as long as a run works on it, and a second run is told at once."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ExportError


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """No other run on this machine writes to a path while the block runs; the system frees what a killed run held.

    Raises:
        ExportError: If another one does.
    """
    # Late: most commands write nothing.
    from filelock import FileLock, Timeout

    with contextlib.ExitStack() as held:
        try:
            # Not beside the path: the lock's file stays when nobody holds it.
            held.enter_context(FileLock(_find_lock_file(path)).acquire(timeout=0))
        except Timeout:
            raise ExportError(
                f"cannot write to {path}: another run of clipedit is writing it. Wait for it, or choose another -o."
            ) from None
        except OSError:
            # Where there is no place for locks the last step still decides: a folder takes no other's place.
            pass
        yield


def _find_lock_file(path: Path) -> Path:
    # Of one user: a folder of another's would let nobody else in.
    user = os.getuid() if hasattr(os, "getuid") else "locks"
    folder = Path(tempfile.gettempdir()) / f"clipedit-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder / f"{hashlib.sha256(os.fsencode(Path(path).resolve())).hexdigest()[:32]}.lock"
