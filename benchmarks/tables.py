"""Tables of benchmarks between Markdown, which the scripts print, and CSV, which `benchmarks/results/` keeps.

    python benchmarks/drift.py | python benchmarks/tables.py csv > benchmarks/results/drift.csv
    python benchmarks/tables.py markdown < benchmarks/results/drift.csv

Cells stay text on both ways, so no figure is rounded or rewritten.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterable, Iterator


def read_markdown_tables(lines: Iterable[str]) -> Iterator[list[list[str]]]:
    """Every table of a Markdown text as rows of cells, header first; bold and code marks are left out."""
    table: list[list[str]] = []
    for line in [*lines, ""]:
        if line.startswith("|"):
            cells = [re.sub(r"\*\*|`", "", cell).strip() for cell in line.strip().strip("|").split("|")]
            # The second line of a table only says how columns are aligned.
            if not all(re.fullmatch(r":?-+:?", cell) for cell in cells):
                table.append(cells)
        elif table:
            yield table
            table = []


def write_csv(rows: Iterable[list[str]], to) -> None:
    csv.writer(to, lineterminator="\n").writerows(rows)


def write_markdown(rows: Iterable[list[str]], to) -> None:
    header, *body = rows
    for row in (header, ["---"] * len(header), *body):
        to.write("| " + " | ".join(row) + " |\n")


def main() -> None:
    if sys.argv[1:] == ["csv"]:
        write_csv([row for table in read_markdown_tables(sys.stdin.read().splitlines()) for row in table], sys.stdout)
    elif sys.argv[1:] == ["markdown"]:
        write_markdown(csv.reader(sys.stdin), sys.stdout)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
