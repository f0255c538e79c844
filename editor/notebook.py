"""What notebooks show of the stages' results: tables, with every text escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

_CELL = 'style="text-align: left"'


def html_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, note: str = "") -> str:
    """A table with a caption; numbers to three digits."""
    head = "".join(f"<th {_CELL}>{escape(name)}</th>" for name in columns)
    body = "".join("<tr>" + "".join(f"<td {_CELL}>{_show(value)}</td>" for value in row) + "</tr>" for row in rows)
    below = f"<p>{escape(note)}</p>" if note else ""
    return (
        f"<table><caption>{escape(title)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{below}"
    )


def html_facts(title: str, facts: Iterable[tuple[str, object]]) -> str:
    """A table of names and values; what is None or empty is left out."""
    return html_table(title, ("", ""), ((name, value) for name, value in facts if value not in (None, "", ())))


def _show(value: object) -> str:
    return escape(f"{value:.3f}" if isinstance(value, float) else str(value))
