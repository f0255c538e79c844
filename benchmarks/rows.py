"""Tables of benchmarks as CSV on stdout."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Sequence


def print_rows(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A header and rows, each when it is known: what was measured stays if the rest fails."""
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(columns)
    for row in rows:
        table.writerow(row)
        sys.stdout.flush()
