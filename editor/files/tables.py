"""Tables and lists of texts as people have them: from spreadsheets, from other systems, with quotes or without.

Callers name the file: here a problem is an `OSError` or a `ValueError`, which names the row.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .bounded import MAX_BYTES, parse_json, read_text

MAX_TABLE_BYTES = 2**30
SEPARATORS = (",", ";", "\t", "|")
JSON_LINES = ".jsonl"
# Excel's own first line, where a file is not in the separator of its country.
_NAMED_SEPARATOR = re.compile(r'\A"?sep=(?P<separator>[,;|\t])"?\r?\n')
# What programs write where a value is missing; "none" and "null" are words too.
_MISSING = frozenset({"", "nan", "<na>", "#n/a"})


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a table with a header, by the names of its columns; columns without a name are left out.

    Values are separated by whichever of `, ; | TAB` cuts the header into most columns, or the one that a first line
    `sep=;` names. Rows without any value are passed over. A `.jsonl` holds one object a line: its keys are the columns,
    `null` and what a row lacks are empty cells, and what is no text stays as JSON spells it.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is not text, or a row has too few or too many values, named by its number below the header.
    """
    if path.suffix.lower() == JSON_LINES:
        return _read_json_lines(path)
    text = _require_no_nul(read_text(path, most=MAX_TABLE_BYTES, newline=""))
    named = _NAMED_SEPARATOR.match(text)
    text = text[named.end() :] if named else text
    try:
        separator = named["separator"] if named else _find_separator(text)
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=separator != "\t")
        filled = [row for row in rows if any(value.strip() for value in row)]
    except csv.Error as error:
        raise ValueError(str(error)) from None
    columns = [name.strip() for name in filled[0]] if filled else []
    return [_name_values(columns, row, number) for number, row in enumerate(filled[1:], start=1)]


def is_missing(value: str) -> bool:
    """Whether a cell stands for no value: empty, or `nan` as statistics programs write it."""
    return value.strip().lower() in _MISSING


def read_lines(path: Path, *, most: int = MAX_BYTES) -> list[str]:
    """The lines of a text file that are not empty, without quotes around them.

    Raises:
        OSError, ValueError: As `read_text`.
    """
    # Not `splitlines`, which also cuts at marks that occur inside of texts.
    lines = (unquote(line) for line in _require_no_nul(read_text(path, most=most)).split("\n"))
    return [line for line in lines if line]


def _require_no_nul(text: str) -> str:
    at = text.find("\0")
    # No text holds one: it stands in every other byte of UTF-16, whose mark some programs leave out.
    if at >= 0:
        raise ValueError(
            f"line {text.count(chr(10), 0, at) + 1} holds a NUL: it is no text, or UTF-16 without its mark"
        )
    return text


def unquote(text: str) -> str:
    """A text without blanks and quotes around it, as tables and lists in programs have them."""
    text = text.strip()
    mark = text[:1]
    # Quotes inside are those of the text: `"a" and "b"` stays as it is.
    if len(text) > 1 and mark in ("'", '"') and text.endswith(mark):
        inner = text[1:-1].replace(mark * 2, "\0")
        return text if mark in inner else inner.replace("\0", mark).strip()
    return text


def name_row(path: Path, number: int) -> str:
    """Where a row of a table is, counted from 1: JSON lines and Parquet have no header."""
    plain = {JSON_LINES: "line", ".parquet": "row"}.get(path.suffix.lower())
    return f"{plain} {number}" if plain else f"row {number} below the header"


def _read_json_lines(path: Path) -> list[dict[str, str]]:
    lines = [line for line in read_text(path, most=MAX_TABLE_BYTES).split("\n") if line.strip()]
    rows = [_parse_row(line, number) for number, line in enumerate(lines, start=1)]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: spell_cell(row.get(name)) for name in columns} for row in rows]


def _parse_row(line: str, number: int) -> Mapping[str, Any]:
    try:
        row = parse_json(line)
    except ValueError as error:
        raise ValueError(f"line {number} is no JSON ({error})") from None
    if not isinstance(row, dict):
        raise ValueError(f"line {number} is no JSON object")
    return row


def spell_cell(value: Any) -> str:
    """A value as the text of a cell: none is empty, and what is no text stays as JSON spells it."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _find_separator(text: str) -> str:
    line = io.StringIO(text.lstrip("\r\n"), newline="").readline()
    # The first of those that cut equally often: a comma where there is a single column.
    return max(SEPARATORS, key=lambda separator: len(next(csv.reader([line], delimiter=separator), [])))


def _name_values(columns: Sequence[str], row: Sequence[str], number: int) -> dict[str, str]:
    # Behind the last name a table may have ends of lines such as `,,`.
    least = max((place for place, name in enumerate(columns, start=1) if name), default=0)
    if len(row) < least or any(value.strip() for value in row[len(columns) :]):
        raise ValueError(
            f"row {number} below the header has {len(row)} values, the header {len(columns)}: rows of unequal length"
        )
    return {name: value for name, value in zip(columns, row, strict=False) if name}
