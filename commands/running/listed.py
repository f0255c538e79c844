"""`-` where images are named: a list of them from stdin, one path per line, or a table with a column of paths."""

from __future__ import annotations

import atexit
import csv
import os
import shutil
import sys
import tempfile
from pathlib import Path

from ...editor.errors import ImageError

STDIN = "-"


def save_listed_images() -> str:
    """What stdin says, as a table of absolute paths that every reader of images knows; removed when the run ends.

    Raises:
        ImageError: If it names nothing.
    """
    # Late: they bring numpy and more, and most runs read no list.
    from ...editor.files.tables import read_table
    from ...editor.images.listing import find_path_column

    folder = Path(tempfile.mkdtemp(prefix="clipedit-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    given, table = folder / "given", folder / "stdin.csv"
    given.write_bytes(sys.stdin.buffer.read())
    try:
        rows = read_table(given)
    except (OSError, ValueError):
        rows = []
    column = find_path_column(list(rows[0])) if rows else None
    if column is None:
        column, rows = "path", [{"path": line} for line in os.fsdecode(given.read_bytes()).splitlines() if line.strip()]
    if not rows:
        raise ImageError(
            f"cannot read images from {STDIN}: stdin names none, or was read for another option already. Give one "
            "path per line, or a CSV with a column of paths."
        )
    with table.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        # What is relative is so to where the command runs, as every path on its command line.
        writer.writerows({**row, column: os.path.abspath(row[column])} for row in rows)
    return str(table)
