"""Faces that neutral queries are asked of: who is found first (FairFace, UTKFace)."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ...errors import ImageError
from ...files.tables import is_missing, name_row
from ..decode import SUFFIXES
from ..labelled import Usual, label_source, require_groups
from ..listing import list_folder, source_of_rows
from ..skew import RetrievalSet
from ..source import ImageSource, LabelledImages
from .asked import Asked, read_rows, require_column

FAIRFACE_ATTRIBUTES = ("gender", "race", "age")
FAIRFACE_QUERIES = tuple(
    f"{word} person"
    for word in (
        "good",
        "evil",
        "smart",
        "dumb",
        "attractive",
        "unattractive",
        "lawful",
        "criminal",
        "friendly",
        "unfriendly",
    )
)

# The values of UTKFace's names, by number.
_UTK_WORDS = {"gender": ("male", "female"), "race": ("White", "Black", "Asian", "Indian", "Others")}
# The age groups of FairFace, by their first year.
_AGES = ((70, "more than 70"), *((ten, f"{ten}-{ten + 9}") for ten in range(60, 9, -10)), (3, "3-9"), (0, "0-2"))
_UTK_NAME = re.compile(r"(?P<age>\d{1,3})_(?P<gender>[01])_(?P<race>[0-4])_\d+.*", re.DOTALL)
# Some published files lack a value in their names.
_UTK_LIKE = re.compile(r"\d{1,3}_[\d_]*\d{10,}.*", re.DOTALL)
_MOST_UNNAMED = 0.01


def load_fairface(path: Path, asked: Asked) -> RetrievalSet:
    """`fairface_label_{split}.csv` with `file,age,gender,race`, paths relative to the folder.

    Raises:
        ImageError: If the table or a column is missing.
    """
    if asked.label:
        raise ImageError(f"cannot use --label with {path}: FairFace measures retrieval, it has queries. Leave it out.")
    split, group_by = asked.split or "val", asked.group_by or FAIRFACE_ATTRIBUTES
    table = path / f"fairface_label_{split}.csv"
    if not table.is_file():
        there = ", ".join(sorted(found.name for found in path.glob("fairface_label_*.csv"))) or "none"
        raise ImageError(f"cannot read {path} as FairFace: it has no {table.name}, there is {there}. Choose a --split.")
    rows = read_rows(table)
    for column in ("file", *group_by):
        require_column(table, rows[0], column)
        _require_filled(table, rows, column)
    return _ask(source_of_rows([path / row["file"] for row in rows], rows), asked)


def _ask(source: ImageSource, asked: Asked) -> RetrievalSet:
    """Queries for faces, whose attributes are called as FairFace's are."""
    queries = tuple(asked.classes.values()) if asked.classes else FAIRFACE_QUERIES
    names = asked.group_by or FAIRFACE_ATTRIBUTES
    return RetrievalSet(source, queries, {name: tuple(row[name] for row in source.attributes) for name in names})


def _require_filled(table: Path, rows: Sequence[Mapping[str, str]], column: str) -> None:
    empty = next((number for number, row in enumerate(rows, start=1) if is_missing(row[column])), None)
    if empty is not None:
        named = f" ({rows[empty - 1]['file']})" if column != "file" else ""
        raise ImageError(
            f"cannot read {table}: {name_row(table, empty)}{named} has no {column}. Fill it in, or leave the row out."
        )


def is_utkface(names: Sequence[str]) -> bool:
    """Whether all images among a folder's files are named as those of UTKFace, a few of which lack a value."""
    images = [name for name in names if Path(name).suffix.lower() in SUFFIXES]
    return any(map(_UTK_NAME.fullmatch, images)) and all(map(_UTK_LIKE.fullmatch, images))


def load_utkface(path: Path, asked: Asked) -> RetrievalSet | LabelledImages:
    """`age_gender_race_time.jpg`: queries as FairFace's, or with `--label` zero-shot gender, race or age.

    Raises:
        ImageError: If a file is not named so; up to 1 % that lack a value are passed over with a warning.
    """
    found = list_folder(path, labelled=True)
    matches = [_UTK_NAME.fullmatch(Path(name).name) for name in found.names]
    kept = [index for index, match in enumerate(matches) if match]
    _say_unnamed(path, [name for name, match in zip(found.names, matches, strict=True) if not match], len(found))
    rows = tuple(_name_face(match) for match in matches if match)
    source = replace(found.subset(kept), attributes=rows)
    if asked.label:
        others = tuple(name for name in FAIRFACE_ATTRIBUTES if name != asked.label)
        return label_source(path, source, asked, Usual(groups=others[:1]))
    require_groups(path, rows[0], asked.group_by)
    if asked.split or asked.retention:
        raise ImageError(f"cannot use columns with {path}: the layout utkface has no splits. Leave them out.")
    return _ask(source, asked)


def _name_face(match: re.Match[str]) -> dict[str, str]:
    named = {column: words[int(match[column])] for column, words in _UTK_WORDS.items()}
    return named | {"age": next(word for first, word in _AGES if int(match["age"]) >= first)}


def _say_unnamed(path: Path, unnamed: Sequence[str], of: int) -> None:
    if len(unnamed) > max(_MOST_UNNAMED * of, 3) or len(unnamed) == of:
        raise ImageError(
            f"cannot read {path} as UTKFace: {unnamed[0]!r} is not named age_gender_race_time. Rename or remove it."
        )
    if unnamed:
        warnings.warn(
            f"in {path} passed over {len(unnamed)} images without a gender or race in the name, such as {unnamed[0]}",
            stacklevel=2,
        )
