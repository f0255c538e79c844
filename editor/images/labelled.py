"""Labelled images: the layouts people have, read into one form.

Waterbirds (`metadata.csv` with `img_filename,y,split,place`), a CSV of paths and attributes, or one folder per class.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from ..errors import ImageError
from ..files.tables import is_missing, name_row, read_lines, unquote
from .demo import test_source
from .demo_name import is_demo
from .labelled_options import ALL, NUMBERED, Purpose, choose_split, is_split
from .listing import (
    METADATA_NAMES,
    PATH_COLUMNS,
    TABLE_SUFFIXES,
    find_metadata,
    list_folder,
    read_csv_source,
    read_split_tables,
)
from .published.asked import Asked
from .source import ImageSource, LabelledImages

LABEL_COLUMNS = ("label", "class", "y", "shape")
# A value in quotes may hold a colon; a semicolon or a tab stands where a list was saved from a spreadsheet.
_CLASS_LINE = re.compile(r"""(?P<key>"[^"]*"|'[^']*'|[^:;\t]*)\s*(?:[:;\t](?P<words>.*))?""", re.DOTALL)
WATERBIRDS = {"0": "landbird", "1": "waterbird"}


def load_labelled_images(
    path: str | Path,
    *,
    label: str | None = None,
    classes: Mapping[str, str] | None = None,
    group_by: Sequence[str] = (),
    split: str | None = None,
    retention: str | None = None,
    purpose: Purpose = "report",
) -> LabelledImages:
    """Read a labelled set.

    Args:
        path: A folder with `metadata.csv` or `metadata.jsonl`, such a table, or a folder that holds one folder per
            class; those, and such tables, may lie in folders `train`, `val` and `test`.
        label, classes, group_by, split, retention: As in `LabelledOptions`.
        purpose: What the images are for: says which split is kept where none is named.

    Raises:
        ImageError: If a column is missing, a value has no class, images are not there, or nothing is left.
    """
    path, asked = Path(path), Asked(label, classes, tuple(group_by), split, retention, purpose)
    found = _label_table(path, read_csv_source(path), asked) if path.is_file() else _read_folder_table(path, asked)
    if found is not None:
        return found
    if label or group_by or retention:
        raise ImageError(
            f"cannot use columns with {path}: it has no {' or '.join(METADATA_NAMES)}, its folders are the classes."
        )
    return _from_class_folders(path, classes, split, purpose)


def _label_table(table: Path, source: ImageSource, asked: Asked) -> LabelledImages:
    # The columns of Waterbirds: its splits are numbered, also where a part of it lacks one of the three numbers.
    waterbirds = {"img_filename", "y", "place"} <= source.attributes[0].keys()
    return label_source(table, source, asked, Usual("y", WATERBIRDS, numbered=True) if waterbirds else Usual())


def _read_folder_table(folder: Path, asked: Asked) -> LabelledImages | None:
    """By the tables in a folder or in those of its splits; None without any, or where the folders are the classes."""
    table = find_metadata(folder)
    if table is not None:
        source = read_csv_source(table)
        says_classes = table.name == METADATA_NAMES[0] or _says_classes(source, asked, depth=1)
        return _label_table(table, source, asked) if says_classes else None
    splits = read_split_tables(folder) if folder.is_dir() else None
    if splits is not None and _says_classes(splits, asked, depth=2):
        return label_source(folder, splits, asked)
    return None


def _says_classes(source: ImageSource, asked: Asked, depth: int) -> bool:
    """Whether JSON lines that lie among images say the classes; captions may lie beside folders that do."""
    # `cat/0.jpg` lies in a class's folder, `0.jpg` does not.
    beside = all(len(Path(name).parts) <= depth for name in source.names)
    return beside or bool(asked.label) or _find_column(LABEL_COLUMNS, source.attributes[0]) is not None


@dataclass(frozen=True)
class Usual:
    """What a layout says where the user does not.

    Attributes:
        label: The column of classes; by default the first there is of `LABEL_COLUMNS`.
        classes: Words for the values of that column.
        groups: Columns that make groups together with the class.
        numbered: Whether its splits are called 0, 1 and 2.
    """

    label: str | None = None
    classes: Mapping[str, str] | None = None
    groups: tuple[str, ...] = ("place",)
    numbered: bool = False


