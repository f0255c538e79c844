"""A timm classifier with its own head: selectors that look at labels need no texts, and its head takes the output."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import clipedit
from clipedit import HeadChoice, ModelError
from clipedit.demo.train_classifier import draw_biased_scenes
from clipedit.editor.edits.bind import bind_recipe
from clipedit.editor.edits.document import Base, RecipeDocument, Step
from clipedit.editor.edits.erasure import fit_leace
from clipedit.editor.images.demo import render_source
from clipedit.editor.images.labelled import load_labelled_images, write_metadata
from clipedit.editor.measure.linear_head import fit_head
from clipedit.editor.scan.collect import collect_labelled
from clipedit.editor.select.plan import EditPlan, Evidence
from clipedit.editor.select.tables import load_task, tabulate
from clipedit.export.targets.timm import write_timm_folder

pytestmark = pytest.mark.usefixtures("verified_here")

SIZES = {"img_size": 64, "patch_size": 16, "embed_dim": 48, "depth": 3, "num_heads": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, labelled: Path) -> Path:
    """A small classifier of the demo's shapes, as timm keeps it: a random trunk, and a head that was fitted to it."""
    torch.manual_seed(0)
    task = load_labelled_images(labelled, label="shape")
    module: Any = timm.create_model("vit_tiny_patch16_224", num_classes=len(task.classes), **SIZES)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    data = {"input_size": [3, 64, 64], "num_classes": len(task.classes), "label_names": list(task.classes)}
    plain = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "center"}
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": len(task.classes), "model_args": SIZES}
    out = tmp_path_factory.mktemp("classifier")
    described = {**config, "pretrained_cfg": {**data, **plain}}
    write_timm_folder(module.state_dict(), described, out)
    seen = collect_labelled(clipedit.load_model(out), task)
    weight, bias = fit_head(seen.embedding, seen.labels, len(task.classes), decay=1e-3)
    write_timm_folder({**module.state_dict(), "head.weight": weight, "head.bias": bias}, described, out)
    return out


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 images of the world with their shape and place."""
    out = tmp_path_factory.mktemp("labelled")
    source = render_source(draw_biased_scenes(np.random.default_rng(0), 160, usual_rate=0.5))
    for index, name in enumerate(source.names):
        source.open(index).save(out / name)
    write_metadata(out / "metadata.csv", [dict(row) for row in source.attributes])
    return out


def test_a_table_of_a_task_holds_the_classifiers_own_logits(folder: Path, labelled: Path) -> None:
    model, task = clipedit.load_model(folder), load_labelled_images(labelled, label="shape")
    scanned = clipedit.scan(model, str(labelled), workers=0)
    table = tabulate(scanned, model, EditPlan(None, 1, 0.0), load_task(scanned, model, task, Evidence(task)))
    pixels = torch.stack([model.preprocess(task.source.open(index)) for index in range(8)])
    expected = model.classify(pixels)
    assert float((table.similarity[:8] - expected).norm() / expected.norm()) < 1e-5


def test_heads_are_chosen_by_labels_without_texts(folder: Path, labelled: Path) -> None:
    model = clipedit.load_model(folder)
    assert not model.has_texts
    choice = HeadChoice(
        select="labelled-contrast", labelled=str(labelled), label="shape", group_by=("shape",), force=True
    )
    done = clipedit.repair(model, images=str(labelled), choice=choice, measure=False)
    assert done.recipe.heads
    with pytest.raises(ModelError, match="Align it to a CLIP .* or choose heads by labels and no concept"):
        clipedit.repair(model, images=str(labelled), concept="location")


@pytest.mark.parametrize("effect", ["distilled", "total"])
def test_a_projection_of_the_output_acts_on_the_heads_weights(folder: Path, labelled: Path, effect: Any) -> None:
    model = clipedit.load_model(folder)
    erased = collect_labelled(model, load_labelled_images(labelled, label="place"))
    steps = (Step(operation="leace", target="output"),)
    document = RecipeDocument(schema_version=1, name="t", base=Base(model="t"), effect=effect, steps=steps)
    scanned = clipedit.scan(model, str(labelled), workers=0)
    edited = clipedit.apply_recipe(bind_recipe(document, scanned, model, labelled=erased), model)
    # What a refit knows are images like the scan's.
    pixels = torch.stack([model.preprocess(Image.open(path)) for path in sorted(labelled.glob("*.png"))[:16]])
    maps, offset = fit_leace(erased.embedding.double(), erased.labels, 1.0)
    head = model.module.head
    wanted = (model.encode_image(pixels).double() @ maps.T + offset) @ head.weight.double().T + head.bias.double()
    found, wanted = edited.classify(pixels).double().detach(), wanted.detach()
    # A refit is ridge regression on the scan's images.
    limit = 1e-5 if effect == "total" else 1e-3
    assert float((found - wanted).norm() / wanted.norm()) < limit
    # The representation is the one it was: only the head reads it otherwise.
    assert torch.equal(edited.encode_image(pixels), model.encode_image(pixels))
    assert float((model.classify(pixels).double() - wanted).norm() / wanted.norm()) > 1e-2


def test_the_command_line_runs_on_a_classifier_without_an_aligner(
    folder: Path, labelled: Path, tmp_path: Path, run: Callable[..., Any]
) -> None:
    chosen = ("--select", "labelled-contrast", "--labelled", labelled, "--label", "shape", "--group-by", "shape")
    written = ("--leace", "--erase", "place", "-o", tmp_path / "out", "--no-report", "--heads", 2, "--force")
    done = run("remove-heads", "--model", folder, "--images", labelled, *chosen, *written)
    assert done.code == 0, done.err
    before, after = clipedit.load_model(folder), clipedit.load_model(tmp_path / "out")
    assert not torch.equal(before.module.head.weight, after.module.head.weight)
    assert torch.equal(before.module.blocks[0].attn.proj.weight, after.module.blocks[0].attn.proj.weight)
