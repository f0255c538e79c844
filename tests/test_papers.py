"""The published tables run on small made data with a model of random weights, and say what is missing."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from open_clip.model import CLIP
from open_clip.transform import PreprocessCfg
from PIL import Image

import clipedit
from clipedit.editor.edits.document import Base, RecipeDocument, Step
from clipedit.editor.edits.recipe import Recipe
from clipedit.editor.images.demo import demo_calibration_source
from clipedit.editor.models.model import Model
from clipedit.editor.towers.build import build_tower

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def papers() -> ModuleType:
    spec = importlib.util.spec_from_file_location("papers", ROOT / "benchmarks" / "papers.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    vision = {"image_size": 32, "patch_size": 8, "width": 48, "layers": 3, "head_width": 12}
    module = CLIP(24, vision, text).eval()
    config = {"model_cfg": {"text_cfg": text}, "preprocess_cfg": {**PreprocessCfg().__dict__, "size": 32}}
    return Model("random", None, module, build_tower(module), config)


def test_waterbirds_gives_published_beside_measured_with_random_heads(
    papers: ModuleType, model: Model, tmp_path: Path
) -> None:
    source = demo_calibration_source(24)
    lines = ["img_id,img_filename,y,split,place,place_filename"]
    for index in range(24):
        source.open(index).save(tmp_path / f"{index}.png")
        lines.append(f"{index},{index}.png,{index % 2},{2 if index < 16 else 0},{index // 2 % 2},x")
    (tmp_path / "metadata.csv").write_text("\n".join(lines) + "\n")
    heads = Step(operation="mean-ablate", heads=("L2H1", "L1H0"))
    parts = [
        Step(operation="mean-ablate", target="mlps", layers=(1, 2)),
        Step(operation="mean-ablate", target="layers", layers=(0,)),
    ]
    recipes = {
        name: Recipe(RecipeDocument(schema_version=1, name=name, base=Base(model="random"), steps=tuple(steps)))
        for name, steps in (("protocol", [heads, *parts]), ("heads", [heads]))
    }
    rows = papers.waterbirds_rows(model, recipes, tmp_path, (47.7, 72.9))
    assert [row[0] for row in rows] == [
        "unedited",
        *(f"protocol, direct{end}" for end in ("", ", random heads")),
        *(f"heads, {effect}{end}" for effect in ("direct", "distilled") for end in ("", ", random heads")),
    ]
    # The published figure belongs to the edit that the paper made.
    assert [row[1] for row in rows] == ["47.7", "72.9", "", "", "", "", ""]
    assert all(0 <= float(cell) <= 100 for row in rows for cell in row[2:])


def test_imagenet_replaces_heads_by_texts(papers: ModuleType, model: Model, tmp_path: Path) -> None:
    for index, name in enumerate(("n01", "n02", "n03")):
        (tmp_path / name).mkdir()
        Image.new("RGB", (40, 40), ("red", "green", "blue")[index]).save(tmp_path / name / "a.png")
    task = papers.imagenet_task(tmp_path, ["tench", "goldfish", "great white shark"])
    assert task.classes[2] == "great white shark" and task.labels == (0, 1, 2)
    rows = papers.imagenet_rows(model, task, tmp_path, ["a photo of a {}."], 4)
    assert [row[:2] for row in rows] == [
        ["4 texts a head", "72.77"],
        ["4 random texts a head", ""],
        ["unedited", "75.25"],
    ]
    assert papers.imagenet_rows(model, task, None, ["{}"], 4)[0][:2] == ["unedited", "75.25"]
    with pytest.raises(clipedit.ClipeditError, match="it has 3 folders, 1000 classes are needed"):
        papers.imagenet_task(tmp_path, ["class"] * 1000)


def test_any_set_that_evaluate_reads_has_its_figures(papers: ModuleType, model: Model, tmp_path: Path) -> None:
    for number, variant in enumerate(("original", "mixed_same", "mixed_rand")):
        for folder in ("00_dog", "08_fish"):
            path = tmp_path / variant / "val" / folder / "a.JPEG"
            path.parent.mkdir(parents=True)
            Image.new("RGB", (40, 40), (80 * number, 40, 200 if folder == "00_dog" else 0)).save(path)
    rows = {name: (n, float(value)) for name, n, value in papers.set_rows(model, tmp_path)}
    assert rows["overall"][0] == "6" and rows["mixed_same"][0] == "2"
    assert rows["background_gap"][1] == rows["mixed_same"][1] - rows["mixed_rand"][1]


def test_what_is_missing_is_named(
    papers: ModuleType, model: Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["papers.py", "--models", "ViT-L-14"])
    monkeypatch.setattr(papers, "load_model", lambda name, tag: model)
    papers.main()
    out = capsys.readouterr().out
    assert "ViT-L-14, Waterbirds: not run: give --waterbirds DIR" in out
    assert "ViT-L-14, ImageNet: not run: give --imagenet DIR" in out

    def refuse(name: str, tag: str) -> Model:
        raise clipedit.ModelError(f"cannot load {name} ({tag}): no network.")

    monkeypatch.setattr(papers, "load_model", refuse)
    papers.main()
    assert "ViT-L-14: not run: cannot load ViT-L-14 (laion2b_s32b_b82k): no network." in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["papers.py", "--weights", "ViT-L-14=nothing"])
    with pytest.raises(SystemExit) as stop:
        papers.main()
    assert stop.value.code == 1 and "cannot use the weights of 'ViT-L-14'" in capsys.readouterr().err