def label_source(place: Path, source: ImageSource, asked: Asked, usual: Usual | None = None) -> LabelledImages:
    """Images with classes and groups, from their attributes; `place` is what messages name.

    Raises:
        ImageError: If a column is missing, a value has no class, or nothing is left.
    """
    usual, first = usual or Usual(), source.attributes[0]
    column = asked.label or usual.label or _find_column(LABEL_COLUMNS, first)
    if column is None or column not in first:
        raise ImageError(
            f"cannot read labels from {place}: no column {column or ' or '.join(LABEL_COLUMNS)}, "
            f"there are {', '.join(first)}. Name one with --label."
        )
    kept, split = keep_rows(place, source.attributes, asked.split, asked.purpose, numbered=usual.numbered)
    columns = list(asked.group_by) or [found for name in usual.groups if (found := _find_column((name,), first))]
    require_groups(place, first, columns)
    found = _Table(place, source, kept, split)
    named = asked.classes or (usual.classes if column == usual.label else None)
    # The class itself is part of every group.
    labelled = found.label(column, named, [name for name in columns if name != column])
    return replace(labelled, retention=found.label(asked.retention, None, []) if asked.retention else None)


def _find_column(wanted: Sequence[str], columns: Iterable[str]) -> str | None:
    """The first of some usual columns that a table has, in any case of letters; its own spelling goes first."""
    spelled = {name.lower(): name for name in columns} | {name: name for name in columns}
    return next((spelled[name] for name in wanted if name in spelled), None)


def require_groups(place: Path, first: Mapping[str, str], columns: Sequence[str]) -> None:
    """Refuse to group by columns that are not among those of the first row; `place` is what messages name.

    Raises:
        ImageError: Naming a column that is missing, and those that there are.
    """
    for name in columns:
        if name not in first:
            raise ImageError(f"cannot group by {name}: {place} has {', '.join(first)}. Correct --group-by.")


@dataclass(frozen=True)
class _Table:
    """The rows of a CSV that are kept."""

    path: Path
    source: ImageSource
    kept: Sequence[int]
    split: str | None

    @cached_property
    def _images(self) -> ImageSource:
        # Once for both tasks: cutting rows out of Parquet reads them.
        return self.source.subset(self.kept)

    def label(self, column: str, classes: Mapping[str, str] | None, columns: Sequence[str]) -> LabelledImages:
        """The images with the classes of a column."""
        rows = self.source.attributes
        if column not in rows[0]:
            raise ImageError(
                f"cannot read labels from {self.path}: no column {column}, there are {', '.join(rows[0])}."
            )
        for name in (column, *columns):
            # A class may be called "nan", or be empty cells, where --classes says so.
            self._require_filled(name, classes if name == column and classes else {})
        # Of all rows and not of those kept: every split then numbers its classes alike.
        names = classes or {value: value for value in sorted({row[column] for row in rows}) if not is_missing(value)}
        unknown = sorted({rows[i][column] for i in self.kept} - names.keys())
        if unknown:
            raise ImageError(
                f"cannot read labels from {self.path}: {column} {unknown[0]!r} is no class. Add it to --classes."
            )
        if len(names) < 2:
            only = next(iter(names))
            raise ImageError(f"cannot measure on {self.path}: {column} is {only!r} everywhere, two classes are needed.")
        order = list(names)
        return LabelledImages(
            self._images,
            tuple(names[key] for key in order),
            tuple(order.index(rows[i][column]) for i in self.kept),
            tuple(" / ".join([names[rows[i][column]], *(f"{c} {rows[i][c]}" for c in columns)]) for i in self.kept),
            split=self.split,
        )

    def _require_filled(self, column: str, known: Mapping[str, str]) -> None:
        rows = self.source.attributes
        empty = next((i for i in self.kept if is_missing(rows[i][column]) and rows[i][column] not in known), None)
        if empty is not None:
            said = f" but {rows[empty][column]!r}" if rows[empty][column] else ""
            raise ImageError(
                f"cannot read labels from {self.path}: {self.source.names[empty]} "
                f"({name_row(self.path, empty + 1)}) has no {column}{said}. Fill it in, or leave the row out."
            )


def keep_rows(
    table: Path, rows: Sequence[Mapping[str, str]], split: str | None, purpose: Purpose, *, numbered: bool
) -> tuple[list[int], str | None]:
    """Positions of the rows of a split, and that split's value; None for all rows.

    Raises:
        ImageError: If there are none.
    """
    column = _find_column(("split",), rows[0])
    values = {row.get(column or "", "") for row in rows}
    if split is None and column is not None:
        split = NUMBERED[purpose] if numbered else choose_split(values, purpose)
    # A table may have a split of that name, which is then meant.
    elif split == ALL and ALL not in values:
        split = None
    kept = [i for i, row in enumerate(rows) if split is None or row.get(column or "") == split]
    if not kept:
        there = f", there are {', '.join(sorted(values))}" if column is not None else ": it has no column split"
        raise ImageError(f"cannot use {table}: no row has split {split}{there}. Choose a --split.")
    return kept, split


