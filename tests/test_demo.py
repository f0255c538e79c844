"""The main job, end to end, and its figures recomputed from the exported folders by plain open_clip."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import jsonschema
import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from clipedit.commands.tables.outputs import make_schema

KEYS = {"overall", "worst_group_listed", "worst_group_held_out", "mean_of_groups", "place_accuracy", "retention"}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict:
    out = tmp_path_factory.mktemp("demo") / "out"
    command = [sys.executable, "-m", "clipedit.cli", "demo", "--out", str(out), "--json"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


@torch.no_grad()
def recompute(folder: str, images: Path, usual: dict[str, str], places: dict[str, list[str]]) -> dict[str, float]:
    """Zero-shot figures with nothing of ours: open_clip, its preprocessing and its tokenizer."""
    name = f"local-dir:{folder}"
    module, _, preprocess = open_clip.create_model_and_transforms(name)
    tokenizer = open_clip.get_tokenizer(name)
    with (images / "metadata.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    pixels = torch.stack([preprocess(Image.open(images / row["filename"])) for row in rows])  # type: ignore[operator]
    embeddings = torch.cat([module.eval().encode_image(part) for part in pixels.split(256)])

    def similarity(classes: list[str], forms: list[str]) -> np.ndarray:
        article = {c: ("an " if c[0] in "aeiou" else "a ") + c for c in classes}
        weights = []
        for c in classes:
            texts = [form.format(c=c, a=article[c]) for form in forms]
            weights.append(F.normalize(F.normalize(module.encode_text(tokenizer(texts)), dim=1).mean(0), dim=0))
        return (embeddings @ torch.stack(weights).T).numpy()

    shapes, colors = list(usual), sorted({row["color"] for row in rows})
    by_shape = similarity(shapes, ["a photo of {a}", "a picture of {a}", "{a}"])
    by_color = similarity(colors, ["a photo of {a} object", "{a} object"])
    shape = np.array([row["shape"] for row in rows])
    place = np.array([row["place"] for row in rows])
    found = {
        "overall": float((np.array(shapes)[by_shape.argmax(1)] == shape).mean()),
        "retention": float((np.array(colors)[by_color.argmax(1)] == [row["color"] for row in rows]).mean()),
    }
    for half, members in places.items():
        worst = []
        for a, b in combinations([s for s in shapes if usual[s] in members], 2):
            first = by_shape[:, shapes.index(a)] > by_shape[:, shapes.index(b)]
            right = np.where(first, shape == a, shape == b)
            groups = [(shape == s) & (place == usual[p]) for s in (a, b) for p in (a, b)]
            worst.append(min(right[group].mean() for group in groups))
        found[f"worst_group_{half}"] = float(np.mean(worst))
    return found


def test_what_it_prints_is_valid_under_its_schema(report: dict) -> None:
    jsonschema.validate(report, make_schema("demo"))


def test_the_report_has_what_it_promises(report: dict) -> None:
    groups = {f"group: {one['group']}" for one in report["details"]["before"]["groups"]}
    assert len(groups) == 8 and all(
        one["low"] <= one["accuracy"] <= one["high"] for one in report["details"]["after"]["groups"]
    )
    for row in ("before", "after", "control", "output_projection"):
        assert set(report[row]) == KEYS | groups | ({"sd", "rank", "draws"} if row == "control" else set())
        assert all(0 <= report[row][key] <= 1 for key in KEYS)
    assert list(report)[:2] == ["verdict", "because"] and report["verdict"] == "HELPS"
    assert report["fidelity"]["held_out"] and report["fidelity"]["n"] == 512
    assert 0.94 < report["fidelity"]["explained_change"] < 1
    assert set(report["certificate"]["turns"]) == {"0.95", "0.99"}
    assert (
        set(report["control"]["sd"]) == set(report["control"]["rank"]) == KEYS | groups
        and report["control"]["draws"] == 100
    )
    assert set(report["files"]) >= {"test_images", "before", "after", "onnx", "recipe"}
    assert all(Path(path).exists() for path in report["files"].values())
    own, color = report["readable"]
    assert (own["concept"], own["column"], own["instances"]) == ("location", "place", 4) and own["edited"]
    assert (color["concept"], color["column"]) == ("color", "color") and own["after"] < own["before"]
    assert abs(color["after"] - report["after"]["retention"]) < 1e-2
    for folder in ("after", "onnx"):
        found = json.loads((Path(report["files"][folder]) / "verification.json").read_text())
        assert found["verdict"] == "HELPS" and found["certificate"] == report["certificate"]
        assert "**HELPS**" in (Path(report["files"][folder]) / "README.md").read_text()
    assert "<b>HELPS</b>" in Path(report["files"]["report"]).read_text()
    assert len(report["places"]["listed"]) == len(report["places"]["held_out"]) == 4
    assert len(report["usual_place"]) == 8 and report["heads"][0].startswith("L")
    assert sum(report["seconds"].values()) < 240


def test_plain_open_clip_gives_the_figures_of_the_report(report: dict) -> None:
    for which in ("before", "after"):
        images = Path(report["files"]["test_images"])
        found = recompute(report["files"][which], images, report["usual_place"], report["places"])
        for key, value in found.items():
            assert abs(value - report[which][key]) < 1e-3, (which, key)


def test_the_repair_helps_and_harms_nothing_else(report: dict) -> None:
    before, after, control = report["before"], report["after"], report["control"]
    assert before["overall"] >= 0.65
    for half, points in (("listed", 0.20), ("held_out", 0.15)):
        gain = after[f"worst_group_{half}"] - before[f"worst_group_{half}"]
        assert gain >= points
        # Of 100 draws of other heads with the same projection, hardly any does as well.
        assert control["rank"][f"worst_group_{half}"] <= 10
        assert report["differences"][f"worst_group_{half}"]["low"] > 0
    # What nobody listed is the heads' work; what is listed is mostly the projection's.
    held_out = "worst_group_held_out"
    assert control[held_out] - before[held_out] < (after[held_out] - before[held_out]) / 3
    assert after["overall"] >= before["overall"]
    assert abs(after["retention"] - before["retention"]) <= 0.02


def test_the_recipe_of_the_demo_rebuilds_its_model(report: dict, tmp_path: Path) -> None:
    out = tmp_path / "again"
    command = [sys.executable, "-m", "clipedit.cli", "apply", report["files"]["recipe"], "-o", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    name = "open_clip_model.safetensors"
    assert (out / name).read_bytes() == (Path(report["files"]["after"]) / name).read_bytes()


def test_the_model_of_the_demo_has_a_report(report: dict, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "clipedit.cli", "report", report["files"]["after"], "-o", str(tmp_path / "r.html")]
    subprocess.run(command, check=True, capture_output=True)
    page = (tmp_path / "r.html").read_text()
    assert "<b>HELPS</b>" in page and page.count('<article class="card') == 32
