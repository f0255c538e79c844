"""Masks and their figures, by definition and on layouts as published."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score

import clipedit
from clipedit import cli
from clipedit.editor.segment import (
    compute_average_precision,
    cut,
    demo_masked_images,
    evaluate_segmentation,
    load_masked_images,
    score_heatmaps,
    segment_folder,
)


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_is_that_of_sklearn_with_ties(seed: int) -> None:
    generator = np.random.default_rng(seed)
    scores, true = generator.integers(0, 9, 200) / 8, generator.random(200) < 0.3
    assert compute_average_precision(scores, true) == pytest.approx(average_precision_score(true, scores))


def test_a_perfect_heatmap_scores_one_and_its_opposite_badly() -> None:
    mask = np.zeros((8, 8), np.int8)
    mask[2:5, 2:5] = 1
    perfect = score_heatmaps([(mask.astype(float), mask)])
    assert perfect == {"pixel_accuracy": 1, "mean_iou": 1, "mean_ap": 1}
    assert score_heatmaps([(1.0 - mask, mask)])["mean_iou"] == 0


def test_pixels_that_are_unknown_or_were_not_seen_do_not_count() -> None:
    mask, heat = np.ones((4, 4), np.int8), np.ones((4, 4))
    mask[0], heat[:, 0], heat[2:, 1:] = -1, np.nan, 2.0
    assert score_heatmaps([(heat, mask)])["pixel_accuracy"] == pytest.approx(6 / 9)
    with pytest.raises(clipedit.ImageError, match="it is \\(4, 4\\), the image \\(2, 2\\) pixels"):
        score_heatmaps([(np.ones((2, 2)), mask)])


def test_negative_evidence_is_never_object() -> None:
    assert not cut(np.array([[-1.0, -2.0], [np.nan, 1.0]]))[:, 0].any()


def test_a_folder_is_segmented_and_measured(demo_model: clipedit.Model, tmp_path: Path) -> None:
    data = demo_masked_images(6, seed=5)
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for index in range(6):
        data.source.open(index).save(tmp_path / "images" / f"{index}.png")
        Image.fromarray(data.mask(index).astype(np.uint8) * 255).save(tmp_path / "masks" / f"{index}.png")
    options = {"classes": ["circle", "square", "star"], "templates": ["a {}"]}
    found = evaluate_segmentation(demo_model, load_masked_images(tmp_path), **options)  # type: ignore[arg-type]
    assert found == pytest.approx(evaluate_segmentation(demo_model, data, **options))  # type: ignore[arg-type]
    texts = ["a circle", "<script>/../x"]
    assert segment_folder(demo_model, tmp_path / "images", tmp_path / "out", texts=texts) == 6
    written = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.png"))
    assert written[0] == "0-a-circle/00000-0.png" and len(written) == 12 and written[-1].startswith("1-script")
    mask = np.asarray(Image.open(tmp_path / "out" / written[0]))
    assert mask.shape == (64, 64) and set(np.unique(mask)) == {0, 255}
    (tmp_path / "masks" / "3.png").unlink()
    with pytest.raises(clipedit.ImageError, match=r"3.png has none. Add masks/3.png"):
        load_masked_images(tmp_path)


def test_the_matlab_layout_is_read(tmp_path: Path) -> None:
    """HDF5 references as MATLAB writes cell arrays: /value/img and /value/gt, columns first."""
    h5py = pytest.importorskip("h5py")
    data = demo_masked_images(2, seed=5)
    with h5py.File(tmp_path / "gtsegs_ijcv.mat", "w") as file:
        images = file.create_dataset("value/img", (2, 1), h5py.ref_dtype)
        masks = file.create_dataset("value/gt", (2, 1), h5py.ref_dtype)
        for index in range(2):
            array = np.asarray(data.source.open(index)).transpose(2, 1, 0)
            images[index, 0] = file.create_dataset(f"#refs#/i{index}", data=array).ref
            inner = file.create_dataset(f"#refs#/g{index}", (1, 1), h5py.ref_dtype)
            inner[0, 0] = file.create_dataset(f"#refs#/m{index}", data=data.mask(index).T.astype(np.uint8)).ref
            masks[index, 0] = inner.ref
    found = load_masked_images(tmp_path / "gtsegs_ijcv.mat")
    assert len(found.source) == 2
    for index in range(2):
        assert np.array_equal(np.asarray(found.source.open(index)), np.asarray(data.source.open(index)))
        assert np.array_equal(found.mask(index), data.mask(index))
    (tmp_path / "broken.mat").write_bytes(b"no")
    with pytest.raises(clipedit.ImageError, match=r"broken.mat: .* Give gtsegs_ijcv.mat as published"):
        load_masked_images(tmp_path / "broken.mat")


def test_the_commands(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["clipedit", *map(str, arguments)])
        capfd.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        return (code, *capfd.readouterr())

    data = demo_masked_images(12, seed=6)
    (tmp_path / "photos").mkdir()
    for index in range(12):
        data.source.open(index).save(tmp_path / "photos" / f"{index}.png")
    code, _, said = run("segment", tmp_path / "photos", "--text", "a circle", "-o", tmp_path / "masks")
    assert code == 0 and f"wrote {tmp_path / 'masks'}: masks of 12 images" in said
    index = ["--index", tmp_path / "index.safetensors"]
    search = ["retrieve", tmp_path / "photos", *index, "--concept", "color", "--json", "-k", 3]
    code, printed, said = run(*search, "--image", tmp_path / "photos" / "4.png", "-o", tmp_path / "sheet.png")
    assert code == 0, said
    found = json.loads(printed)
    assert found["images"][0]["name"] == "4.png" and found["images"][0]["similarity"] == pytest.approx(1, abs=1e-4)
    assert len(found["heads"]) == 4 and Image.open(tmp_path / "sheet.png").width == 4 * 204 + 12
    before = (tmp_path / "index.safetensors").stat().st_mtime_ns
    assert len(json.loads(run(*search, "--text", "a red object")[1])["images"]) == 3
    assert (tmp_path / "index.safetensors").stat().st_mtime_ns == before
    assert "Give --text or --image, not both" in run(*search)[2]
    assert "unknown concept 'colour'. Did you mean color" in run(*search[:4], "--concept", "colour", "--text", "x")[2]
    (tmp_path / "photos" / "0.png").unlink()
    assert "the images have changed since" in run(*search, "--text", "a red object")[2]
    assert run("evaluate", "demo", "--dataset", tmp_path, "--segmentation")[0] == 2