def load_attributes(path: str | Path) -> ImageSource:
    """Images with the columns of their CSV, or `metadata.csv` of their folder; `demo` is the embedded world's test
    split.

    Raises:
        ImageError: If there is no such table.
    """
    if is_demo(path):
        return test_source()
    path = Path(path)
    table = find_metadata(path) or path / METADATA_NAMES[0] if path.is_dir() else path
    if not table.is_file():
        raise ImageError(
            f"cannot read labels from {path}: there is no {table}. Give a CSV, or a folder with metadata.csv."
        )
    return read_csv_source(table)


def load_classes(path: Path) -> dict[str, str]:
    """A file with one class per line: `value: words for the prompt`, or only the words.

    Raises:
        ImageError: If it cannot be read or is empty.
    """
    pairs = (_CLASS_LINE.fullmatch(line) for line in load_lines(path))
    named: dict[str, str] = {}
    for pair in pairs:
        key, words = (unquote(pair[part] or "") for part in ("key", "words")) if pair else ("", "")
        if named.setdefault(key, words or key) != (words or key):
            raise ImageError(
                f"cannot use {path}: {key} is there twice, as {named[key]!r} and {words or key!r}. Keep one."
            )
    if "" in named:
        raise ImageError(f"cannot use {path}: a line has no class before its colon. Write `value: words`, or words.")
    return named


def load_lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty.

    Raises:
        ImageError: If it cannot be read or has none.
    """
    try:
        lines = read_lines(Path(path))
    except (OSError, ValueError) as error:
        raise ImageError(f"cannot read {path}: {error}.") from None
    if not lines:
        raise ImageError(f"cannot use {path}: it is empty. Write one entry a line.")
    return lines


def write_metadata(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Write `metadata.csv`, columns as in the first row."""
    # The csv module writes line ends of its own.
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _from_class_folders(
    path: Path, classes: Mapping[str, str] | None, split: str | None, purpose: Purpose
) -> LabelledImages:
    source = list_folder(path, labelled=True)
    parts = [Path(name).parts for name in source.names]
    # Every path is split/class/file.
    if all(len(names) > 2 and is_split(names[0]) for names in parts):
        rows = [{"split": names[0]} for names in parts]
        kept, split = keep_rows(path, rows, split, purpose, numbered=False)
        source, parts = source.subset(kept), [parts[index][1:] for index in kept]
    elif split is not None and split != ALL:
        raise ImageError(f"cannot use --split with {path}: its folders are the classes. Leave it out.")
    # "" for an image outside of all classes' folders: refused below.
    folders = [names[0] if len(names) > 1 else "" for names in parts]
    names = classes or {name: name.replace("_", " ") for name in sorted(set(folders))}
    if "" in folders or len(names) < 2:
        loose = next((name for name, folder in zip(source.names, folders, strict=True) if not folder), None)
        seen = f"{loose} lies in no folder of a class" if loose else f"all its images lie in {folders[0]}"
        raise ImageError(
            f"cannot read labels from {path}: {seen}, give one folder per class, or a metadata.csv with "
            f"{PATH_COLUMNS[0]} and label.{_name_what_is_meant(path, folders)}"
        )
    unknown = sorted(set(folders) - names.keys())
    if unknown:
        raise ImageError(f"cannot read labels from {path}: folder {unknown[0]!r} is no class. Add it to --classes.")
    order = list(names)
    words = tuple(names[key] for key in order)
    labels = tuple(order.index(folder) for folder in folders)
    return LabelledImages(source, words, labels, tuple(words[i] for i in labels), split=None if split == ALL else split)


def _name_what_is_meant(path: Path, folders: Sequence[str]) -> str:
    """A table of another name in the folder, or the one folder in it: a set was often unpacked one level down."""
    tables = sorted(item for item in path.iterdir() if item.suffix.lower() in TABLE_SUFFIXES)
    inside = [path / name for name in sorted(set(folders)) if name]
    meant = tables[:1] or (inside if len(inside) == 1 and "" not in folders else [])
    return f" Is {meant[0]} meant?" if meant else ""
