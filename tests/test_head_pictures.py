"""The images of head cards come from the scan's own sample, and both heatmaps of an image from one pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

import clipedit
from clipedit.editor.components import HeadId
from clipedit.editor.concepts.queries import encode_queries
from clipedit.editor.concepts.textspan import HeadLabel
from clipedit.editor.images.demo import demo_calibration_source
from clipedit.editor.images.source import ImageSource
from clipedit.editor.look.spatial import compute_token_shares
from clipedit.editor.scan.collect import collect_features
from clipedit.export.pages import head_pictures
from clipedit.export.pages.exciting import project_texts
from clipedit.export.pages.head_pictures import Edit, _find_sample, _look, _project_edited

HEADS = [HeadId(1, 2), HeadId(3, 0), HeadId(3, 5)]
TEXTS = ["a photo of the ocean", "a red object", "a circle"]
LABELS = {str(head): (HeadLabel(text, 0.5),) for head, text in zip(HEADS, TEXTS, strict=True)}


@pytest.fixture(scope="module")
def source() -> ImageSource:
    return demo_calibration_source(1024)


@pytest.fixture(scope="module")
def build(demo_model: clipedit.Model, demo_scan: clipedit.Scan, source: ImageSource) -> Callable[[str], Edit]:
    def make(effect: str) -> Edit:
        recipe = clipedit.make_recipe(
            demo_scan, demo_model, concept="location", heads=8, output_strength=0.9 * (effect != "total"), effect=effect
        )
        return Edit(recipe, demo_model, clipedit.apply_recipe(recipe, demo_model), demo_scan, source)

    return make


def test_exciting_images_are_found_in_the_sample_and_opened_once(build, source, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    opened: list[int] = []

    def open_counted(index: int):  # type: ignore[no-untyped-def]
        opened.append(index)
        return source.open(index)

    edit = build("distilled")
    counted = replace(edit, source=replace(source, open=open_counted))
    monkeypatch.setattr(head_pictures, "_search", pytest.fail)
    told: list[tuple[int, int]] = []
    found = head_pictures.collect_pictures(counted, LABELS, HEADS, progress=lambda *at: told.append(at))
    assert len(opened) == len(set(opened)) == len(found.thumbnails) and told[-1] == (len(opened), len(opened))
    # By hand: the features of the sample's images, read anew.
    looked = _find_sample(edit.scan, source)
    assert looked is not None and len(looked.positions) == 512
    features, kept = collect_features(edit.base, source.subset(looked.positions), layers=(1, 3))
    for head, text in zip(HEADS, TEXTS, strict=True):
        seen = project_texts(edit.base, {head: encode_queries(edit.base, [text])})[head][0]
        strength = features.groups[f"L{head.layer}.heads"][:, head.head].double() @ seen
        best = (strength / features.embedding.double().norm(dim=1)).topk(4)
        names = [found.thumbnails[one.thumbnail].name for one in found.images[head]]
        assert names == [source.names[looked.positions[kept[row]]] for row in best.indices.tolist()]
        assert [one.strength for one in found.images[head]] == pytest.approx(best.values.tolist(), rel=1e-4)


def test_other_images_than_the_scans_are_searched_anew(build, demo_scan, source) -> None:  # type: ignore[no-untyped-def]
    edit, part = build("distilled"), source.subset(range(40))
    assert _find_sample(demo_scan, part) is None
    found = head_pictures.collect_pictures(Edit(edit.recipe, edit.base, edit.edited, edit.scan, part), LABELS, HEADS)
    assert {thumbnail.name for thumbnail in found.thumbnails} <= set(part.names)
    assert all(len(images) == 4 for images in found.images.values())


@pytest.mark.parametrize("effect", ["distilled", "total"])
def test_both_maps_are_those_of_each_model_run_alone(build, effect: str) -> None:  # type: ignore[no-untyped-def]
    edit = build(effect)
    looked = _find_sample(edit.scan, edit.source).take(range(11))
    texts = {head: encode_queries(edit.base, [text]) for head, text in zip(HEADS, TEXTS, strict=True)}
    _, grids = _look(edit, looked, project_texts(edit.base, texts), _project_edited(edit, texts), None)
    assert grids.shape[:2] == (11, 3) and grids.shape[4] == 2
    for row in (0, 7, 10):
        pixels = edit.base.preprocess(edit.source.open(looked.positions[row]))[None]
        for side, model in enumerate((edit.base, edit.edited)):
            for at, head in enumerate(HEADS):
                alone = compute_token_shares(model, pixels, texts[head], heads=[head]).on_image()[0, 0, ..., 0]
                found = torch.from_numpy(grids[row, at, ..., side])
                assert float((found - alone).norm()) < 1e-4 * float(alone.norm()) + 1e-7
