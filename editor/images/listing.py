"""Where images are listed: one function from what a user names to a source.

A folder (searched recursively, so ImageFolder layouts too), a CSV with a column of paths, a list of files, shards
(`editor/images/shards.py`), or `demo` for freshly rendered images of the embedded world.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import ImageError
from ..files.inputs import require_images_path
from .decode import SUFFIXES
from .demo import demo_calibration_source
from .demo_name import is_demo
from .shards import list_shards, read_remote_folder
from .source import ImageSource, OpenPath, join_sources

# In place of the size of a file that is not there.
MISSING = "missing"
PATH_COLUMNS = ("filename", "img_filename", "path", "file", "image")


def list_images(source: str | Path | ImageSource | Sequence[str | Path]) -> ImageSource:
    """Find the images of a source.

    Raises:
        ImageError: If the folder or file is missing, or holds no image.
    """
    if isinstance(source, ImageSource):
        return source
    if is_demo(source):
        return demo_calibration_source()
    shards = list_shards(source)
    if shards:
        return join_sources([shard.open() for shard in shards])
    if isinstance(source, str | Path):
        return read_remote_folder(str(source)) if "://" in str(source) else _list_local(Path(source))
    return _from_paths([Path(item) for item in source], [str(item) for item in source])


def _list_local(path: Path) -> ImageSource:
    if path.is_dir():
        return _from_folder(path)
    if path.suffix.lower() in (".csv", ".tsv") and path.is_file():
        return read_csv_source(path)
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        return _from_paths([path], [path.name])
    require_images_path(path)
    raise ImageError(f"cannot read images from {path}: it is not a folder, an image or a CSV, nor a shard.")


def read_csv_source(path: Path) -> ImageSource:
    """A CSV with a header; one column, called filename, img_filename, path, file or image, holds paths beside the CSV.

    Raises:
        ImageError: If no such column exists, or the CSV cannot be read or has no rows.
    """
    try:
        if not path.is_file():
            raise ImageError(f"cannot read {path}: there is no such file.")
        # Spreadsheets write a byte order mark, which would become part of the first column's name.
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t" if path.suffix.lower() == ".tsv" else ","))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ImageError(f"cannot read {path}: {error}. Give a CSV in UTF-8.") from None
    # DictReader puts fields beyond the header under the key None.
    columns = [key for key in (rows[0] if rows else {}) if key]
    column = next((name for name in PATH_COLUMNS if name in columns), None)
    if column is None:
        raise ImageError(
            f"cannot read images from {path}: its columns are {', '.join(columns) or 'none'}, "
            f"one of {', '.join(PATH_COLUMNS)} is needed."
        )
    # None where a row is shorter than the header.
    names = [row[column] or "" for row in rows]
    attributes = tuple({key: value or "" for key, value in row.items() if key} for row in rows)
    found = _from_paths([path.parent / name for name in names], names)
    return ImageSource(found.names, found.open, attributes, found.stamps)


def source_of_rows(paths: Sequence[Path], rows: Sequence[dict[str, str]]) -> ImageSource:
    """Image files with the attributes of each."""
    found = _from_paths(paths, [str(path) for path in paths])
    return ImageSource(found.names, found.open, tuple(rows), found.stamps)


def _from_folder(folder: Path) -> ImageSource:
    # The order of a folder's entries depends on the file system, and the fingerprint on the order.
    found = sorted(
        Path(root) / name
        for root, _, names in os.walk(folder)
        for name in names
        if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")
    )
    if not found:
        raise ImageError(
            f"cannot read images from {folder}: it holds no image. Looked for {', '.join(sorted(SUFFIXES))}."
        )
    return _from_paths(found, [str(path.relative_to(folder)) for path in found])


def _from_paths(paths: Sequence[Path], names: Sequence[str]) -> ImageSource:
    stamps = tuple(_stamp(path) for path in paths)
    return ImageSource(tuple(names), OpenPath(tuple(paths)), stamps=stamps)


def _stamp(path: Path) -> str:
    try:
        return str(path.stat().st_size) if path.is_file() else MISSING
    except (OSError, ValueError):  # A name that is too long, or holds what no name can.
        return MISSING
