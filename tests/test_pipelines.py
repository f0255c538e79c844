"""Commands in pipelines: exit codes, --quiet, --log-json."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import clipedit
from clipedit import cli
from clipedit.commands.running.exits import Exit, render_exits_markdown
from clipedit.editor.images.demo import demo_calibration_source

ROOT = Path(clipedit.__file__).parent


@pytest.fixture(autouse=True)
def _small_demo_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipedit.editor.images.listing.demo_calibration_source", lambda: demo_calibration_source(48))


def test_the_docs_show_the_table_of_exit_codes() -> None:
    page = (ROOT / "docs" / "pipelines.md").read_text(encoding="utf-8")
    shown = re.search(r"<!-- exits:begin -->\n(.*)<!-- exits:end -->", page, re.DOTALL)
    assert shown is not None and shown[1].strip() == render_exits_markdown().strip()


def test_exit_codes_stand_in_one_place() -> None:
    sources = [*(ROOT / "commands").rglob("*.py"), ROOT / "cli.py"]
    literal = re.compile(r"(?:sys\.exit|typer\.Exit)\((?:\d|.*\b\d+ if)")
    assert [path.name for path in sources if literal.search(path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize("before", [True, False], ids=["before the command", "after it"])
def test_a_quiet_run_that_is_fine_says_nothing_on_stderr(run, tmp_path: Path, before: bool) -> None:  # type: ignore[no-untyped-def]
    command = ["scan", "demo", "-o", tmp_path / "scan.safetensors"]
    said = run("--quiet", *command) if before else run(*command, "--quiet")
    assert said.code == Exit.FINE and said.out == "" and said.err == ""
    # The next run of this process speaks again.
    again = run(*command, "--overwrite")
    assert "wrote" in again.err and "next, " in again.err


def test_errors_and_results_are_said_although_quiet(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    refused = run("score", tmp_path / "none.safetensors", "--concept", "location", "--quiet")
    assert refused.code == Exit.REFUSED and refused.err.startswith("error: ") and refused.err.count("\n") == 1
    usage = run("scan", "--quiet")
    assert usage.code == Exit.USAGE and "Missing argument" in usage.err
    run("scan", "demo", "-o", tmp_path / "scan.safetensors", "--quiet")
    scored = run("score", tmp_path / "scan.safetensors", "--concept", "location", "--quiet")
    assert scored.code == Exit.FINE and scored.err.startswith(("held", "not found", "shared", "spread")), scored.err


def test_a_log_in_json_has_a_line_for_each_stage(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    said = run("scan", "demo", "-o", tmp_path / "scan.safetensors", "--log-json")
    lines = [json.loads(line) for line in said.err.splitlines()]
    assert said.code == Exit.FINE and {line["command"] for line in lines} == {"clipedit scan"}
    (stage,) = [line for line in lines if line["event"] == "stage"]
    assert stage["stage"] == "scan" and stage["images"] == 48
    assert 0 < stage["seconds"] <= lines[-1]["seconds"] and stage["peak_memory_mb"] > 50
    assert lines[-1]["event"] == "end" and lines[-1]["exit"] == 0 and lines[-1]["stage"] == "total"
    assert any("wrote" in line["message"] for line in lines if line["event"] == "message")
    quiet = run("--log-json", "scan", "demo", "-o", tmp_path / "scan.safetensors", "--overwrite", "--quiet")
    assert [json.loads(line)["event"] for line in quiet.err.splitlines()] == ["stage", "end"]


def test_a_log_in_json_holds_errors_and_warnings(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    refused = run("label", tmp_path / "none.safetensors", "--log-json")
    error, end = (json.loads(line) for line in refused.err.splitlines())
    assert error["event"] == "error" and "none.safetensors" in error["message"]
    assert end["event"] == "end" and end["exit"] == refused.code == Exit.REFUSED
    usage = run("--log-json", "scan", "demo", "--batch-size", "many")
    error, end = (json.loads(line) for line in usage.err.splitlines())
    assert "neither a number" in error["message"] and end["exit"] == usage.code == Exit.USAGE


def test_every_command_takes_the_shared_options(run) -> None:  # type: ignore[no-untyped-def]
    nested = [
        ("concepts", "list"),
        ("concepts", "show"),
        ("recipes", "list"),
        ("recipes", "show"),
        ("recipes", "check"),
    ]
    for names in [*((name,) for group in cli.GROUPS.values() for name in group), *nested]:
        said = run(*names, "--help")
        assert said.code == 0 and "--quiet" in said.out and "--log-json" in said.out, names
