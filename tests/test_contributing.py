"""The five commits that CONTRIBUTING.md shows: they apply to the code as it stands, and their tests pass."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DIFFS = dict(
    re.findall(
        r"^## Add an? (\w+)$.*?^````diff\n(.*?)^````$",
        (ROOT / "CONTRIBUTING.md").read_text(),
        re.MULTILINE | re.DOTALL,
    )
)
IGNORED = shutil.ignore_patterns(".git", "build", "dist", "*.egg-info", "__pycache__", "clipedit-*", "site", "docs")
# The concept is held to by the tests of the library.
OWN_TESTS = {
    "concept": ["tests/test_package.py", "-k", "thirty_texts"],
    "operation": ["tests/test_mirror.py"],
    "selector": ["tests/test_last_layer.py"],
    "target": ["tests/test_npz.py"],
    "tower": ["tests/test_rezero_vit.py"],
}


def apply(diff: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = ["git", "apply", *options, "-"]
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    return subprocess.run(command, cwd=folder, input=diff, text=True, capture_output=True, check=False, env=environment)


def test_the_five_extensions_are_shown() -> None:
    assert set(DIFFS) == set(OWN_TESTS)


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
@pytest.mark.parametrize("what", OWN_TESTS)
def test_the_commit_applies_to_the_code_as_it_stands(what: str) -> None:
    result = apply(DIFFS[what], ROOT, "--check")
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
@pytest.mark.parametrize("what", OWN_TESTS)
def test_the_commit_passes_its_own_test(what: str, tmp_path: Path) -> None:
    clone = shutil.copytree(ROOT, tmp_path / "clipedit", ignore=IGNORED)
    result = apply(DIFFS[what], clone)
    assert result.returncode == 0, result.stderr
    for check in (["check"], ["format", "--check"]):
        linted = subprocess.run(["ruff", *check, "."], cwd=clone, capture_output=True, text=True, check=False)
        assert linted.returncode == 0, linted.stdout
    command = [sys.executable, "-m", "pytest", "-q", "-x", *OWN_TESTS[what]]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
