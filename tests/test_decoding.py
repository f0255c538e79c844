"""Large JPEGs decoded smaller: what is left, what it costs, and that a scan says which."""

from __future__ import annotations

import time
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from sklearn.datasets import load_sample_image
from torch.nn.functional import cosine_similarity

import clipedit
from clipedit import cli
from clipedit.editor.images import batches
from clipedit.editor.images.batches import load_batches
from clipedit.editor.images.decode import Decoding, open_image
from clipedit.editor.images.source import ImageSource
from clipedit.editor.models.preprocessing import find_resized_side
from clipedit.editor.scan.collect import collect_embeddings
from clipedit.editor.scan.partials import merge_partials
from clipedit.editor.scan.sample import count_seen

pytestmark = pytest.mark.usefixtures("one_thread")


def save_photograph(path: Path, name: str, size: tuple[int, int], **options: Any) -> None:
    """A photograph as a camera of that size would have stored it: with its noise."""
    picture = Image.fromarray(load_sample_image(name)).resize(size, Image.Resampling.LANCZOS)
    noise = np.random.default_rng(0).normal(0, 5, (size[1], size[0], 1))
    Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8)).save(path, quality=90, **options)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEGs of 1,200 x 900, of which a model of 64 pixels takes a quarter."""
    folder = tmp_path_factory.mktemp("photographs")
    for number, name in enumerate(("china.jpg", "flower.jpg")):
        for turn in range(4):
            path = folder / f"{number}{turn}.jpg"
            save_photograph(path, name, (1200, 900))
            with Image.open(path) as picture:
                turned = picture.rotate(90 * turn, expand=True)
            turned.save(path, quality=90)
    return folder


@pytest.mark.parametrize(
    ("size", "enough", "left"),
    [
        ((1200, 900), 128, (300, 225)),  # a sixth would leave enough, a quarter is the next that there is
        ((1200, 900), 100, (150, 113)),
        ((1200, 900), 450, (600, 450)),
        ((1200, 900), 451, (1200, 900)),
        ((400, 900), 128, (200, 450)),  # the short side counts
        ((200, 100), 128, (200, 100)),  # never enlarged
    ],
)
def test_no_fewer_pixels_are_left_than_asked_for(
    size: tuple[int, int], enough: int, left: tuple[int, int], tmp_path: Path
) -> None:
    Image.new("RGB", size, "teal").save(tmp_path / "a.jpg")
    assert open_image(tmp_path / "a.jpg", Decoding(enough=enough)).size == left
    assert open_image(tmp_path / "a.jpg").size == size


@pytest.mark.parametrize("kind", ["RGB", "L", "CMYK", "progressive", "turned", "MPO"])
def test_every_kind_of_jpeg_shows_the_same_picture_smaller(kind: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"progressive": {"progressive": True}, "turned": {"exif": exif}}.get(kind, {})
    picture = Image.fromarray(load_sample_image("china.jpg")[:424]).convert(kind if kind in ("L", "CMYK") else "RGB")
    picture.save(tmp_path / "a.jpg", format="MPO" if kind == "MPO" else None, quality=95, **options)
    whole, smaller = open_image(tmp_path / "a.jpg"), open_image(tmp_path / "a.jpg", Decoding(enough=200))
    assert smaller.size == ((212, 320) if kind == "turned" else (320, 212)) and smaller.mode == "RGB"
    expected = np.asarray(whole.resize(smaller.size, Image.Resampling.BOX), dtype=float)
    assert np.abs(np.asarray(smaller, dtype=float) - expected).mean() < 3


@pytest.mark.parametrize("suffix", ["png", "webp", "tif", "bmp"])
def test_other_formats_are_read_as_they_were(suffix: str, tmp_path: Path) -> None:
    Image.fromarray(load_sample_image("china.jpg")).save(tmp_path / f"a.{suffix}")
    whole, asked = (open_image(tmp_path / f"a.{suffix}", how) for how in (Decoding(), Decoding(enough=32)))
    assert whole.tobytes() == asked.tobytes()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_dropped_as_open_clip_drops_it(mode: str, tmp_path: Path) -> None:
    picture = Image.fromarray(load_sample_image("china.jpg")).convert(mode)
    picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    picture.save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as opened:
        assert "A" in opened.getbands()
        expected = opened.convert("RGB").tobytes()
    assert open_image(tmp_path / "a.png").tobytes() == expected


def test_a_truncated_jpeg_is_refused_at_every_size(tmp_path: Path) -> None:
    save_photograph(tmp_path / "a.jpg", "china.jpg", (1200, 900))
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content[: len(content) // 2])
    for how in (Decoding(), Decoding(enough=128)):
        with pytest.raises(clipedit.ImageError, match=r"cannot read .*a\.jpg"):
            open_image(tmp_path / "a.jpg", how)


def test_a_model_says_how_many_pixels_are_enough(demo_model: clipedit.Model) -> None:
    assert demo_model.decoding("ignore", "scaled") == Decoding("ignore", 2 * demo_model.image_size)
    assert demo_model.decoding("upright", "exact") == Decoding("upright", None)
    # timm resizes to size / crop_pct and crops: 224 / .875 = 256.
    assert find_resized_side({"preprocess_cfg": {"size": [224, 224], "crop_pct": 0.875}}) == 256
    assert find_resized_side({"preprocess_cfg": {"size": (224, 336)}}) == 336


def scan_embeddings(model: clipedit.Model, folder: Path, decode: Any) -> torch.Tensor:
    sample = clipedit.scan(model, folder, layers=[3], decode=decode).sample
    assert sample is not None
    order = sorted(range(len(sample)), key=lambda row: sample.names[row])
    return sample.features.embedding[order]


def test_exact_is_what_open_clip_reads_and_scaled_is_near(demo_model: clipedit.Model, photographs: Path) -> None:
    exact, scaled = (scan_embeddings(demo_model, photographs, decode) for decode in ("exact", "scaled"))
    pixels = [demo_model.preprocess(Image.open(path).convert("RGB")) for path in sorted(photographs.glob("*.jpg"))]
    torch.testing.assert_close(exact, demo_model.encode_image(torch.stack(pixels)), rtol=1e-5, atol=1e-5)
    cosines = cosine_similarity(exact.double(), scaled.double())
    assert not torch.equal(exact, scaled)
    # The limit below which `exact` would have to be the default.
    assert cosines.mean() > 0.999 and cosines.min() > 0.999


def test_evaluate_decodes_in_full(
    demo_model: clipedit.Model, photographs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(JpegImageFile, "draft", lambda self, mode, size: asked.append(size))
    words = {"0": "temple", "1": "flower"}
    rows = [f"{path},{words[path.name[0]]}\n" for path in sorted(photographs.glob("*.jpg"))]
    (tmp_path / "labels.csv").write_text("path,label\n" + "".join(rows))
    clipedit.evaluate({"demo": demo_model}, tmp_path / "labels.csv")
    assert asked == []
    clipedit.scan(demo_model, photographs, layers=[3])
    assert set(asked) == {(128, 128)}


def test_a_scan_says_how_it_decoded_and_only_equals_are_merged(
    demo_model: clipedit.Model, photographs: Path, tmp_path: Path
) -> None:
    paths = {decode: tmp_path / f"{decode}.safetensors" for decode in ("exact", "scaled")}
    for number, (decode, path) in enumerate(paths.items()):
        source = sorted(photographs.glob(f"{number}*.jpg"))
        clipedit.scan(demo_model, source, layers=[3], decode=decode).save(path)  # type: ignore[arg-type]
    exact, scaled = (clipedit.load_scan(path) for path in paths.values())
    assert (exact.decode, scaled.decode) == ("exact", "scaled")
    with pytest.raises(clipedit.StatisticsError, match="decode is exact in one and scaled in the other"):
        exact.merge(scaled)
    with pytest.raises(clipedit.StatisticsError, match="decode is .* in one and .* in the other"):
        merge_partials(list(paths.values()))
    options = {"layers": [3], "unit_size": 3, "workers": 0}
    clipedit.scan_units(demo_model, photographs, tmp_path / "parts", **options)
    with pytest.raises(clipedit.StatisticsError, match="decode scaled, not exact"):
        clipedit.scan_units(demo_model, photographs, tmp_path / "parts", decode="exact", **options)


def test_commands_take_it(run, photographs: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for given, expected in (([], "scaled"), (["--decode", "exact"], "exact")):
        out = tmp_path / f"{expected}.safetensors"
        assert run("scan", photographs, "--layers", "3", "-o", out, *given).code == 0
        assert clipedit.load_scan(out).decode == expected
    assert run("scan", photographs, "--decode", "fast", "-o", tmp_path / "x").code == 2


def test_every_command_of_labelled_images_says_how_photos_lie() -> None:
    commands = [command for group in cli.GROUPS.values() for command in group.values()]
    labelled = [command for command in commands if "layout" in signature(command).parameters]
    assert len(labelled) > 6
    assert [command.__name__ for command in labelled if "exif" not in signature(command).parameters] == []


def test_calibration_images_are_known_among_those_measured_on(demo_model: clipedit.Model, photographs: Path) -> None:
    scanned = clipedit.scan(demo_model, photographs, layers=[3])
    assert scanned.sample is not None
    # The same pictures, under other names.
    found = sorted(photographs.glob("*.jpg"))
    again = ImageSource(tuple(f"copy{i}" for i in range(len(found))), lambda index: open_image(found[index]))
    embeddings, _ = collect_embeddings(demo_model, again)
    assert count_seen(scanned.sample, again, embeddings, decode=scanned.decode) == len(found)
    assert count_seen(scanned.sample, again, -embeddings, decode=scanned.decode) == 0


def test_readers_are_started_where_reading_takes_long_and_each_image_is_read_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[int] = []
    loader = batches.DataLoader

    def spy(*args: Any, **options: Any) -> Any:
        started.append(options["num_workers"])
        # In this process, where calls are counted.
        return loader(*args, **{**options, "num_workers": 0, "multiprocessing_context": None})

    monkeypatch.setattr(batches, "DataLoader", spy)
    opened: list[int] = []

    def read(seconds: float, count: int) -> list[int]:
        opened.clear()

        def open_slowly(index: int) -> Image.Image:
            opened.append(index)
            time.sleep(seconds)
            return Image.new("RGB", (4, 4), (index, 0, 0))

        source = ImageSource(tuple(map(str, range(count))), open_slowly)
        found = load_batches(source, lambda image: torch.full((3, 1, 1), int(np.asarray(image)[0, 0, 0])), batch_size=4)
        return [int(value) for batch in found for value in batch.pixels[:, 0, 0, 0]]

    monkeypatch.setattr(batches, "WORTH_WORKERS", 0.5)
    assert read(0.0, 10) == list(range(10)) and started.pop() == 0
    assert sorted(opened) == list(range(10))
    assert read(0.1, 10) == list(range(10)) and started.pop() > 0
    assert sorted(opened) == list(range(10))
    assert read(0.6, 1) == [0] and started.pop() == 0
