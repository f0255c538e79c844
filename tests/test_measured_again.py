"""An edit measured again where it goes: `export`, `evaluate`, `monitor`; and the same images, the same figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import clipedit
from clipedit.commands.console import print_json, print_measures
from clipedit.commands.running.voice import VOICE
from clipedit.demo import world
from clipedit.editor.edits.document import find_recipe_file
from clipedit.editor.images.demo import render_source
from clipedit.editor.images.labelled import write_metadata
from clipedit.editor.images.layouts import open_dataset
from clipedit.editor.images.source import LabelledImages
from clipedit.editor.measure.control import explain_no_control, measure_edit
from clipedit.editor.measure.intervals import Cell
from clipedit.editor.measure.layer_ablation import measure_layer_ablation
from clipedit.editor.measure.table import FigureTable, read_details
from clipedit.editor.measure.verdict import describe_seen, judge_table
from clipedit.editor.select.options import EditOptions, HeadChoice
from clipedit.export.judge_folder import judge_recipe
from clipedit.export.output import Output

pytestmark = pytest.mark.usefixtures("verified_here")


@pytest.fixture(scope="module")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled images whose class is the colour, which the edit below takes away."""
    folder = tmp_path_factory.mktemp("colors")
    source = render_source(world.draw_balanced_scenes(128, 77))
    for index, name in enumerate(source.names):
        source.open(index).save(folder / name)
    rows = [
        {"filename": row["filename"], "label": f"{row['color']} object", "place": row["place"]}
        for row in source.attributes
    ]
    write_metadata(folder / "metadata.csv", rows)
    return folder


@pytest.fixture(scope="module")
def harming(
    demo_scan: clipedit.Scan, demo_model: clipedit.Model, tmp_path_factory: pytest.TempPathFactory
) -> clipedit.Repair:
    """The heads that `watermark` points at are those of colour; nobody has measured what their removal does."""
    return clipedit.repair(
        demo_model,
        scan=demo_scan,
        concept="watermark",
        options=EditOptions(heads=8, output_strength=0.9),
        choice=HeadChoice(force=True),
        measure=False,
        out=tmp_path_factory.mktemp("harming") / "out",
        output=Output(report=False),
    )


def test_export_measures_on_other_images_and_refuses_what_harms_there(
    run: Callable, harming: clipedit.Repair, colors: Path, tmp_path: Path
) -> None:
    asked = ("export", harming.out, "--target", "open-clip", "-o", tmp_path / "out", "--dataset", colors)
    refused = run(*asked)
    assert refused.code == 1 and "its edit harms, overall accuracy falls" in refused.err, refused.err
    assert list(tmp_path.iterdir()) == []
    forced = run(*asked, "--force", "--json")
    assert forced.code == 0 and json.loads(forced.out)["verdict"] == "HARMS", forced.err
    card = (tmp_path / "out" / "README.md").read_text()
    details = read_details(clipedit.load_recipe(find_recipe_file(tmp_path / "out") or "").document.measured)
    worst = min(details["before"].groups.items(), key=lambda item: (item[1].value, item[0]))
    assert f"| {worst[0]} | {worst[1].n} | {worst[1]} |" in card.replace("\\", "")


def test_export_says_what_an_unedited_model_lacks(run: Callable, colors: Path, tmp_path: Path) -> None:
    result = run("export", "demo", "--target", "open-clip", "-o", tmp_path / "out", "--dataset", colors)
    assert result.code == 1 and "it has no recipe.yaml" in result.err


def test_evaluate_exits_3_where_a_later_model_is_worse(run: Callable, harming: clipedit.Repair, colors: Path) -> None:
    worse = run("evaluate", "demo", harming.out, "--dataset", colors, "--fail-if-worse")
    assert worse.code == 3 and f"{harming.out} against demo: HARMS: " in worse.err, worse.err
    better = run("evaluate", harming.out, "demo", "--dataset", colors, "--fail-if-worse", "--json")
    assert better.code == 0 and "against" in better.err and set(json.loads(better.out)) == {str(harming.out), "demo"}
    alone = run("evaluate", "demo", "--dataset", colors, "--fail-if-worse")
    assert alone.code == 2 and "two models" in alone.err


def test_monitor_measures_a_recipe_only_and_says_so(run: Callable, harming: clipedit.Repair, colors: Path) -> None:
    assert harming.out is not None
    result = run("monitor", harming.out / "scan.safetensors", colors, "--dataset", colors)
    assert result.code == 2 and "--recipe" in result.err


