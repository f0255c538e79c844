"""Labelled images mean the same to every command: columns, splits, prompts, groups with n and intervals."""

from __future__ import annotations

import csv
import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer.main

import clipedit
from clipedit.cli import app
from clipedit.editor.concepts.class_weights import compute_class_weights
from clipedit.editor.images.demo import render_source, validation_source
from clipedit.editor.images.demo import test_source as report_source
from clipedit.editor.images.labelled import load_labelled_images
from clipedit.editor.images.labelled_options import LabelledOptions, Purpose, choose_split
from clipedit.editor.images.layouts import load_dataset, load_selection_set, open_dataset
from clipedit.editor.images.listing import list_images
from clipedit.editor.images.skew import choose_top
from clipedit.editor.images.source import ImageSource, LabelledImages, find_shared
from clipedit.editor.measure.intervals import wilson_interval
from clipedit.editor.measure.table import Share, count_groups, spread_of_mean
from clipedit.editor.scan.sample import count_seen

SHARED = ("dataset", "label", "group_by", "split", "classes", "templates", "top")
TAKERS = ("evaluate", "remove-heads", "export", "monitor", "ablate-layers", "completeness", "train-head")


def write_images(source: ImageSource, folder: Path, count: int) -> list[dict[str, str]]:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        source.open(index).save(folder / source.names[index])
    return [dict(row) for row in source.attributes[:count]]


