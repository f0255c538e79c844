"""docs/compatibility.md: every row says since when, and names a test that there is."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

import clipedit

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "compatibility.md"
HEADER = ["input", "what happens", "since", "shown by"]
SHOWN = re.compile(r"`(test_\w+\.py)::(test_\w+)`")


def rows() -> list[list[str]]:
    """The cells of every row; a bar inside a cell is written `\\|`."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [row for row in cells if row != HEADER and not set("".join(row)) <= {"-"}]


@cache
def functions_of(name: str) -> set[str]:
    # The fast ones have a folder of their own.
    path = next((ROOT / "tests").rglob(name), None)
    tree = ast.parse(path.read_text(encoding="utf-8")) if path is not None else ast.Module([], [])
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0][:40])
def test_every_row_names_a_test_that_there_is(row: list[str]) -> None:
    assert len(row) == len(HEADER) and all(row), row
    found = SHOWN.findall(row[3])
    assert found, row
    assert [(name, test) for name, test in found if test not in functions_of(name)] == []


def test_every_row_says_a_version_that_there_is() -> None:
    released = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert {row[2] for row in rows()} <= {*released, clipedit.__version__}


def test_no_input_stands_twice() -> None:
    inputs = [row[0] for row in rows()]
    assert len(set(inputs)) == len(inputs)
