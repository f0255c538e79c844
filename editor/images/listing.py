"""Where images are listed: one function from what a user names to a source.

A folder (searched recursively, so ImageFolder layouts too), a CSV with a column of paths, a list of files, shards
(`editor/images/shards.py`), or `demo` for freshly rendered images of the embedded world.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import ImageError
from ..files.inputs import require_images_path
from ..files.tables import JSON_LINES, is_missing, name_row, read_table
from .decode import SUFFIXES
from .demo import demo_calibration_source
from .demo_name import is_demo
from .folders import read_folder
from .labelled_options import is_split
from .shards import list_shards, open_shards, read_remote_folder
from .source import ImageSource, OpenPath, join_sources

# In place of the size of a file that is not there.
MISSING = "missing"
TABLE_SUFFIXES = (".csv", ".tsv", JSON_LINES)
METADATA_NAMES = ("metadata.csv", "metadata.jsonl")
# However they are spelled: `Image Path`, `image-path`, `ImagePath`. The last ones may also hold something else than a
# path, so they are looked for last.
PATH_COLUMNS = (
    *("filename", "img_filename", "path", "file", "file_name", "image_path", "filepath", "file_path", "img_path"),
    *("image_file", "image_filename", "image_name", "img_name", "image", "img", "image_id"),
)
_LETTERS = re.compile(r"[^a-z0-9]")


def list_images(source: str | Path | ImageSource | Sequence[str | Path]) -> ImageSource:
    """Find the images of a source.

    Raises:
        ImageError: If the folder or file is missing, or holds no image.
    """
    if isinstance(source, ImageSource):
        return source
    if is_demo(source):
        return demo_calibration_source()
    if isinstance(source, str | Path) and os.path.isdir(source):
        return list_folder(source)
    shards = list_shards(source)
    if shards:
        return join_sources([shard.open() for shard in shards])
    if isinstance(source, str | Path):
        return read_remote_folder(str(source)) if "://" in str(source) else _list_local(Path(source))
    return _from_paths([Path(item) for item in source], [str(item) for item in source])


def list_folder(folder: str | Path, *, labelled: bool = False) -> ImageSource:
    """The images of a folder, searched recursively, or of the shards in it.

    Args:
        labelled: As for `read_folder`: for folders whose own folders say what the images are.

    Raises:
        ImageError: If it holds none, or images and shards, or shards of two kinds.
    """
    found = read_folder(folder, labelled=labelled)
    if found.shards:
        return join_sources([shard.open() for shard in open_shards(found.shards)])
    return _from_paths([Path(path) for _, path in found.images], [name for name, _ in found.images])


def _list_local(path: Path) -> ImageSource:
    if path.suffix.lower() in TABLE_SUFFIXES and path.is_file():
        return read_csv_source(path)
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        return _from_paths([path], [path.name])
    # A name with brackets in it is a pattern only where no file has it.
    matched = sorted(glob.glob(str(path), recursive=True)) if glob.has_magic(str(path)) and not path.exists() else []
    images = [name for name in matched if Path(name).suffix.lower() in SUFFIXES]
    if images:
        return _from_paths([Path(name) for name in images], images)
    require_images_path(path)
    raise ImageError(f"cannot read images from {path}: it is not a folder, an image or a CSV, nor a shard.")


def find_metadata(folder: Path) -> Path | None:
    """The table in a folder that says what its images are, as Hugging Face names it too."""
    return next((folder / name for name in METADATA_NAMES if (folder / name).is_file()), None)


def read_split_tables(folder: Path) -> ImageSource | None:
    """The tables in the folders `train`, `val` and `test`, as Hugging Face keeps them: each row with its `split`.

    Raises:
        ImageError: As `read_csv_source`.
    """
    inner = sorted(item for item in folder.iterdir() if item.is_dir() and is_split(item.name))
    tables = [(item.name, table) for item in inner if (table := find_metadata(item))]
    if not tables:
        return None
    sources = [(split, named_below(split, read_csv_source(table))) for split, table in tables]
    rows = [{**row, "split": split} for split, source in sources for row in source.attributes]
    # The tables may differ in columns: what a row lacks is empty.
    columns = dict.fromkeys(name for row in rows for name in row)
    filled = tuple({name: row.get(name, "") for name in columns} for row in rows)
    return replace(join_sources([source for _, source in sources]), attributes=filled)


def named_below(folder: str, source: ImageSource) -> ImageSource:
    """The same images, each named as if it lay in a folder."""
    return replace(source, names=tuple(f"{folder}/{name}" for name in source.names))


def read_csv_source(path: Path) -> ImageSource:
    """A table with a header, or of JSON lines; a column called as in `PATH_COLUMNS` holds paths relative to it.

    Raises:
        ImageError: If no such column exists, the table cannot be read or has no rows, or a row is short or has no path.
    """
    if not path.is_file():
        raise ImageError(f"cannot read {path}: there is no such file.")
    try:
        rows = read_table(path)
    except (OSError, ValueError) as error:
        raise ImageError(f"cannot read {path}: {error}. Give a CSV or JSON lines in UTF-8.") from None
    if not rows:
        raise ImageError(f"cannot read images from {path}: it has no rows below a header. Give one row for each image.")
    column = find_path_column(list(rows[0]))
    if column is None:
        raise ImageError(
            f"cannot read images from {path}: its columns are {', '.join(rows[0])}, "
            f"one of {', '.join(PATH_COLUMNS)} is needed."
        )
    names = [row[column] for row in rows]
    empty = next((number for number, name in enumerate(names, start=1) if is_missing(name)), None)
    if empty is not None:
        raise ImageError(f"cannot read images from {path}: {name_row(path, empty)} has no {column}. Fill it in.")
    # Names of files may begin with a blank, values in other columns never mean one.
    attributes = tuple({key: v if key == column else v.strip() for key, v in row.items()} for row in rows)
    found = _from_paths([_find_file(path.parent, name) for name in names], names)
    return ImageSource(found.names, found.open, attributes, found.stamps)


def find_path_column(columns: Sequence[str]) -> str | None:
    """The column of paths among those of a table, by its name."""
    spelled = {_LETTERS.sub("", name.lower()): name for name in reversed(columns)}
    return next((spelled[plain] for name in PATH_COLUMNS if (plain := name.replace("_", "")) in spelled), None)


def _find_file(folder: Path, cell: str) -> Path:
    """The file that a cell names. Where none is called so: without blanks around it, with the slashes of this system
    for those of Windows, and with the suffix that the names of an `image_id` often lack.
    """
    written = folder / cell
    if _stamp(written) != MISSING:
        return written
    plain = cell.strip().replace("\\", "/")
    cased = (case(suffix) for suffix in sorted(SUFFIXES) for case in (str.lower, str.upper))
    others = (folder / f"{plain}{suffix}" for suffix in ("", *cased))
    return next((other for other in others if _stamp(other) != MISSING), written)


def source_of_rows(paths: Sequence[Path], rows: Sequence[dict[str, str]]) -> ImageSource:
    """Image files with the attributes of each."""
    found = _from_paths(paths, [str(path) for path in paths])
    return ImageSource(found.names, found.open, tuple(rows), found.stamps)


def _from_paths(paths: Sequence[Path], names: Sequence[str]) -> ImageSource:
    stamps = tuple(_stamp(path) for path in paths)
    return ImageSource(tuple(names), OpenPath(tuple(paths)), stamps=stamps)


def _stamp(path: Path) -> str:
    try:
        return str(path.stat().st_size) if path.is_file() else MISSING
    except (OSError, ValueError):  # A name that is too long, or holds what no name can.
        return MISSING
