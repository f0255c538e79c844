"""Objects with another class's name written on them: by names of files, and SCAM's table."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from ...errors import ImageError
from ...files.tables import is_missing, name_row
from ..labelled import label_source
from ..labelled_options import ALL
from ..listing import TABLE_SUFFIXES, find_metadata, list_folder, read_csv_source
from ..packed.parquet import list_columns
from ..source import ImageSource, LabelledImages
from .asked import Asked, read_heading, require_column
from .hub_parquet import find_parquet, read_parquet

SCAM_COLUMNS = ("type", "object_label", "attack_word")
TYPOGRAPHIC = re.compile(r"label=(?P<label>.+)_text=(?P<text>.+)", re.DOTALL)
_NUMBERED_NAME = re.compile(r"(?P<name>.+)_(?P<number>\d{1,9})", re.DOTALL)


def load_typographic(path: Path, asked: Asked) -> LabelledImages:
    """`label=<x>_text=<y>.*`: an object with another class's name written on it; groups are the objects.

    Raises:
        ImageError: If a file is not named so, or a name is no class.
    """
    asked.require_no_columns(path, "typographic")
    source = list_folder(path, labelled=True)
    found = [TYPOGRAPHIC.fullmatch(Path(name).stem) for name in source.names]
    if None in found:
        wrong = source.names[found.index(None)]
        raise ImageError(
            f"cannot read {path} as typographic: {wrong!r} is not named label=<x>_text=<y>. Rename or remove it."
        )
    named = [(match["label"], match["text"]) for match in found if match]
    known = set(asked.classes) if asked.classes else {label for label, _ in named}
    pairs = list(zip((label for label, _ in named), strip_copies([text for _, text in named], known), strict=True))
    # What is only written counts as a class too: an image may be taken for it.
    names = asked.classes or {
        name: name.replace("_", " ") for name in sorted({name for pair in pairs for name in pair})
    }
    unknown = sorted({name for pair in pairs for name in pair} - names.keys())
    if unknown or len(names) < 2:
        raise ImageError(
            f"cannot read {path}: {unknown[0] if unknown else 'a single name'!r} is no class. Add it to --classes."
        )
    order = list(names)
    labels, written = (tuple(order.index(pair[i]) for pair in pairs) for i in (0, 1))
    return LabelledImages(source, tuple(names.values()), labels, tuple(names[x] for x, _ in pairs), written=written)


def find_scam(path: Path) -> Path | None:
    """The table with SCAM's columns: the given one, or that in the given folder or the one that it unpacks to."""
    # Its repository holds `images.zip`, an image folder of the one split `train`, in the place of `images/train/`.
    folders = (path, path / "images", path / "train", path / "images" / "train")
    tables = [path] if path.is_file() else [table for folder in folders if (table := find_metadata(folder))]
    return next((table for table in tables if table.suffix in TABLE_SUFFIXES and _has_scam_columns(table)), None)


def _has_scam_columns(table: Path) -> bool:
    heading = read_heading(table, 10_000)
    return all(column in heading for column in SCAM_COLUMNS)


def is_scam(path: Path) -> bool:
    """Whether Parquet files have SCAM's columns, as its repository on the Hugging Face hub keeps them."""
    return set(SCAM_COLUMNS) <= set(list_columns(next(find_parquet(path))))


def _read_scam(path: Path) -> tuple[Path, ImageSource]:
    """What messages name, and the images with their columns."""
    table = find_scam(path)
    if table is not None:
        return table, read_csv_source(table)
    if next(find_parquet(path), None) is None:
        raise ImageError(f"cannot read {path} as SCAM: no table with {', '.join(SCAM_COLUMNS)}. Give its folder.")
    found = read_parquet(path)
    return found.place, found.source


def load_scam(path: Path, asked: Asked) -> LabelledImages:
    """`type,object_label,attack_word`: each image is asked for its object or the word beside it, as in the paper.

    Groups are the types (`SCAM`, `NoSCAM`, `SynthSCAM`) unless `--group-by` says otherwise; `--split` names one type.
    With `--label` it is a table as any other.

    Raises:
        ImageError: If there is no such table, a cell is empty, or a name is no class.
    """
    table, source = _read_scam(path)
    if asked.label:
        # One column of it, as of any table: to erase what is written, or the types.
        return label_source(table, source, asked)
    if asked.retention:
        raise ImageError(f"cannot use --retention with {path}: SCAM has a task of its own. Name a --label too.")
    first, columns = source.attributes[0], asked.group_by or SCAM_COLUMNS[:1]
    for column in (*SCAM_COLUMNS, *columns):
        require_column(table, first, column)
    kept = [i for i, row in enumerate(source.attributes) if asked.split in (None, ALL, row["type"])]
    if not kept:
        types = sorted({row["type"] for row in source.attributes})
        raise ImageError(f"cannot use {table}: no row has type {asked.split}, there are {', '.join(types)}.")
    rows = [source.attributes[i] for i in kept]
    names = _name_scam(table, source, kept, asked)
    order = list(names)
    labels, written = (tuple(order.index(row[column]) for row in rows) for column in SCAM_COLUMNS[1:])
    return LabelledImages(
        source.subset(kept),
        tuple(names.values()),
        labels,
        tuple(" / ".join(row[column] for column in columns) for row in rows),
        subsets=tuple(row["type"] for row in rows),
        written=written,
        options=tuple(zip(labels, written, strict=True)),
        split=None if asked.split == ALL else asked.split,
    )


def _name_scam(table: Path, source: ImageSource, kept: Sequence[int], asked: Asked) -> dict[str, str]:
    """The words of all objects and all written words."""
    for column in SCAM_COLUMNS:
        empty = next((i for i in kept if is_missing(source.attributes[i][column])), None)
        if empty is not None:
            where = f"{name_row(table, empty + 1)} ({source.names[empty]})"
            raise ImageError(f"cannot read {table}: {where} has no {column}. Fill it in.")
    there = sorted({source.attributes[i][column] for i in kept for column in SCAM_COLUMNS[1:]})
    names = dict(asked.classes) if asked.classes else {name: name.replace("_", " ") for name in there}
    unknown = sorted(set(there) - names.keys())
    if unknown:
        raise ImageError(f"cannot read {table}: {unknown[0]!r} is no class. Add it to --classes.")
    return names


def strip_copies(texts: Sequence[str], known: Collection[str]) -> list[str]:
    """Written names without the numbers of copies: `dog (2)` and `dog_2` are `dog`, `boeing_747` is a name.

    A number belongs to the name where the name with it is known, and is a copy's where the name without it is. Where
    neither says so, copies count from 0, 1 or 2 on without a gap.
    """
    texts = [re.sub(r"\s*\(\d+\)$", "", text) or text for text in texts]
    plain = set(known) | {text for text in texts if not _NUMBERED_NAME.fullmatch(text)}
    numbers: dict[str, set[int]] = {}
    for match in filter(None, map(_NUMBERED_NAME.fullmatch, texts)):
        numbers.setdefault(match["name"], set()).add(int(match["number"]))

    def strip(text: str) -> str:
        match = _NUMBERED_NAME.fullmatch(text)
        if match is None or text in known:
            return text
        counted = numbers[match["name"]]
        is_count = min(counted) <= 2 and max(counted) - min(counted) < len(counted)
        return match["name"] if match["name"] in plain or is_count else text

    return [strip(text) for text in texts]
