"""The shape of the command line: thin bodies, defaults in one place, and answers that do not wait for torch."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import clipedit
from clipedit import cli
from clipedit.commands import console

pytestmark = pytest.mark.usefixtures("verified_here")

ROOT = Path(__file__).resolve().parents[1]
FAMILIES = [path for path in sorted((ROOT / "commands").glob("*.py")) if path.stem != "__init__"]


def commands() -> Iterator[ast.FunctionDef]:
    named = {command.__name__ for group in cli.GROUPS.values() for command in group.values()}
    for path in FAMILIES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and (node.name in named or node.decorator_list):
                yield node


def test_bodies_of_commands_have_at_most_fifteen_statements() -> None:
    found = list(commands())
    assert len(found) >= 28
    for command in found:
        body = [one for one in command.body[1:] if not isinstance(one, ast.ImportFrom)]
        lines = {line for one in body for line in range(one.lineno, (one.end_lineno or 0) + 1)}
        assert len(lines) <= 15, f"{command.name} has {len(lines)} lines"


def test_no_file_of_the_command_line_is_long() -> None:
    for path in (ROOT / "cli.py", *FAMILIES):
        assert len(path.read_text().splitlines()) <= 350, path


def test_no_default_of_a_command_repeats_one_of_the_library() -> None:
    """Literals that are no switch belong to the command line alone: what it prints, where it writes, the demo."""
    own = {"model", "tower", "device", "engine", "group_by", "steps", "top", "count", "texts_per_head"}
    for command in commands():
        parameters = command.args.args[len(command.args.args) - len(command.args.defaults) :]
        for parameter, default in zip(parameters, command.args.defaults, strict=True):
            literal = isinstance(default, ast.Constant) and default.value not in (None, True, False)
            assert not literal or parameter.arg in own, f"{command.name} --{parameter.arg}"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["remove-heads", "--help"], 0),
        (["concepts", "list"], 0),
        (["recipes", "list"], 0),
        (["recipes", "show", "waterbirds-vit-l-14"], 0),
        (["remove-heads", "--concept", "locaton"], 1),
        (["remove-heads", "--concept", "location", "--images", "missing"], 1),
        (["scan", "missing"], 1),
        (["label", "missing.safetensors"], 1),
        (["score", "missing.safetensors", "--concept", "location"], 1),
        (["apply", "missing.yaml"], 1),
        (["evaluate", "demo", "--dataset", "missing"], 1),
        (["verify", "missing"], 1),
        (["heatmap", "missing.png", "--text", "a circle"], 1),
        (["heatmap", "missing.png", "--head", "L3"], 1),
        (["retrieve", "demo"], 1),
        (["completeness", "missing", "--dataset", "demo"], 1),
        (["export", "demo", "--target", "nosuch"], 1),
        (["concepts", "show", "colour"], 1),
        (["remove-heads", "--concept", "location", "--effect", "none"], 2),
        (["scan", "demo", "--layers", "x"], 2),
        (["no-such-command"], 2),
    ],
)
def test_what_needs_no_model_answers_without_torch(arguments: list[str], code: int, tmp_path: Path) -> None:
    script = (
        "import sys\nfrom clipedit.cli import main\n"
        f"sys.argv = ['clipedit', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    code = stop.code or 0\n"
        "assert not {'torch', 'numpy', 'onnxruntime'} & set(sys.modules), 'something heavy was imported'\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


def test_help_is_in_groups_and_no_sentence_is_cut_off(run) -> None:  # type: ignore[no-untyped-def]
    shown = run("--help").out
    places = [shown.index(f"─ {group} ─") for group in ("Start", "Find", "Fix", "Measure", "Look", "Ship", "Library")]
    assert places == sorted(places) and "..." not in shown[places[0] :] and "…" not in shown
    panels = run("remove-heads", "--help").out
    places = [panels.index(f"─ {panel} ─") for panel in ("What", "How", "Measure", "Output")]
    assert places == sorted(places)
    assert panels.index("--concept") < panels.index("--model") < panels.index("--images") < panels.index("--keep")


def test_version_and_module(run) -> None:  # type: ignore[no-untyped-def]
    assert run("--version").out == f"clipedit {clipedit.__version__}\n"
    done = subprocess.run([sys.executable, "-m", "clipedit", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"clipedit {clipedit.__version__}\n"


def test_an_unknown_public_name_suggests_the_right_one() -> None:
    with pytest.raises(AttributeError, match="score_heads"):
        clipedit.score  # noqa: B018


def test_repair_is_what_remove_heads_does(run, demo_model, demo_scan, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    demo_scan.save(tmp_path / "scan.safetensors")
    printed = run(
        "remove-heads",
        "--concept",
        "location",
        "--scan",
        tmp_path / "scan.safetensors",
        "--no-report",
        "-o",
        tmp_path / "a",
        "--json",
    )
    assert printed.code == 0, printed.err
    done = clipedit.repair(
        demo_model,
        scan=tmp_path / "scan.safetensors",
        concept="location",
        out=tmp_path / "b",
        output=clipedit.Output(report=False),
    )
    for name in ("recipe.yaml", "recipe.safetensors", "open_clip_model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    said, report = json.loads(printed.out), done.report()
    assert said.keys() == report.keys() and said["heads"] == report["heads"] and said["measured"] == report["measured"]
    assert set(done.paths) == {"model", "recipe", "scan"} and "checks" in done._repr_html_()


def test_a_log_gets_a_line_of_progress_now_and_then(monkeypatch, capfd) -> None:  # type: ignore[no-untyped-def]
    clock = iter([0.0, 4.0, 20.0, 25.0, 40.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with console.progress() as follow:
        told = follow("scan")
        for done in (10, 50, 60, 80):
            told(done, 3700)
    assert capfd.readouterr().err.splitlines() == [
        "scan: 50 of 3700, 2.5 a second, 0:24:20 left",
        "scan: 80 of 3700, 2.0 a second, 0:30:10 left",
    ]
    monkeypatch.setattr(console.VOICE, "quiet", True)
    with console.progress() as follow:
        follow("scan")(50, 100)
    assert capfd.readouterr().err == ""