def write_table(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 labelled images in a CSV whose columns nobody would guess, beside the folder of images."""
    folder = tmp_path_factory.mktemp("own")
    rows = write_images(report_source(), folder / "pictures", 160)
    named = [
        {"image": f"pictures/{row['filename']}", "product": row["shape"], "scene": row["place"], "hue": row["color"]}
        for row in rows
    ]
    return write_table(folder / "own.csv", named)


@pytest.mark.parametrize("name", TAKERS)
def test_every_command_takes_the_same_options_with_the_same_help(name: str) -> None:
    commands: Any = typer.main.get_command(app)
    found = {option.name: option for option in commands.commands[name].params}
    expected = {option.name: option for option in commands.commands["evaluate"].params}
    assert set(SHARED) <= set(found)
    assert [found[one].help for one in SHARED] == [expected[one].help for one in SHARED]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (("train", "val", "test"), ("train", "val", "test")),
        (("Training", "validation", "TEST"), ("Training", "validation", "TEST")),
        (("train", "dev"), ("train", "train", "dev")),
        (("train", "test"), ("train", "train", "test")),
        (("0", "1", "2"), ("0", "1", "2")),
        (("0", "1"), (None, None, None)),
        (("north", "south"), (None, None, None)),
        (("test",), (None, None, "test")),
    ],
)
def test_each_purpose_has_its_split(values: tuple[str, ...], expected: tuple[str | None, ...]) -> None:
    purposes: tuple[Purpose, ...] = ("train", "select", "report")
    assert tuple(choose_split(values, purpose) for purpose in purposes) == expected


def split_of(path: Path, purpose: Purpose, **options: Any) -> tuple[str | None, int]:
    found = load_labelled_images(path, purpose=purpose, **options)
    return found.split, len(found.source)


def test_heads_are_chosen_on_validation_rows_and_reported_on_test_rows(tmp_path: Path) -> None:
    rows = write_images(report_source(), tmp_path, 24)
    cut = [row | {"split": ("train", "val", "test", "test")[i % 4]} for i, row in enumerate(rows)]
    table = write_table(tmp_path / "table.csv", cut)
    assert [split_of(table, one) for one in ("train", "select", "report")] == [("train", 6), ("val", 6), ("test", 12)]
    assert split_of(table, "report", split="all") == (None, 24) and split_of(table, "select", split="test")[1] == 12
    birds = [
        {"img_filename": r["filename"], "y": str(i % 2), "split": str(i % 3), "place": str(i // 2 % 2)}
        for i, r in enumerate(rows)
    ]
    write_table(tmp_path / "metadata.csv", birds)
    assert [split_of(tmp_path, one) for one in ("train", "select", "report")] == [("0", 8), ("1", 8), ("2", 8)]
    chosen, reported = load_selection_set(tmp_path), load_dataset(tmp_path)
    assert not set(chosen.source.names) & set(reported.source.names)
    with pytest.raises(clipedit.ImageError, match="no row has split 3, there are 0, 1, 2. Choose a --split"):
        load_dataset(tmp_path, split="3")


def test_folders_of_splits_hold_the_folders_of_classes(tmp_path: Path) -> None:
    source = report_source()
    for split, name, index in [("train", "star", 0), ("train", "ring", 1), ("test", "star", 2), ("test", "ring", 3)]:
        folder = tmp_path / "set" / split / name
        folder.mkdir(parents=True)
        source.open(index).save(folder / "a.png")
    found = load_dataset(tmp_path / "set")
    assert isinstance(found, LabelledImages) and found.classes == ("ring", "star")
    assert (found.split, len(found.source)) == ("test", 2) and split_of(tmp_path / "set", "train") == ("train", 2)
    assert split_of(tmp_path / "set", "report", split="all") == (None, 4)


def test_own_columns_are_read_and_a_group_names_the_class_once(own: Path) -> None:
    found = open_dataset(own, LabelledOptions(label="product", group_by=("product", "scene"), retention="hue"))
    assert isinstance(found, LabelledImages) and found.retention is not None
    row = list_images(own).attributes[0]
    assert found.groups[0] == f"{row['product']} / scene {row['scene']}"
    assert found.retention.classes[found.retention.labels[0]] == row["hue"]


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {}, "no column label or class or y or shape, there are image, product, scene, hue. Name one with --label"),
        ({}, {"label": "product", "group_by": ("scen",)}, "cannot group by scen"),
        ({}, {"label": "product", "retention": "size"}, "no column size"),
        ({"product": "cup"}, {"label": "product"}, "product is 'cup' everywhere, two classes are needed"),
        ({"product": " "}, {"label": "product"}, "has no product. Fill it in"),
        ({"image": "nowhere.png"}, {"label": "product"}, "160 of 160 images are not there, such as nowhere.png"),
        ({}, {"label": "product", "classes": {"star": "star"}}, "is no class. Add it to --classes"),
    ],
)
def test_labels_that_say_nothing_are_refused_when_they_are_read(
    own: Path, change: dict[str, str], options: dict[str, Any], message: str
) -> None:
    rows = [dict(row) | change for row in list_images(own).attributes]
    table = write_table(own.with_name("changed.csv"), rows)
    with pytest.raises(clipedit.ImageError, match=message):
        open_dataset(table, LabelledOptions(**options))


def test_the_table_has_flat_rows_with_n_and_intervals(demo_model: clipedit.Model, own: Path) -> None:
    labels = LabelledOptions(label="product", group_by=("scene",), retention="hue")
    table = clipedit.evaluate({"demo": demo_model}, own, labels=labels)
    keys = {tuple(row) for row in table.rows}
    assert keys == {("model", "figure", "group", "value", "n", "low", "high")}
    figures = {row["figure"]: row for row in table.rows if not row["group"]}
    assert {name: figures[name]["value"] for name in figures} == table["demo"]
    right = round(table["demo"]["overall"] * 160)
    assert (figures["overall"]["low"], figures["overall"]["high"]) == wilson_interval(right, 160)
    groups = [row for row in table.rows if row["group"]]
    assert (
        sum(row["n"] for row in groups) == 160
        and min(row["value"] for row in groups) == figures["worst_group"]["value"]
    )
    assert [row["value"] for row in groups] == sorted(row["value"] for row in groups)
    assert np.mean([row["value"] for row in groups]) == pytest.approx(figures["mean_of_groups"]["value"])
    assert all(row["low"] <= row["value"] <= row["high"] for row in table.rows)
    assert "one of 8 classes (zero-shot, 3 prompts per class)" in table.measure


def test_a_mean_of_groups_has_the_interval_of_independent_shares() -> None:
    one = Share(30, 40)
    assert spread_of_mean([one]) == one.spread
    four = spread_of_mean([one] * 4)
    assert four.n == 160 and 0.75 - four.low == pytest.approx((0.75 - one.spread.low) / 2)  # type: ignore[operator]
    right = np.array([True, False, True])
    assert count_groups(right, ["b", "a", "b"]) == {"a": Share(0, 1), "b": Share(2, 2)}


def test_the_command_writes_the_rows(run: Callable, own: Path, tmp_path: Path) -> None:
    given = (
        "evaluate",
        "demo",
        "--dataset",
        own,
        "--label",
        "product",
        "--group-by",
        "scene",
        "--csv",
        tmp_path / "r.csv",
    )
    result = run(*given)
    assert result.code == 0, result.err
    with (tmp_path / "r.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    named = {(row["figure"], row["group"]) for row in rows}
    assert ("overall", "") in named and len(named) == len(rows) and {row["n"] for row in rows if not row["group"]}
    assert "measured: 160 images; one of 8 classes" in result.err and "more groups, served better" in result.err
    again = run(*given)
    assert again.code == 1 and "it exists" in again.err


@pytest.mark.parametrize(
    ("classes", "templates", "message"),
    [
        (("dog", "Dog", "cat"), ("a photo of a {}.",), "the classes 'dog' and 'Dog' apart"),
        (("dog", "cat"), ("a photo of a " + "very " * 60 + "{}.",), "a context that cuts them"),
        (("a  star", "a star"), ("{}",), "by case, spaces"),
    ],
)
def test_classes_that_are_one_to_the_model_are_refused(
    demo_model: clipedit.Model, classes: tuple[str, ...], templates: tuple[str, ...], message: str
) -> None:
    with pytest.raises(clipedit.ImageError, match=message):
        compute_class_weights(demo_model, classes, templates)


def test_near_classes_and_templates_cut_before_the_class_are_warned_of(demo_model: clipedit.Model) -> None:
    with pytest.warns(UserWarning, match=r"'circle' and 'a circle' are nearly one to the model: cosine 0\.99"):
        compute_class_weights(demo_model, ("circle", "a circle", "star"), ("a photo of {}",))
    with pytest.warns(UserWarning, match="says nothing of the classes"):
        compute_class_weights(demo_model, ("circle", "star"), ("a photo of a {}", "very " * 60 + "{}"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compute_class_weights(demo_model, ("circle", "star", "heart"), ("a photo of a {}",))


@pytest.mark.parametrize(("top", "images", "expected"), [(1000, 300, 150), (4, 7, 3), (51, 100, 50)])
def test_k_above_half_of_the_images_is_lowered_and_said(top: int, images: int, expected: int) -> None:
    with pytest.warns(
        UserWarning, match=rf"MaxSkew@{top} is measured as MaxSkew@{expected}: there are {images} images"
    ):
        assert choose_top(top, images) == expected


def test_k_that_fits_is_kept_in_silence() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (choose_top(4, 8), choose_top(1000, 2000)) == (4, 1000)
    with pytest.raises(clipedit.ImageError, match="there are 1 images"):
        choose_top(4, 1)


def test_shared_images_are_found_by_content_under_any_name(tmp_path: Path) -> None:
    source = report_source()
    write_images(source, tmp_path / "one", 6)
    (tmp_path / "two" / "deep").mkdir(parents=True)
    for index, name in [(4, "x.png"), (1, "deep/y.png")]:
        shutil.copy(tmp_path / "one" / source.names[index], tmp_path / "two" / name)
    source.open(20).save(tmp_path / "two" / "z.png")
    one, two = list_images(tmp_path / "one"), list_images(tmp_path / "two")
    assert [two.names[i] for i in find_shared(one, two)] == ["deep/y.png", "x.png"] and len(find_shared(two, one)) == 2
    # Rendered images have no bytes on disk: pixels say it.
    assert find_shared(source.subset(range(8)), two) == find_shared(one, two)
    assert find_shared(validation_source().subset(range(8)), two) == []


def test_a_scan_knows_its_images_by_name_or_by_embedding(demo_model: clipedit.Model, tmp_path: Path) -> None:
    source = report_source().subset(range(40))
    kept = clipedit.scan(demo_model, source, workers=0).sample
    assert kept is not None
    write_images(source, tmp_path, 12)
    for index, path in enumerate(sorted(tmp_path.glob("*.png"))):
        path.rename(tmp_path / f"{index}.png")
    renamed = list_images(tmp_path)
    pixels = torch.stack([demo_model.preprocess(renamed.open(i)) for i in range(12)])
    assert count_seen(kept, renamed, demo_model.encode_image(pixels)) == 12
    other = render_source([])
    assert count_seen(kept, other, torch.zeros(0, demo_model.tower.d_embed)) == 0
    fresh = validation_source().subset(range(8))
    pixels = torch.stack([demo_model.preprocess(fresh.open(i)) for i in range(8)])
    assert count_seen(kept, fresh, demo_model.encode_image(pixels)) == 0


def test_bad_labels_cost_no_measuring(run: Callable, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise AssertionError("images were embedded before the labels were read")

    monkeypatch.setattr("clipedit.editor.measure.evaluate.collect_embeddings", stop)
    for options in (
        ("--label", "nothing"),
        ("--label", "product", "--split", "test"),
        ("--label", "product", "--classes", own),
    ):
        result = run("evaluate", "demo", "--dataset", own, *options)
        assert result.code == 1 and result.err.startswith("error: "), result.err


def test_each_default_stands_in_the_options() -> None:
    assert {field.name for field in fields(LabelledOptions)} == {
        "layout",
        "label",
        "group_by",
        "split",
        "classes",
        "retention",
        "templates",
        "top",
        "exif",
    }
    assert json.dumps(LabelledOptions().top) == "1000" and LabelledOptions().templates[0] == "a photo of a {}."
