"""Faces that neutral queries are asked of: who is found first (FairFace)."""

from __future__ import annotations

from pathlib import Path

from ...errors import ImageError
from ..listing import source_of_rows
from ..skew import RetrievalSet
from .asked import Asked, read_rows

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
        if column not in rows[0]:
            raise ImageError(f"cannot read {table}: no column {column}, there are {', '.join(rows[0])}.")
    source = source_of_rows([path / row["file"] for row in rows], rows)
    queries = tuple(asked.classes.values()) if asked.classes else FAIRFACE_QUERIES
    return RetrievalSet(source, queries, {name: tuple(row[name] for row in rows) for name in group_by})
