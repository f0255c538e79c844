"""`remove-heads --dry-run`: what would be chosen and what it was weighed against; nothing is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import clipedit
from clipedit.editor.images.demo import demo_calibration_source


@pytest.fixture(scope="module")
def saved(demo_model: clipedit.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scan") / "scan.safetensors"
    clipedit.scan(demo_model, demo_calibration_source(512), workers=0).save(path)
    return path


def test_what_would_be_chosen_is_what_is_chosen(run, saved: Path, demo_model, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    said = run("remove-heads", "--concept", "location", "--scan", saved, "--dry-run", "--json")
    assert said.code == 0 and list(tmp_path.iterdir()) == [], said.err
    plan = json.loads(said.out)
    expected = clipedit.select_recipe(clipedit.load_scan(saved), demo_model, concept="location")
    (concept,) = plan["concepts"]
    assert plan["heads"] == expected.heads and plan["refused"] is None
    assert concept["concept"] == "location" and concept["verdict"] == "held"
    assert plan["steps"] == [step.model_dump(mode="json", exclude_defaults=True) for step in expected.steps]
    assert concept["chosen"] == expected.measured["choice"]  # type: ignore[index]
    assert concept["chosen"] in concept["weighed"]
    # No edit at all is weighed first, and removes nothing.
    assert concept["weighed"][0] == {**concept["weighed"][0], "heads": 0, "removed": 0.0, "elsewhere": 0.0}
    assert concept["interval"][0] <= concept["selectivity"] <= concept["interval"][1]


def test_the_table_marks_what_is_chosen(run, saved: Path, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clipedit-out").mkdir()
    (tmp_path / "clipedit-out" / "full").touch()
    said = run("remove-heads", "--concept", "location", "--scan", saved, "--dry-run", "--heads", "3")
    assert said.code == 0 and "nothing was written" in said.err, said.err
    lines = said.out.splitlines()
    assert lines[0].split() == ["location:", "heads", "output", "removed", "elsewhere", "of", "gain"]
    (chosen,) = [line for line in lines if "<- chosen" in line]
    assert chosen.split()[0] == "3" and "would be done (distilled)" in said.out and "mean-ablate L" in said.out


def test_what_would_be_refused_is_after_what_it_would_have_been(run, saved: Path, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    said = run("remove-heads", "--concept", "weather", "--scan", saved, "--dry-run", "--json")
    assert said.code == 1 and "cannot remove weather: " in said.err and "--force" in said.err
    plan = json.loads(said.out)
    assert plan["concepts"][0]["verdict"] != "held" and plan["refused"] in said.err
    forced = run("remove-heads", "--concept", "weather", "--scan", saved, "--dry-run", "--json", "--force")
    assert forced.code == 0 and json.loads(forced.out) == plan | {"refused": None}
