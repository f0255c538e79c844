"""Files that are whole or absent: everything is written under a temporary name and renamed when complete."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import ClipeditError, ExportError
from .staging import (
    clear_folder_once,
    clear_leftovers,
    create_private_file,
    create_private_folder,
    publish_file,
    publish_folder,
)


@contextmanager
def staged_file(path: Path, *, apart: bool = False) -> Iterator[Path]:
    """A private temporary file in the same folder; renamed to `path` if the block succeeds, removed if it does not.

    What killed runs left in that folder is removed first.

    Args:
        apart: In a private folder of its own, for writers that put temporary files of their own beside what they
            write: a killed run's are then under a name of ours, and are removed with it.

    Raises:
        ExportError: If the folder cannot be written, or the disk is full.
    """
    path, folder, temporary = Path(path), None, None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # With the process: what one has remembered is inherited by those that it forks.
        clear_folder_once(path.parent, os.getpid())
        folder = create_private_folder(path) if apart else None
        temporary = create_private_file(path if folder is None else folder / path.name)
        yield temporary
        publish_file(temporary, path)
    except OSError as error:
        raise _writing_error(path, error) from error
    finally:
        if temporary is not None:
            # After the rename nothing has this name any more.
            temporary.unlink(missing_ok=True)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def staged_folder(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """A private temporary folder beside `path`; takes its place if the block succeeds, removed if it does not.

    Raises:
        ExportError: If `path` exists and `overwrite` is not set, if it is a folder clipedit may not replace (a parent
            of the working directory), or if it cannot be written.
    """
    path = Path(path)
    require_free_folder(path, overwrite=overwrite)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = create_private_folder(path)
    except OSError as error:
        raise _writing_error(path, error) from error
    try:
        yield temporary
        publish_folder(temporary, path, replace=overwrite)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise ExportError(
                f"cannot write to {path}: another run has written it meanwhile, and its files stay. Choose another -o, "
                "or add --overwrite."
            ) from error
        raise _writing_error(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def require_free_folder(path: Path, *, overwrite: bool) -> None:
    """Check, before long work starts, that a result may be written to `path`; what killed runs left of it is cleared
    away.

    Raises:
        ExportError: As `staged_folder`.
    """
    path = Path(path)
    if path.parent.is_dir():
        clear_leftovers(path)
    if path.is_file() or path.is_symlink():
        raise ExportError(f"cannot write the folder {path}: a file of that name exists. Choose another -o.")
    if path.resolve() in (Path.cwd().resolve(), *Path.cwd().resolve().parents, Path.home().resolve()):
        raise ExportError(f"cannot write to {path}: it holds the working directory or is your home. Choose another -o.")
    if not path.exists() or not any(path.iterdir()):
        return
    if not overwrite:
        raise ExportError(f"cannot write to {path}: the folder is not empty. Choose another -o, or add --overwrite.")


def require_free_file(path: Path, *, overwrite: bool) -> None:
    """Check, before long work starts, that a result may be written to `path`.

    Raises:
        ExportError: If a folder has that name, or a file and `overwrite` is not set.
    """
    if Path(path).is_dir():
        raise ExportError(f"cannot write {path}: it is a folder. Give a file as -o.")
    if Path(path).exists() and not overwrite:
        raise ExportError(f"cannot write {path}: it exists. Choose another -o, or add --overwrite.")


def require_apart(out: Path, *inputs: str | Path | None) -> None:
    """Refuse to replace a folder that something is read from.

    Raises:
        ExportError: If an input lies in `out`.
    """
    for given in inputs:
        if given is not None and Path(given).exists() and Path(given).resolve().is_relative_to(Path(out).resolve()):
            raise ExportError(f"cannot write to {out}: {given} is read from there. Choose another -o.")


def find_beside(path: Path, name: object) -> Path:
    """The file that another one names, which must lie in its folder, links followed on both sides.

    Raises:
        ValueError: If the name is no plain name, or leads out of the folder.
    """
    if not isinstance(name, str) or not is_plain_name(name):
        raise ValueError(f"{name!r} is not the name of a file beside {path.name}")
    found = path.parent / name
    # In the hub's cache both are links into one folder.
    if found.resolve().parent not in (path.parent.resolve(), path.resolve().parent):
        raise ValueError(f"{name} is a link that leads out of {path.parent}")
    return found


def is_plain_name(name: str) -> bool:
    """Whether a name stays in its folder on every system."""
    return Path(name).name == name and name not in ("", ".", "..") and not set(name) & set("/\\:\0")


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically."""
    with staged_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def save_tensors(path: Path, tensors: Mapping[str, Any], kind: str, described: Any = None) -> None:
    """Write a safetensors file atomically; equal content gives equal bytes.

    Args:
        kind: What the file is; the key of its metadata.
        described: Plain data kept with it, as JSON. There is one key only: the format does not fix the order of
            several.
    """
    # Late: it loads torch, and this file is read without it.
    from safetensors.torch import save_file

    ordered = {name: tensors[name].detach().contiguous().cpu() for name in sorted(tensors)}
    metadata = {kind: described if isinstance(described, str) else json.dumps(described, sort_keys=True)}
    # Apart: the library writes to a temporary file of its own first, whose name says nothing of us.
    with staged_file(path, apart=True) as temporary:
        try:
            save_file(ordered, temporary, metadata=metadata)
        except Exception as error:  # The library has an error of its own for what the disk refuses.
            raise _writing_error(Path(path), error) from error


def _writing_error(path: Path, error: Exception) -> ClipeditError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return ExportError(
        f"cannot write {path}: {reason}. Nothing was left under that name; free space or choose another -o."
    )
