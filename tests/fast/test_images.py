"""Every odd image either reads as what it shows, or is skipped, counted and named."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_image

import clipedit
from clipedit.editor.images import decode
from clipedit.editor.images.decode import open_image
from clipedit.editor.images.listing import list_images


def photograph(name: str = "china.jpg") -> Image.Image:
    return Image.fromarray(load_sample_image(name))


def save_16_bit(image: Image.Image, path: Path) -> None:
    Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(path)


def save_animation(image: Image.Image, path: Path) -> None:
    image.save(path, save_all=True, append_images=[Image.new("RGB", image.size, "red")], duration=100)


GOOD: dict[str, Callable[[Image.Image, Path], None]] = {
    "plain.jpg": lambda image, path: image.save(path),
    "16-bit.png": save_16_bit,
    "cmyk.jpg": lambda image, path: image.convert("CMYK").save(path),
    "palette.png": lambda image, path: image.quantize(255).save(path),
    "animated.gif": save_animation,
    "transparent.png": lambda image, path: image.convert("RGBA").save(path),
    "gray.tif": lambda image, path: image.convert("L").save(path),
    "one-bit.png": lambda image, path: image.convert("1").save(path),
}


@pytest.mark.parametrize("name", GOOD)
def test_an_odd_image_reads_as_what_it_shows(name: str, tmp_path: Path) -> None:
    image = photograph()
    GOOD[name](image, tmp_path / name)
    found = open_image(tmp_path / name)
    assert found.mode == "RGB" and found.size == image.size
    expected = np.asarray(image.convert("L"), float).mean()
    assert abs(np.asarray(found.convert("L"), float).mean() - expected) < 12


def corrupt(path: Path) -> None:
    path.write_bytes(b"this is no image at all" * 20)


def truncated(path: Path) -> None:
    stream = io.BytesIO()
    photograph("flower.jpg").save(stream, "JPEG")
    path.write_bytes(stream.getvalue()[:9000])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("spoil", [corrupt, truncated, empty])
def test_a_bad_image_is_refused_with_its_name(spoil: Callable[[Path], None], tmp_path: Path) -> None:
    spoil(tmp_path / "bad.jpg")
    with pytest.raises(clipedit.ImageError, match=r"cannot read .*bad\.jpg: "):
        open_image(tmp_path / "bad.jpg")


def test_a_decompression_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (20_000, 20_000)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 1_000_000
    with pytest.raises(clipedit.ImageError, match=r"bomb\.png: "):
        open_image(tmp_path / "bomb.png")
    monkeypatch.setattr(decode, "MAX_PIXELS", 100)
    photograph().save(tmp_path / "large.png")
    with pytest.raises(clipedit.ImageError, match="640 x 427 pixels, at most 100"):
        open_image(tmp_path / "large.png")


def test_few_bad_images_are_skipped_and_named(demo_model: clipedit.Model, tmp_path: Path) -> None:
    for index in range(6):
        photograph().save(tmp_path / f"{index}.jpg")
    corrupt(tmp_path / "3.jpg")
    found = clipedit.scan(demo_model, tmp_path, max_bad=0.5)
    assert found.statistics.n == 5
    ((name, reason),) = found.bad
    assert name == "3.jpg" and "cannot identify" in reason
    with pytest.raises(clipedit.ImageError, match=r"1 of 6 images cannot be read, 1\.0% are tolerated"):
        clipedit.scan(demo_model, tmp_path)


def test_folders_csvs_and_lists_name_the_same_images(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in ("a/1.png", "2.png"):
        Image.new("RGB", (8, 8), "blue").save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "list.csv").write_text("label,path\nx,2.png\ny,a/1.png\n")
    assert list_images(tmp_path).names == ("2.png", "a/1.png")
    table = list_images(tmp_path / "list.csv")
    assert table.names == ("2.png", "a/1.png") and table.attributes[1] == {"label": "y", "path": "a/1.png"}
    assert len(list_images([tmp_path / "2.png"])) == 1
    assert list_images(tmp_path).fingerprint() == list_images(str(tmp_path)).fingerprint()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "there is no such folder"),
        (lambda path: path.mkdir(), "it holds no image"),
        (lambda path: path.write_text("a"), "not a folder, an image or a CSV"),
    ],
)
def test_a_source_without_images_is_refused(make: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    make(tmp_path / "source")
    with pytest.raises(clipedit.ImageError, match=message):
        list_images(tmp_path / "source")


def test_a_csv_without_a_path_column_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("name,y\na,1\n")
    with pytest.raises(clipedit.ImageError, match="its columns are name, y, one of filename, img_filename"):
        list_images(tmp_path / "t.csv")


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"BM"]))
def test_no_bytes_raise_anything_but_an_image_error(data: bytes, magic: bytes) -> None:
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".png") as stream:
        stream.write(magic + data)
        stream.flush()
        with contextlib.suppress(clipedit.ImageError):
            assert open_image(Path(stream.name)).mode == "RGB"


def test_a_folder_that_is_named_as_an_image_is_called_a_folder(tmp_path: Path) -> None:
    with pytest.raises(clipedit.ImageError, match="it is a folder, not an image"):
        open_image(tmp_path)
    with pytest.raises(clipedit.ImageError, match="there is no such file"):
        open_image(tmp_path / "nothing.png")
