"""Data sets in Parquet, as the Hugging Face hub gives them: a column of images beside columns that say what they are.

The names of a `ClassLabel` are the words of its classes; the splits are those of the files' names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...errors import ImageError
from ...files.locations import Location, list_locations, locate_file
from ..decode import SUFFIXES
from ..labelled import LABEL_COLUMNS, Usual, label_source
from ..labelled_options import is_split
from ..listing import METADATA_NAMES, find_path_column, source_of_rows
from ..packed.parquet import PARQUET_SUFFIXES, holds_images
from ..packed.rows import RowFile, Words, join_rows, read_cells
from ..source import ImageSource, LabelledImages
from .asked import Asked

# `test-00000-of-00002.parquet`: any split may be called so, also one that has no usual name.
_SHARD = re.compile(r"(?P<split>.+)-\d{5}-of-\d{5}")


@dataclass(frozen=True)
class ParquetSet:
    """The rows of Parquet files as a source, of which a part is read when it is cut.

    Attributes:
        place: What messages name.
        classes: Of columns that number classes, the names of these with their words.
    """

    place: Path
    source: ImageSource
    classes: Mapping[str, Words]


def is_parquet(folder: Path, names: Sequence[str]) -> bool:
    """Whether the images of a folder with such files lie in Parquet: no table says more of image files, and these lie
    in no folders that could be classes.
    """
    if any(os.path.basename(name) in METADATA_NAMES for name in names):
        return False
    pictured = {os.path.dirname(name) for name in names if name.lower().endswith(tuple(SUFFIXES))}
    there = any(name.lower().endswith(PARQUET_SUFFIXES) for name in names)
    return there and len(pictured) < 2 and any(True for _ in find_parquet(folder))


def find_parquet(path: Path) -> Iterator[Location]:
    """The given file, or those in a folder that hold images; each is opened when it is asked for."""
    if path.is_dir():
        yield from (file for file in list_locations(path, PARQUET_SUFFIXES) if holds_images(file))
    elif path.suffix.lower() in PARQUET_SUFFIXES:
        yield locate_file(path.name, str(path))


def read_parquet(path: Path) -> ParquetSet:
    """All rows of a Parquet file, or of the files of a folder, each with its `split` if names of files say one.

    Raises:
        ImageError: If there is no such file, no row, or neither images nor paths.
    """
    found = list(find_parquet(path))
    if not found:
        raise ImageError(f"cannot read {path} as Parquet: it holds no file with images. Give the file, or its folder.")
    files = [_name_split(read_cells(location)) for location in found]
    place = Path(found[0].path) if len(found) == 1 else path / "**" / "*.parquet"
    rows = [row for file in files for row in file.rows]
    # Files may differ in columns: what a row lacks is empty.
    columns = dict.fromkeys(name for row in rows for name in row)
    cells = tuple({name: row.get(name, "") for name in columns} for row in rows)
    if not cells:
        raise ImageError(f"cannot read {place}: it has no rows. Fetch it again.")
    classes = {column: words for file in reversed(files) for column, words in file.classes.items()}
    return ParquetSet(place, _open(place, files, cells), classes)


def _name_split(file: RowFile) -> RowFile:
    split = _split_of(file.location.name)
    if not split or not file.rows or "split" in file.rows[0]:
        return file
    return replace(file, rows=tuple({**row, "split": split} for row in file.rows))


def _split_of(name: str) -> str:
    """`test` of `data/test-00000-of-00001.parquet`, `test/0000.parquet` and `test.parquet`; nothing of others."""
    *folders, stem = Path(name).with_suffix("").parts
    shard = _SHARD.fullmatch(stem)
    if shard:
        return shard["split"]
    return next((part for part in (stem, *reversed(folders)) if is_split(part)), "")


def _open(place: Path, files: Sequence[RowFile], cells: tuple[dict[str, str], ...]) -> ImageSource:
    if all(file.image for file in files):
        names = tuple(name for file in files for name in file.names)
        sizes = tuple(str(file.location.size) for file in files for _ in file.rows)
        return ImageSource(names, join_rows(files), cells, sizes)
    column = find_path_column(list(cells[0]))
    if column is None or len(files) > 1:
        raise ImageError(
            f"cannot read images from {place}: of its columns {', '.join(cells[0])} none holds images or their paths. "
            "Give images as bytes, or a column file_name."
        )
    return source_of_rows([place.parent / row[column] for row in cells], cells)


def load_parquet(path: Path, asked: Asked) -> LabelledImages:
    """A column of images beside a column of classes; without `--label` one that is called so, or the only `ClassLabel`.

    Raises:
        ImageError: If there are no images, a column is missing, or a value has no class.
    """
    found = read_parquet(path)
    there = found.source.attributes[0]
    usual = next((name for name in LABEL_COLUMNS if name in there), None)
    only = next(iter(found.classes)) if len(found.classes) == 1 else None
    column = asked.label or usual or only
    words = found.classes.get(column or "", {})
    named = asked.classes and {_spell_class(key, words): word for key, word in asked.classes.items()}
    layout = Usual(column, {word: word for word in words.values()} or None)
    return label_source(found.place, found.source, replace(asked, classes=named), layout)


def _spell_class(key: str, words: Words) -> str:
    """A class as its cells spell it, which may be given by its number and by its name too."""
    if key.isdecimal() and key not in words and int(key) < len(words):
        return list(words.values())[int(key)]
    return words.get(key, key)