def test_a_recipe_is_measured_again_on_other_images(harming: clipedit.Repair, colors: Path) -> None:
    judged = judge_recipe(harming.recipe, harming.scan, harming.model, colors)
    evidence = judged.document.measured["evidence"]  # type: ignore[index]
    assert evidence["verdict"] == "HARMS" and evidence["measure"].startswith("128 images; one of ")
    assert set(evidence["details"]) == {"before", "after"}


def test_why_there_is_no_control_is_said(harming: clipedit.Repair, tmp_path: Path) -> None:
    assert harming.out is not None and explain_no_control(harming.out) is None
    assert "was not edited by clipedit" in (explain_no_control(tmp_path) or "")
    (tmp_path / "recipe.yaml").write_bytes((harming.out / "recipe.yaml").read_bytes())
    assert "does not hold the scan" in (explain_no_control(tmp_path) or "")


def test_the_same_images_give_the_same_figures_in_every_command(
    demo_model: clipedit.Model, colors: Path, harming: clipedit.Repair
) -> None:
    scanned = clipedit.scan(demo_model, colors, layers=range(4), mlps=True, workers=0)
    table = clipedit.evaluate({"demo": demo_model}, colors)
    curves = measure_layer_ablation(scanned, demo_model, colors)
    task = open_dataset(colors)
    assert isinstance(task, LabelledImages)
    edit = measure_edit(harming.recipe, harming.scan, demo_model, task, draws=0)
    assert curves["both"][0] == table["demo"]
    assert {name: value for name, value in edit.rows["before"].items() if "group: " not in name} == table["demo"]
    assert edit.details["before"] == table.details["demo"]
    assert edit.measure == table.measure == curves.measure


def test_calibration_images_that_are_measured_on_are_counted_and_said(
    demo_model: clipedit.Model, harming: clipedit.Repair, colors: Path
) -> None:
    scanned = clipedit.scan(demo_model, colors, workers=0)
    shared = clipedit.make_recipe(scanned, demo_model, concept="location", heads=2)
    evidence = judge_recipe(shared, scanned, demo_model, colors).document.measured["evidence"]  # type: ignore[index]
    assert evidence["calibration_images"] == {"among_measured": 128, "of": 128}
    assert "128 of 128 calibration images" in describe_seen({"evidence": evidence})[0]
    apart = judge_recipe(harming.recipe, harming.scan, demo_model, colors).document.measured
    assert apart["evidence"]["calibration_images"]["among_measured"] == 0 and describe_seen(apart) == []  # type: ignore[index]


def outcomes(right: int) -> tuple[dict, list[str]]:
    every = np.arange(200)
    return {"overall": [[Cell(every, every < right)]]}, ["all"] * 200


def test_every_model_of_a_table_is_judged_against_the_first() -> None:
    table = FigureTable()
    for name, right in (("base", 150), ("worse", 100), ("same", 150)):
        table.add(name, {"overall": right / 200}, outcomes=outcomes(right))
    assert {name: found.word for name, found in judge_table(table).items()} == {
        "worse": "HARMS",
        "same": "NO DIFFERENCE",
    }
    assert judge_table(FigureTable()) == {}


@pytest.mark.parametrize(
    "details",
    [
        "x",
        {"before": {"groups": [], "intervals": {"overall": {"n": 1, "low": float("nan"), "high": 2}}}},
        {"before": {"groups": [{"group": "a", "n": 0, "accuracy": 1}], "intervals": {}}},
        {"before": {"groups": [{"group": "a", "n": 3, "accuracy": float("inf")}], "intervals": {}}},
    ],
)
def test_what_is_no_interval_is_read_as_none(details: object) -> None:
    found = read_details({"evidence": {"details": details}})
    assert not any(one.groups or one.figures for one in found.values())


def test_json_has_no_nan_and_tables_have_a_dash(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VOICE, "command", "")
    print_json({"a": float("nan"), "b": [float("inf"), 1.5, {"c": -float("inf")}], "d": "nan"})
    assert json.loads(capfd.readouterr().out) == {"a": None, "b": [None, 1.5, {"c": None}], "d": "nan"}
    print_measures({"model": {"overall": float("nan"), "worst_group": 0.25}})
    out = capfd.readouterr().out
    assert "nan" not in out and "0.250" in out and " - " in f"{out} "
