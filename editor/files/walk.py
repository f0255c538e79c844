"""Folders as they lie on disks: links are followed, never in a circle; what is hidden is passed over and counted."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import ImageError

# One folder may lie in a tree under several names, by links; a few folders of links to each other make millions.
MAX_WAYS = 1_000
# Folders of thumbnails and of notes that other systems leave behind.
_NOT_MEANT = frozenset({"@eaDir", "__MACOSX"})

# Device and number: what a folder is, whatever it is called.
_Identity = tuple[int, int]


@dataclass(frozen=True)
class FolderListing:
    """The files of a folder and of those in it.

    Attributes:
        files: Name relative to the folder, and path, in the order of the names' parts.
        hidden: How many files were passed over because they are hidden, or lie in a hidden folder.
        repeated: Links that were not followed: they lead back, or to a folder that was read under another name.
        unreadable: Folders that may not be read.
    """

    files: tuple[tuple[str, str], ...]
    hidden: int = 0
    repeated: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Folder:
    path: str
    # Relative to where the walk began, "" for that folder itself.
    name: str
    hidden: bool
    within: tuple[_Identity, ...] = ()


@dataclass
class _Walk:
    each_once: bool
    files: list[tuple[str, str]] = field(default_factory=list)
    hidden: int = 0
    repeated: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    ways: Counter[_Identity] = field(default_factory=Counter)

    def enter(self, folder: _Folder) -> Iterator[tuple[_Folder, bool]]:
        """Take the files of one folder; gives the folders in it, and whether each is a link."""
        try:
            status = os.stat(folder.path)
            with os.scandir(folder.path) as entries:
                found = list(entries)
        except OSError:
            self.unreadable.append(folder.name)
            return
        identity = (status.st_dev, status.st_ino)
        if identity in folder.within or (self.each_once and self.ways[identity]):
            self.repeated.append(folder.name)
            return
        self._count_way(identity, folder.path)
        for entry in found:
            inner = _Folder(
                entry.path,
                os.path.join(folder.name, entry.name),
                folder.hidden or entry.name.startswith(".") or entry.name in _NOT_MEANT,
                (*folder.within, identity),
            )
            # Not `entry.is_dir()`, which raises on a link to itself.
            if os.path.isdir(entry.path):
                yield inner, entry.is_symlink()
            elif inner.hidden:
                self.hidden += 1
            else:
                self.files.append((inner.name, entry.path))

    def _count_way(self, identity: _Identity, path: str) -> None:
        self.ways[identity] += 1
        if self.ways[identity] > MAX_WAYS:
            raise ImageError(f"cannot read {path}: links lead to it in more than {MAX_WAYS} ways. Remove some.")


def walk_folder(folder: str | Path, *, each_once: bool = False) -> FolderListing:
    """The files of a folder, searched recursively; links to folders and to files are followed.

    Args:
        each_once: A folder that has several names, by links, is read under one of them; under its own, if it has one in
            here. Otherwise under each of them, as `find -L` does: folders of classes may share their images.

    Raises:
        ImageError: If links lead to one folder in more ways than anybody means.
    """
    walk = _Walk(each_once)
    todo, links = deque([_Folder(str(folder), "", hidden=False)]), deque[_Folder]()
    while todo or links:
        # Links last: what also lies here under its own name is then read under that.
        for inner, is_link in walk.enter(todo.popleft() if todo else links.popleft()):
            (links if is_link else todo).append(inner)
    # The order of a folder's entries depends on the file system, and fingerprints on the order.
    files = sorted(walk.files, key=lambda file: file[0].split(os.sep))
    return FolderListing(tuple(files), walk.hidden, tuple(sorted(walk.repeated)), tuple(sorted(walk.unreadable)))
