"""The measured tables: one page of verdicts, every row in a CSV, Markdown to CSV and back unchanged."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
TABLES = sorted((BENCHMARKS / "results").glob("*.csv"))


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_every_row_has_the_cells_of_its_header(path: Path) -> None:
    header, *rows = csv.reader(path.read_text().splitlines())
    assert all(header) and len(set(header)) == len(header)
    assert rows and all(len(row) == len(header) for row in rows)


def test_every_table_says_how_it_was_measured() -> None:
    named = set(re.findall(r"\]\(([\w-]+\.csv)\)", (BENCHMARKS / "results" / "README.md").read_text()))
    assert named == {path.name for path in TABLES}


def test_verdicts_fit_on_one_page_and_name_tables_that_exist() -> None:
    page = (BENCHMARKS / "RESULTS.md").read_text()
    assert len(page.splitlines()) <= 200
    assert set(re.findall(r"`([\w-]+\.csv)`", page)) <= {path.name for path in TABLES}


def test_figures_of_the_repair_are_those_of_its_table() -> None:
    lines = (BENCHMARKS / "results" / "repair-test.csv").read_text().splitlines()
    page = (BENCHMARKS / "RESULTS.md").read_text().replace("**", "")
    for row in list(csv.reader(lines))[1:]:
        assert "| " + " | ".join(row) + " |" in page


def test_tables_go_to_markdown_and_back_unchanged() -> None:
    text = (BENCHMARKS / "results" / "drift.csv").read_text()
    for form in ("markdown", "csv"):
        command = [sys.executable, BENCHMARKS / "tables.py", form]
        text = subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout
    assert text == (BENCHMARKS / "results" / "drift.csv").read_text()
