"""Temporary names beside a target: private, of one process, and swept once that process is dead.

`.X.partial-HOST-PID-RANDOM` is being written; `.X.replaced-...` is what `X` was, while the new one takes its place on
file systems that cannot exchange two names in one step. HOST stands for the machine and its process numbers, so that
nobody takes another machine's process on a shared disk for dead.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

FORGOTTEN_SECONDS = 7 * 24 * 3600
_LEFTOVER = re.compile(r"\.(?P<stem>.+)\.(?P<kind>partial|replaced)-(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-\w+")
# Numbers of Linux's renameat2(2), which Python has no names for.
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_FLUSHED_AT_ONCE = 16


def create_private_file(target: Path) -> Path:
    """An empty file beside the target, for nobody else; made exclusively, so no link of that name is followed."""
    stream, name = tempfile.mkstemp(prefix=_prefix(target, "partial"), dir=target.parent)
    os.close(stream)
    return Path(name)


def create_private_folder(target: Path) -> Path:
    """As `create_private_file`, a folder."""
    return Path(tempfile.mkdtemp(prefix=_prefix(target, "partial"), dir=target.parent))


def publish_file(temporary: Path, target: Path) -> None:
    """Give a complete file its final name and the rights that the user's umask asks for."""
    _flush(temporary)
    # `mkstemp` made it readable for its owner only.
    temporary.chmod(0o666 & ~_umask())
    os.replace(temporary, target)
    _flush(target.parent)


def publish_folder(temporary: Path, target: Path, *, replace: bool) -> None:
    """Give a complete folder its final name; what has it now is left under the temporary one, or removed.

    Where the system can exchange two names, the final one always stands for a whole folder, the old or the new.

    Raises:
        OSError: Without `replace`, if a folder that holds anything has that name: somebody wrote it meanwhile.
    """
    # Late, as below: the command line imports this file.
    from concurrent.futures import ThreadPoolExecutor

    # Side by side: a disk writes many files in one turn, where each alone waits for its own.
    with ThreadPoolExecutor(_FLUSHED_AT_ONCE) as pool:
        list(pool.map(_flush, temporary.rglob("*")))
    temporary.chmod(0o777 & ~_umask())
    if not replace:
        with contextlib.suppress(FileNotFoundError):
            # Only an empty folder goes: in one step with the check that it is empty.
            os.rmdir(target)
        os.rename(temporary, target)
    elif not target.exists():
        os.rename(temporary, target)
    elif not exchange_names(temporary, target):
        _take_place(temporary, target)
    _flush(target.parent)


def exchange_names(first: Path, second: Path) -> bool:
    """Swap what two names stand for in one step; False where the system or the file system cannot."""
    # Late, here and below: the command line imports this file, and needs neither unless it writes.
    import ctypes

    rename = _find_renameat2()
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(second))


def clear_leftovers(target: Path) -> None:
    """Remove what killed runs left beside a target, and give it back what one took away and did not replace."""
    for path, kind in _find_dead(target.parent):
        if kind == "partial":
            _remove(path)
        elif path.name.startswith(_prefix(target, kind, of_this_process=False)) and path.is_dir():
            _remove(path) if target.exists() else os.rename(path, target)


@functools.lru_cache(maxsize=64)
def clear_folder_once(folder: Path, process: int) -> None:
    """Remove what killed runs were writing in a folder, once a process: it may hold very many files."""
    for path, kind in _find_dead(folder):
        if kind == "partial":
            _remove(path)


def _take_place(temporary: Path, target: Path) -> None:
    """Two renames, between which there is nothing under the final name: `clear_leftovers` puts the old one back."""
    old = Path(tempfile.mkdtemp(prefix=_prefix(target, "replaced"), dir=target.parent))
    # Only a free name was wanted.
    old.rmdir()
    os.rename(target, old)
    try:
        os.rename(temporary, target)
    except OSError:
        os.rename(old, target)
        raise
    _remove(old)


def _find_dead(folder: Path) -> list[tuple[Path, str]]:
    found = [(path, _LEFTOVER.fullmatch(path.name)) for path in folder.glob(".*-*-*-*")]
    return [
        (path, match["kind"]) for path, match in found if match and _is_dead(path, match["host"], int(match["pid"]))
    ]


def _is_dead(path: Path, host: str, pid: int) -> bool:
    """Whether it is ours and nobody writes there: the process is gone, or another machine's and still for a week."""
    try:
        stat = path.lstat()
    except OSError:
        return False
    if os.name == "posix" and stat.st_uid != os.geteuid():
        return False
    if host != _host() or os.name != "posix":
        return time.time() - stat.st_mtime > FORGOTTEN_SECONDS
    try:
        # Signal 0 only asks whether there is such a process; one of another user may not be asked, but it is there.
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False
    return False


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _prefix(target: Path, kind: str, *, of_this_process: bool = True) -> str:
    # File systems take 255 bytes a name.
    stem = target.name if len(os.fsencode(target.name)) <= 180 else hashlib.sha256(os.fsencode(target.name)).hexdigest()
    return f".{stem}.{kind}-{_host()}-{os.getpid()}-" if of_this_process else f".{stem}.{kind}-"


@functools.lru_cache(maxsize=1)
def _host() -> str:
    """The machine, and the space its process numbers are of (containers have their own)."""
    import socket

    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return hashlib.sha256(f"{socket.gethostname()}\0{space}".encode()).hexdigest()[:8]


def _umask() -> int:
    """The user's umask; there is no other way to ask. What other threads create meanwhile is private."""
    found = os.umask(0o077)
    os.umask(found)
    return found


def _flush(path: Path) -> None:
    """On disk, not only in memory: a rename must not outlive what it renames. Some systems cannot flush folders."""
    if path.is_symlink() or (path.is_dir() and os.name != "posix"):
        return
    stream = os.open(path, os.O_RDONLY)
    try:
        os.fsync(stream)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(stream)


def _find_renameat2() -> Any:
    if sys.platform != "linux":
        return None
    import ctypes

    return getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
