"""Options from `clipedit.toml` and the environment: who wins, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import clipedit
from clipedit import cli
from clipedit.commands.running.configuration import list_options, name_variables
from clipedit.editor.choices import CACHE_VARIABLE
from clipedit.editor.images.demo import demo_calibration_source


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("clipedit.editor.images.listing.demo_calibration_source", lambda: demo_calibration_source(48))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def saved(demo_model: clipedit.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scan") / "scan.safetensors"
    clipedit.scan(demo_model, demo_calibration_source(256), workers=0).save(path)
    return path


def configure(text: str, name: str = "clipedit.toml") -> None:
    Path(name).write_text(text, encoding="utf-8")


def rows(result) -> int:  # type: ignore[no-untyped-def]
    assert result.code == 0, result.err
    return len(result.out.splitlines()) - 1


def test_the_command_line_beats_the_environment_beats_the_file(run, saved: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    configure('[score]\nconcept = "location"\ntop = 3\n')
    said = run("score", saved)
    assert rows(said) == 3 and "from clipedit.toml: concept = location, top = 3" in said.err
    monkeypatch.setenv("CLIPEDIT_SCORE_TOP", "5")
    said = run("score", saved)
    assert rows(said) == 5 and "from the environment: top = 5" in said.err
    assert rows(run("score", saved, "--top", "2")) == 2


def test_a_named_file_is_read_before_or_after_the_command(run, saved: Path) -> None:  # type: ignore[no-untyped-def]
    # Not read, since another file is named: it would be refused.
    configure("[score]\nnothing = 1\n")
    configure('[score]\nconcept = "location"\ntop = 4\n', "other.toml")
    assert rows(run("--config", "other.toml", "score", saved)) == 4
    assert rows(run("score", saved, "--config", "other.toml")) == 4
    missing = run("score", saved, "--config", "none.toml")
    assert missing.code == 1 and "cannot read none.toml: No such file" in missing.err


def test_options_of_all_commands_and_of_nested_ones(run) -> None:  # type: ignore[no-untyped-def]
    configure(
        "quiet = true\n[scan]\nout = 'a.safetensors'\nmlps = true\nbatch_size = 16\n[concepts.list]\njson = true\n"
    )
    said = run("scan", "demo")
    assert said.code == 0 and said.err == "" and Path("a.safetensors").is_file()
    listed = run("concepts", "list")
    assert {"name", "texts", "description"} == json.loads(listed.out)[0].keys()


def test_a_file_that_was_found_replaces_nothing(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    configure(f"[demo]\nout = {str(mine)!r}\noverwrite = true\n")
    refused = run("demo")
    assert refused.code == 1 and "[demo] overwrite is taken from a file that you name only" in refused.err
    assert (mine / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(("command", "option"), [("verify", "trust"), ("push", "public")])
def test_what_runs_code_or_publishes_is_not_taken_from_a_file_that_was_found(run, command: str, option: str) -> None:  # type: ignore[no-untyped-def]
    configure(f"[{command}]\n{option} = true\n")
    found = run(command, "nothing", *["ours/encoder"] * (command == "push"))
    assert found.code == 1 and f"[{command}] {option} is taken from a file that you name only" in found.err
    # Not even for another command, whose run it would not change: the file says what it must not.
    assert run("score", "nothing.safetensors", "--concept", "location").err == found.err
    named = run("--config", "clipedit.toml", command, "nothing", *["ours/encoder"] * (command == "push"))
    assert named.code == 1 and "taken from" not in named.err
    configure(f"[{command}]\n{option} = false\n")
    assert "taken from" not in run(command, "nothing", *["ours/encoder"] * (command == "push")).err


REFUSED = {
    "unknown option": ("[score]\nconcpet = 'x'\n", "concpet in [score] is no option. Did you mean concept"),
    "unknown command": ("[scoer]\n", "scoer at the top is no command, nor an option of all. Did you mean score"),
    "another command's": ("[scan]\nlayer = '1'\n", "layer in [scan] is no option. Did you mean layers"),
    "nested": ("[concepts.lst]\n", "lst in [concepts] is no option. Did you mean list"),
    "wrong number": ("[score]\ntop = 'many'\n", "[score] top = 'many': Input should be a valid integer"),
    "number out of range": ("[score]\ntop = 0\n", "[score] top = 0: "),
    "fraction for a whole number": ("[score]\ntop = 2.5\n", "[score] top = 2.5: Input should be a valid integer"),
    "text for a flag": ("[score]\njson = 'yes'\n", "[score] json = 'yes': true or false is needed"),
    "flag for a text": ("[score]\nconcept = true\n", "[score] concept = True: a text or a number is needed"),
    "list for one value": ("[score]\nconcept = ['a', 'b']\n", "a text or a number is needed"),
    "wrong choice": (
        "[remove-heads]\neffect = 'distiled'\n",
        "[remove-heads] effect = 'distiled': ",
    ),
    "not TOML": ("[score\n", "cannot read clipedit.toml: Expected ']'"),
    "batch size": (
        "[scan]\nbatch-size = -3\n",
        "[scan] batch-size = -3: '-3' is neither a number from 1 on nor `auto`",
    ),
    "layers": ("[scan]\nlayers = '3 to 5'\n", "[scan] layers = '3 to 5': '3 to 5' is not `all`, a layer or a range"),
    "shard": ("[scan]\nshard = '8/8'\n", "[scan] shard = '8/8': '8/8' is not I/N with I from 0 to N-1"),
    "steps": ("[completeness]\nsteps = '1;2'\n", "[completeness] steps = '1;2': '1;2' is not a list of numbers"),
    "command for an option": ("scan = 3\n", "scan = 3 gives a command a value. Write its options below [scan]."),
    "an argument": ("[scan]\nimages = 'x'\n", "images in [scan] is no option"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_command_takes_is_refused_by_name(run, case: str) -> None:  # type: ignore[no-untyped-def]
    text, expected = REFUSED[case]
    configure(text)
    said = run("concepts", "list")
    assert said.code == 1 and expected in said.err and "clipedit.toml" in said.err and not said.out, said.err
    assert said.err.count("\n") == 1


def variables(command: Any) -> Iterator[str]:
    yield from (option.envvar for name, option in list_options(command).items() if option.envvar)
    for inner in getattr(command, "commands", {}).values():
        yield from variables(inner)


def test_every_option_has_a_variable_of_its_own() -> None:
    command = typer.main.get_command(cli.app)
    name_variables(command)
    found = list(variables(command))
    assert len(found) == len(set(found)) > 200 and CACHE_VARIABLE not in found
    # As the option is spelled, not as the parameter is called.
    assert {"CLIPEDIT_SCORE_JSON", "CLIPEDIT_MONITOR_ROWS", "CLIPEDIT_CONCEPTS_LIST_MODEL", "CLIPEDIT_QUIET"} <= {
        *found
    }


def test_help_names_no_variables(run) -> None:  # type: ignore[no-untyped-def]
    assert "CLIPEDIT_SCORE" not in run("score", "--help").out


def test_the_recipe_says_what_was_configured(run, saved: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    configure("[remove-heads]\nconcept = 'location'\nreport = false\noutput-strength = 0.5\n")
    monkeypatch.setenv("CLIPEDIT_REMOVE_HEADS_HEADS", "3")
    monkeypatch.setattr("clipedit.export.repair.judge_made", lambda *arguments, **options: {})
    said = run("remove-heads", "--scan", saved, "-o", "out", "--force", "--json")
    assert said.code == 0, said.err
    expected = {
        "clipedit.toml": {"concept": ["location"], "output-strength": 0.5, "report": False},
        "environment": {"heads": 3},
    }
    assert json.loads(said.out)["measured"]["configuration"] == expected
    assert clipedit.load_recipe("out").document.measured["configuration"] == expected  # type: ignore[index]
