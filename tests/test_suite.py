"""`evaluate --suite`: many sets in one table, each model beside its matched control, and CLIP_benchmark's files."""

from __future__ import annotations

import csv
import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest

import clipedit
from clipedit.editor.images.demo import test_source as report_source
from clipedit.editor.load import load_edit
from clipedit.editor.measure.control import draw_edit_controls
from clipedit.editor.select.options import EditOptions, HeadChoice
from clipedit.export.output import Output

pytestmark = pytest.mark.usefixtures("verified_here")

IMAGES = 60


@pytest.fixture(scope="module")
def edited(
    small_demo_scan: clipedit.Scan, demo_model: clipedit.Model, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("suite") / "edited"
    options = EditOptions(heads=8, output_strength=0.9)
    clipedit.repair(
        demo_model,
        scan=small_demo_scan,
        concept="location",
        options=options,
        choice=HeadChoice(force=True),
        measure=False,
        out=folder,
        output=Output(report=False),
    )
    return folder


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table by shape and place with a second task, and the same images as a choice of two captions."""
    folder, source, lines, entries = tmp_path_factory.mktemp("sets"), report_source(), [], {}
    (folder / "val2017").mkdir()
    for index in range(IMAGES):
        row, name = source.attributes[index], f"val2017/{index}.png"
        source.open(index).save(folder / name)
        lines.append(f"{name},{row['shape']},{row['place']},{row['color']}")
        wrong = "star" if row["shape"] != "star" else "ring"
        entries[str(index)] = {
            "filename": f"{index}.png",
            "caption": f"a {row['color']} {row['shape']}",
            "negative_caption": f"a {row['color']} {wrong}",
        }
    (folder / "shapes.csv").write_text("\n".join(["filename,shape,place,color", *lines]) + "\n")
    (folder / "swap_obj.json").write_text(json.dumps(entries))
    (folder / "suite.yaml").write_text(
        "- name: shapes\n  dataset: shapes.csv\n  label: shape\n  group_by: [place]\n  retention: color\n"
        "- {name: captions, dataset: swap_obj.json}\n"
    )
    return folder / "suite.yaml"


def test_a_suite_is_each_set_by_each_model_with_its_control(
    run: Callable, suite: Path, edited: Path, tmp_path: Path
) -> None:
    asked = ["evaluate", "demo", edited, "--suite", suite, "--json"]
    result = run(*asked, "--csv", tmp_path / "rows.csv", "--clip-benchmark", tmp_path / "results")
    assert result.code == 0, result.err
    shapes, captions = json.loads(result.out)["sets"]
    assert (shapes["set"], shapes["n"], captions["set"], captions["n"]) == ("shapes", IMAGES, "captions", IMAGES)
    assert list(shapes["models"]) == ["demo", str(edited)] and list(shapes["controls"]) == [str(edited)]
    # One by one the figures are the same.
    alone = ["--label", "shape", "--group-by", "place", "--retention", "color", "--json"]
    single = run("evaluate", "demo", edited, "--dataset", suite.parent / "shapes.csv", *alone)
    assert json.loads(single.out) == shapes["models"]
    control = shapes["controls"][str(edited)]
    assert control["draws"] == 10 and control["sd"].keys() == control["mean"].keys() >= {"overall", "retention"}
    assert sum(group["n"] for group in shapes["models"]["demo"]["groups"]) == IMAGES
    with (tmp_path / "rows.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["model"] == f"{edited}, random heads"]
    found = {(row["set"], row["figure"]): float(row["sd"]) for row in rows}
    assert found["shapes", "overall"] == pytest.approx(control["sd"]["overall"])
    files = sorted(path.name for path in (tmp_path / "results").iterdir())
    assert len(files) == 4 and files[0].startswith("captions_")
    again = run(*asked, "--clip-benchmark", tmp_path / "results")
    assert again.code == 1 and "the folder is not empty" in again.err


def test_its_files_are_tabulated_by_clip_benchmark(run: Callable, suite: Path, tmp_path: Path) -> None:
    cli = pytest.importorskip("clip_benchmark.cli")
    table = run("evaluate", "demo", "--suite", suite, "--clip-benchmark", tmp_path / "results")
    assert table.code == 0 and "clip_benchmark build" in table.err, table.err
    assert "worst group" in table.out.splitlines()[0] and table.out.count("demo") == 2
    files = list(map(str, (tmp_path / "results").iterdir()))
    cli.main_build(Namespace(files=files, output=str(tmp_path / "b.csv")))
    with (tmp_path / "b.csv").open(newline="") as stream:
        rows = {row["dataset"]: row for row in csv.DictReader(stream)}
    assert rows["shapes"]["task"] == "zeroshot_classification" and rows["captions"]["task"] == "image_caption_selection"
    assert f"{float(rows['shapes']['acc1']):.3f}" in table.out and f"{float(rows['captions']['acc']):.3f}" in table.out
    assert rows["captions"]["model"] == "demo" and rows["captions"]["image_acc"] == "1.0"


def test_a_control_of_a_suite_is_that_of_the_edit(edited: Path, suite: Path) -> None:
    from clipedit.editor.images.layouts import load_dataset

    found = draw_edit_controls(load_edit(edited), load_dataset(suite.parent / "swap_obj.json"))
    assert len(found.drawn) == 10
    mean = sum(row["overall"] for row in found.drawn) / 10
    assert found.rows["control"]["overall"] == pytest.approx(mean)
    squares = sum((row["overall"] - mean) ** 2 for row in found.drawn) / 9
    assert found.spread["overall"] == pytest.approx(squares**0.5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- {name: a, dataset: demo, splti: 1}", "suite.yaml: 0.splti is not a known key"),
        ("- {name: a}", "suite.yaml: 0.dataset: Field required"),
        ("- {name: a, dataset: demo}\n- {name: a, dataset: demo}", "the name a stands twice"),
        ("[]", "it is empty"),
        ("name: a", "suite.yaml: the file: Input should be a valid list"),
        ("- {name: birds, dataset: nothing.csv}", "birds: cannot read"),
        ("- {name: a, dataset: demo, layout: coco}", "0.layout: Input should be 'table'"),
    ],
)
def test_a_wrong_suite_is_refused_by_file_and_key(run: Callable, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "suite.yaml").write_text(text)
    result = run("evaluate", "demo", "--suite", tmp_path / "suite.yaml")
    assert result.code == 1 and said in result.err and len(result.err.splitlines()) == 1, result.err


def test_what_goes_with_a_suite_and_what_does_not(run: Callable, suite: Path, tmp_path: Path) -> None:
    assert run("evaluate", "demo").code == 2
    for wrong in (["--dataset", "demo"], ["--control"], ["--split", "test"], ["--segmentation"]):
        assert run("evaluate", "demo", "--suite", suite, *wrong).code == 2, wrong
    assert run("evaluate", "demo", "--dataset", "demo", "--clip-benchmark", tmp_path).code == 2
    assert run("evaluate", "demo", "--suite", tmp_path / "nothing.yaml").code == 1
