"""Before, after, random heads and the projection come from one reading of the images, and are what the models give."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import clipedit
from clipedit.editor.images.demo import demo_calibration_source
from clipedit.editor.images.source import LabelledImages
from clipedit.editor.load import FolderEdit, load_edit
from clipedit.editor.measure.control import draw_edit_controls, load_edits, measure_edit, prepare_controls
from clipedit.editor.measure.fidelity import embed_edit, read_for_all
from clipedit.editor.scan.collect import collect_embeddings
from clipedit.export.edited_folder import write_edited_model


@pytest.mark.parametrize(("effect", "readings"), [("distilled", 1), ("direct", 1), ("total", 3)])
def test_embeddings_are_those_of_the_models_themselves(
    demo_model: clipedit.Model, demo_scan: clipedit.Scan, effect: str, readings: int
) -> None:
    images, opened = demo_calibration_source(20), Counter()

    def open_counted(index: int):  # type: ignore[no-untyped-def]
        opened[index] += 1
        return images.open(index)

    source = replace(images, open=open_counted)
    strong = {"output_strength": 0.9} if effect != "total" else {"output_strength": 0.0}
    recipe = clipedit.make_recipe(demo_scan, demo_model, concept="location", heads=8, effect=effect, **strong)
    edited = clipedit.apply_recipe(recipe, demo_model)
    found = embed_edit(recipe, demo_scan, demo_model, edited, source)
    other = clipedit.make_recipe(demo_scan, demo_model, concept="color", heads=4, effect=effect, **strong)
    third = found.embed(other)
    # Also the third model needs no second look where the edit is at the readout.
    assert set(opened.values()) == {readings}
    models = (demo_model, edited, clipedit.apply_recipe(other, demo_model))
    for (embeddings, kept), model in zip((found.before, found.after, third), models, strict=True):
        alone, alone_kept = collect_embeddings(model, images)
        assert kept == alone_kept == list(range(20))
        # Weights are rounded to half precision on disk; only `after` is asked to be what ships.
        most = 1e-5 if model is not models[2] else 1e-2
        assert float((embeddings - alone).norm() / alone.norm()) < most
    assert float((found.after[0] - found.before[0]).norm() / found.before[0].norm()) > 0.05


def test_a_data_set_is_read_once(demo_model: clipedit.Model, demo_scan: clipedit.Scan) -> None:
    images, opened = demo_calibration_source(24), Counter()

    def open_counted(index: int):  # type: ignore[no-untyped-def]
        opened[index] += 1
        return images.open(index)

    task = LabelledImages(
        replace(images, open=open_counted), ("circle", "square"), (0, 1) * 12, ("a", "a", "b", "b") * 6
    )
    recipe = clipedit.make_recipe(demo_scan, demo_model, concept="location", heads=8, output_strength=0.9)
    found = measure_edit(recipe, demo_scan, demo_model, task, draws=3)
    assert set(found.rows) == {"before", "after", "control", "output_projection"} and found.draws == 3
    assert set(opened.values()) == {1}
    assert found.answers is not None
    assert torch.equal(torch.tensor(found.answers[0].kept), torch.arange(24))


@pytest.mark.usefixtures("verified_here")
@pytest.mark.parametrize(("effect", "readings"), [("direct", 1), ("distilled", 2)])
def test_models_and_their_controls_are_measured_on_one_reading(
    demo_model: clipedit.Model,
    demo_scan: clipedit.Scan,
    tmp_path: Path,
    effect: str,
    readings: int,
) -> None:
    images, opened = demo_calibration_source(24), Counter()

    def open_counted(index: int):  # type: ignore[no-untyped-def]
        opened[index] += 1
        return images.open(index)

    recipe = clipedit.make_recipe(demo_scan, demo_model, concept="location", heads=8, effect=effect)
    out = tmp_path / "out"
    write_edited_model(recipe, demo_model, out, images=images, scan=demo_scan)
    models = {"demo": demo_model, str(out): clipedit.load_model(out)}
    classes, groups = ("circle", "square"), ("a", "a", "b", "b") * 6
    plain = LabelledImages(images, classes, (0, 1) * 12, groups)
    task = replace(plain, source=replace(images, open=open_counted))
    known, controls = prepare_controls(load_edits([str(out)]), models, task)
    found = clipedit.evaluate(models, task, known=known)
    rows = controls[str(out)](task).rows
    assert set(opened.values()) == {readings}
    # What each model says by itself, and what a reading of its own gives its controls.
    assert found.rows == clipedit.evaluate(models, plain).rows
    assert rows == draw_edit_controls(load_edit(out), plain).rows


def test_a_model_that_is_not_the_base_of_an_edit_answers_for_itself(
    demo_model: clipedit.Model, demo_scan: clipedit.Scan
) -> None:
    recipe = clipedit.make_recipe(demo_scan, demo_model, concept="location", heads=8, effect="direct")
    name = "visual.ln_post.weight"
    other = demo_model.with_tensors({name: demo_model.module.get_parameter(name).detach() * 1.1})
    edit = FolderEdit(recipe, demo_scan, demo_model)
    edited = {"other": other, "its own": clipedit.apply_recipe(recipe, other, force=True)}
    assert read_for_all(edit, edited, demo_calibration_source(4)) == ({}, None)
    color = clipedit.make_recipe(demo_scan, demo_model, concept="color", heads=4, effect="direct")
    models = {"base": demo_model, "color": clipedit.apply_recipe(color, demo_model)}
    found, embed = read_for_all(edit, models, demo_calibration_source(4))
    assert set(found) == {"base"} and embed is not None
    # Later layers see a total edit, so that no reading of the base serves its controls.
    total = clipedit.make_recipe(
        demo_scan, demo_model, concept="location", heads=8, effect="total", output_strength=0.0
    )
    assert read_for_all(FolderEdit(total, demo_scan, demo_model), models, demo_calibration_source(4)) == ({}, None)
