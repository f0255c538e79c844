"""What is asked of a published data set, and how its tables are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...errors import ImageError
from ...files.bounded import read_text
from ...files.tables import MAX_TABLE_BYTES, read_table
from ..labelled_options import Purpose


@dataclass(frozen=True)
class Asked:
    """What a user says of a data set, as in `LabelledOptions`, and what the images are for."""

    label: str | None = None
    classes: Mapping[str, str] | None = None
    group_by: tuple[str, ...] = ()
    split: str | None = None
    retention: str | None = None
    purpose: Purpose = "report"

    def require_no_columns(self, path: Path, layout: str, *, splits: bool = False) -> None:
        """Refuse columns where the names of folders and files say everything.

        Args:
            splits: Whether the layout has splits, so that one may be named.

        Raises:
            ImageError: Naming the layout.
        """
        if self.label or self.group_by or (self.split and not splits):
            raise ImageError(f"cannot use columns with {path}: the layout {layout} has none. Leave them out.")


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table with a header, without blanks around values.

    Raises:
        ImageError: If it cannot be read, or has none.
    """
    try:
        rows = read_table(path)
    except (OSError, ValueError) as error:
        raise ImageError(f"cannot read {path}: {error}. Give a CSV in UTF-8 with a header.") from None
    if not rows:
        raise ImageError(f"cannot read {path}: it has no rows. Give a CSV with a header.")
    return [{name: value.strip() for name, value in row.items()} for row in rows]


def read_heading(table: Path, most: int) -> str:
    """The first line of a table, at most so many characters of it; empty where it cannot be read."""
    try:
        with table.open(encoding="utf-8-sig") as stream:
            return stream.readline(most)
    except (OSError, ValueError):  # What cannot be read is told by the reader of tables.
        return ""


def require_column(table: Path, first: Mapping[str, str], column: str) -> None:
    """Refuse a table whose first row lacks a column.

    Raises:
        ImageError: Naming the columns that there are.
    """
    if column not in first:
        raise ImageError(f"cannot read {table}: no column {column}, there are {', '.join(first)}.")


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty.

    Raises:
        ImageError: If it cannot be read.
    """
    try:
        text = read_text(path, most=MAX_TABLE_BYTES)
    except (OSError, ValueError) as error:
        raise ImageError(f"cannot read {path}: {error}. Give a text file in UTF-8.") from None
    return [line for line in text.split("\n") if line.strip()]
