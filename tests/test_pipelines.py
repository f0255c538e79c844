"""Commands in pipelines: exit codes, --quiet, --log-json, lists from stdin, two runs that write one folder."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import clipedit
from clipedit import cli
from clipedit.commands.running import voice
from clipedit.commands.running.exits import Exit, render_exits_markdown
from clipedit.editor.files.claims import claimed
from clipedit.editor.files.whole import staged_folder
from clipedit.editor.images.demo import demo_calibration_source

ROOT = Path(clipedit.__file__).parent


@pytest.fixture(autouse=True)
def _small_demo_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipedit.editor.images.listing.demo_calibration_source", lambda: demo_calibration_source(48))


def test_the_docs_show_the_table_of_exit_codes() -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "pipelines.md").read_text(encoding="utf-8")
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


def test_a_stage_ends_with_its_last_image(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(voice, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(voice.VOICE, "as_json", True)
    with voice.logged_stages(lambda name: lambda done, total: None) as follow:
        tell = follow("scan")
        for done in (1, 2):
            clock[0] += 5
            tell(done, 2)
        # What is chosen and written here is no scan.
        clock[0] += 30
        follow("report")
        clock[0] += 1
    scanned, reported = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert (scanned["stage"], scanned["seconds"], scanned["images"]) == ("scan", 10, 2)
    # Of what never counts nothing else is known.
    assert (reported["stage"], reported["seconds"], reported["images"]) == ("report", 1, None)


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


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    source = demo_calibration_source(6)
    (tmp_path / "some photos").mkdir()
    paths = [tmp_path / "some photos" / f"{index}, of six.png" for index in range(6)]
    for index, path in enumerate(paths):
        source.open(index).save(path)
    return paths


LISTS = {
    "lines": lambda names: "\n".join(names),
    "lines of Windows, and empty ones": lambda names: "\r\n".join([*names, "", ""]),
    "a table": lambda names: "label,path\n" + "".join(f'x,"{name}"\n' for name in names),
    "a table with semicolons and a byte order mark": lambda names: (
        "\ufeffpath;label\n" + "".join(f"{name};x\n" for name in names)
    ),
}


@pytest.mark.parametrize("kind", LISTS)
def test_images_are_listed_on_stdin(run, photos: list[Path], tmp_path: Path, monkeypatch, kind: str) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    # Relative to where the command runs.
    text = LISTS[kind]([str(path.relative_to(tmp_path)) for path in photos])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    said = run("scan", "-", "-o", "listed.safetensors", "--quiet")
    assert said.code == 0 and said.err == "", said.err
    assert clipedit.load_scan("listed.safetensors").statistics.n == 6


def test_stdin_that_names_no_image_is_refused(run, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n \n")))
    said = run("scan", "-")
    assert said.code == 1 and "cannot read images from -: stdin names none, or was read for another option" in said.err


WRITE = """
import sys, time
from pathlib import Path
from clipedit.editor.errors import ExportError
from clipedit.editor.files.claims import claimed
from clipedit.editor.files.whole import staged_folder
try:
    with claimed(Path(sys.argv[1])), staged_folder(Path(sys.argv[1]), overwrite=True) as folder:
        (folder / "mine").write_text(sys.argv[2])
        print("writing", flush=True)
        sys.stdin.read()
except ExportError as error:
    sys.exit(f"error: {error}")
"""


def start_writer(out: Path, word: str) -> subprocess.Popen[str]:
    pipes = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
    return subprocess.Popen([sys.executable, "-c", WRITE, str(out), word], text=True, **pipes)  # type: ignore[call-overload]


def test_of_two_processes_that_write_one_folder_one_wins(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    first = start_writer(tmp_path / "out", "first")
    assert first.stdout is not None and first.stdout.readline() == "writing\n"
    _, refused = start_writer(tmp_path / "out", "second").communicate()
    busy = f"cannot write to {tmp_path / 'out'}: another run of clipedit is writing it."
    assert refused == f"error: {busy} Wait for it, or choose another -o.\n"
    # The command line is told before it works; what is spelled otherwise is the same folder.
    told = run("apply", "goh", "-o", tmp_path / "x" / ".." / "out")
    assert told.code == Exit.REFUSED and "another run of clipedit is writing it" in told.err
    assert first.communicate()[1] == "" and (tmp_path / "out" / "mine").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with claimed(tmp_path / "out"):  # It is free again.
        pass


def test_a_folder_that_another_run_wrote_meanwhile_stays(tmp_path: Path) -> None:
    out = tmp_path / "out"
    told = pytest.raises(clipedit.ExportError, match="another run has written it meanwhile, and its files stay")
    with told, staged_folder(out, overwrite=False) as late:
        (late / "mine").write_text("late")
        with staged_folder(out, overwrite=False) as early:
            (early / "mine").write_text("early")
    assert (out / "mine").read_text() == "early" and [path.name for path in tmp_path.iterdir()] == ["out"]
    # An empty folder is nobody's.
    (tmp_path / "empty").mkdir()
    with staged_folder(tmp_path / "empty", overwrite=False) as folder:
        (folder / "mine").touch()
    assert (tmp_path / "empty" / "mine").is_file()
