"""Where shards and images lie: folders, globs, `{000..099}` ranges, and URIs of any file system that fsspec knows."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ImageError
from .walk import walk_folder

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
MAX_RANGE = 1_000_000


@dataclass(frozen=True)
class Location:
    """A file: its name relative to what was asked for, its path or URI, and its size in bytes."""

    name: str
    path: str
    size: int


def locate_file(name: str, path: str) -> Location:
    """A local file under a name; the size is 0 where it cannot be told."""
    try:
        return Location(name, path, os.stat(path).st_size)
    except OSError:
        return Location(name, path, 0)


def is_remote(path: str | Path) -> bool:
    """Whether a path is a URI such as `s3://bucket/shards`."""
    return "://" in str(path)


def list_locations(path: str | Path, suffixes: tuple[str, ...]) -> list[Location]:
    """The files of a folder (searched recursively), a file, a glob or a range that end in one of `suffixes`; sorted.

    Raises:
        ImageError: If a file of a range is missing, or a remote file system cannot be listed.
    """
    found: dict[str, Location] = {}
    patterns = expand_range(str(path))
    for pattern in patterns:
        listed = _list_remote(pattern) if is_remote(pattern) else _list_local(pattern)
        # By path: patterns may give the same file twice.
        some = {item.path: item for item in listed if _wanted(item, suffixes)}
        # A range names every file, so none may be missing; a single glob may match nothing.
        if not some and len(patterns) > 1:
            raise ImageError(f"cannot read {pattern}: no such file. Correct the range in {path}.")
        found |= some
    return sorted(found.values(), key=lambda item: item.name)


def expand_range(pattern: str) -> list[str]:
    """`a-{00..02}.tar` is `a-00.tar`, `a-01.tar`, `a-02.tar`, as in webdataset.

    Raises:
        ImageError: If the range is empty or absurdly long.
    """
    match = _RANGE.search(pattern)
    if match is None:
        return [pattern]
    first, last, width = int(match[1]), int(match[2]), len(match[1])
    if not 0 <= last - first < MAX_RANGE:
        raise ImageError(f"cannot read {pattern}: its range has {last - first + 1} numbers, 1 to {MAX_RANGE} are read.")
    rest = expand_range(pattern[match.end() :])
    head = pattern[: match.start()]
    return [f"{head}{number:0{width}d}{tail}" for number in range(first, last + 1) for tail in rest]


@contextmanager
def open_location(path: str | Path) -> Iterator[Any]:
    """A stream of bytes, local or remote; what goes wrong in reading it is an `ImageError`."""
    try:
        if is_remote(path):
            import fsspec

            with fsspec.open(str(path), "rb") as stream:
                yield stream
        else:
            with Path(path).open("rb") as stream:
                yield stream
    except ImageError:
        raise
    except Exception as error:  # Every file system has errors of its own.
        raise _reading_error(path, error) from None


def _wanted(item: Location, suffixes: tuple[str, ...]) -> bool:
    name = item.path.rsplit("/", 1)[-1]
    return name.lower().endswith(suffixes) and not name.startswith(".")


def _list_local(pattern: str) -> list[Location]:
    if os.path.isdir(pattern):
        listing = walk_folder(pattern, each_once=True)
        return [locate_file(name.replace(os.sep, "/"), path) for name, path in listing.files]
    paths = (
        [pattern] if os.path.isfile(pattern) else [p for p in glob.glob(pattern, recursive=True) if os.path.isfile(p)]
    )
    return [locate_file(os.path.basename(path), path) for path in paths]


def _list_remote(pattern: str) -> list[Location]:
    try:
        import fsspec

        system, root = fsspec.core.url_to_fs(pattern)
        found: dict[str, Any] = (
            system.glob(root, detail=True) if glob.has_magic(root) else system.find(root, detail=True)
        )  # pyright: ignore[reportAssignmentType]
        files = {path: entry for path, entry in found.items() if entry["type"] == "file"}
        # Names are relative to the folder that was asked for, or to that of the file or the pattern.
        base = root if not glob.has_magic(root) and list(files) != [root] else os.path.dirname(root)
        return [
            # fsspec lists paths without their protocol, and not every file system knows sizes.
            Location(os.path.relpath(path, base), system.unstrip_protocol(path), int(entry["size"] or 0))
            for path, entry in files.items()
        ]
    except Exception as error:
        raise _reading_error(pattern, error) from None


def _reading_error(path: str | Path, error: Exception) -> ImageError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
    fix = (
        "Install the package that it names." if isinstance(error, ImportError) else "Check the path, or fetch it again."
    )
    return ImageError(f"cannot read {path}: {reason.splitlines()[0].rstrip('.')}. {fix}")
