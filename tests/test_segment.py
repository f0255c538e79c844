"""Masks and their figures, by definition and on layouts as published."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score

import clipedit
from clipedit.editor.components import HeadId
from clipedit.editor.images.demo import SHAPES, demo_masked_images
from clipedit.editor.images.demo import test_source as held_out_source
from clipedit.editor.look import retrieve
from clipedit.editor.look.presence import LEAST_PRESENCE
from clipedit.editor.look.readings import READINGS, combine_shares, weigh_heads
from clipedit.editor.look.segment import (
    compute_average_precision,
    cut,
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
    assert segment_folder(demo_model, tmp_path / "images", tmp_path / "out", texts=texts).images == 6
    written = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.png"))
    assert written[0] == "0-a-circle/00000-0.png" and len(written) == 12 and written[-1].startswith("1-script")
    mask = np.asarray(Image.open(tmp_path / "out" / written[0]))
    assert mask.shape == (64, 64) and set(np.unique(mask)) == {0, 255}
    (tmp_path / "masks" / "3.png").unlink()
    with pytest.raises(clipedit.ImageError, match=r"3.png has none. Add masks/3.png"):
        load_masked_images(tmp_path)


def test_what_is_not_there_is_said_and_its_mask_is_empty(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """The demo tells places without an error: a desert is found in deserts only, whatever heads point at elsewhere."""
    source = held_out_source().subset(range(24))
    (tmp_path / "photos").mkdir()
    for index in range(24):
        source.open(index).save(tmp_path / "photos" / f"{index:02d}.png")
    there = [row["place"] == "desert" for row in source.attributes]
    command = ["segment", tmp_path / "photos", "--text", "a photo of the desert", "-o", tmp_path / "masks"]
    code, _, said = run(*command)
    assert code == 0 and f"a photo of the desert: found in {sum(there)} of 24 images" in said
    rows = list(csv.DictReader((tmp_path / "masks" / "scores.csv").open()))
    assert [row["found"] == "yes" for row in rows] == there and 0 < sum(there) < 24
    assert all((float(row["score"]) >= LEAST_PRESENCE) == (row["found"] == "yes") for row in rows)
    masks = [np.asarray(Image.open(path)).any() for path in sorted((tmp_path / "masks").glob("*.png"))]
    assert masks == there
    assert run(*command, "--least", "0", "--overwrite").code == 0
    assert all(np.asarray(Image.open(path)).any() for path in (tmp_path / "masks").glob("*.png"))


def test_readings_by_definition() -> None:
    """Two heads, one place, two texts: what one head says for a text, the other takes back."""
    shares = torch.tensor([[3.0, -1.0], [-2.0, 1.0]]).view(2, 1, 1, 2)
    ones = torch.ones(2)
    assert combine_shares(shares, "contrast", ones).flatten().tolist() == [1, 0]
    assert combine_shares(shares, "positive", ones).flatten().tolist() == [3, 1]
    assert combine_shares(shares, "evidence", ones).flatten().tolist() == [3.5, 3.5]
    assert combine_shares(shares, "positive", torch.tensor([0.5, 2.0])).flatten().tolist() == [1.5, 2]
    assert combine_shares(torch.ones(2, 1, 1, 3), "evidence", ones).abs().max() == 0


def test_heads_that_carry_shapes_find_objects_better_than_all_heads(
    demo_model: clipedit.Model, demo_scan: clipedit.Scan
) -> None:
    weights = weigh_heads(demo_scan, demo_model, concept="shape", keep="location")
    assert len(weights) == 32 and min(weights.values()) == 0 and weights[HeadId(2, 5)] == 0  # It carries places.
    data, options = demo_masked_images(48, seed=7), {"classes": SHAPES, "templates": ["a {}"]}
    found = {
        (reading, bool(chosen)): evaluate_segmentation(
            demo_model,
            data,
            **options,
            reading=reading,
            weights=chosen,  # type: ignore[arg-type]
        )["mean_iou"]
        for reading in READINGS
        for chosen in (None, weights)
    }
    assert found["evidence", True] > found["positive", True] > found["contrast", False] + 0.1
    assert found["evidence", True] > 0.7


def test_one_text_alone_gives_no_evidence(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    Image.new("RGB", (64, 64), (200, 30, 30)).save(tmp_path / "a.png")
    segment = ("segment", tmp_path / "a.png", "-o", tmp_path / "masks", "--reading", "evidence", "--text", "a circle")
    code, _, said = run(*segment)
    assert code == 1 and "evidence for 'a circle' alone: it is where texts are told apart. Add another --text." in said
    assert run(*segment, "--text", "a star")[0] == 0
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == ["00000-a.png", "scores.csv"]
    assert run(*segment, "--text", "a star", "--overwrite", "--concept", "shape")[0] == 2


HOSTILE = ["<script>alert(1)</script>", 'a "quote" and\na line', "$(echo x)'; --", "é" * 60]


def test_tiny_and_odd_images_with_hostile_names_are_heatmaps_masks_and_hits(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """An image of one pixel is smaller than a patch; `/` is the one letter that a name cannot have."""
    sizes = [(1, 1), (3, 200), (200, 3), (64, 64)]
    photos = [tmp_path / "photos" / f"{name.replace('/', '_')}.png" for name in HOSTILE]
    photos[0].parent.mkdir()
    for path, size in zip(photos, sizes, strict=True):
        Image.new("RGB", size, (200, 30, 30)).save(path)
    code, _, said = run(
        "segment", photos[0].parent, "--text", HOSTILE[0], "--text", HOSTILE[1], "-o", tmp_path / "masks"
    )
    assert code == 0, said
    masks = [Image.open(path).size for path in sorted((tmp_path / "masks").rglob("*.png"))]
    assert sorted(masks) == sorted(2 * sizes)
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == [
        "0-script-alert-1---script",
        "1-a--quote--and-a-line",
        "scores.csv",
    ]
    out, index = tmp_path / "sheet.png", tmp_path / "index.safetensors"
    search = ["retrieve", photos[0].parent, "--index", index, "-o", out, "--overwrite", "--json"]
    for query in (["--text", HOSTILE[1]], ["--image", photos[0]]):
        code, printed, said = run(*search, *query)
        assert code == 0, said
        assert {hit["name"] for hit in json.loads(printed)["images"]} == {path.name for path in photos}
    for path, size in zip(photos, sizes, strict=True):
        picture = tmp_path / "heatmap.png"
        code, printed, said = run("heatmap", path, "--text", HOSTILE[0], "-o", picture, "--overwrite", "--json")
        assert code == 0 and json.loads(printed)["heatmaps"][0]["text"] == HOSTILE[0], said
        # The image stands left of the overlay, in its own proportions; the bar's red lies below.
        expected = [512 * side / max(size) for side in size]
        left = np.asarray(Image.open(picture).convert("RGB"))[: round(expected[1]) + 16, :524].astype(int)
        rows, columns = np.where((left[..., 0] > 150) & (left[..., 1] < 90) & (left[..., 2] < 90))
        assert (np.ptp(columns) + 1, np.ptp(rows) + 1) == pytest.approx(expected, abs=2)


@pytest.mark.parametrize("command", ["segment", "retrieve", "heatmap"])
@pytest.mark.parametrize(
    ("text", "message"), [("word " * 99, "the rest would be cut. Shorten it."), (" ", "cannot use an empty text")]
)
def test_texts_that_cannot_be_read_are_refused_before_anything_is_written(
    run, command: str, text: str, message: str, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (64, 64)).save(photos / "a.png")
    index = ["--index", tmp_path / "index.safetensors"] if command == "retrieve" else []
    given = photos / "a.png" if command == "heatmap" else photos
    code, _, said = run(command, given, "--text", text, "-o", tmp_path / "out.png", *index)
    assert code == 1 and said.startswith("error: ") and message in said
    assert not (tmp_path / "out.png").exists() and "Traceback" not in said


def test_retrieval_in_blocks_is_retrieval(demo_model: clipedit.Model, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    index = retrieve.open_index(demo_model, demo_masked_images(12, seed=6).source, tmp_path / "index.safetensors")
    queries = (
        {"text": "a red object"},
        {"image": index.source.open(3)},
        {"image": index.source.open(3), "heads": [HeadId(3, 4)]},
    )
    whole = [retrieve.retrieve(index, demo_model, **query) for query in queries]  # type: ignore[arg-type]
    monkeypatch.setattr(retrieve, "BLOCK", 5)
    for query, expected in zip(queries, whole, strict=True):
        found = retrieve.retrieve(index, demo_model, **query)  # type: ignore[arg-type]
        assert [hit.name for hit in found] == [hit.name for hit in expected]
        assert [hit.similarity for hit in found] == pytest.approx([hit.similarity for hit in expected], abs=1e-5)


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


def test_the_commands(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
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
    assert len(found["heads"]) == 12 and Image.open(tmp_path / "sheet.png").width == 4 * 204 + 12
    before = (tmp_path / "index.safetensors").stat().st_mtime_ns
    assert len(json.loads(run(*search, "--text", "a red object")[1])["images"]) == 3
    assert (tmp_path / "index.safetensors").stat().st_mtime_ns == before
    assert "Give --text or --image, not both" in run(*search)[2]
    assert "unknown concept 'colour'. Did you mean color" in run(*search[:4], "--concept", "colour", "--text", "x")[2]
    (tmp_path / "photos" / "0.png").unlink()
    assert "the images have changed since" in run(*search, "--text", "a red object")[2]
    assert run("evaluate", "demo", "--dataset", tmp_path, "--segmentation")[0] == 2


@pytest.mark.parametrize("count", [1, 3])
def test_among_few_or_equal_images_an_image_finds_itself(run, tmp_path: Path, count: int) -> None:  # type: ignore[no-untyped-def]
    """Their mean is what all of them are: without it, nothing but rounding would be left to compare."""
    (tmp_path / "photos").mkdir()
    for name in range(count):
        demo_masked_images(1, seed=4).source.open(0).save(tmp_path / "photos" / f"{name}.png")
    search = ["retrieve", tmp_path / "photos", "--index", tmp_path / "index.safetensors", "--json"]
    code, printed, said = run(*search, "--image", tmp_path / "photos" / "0.png")
    assert code == 0, said
    assert [hit["similarity"] for hit in json.loads(printed)["images"]] == pytest.approx([1.0] * count, abs=1e-4)


def test_a_concept_that_no_few_heads_hold_is_said_to_be_a_poor_guide(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    source = held_out_source().subset(range(96))
    (tmp_path / "photos").mkdir()
    for index in range(96):
        source.open(index).save(tmp_path / "photos" / f"{index:02d}.png")
    search = ["retrieve", tmp_path / "photos", "--index", tmp_path / "index.safetensors", "--json", "--text", "a star"]
    found = {name: json.loads(run(*search, "--concept", name).out) for name in ("shape", "location")}
    assert "without --concept" in found["shape"]["because"] and "selectivity" in found["shape"]["because"]
    assert found["location"]["because"] == ""
