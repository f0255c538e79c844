"""Before, after, random heads and the projection come from one reading of the images, and are what the models give."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

import clipedit
from clipedit.editor.images.demo import demo_calibration_source
from clipedit.editor.images.source import LabelledImages
from clipedit.editor.measure.control import measure_edit
from clipedit.editor.measure.fidelity import embed_edit
from clipedit.editor.scan.collect import collect_embeddings


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
