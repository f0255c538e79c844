"""Folders as they lie on disks: links, hidden and foreign files, two kinds of sources, odd names."""

from __future__ import annotations

import io
import os
import re
import shutil
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import clipedit
from clipedit.editor.files import walk
from clipedit.editor.images.labelled import load_labelled_images
from clipedit.editor.images.layouts import detect_layout, load_dataset
from clipedit.editor.images.listing import list_images
from clipedit.editor.images.masks import match_masks
from clipedit.editor.images.packed.samples import choose_images
from clipedit.editor.images.shards import list_shards
from clipedit.editor.images.source import ImageSource, LabelledImages

pytestmark = pytest.mark.usefixtures("one_thread")


def encode(value: int, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (value, 255 - value, 0)).save(stream, kind)
    return stream.getvalue()


def paint(folder: Path, *names: str) -> Path:
    """Pictures that all differ in size, so that a fingerprint tells them apart."""
    for index, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(index) + b" " * index)
    return folder


def link(place: Path, target: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(target, target_is_directory=target.is_dir())


def write_tar(path: Path, members: dict[str, bytes], **options: object) -> bytes:
    with tarfile.open(path, "w", **options) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path.read_bytes()


def red_of(source: ImageSource) -> list[int]:
    return [source.open(index).getpixel((0, 0))[0] for index in range(len(source))]


# Links.


def test_links_to_folders_files_and_shards_are_followed(tmp_path: Path) -> None:
    away = paint(tmp_path / "away", "1.png", "deep/2.png")
    here = paint(tmp_path / "here", "0.png")
    link(here / "more", away)
    link(here / "3.png", away / "1.png")
    assert list_images(here).names == ("0.png", "3.png", "more/1.png", "more/deep/2.png")
    (tmp_path / "shards").mkdir()
    write_tar(tmp_path / "a.tar", {"1.png": encode(1)})
    write_tar(away / "b.tar", {"2.png": encode(2)})
    link(tmp_path / "shards" / "a.tar", tmp_path / "a.tar")
    (tmp_path / "others").mkdir()
    shutil.move(away / "b.tar", tmp_path / "others")
    link(tmp_path / "shards" / "others", tmp_path / "others")
    assert [unit.name for unit in list_shards(tmp_path / "shards")] == ["a.tar", "others/b.tar"]
    assert red_of(list_images(tmp_path / "shards")) == [1, 2]


def test_a_class_may_be_a_link_and_two_splits_may_share_one(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    paint(tmp_path / "elsewhere", "a.png", "b.png")
    paint(tmp_path / "set", "cat/a.png")
    link(tmp_path / "set" / "dog", tmp_path / "elsewhere")
    found = load_labelled_images(tmp_path / "set")
    assert found.classes == ("cat", "dog") and found.labels == (0, 1, 1)
    result = run("evaluate", "demo", "--dataset", tmp_path / "set", "--json")
    assert result.code == 0 and "cat (1), dog (2)" in result.err
    paint(tmp_path / "splits", "train/cat/a.png", "train/dog/b.png", "test/cat/c.png")
    link(tmp_path / "splits" / "test" / "dog", tmp_path / "splits" / "train" / "dog")
    assert load_labelled_images(tmp_path / "splits", split="test").labels == (0, 1)
    assert load_labelled_images(tmp_path / "splits", split="train").labels == (0, 1)


@pytest.mark.parametrize("target", [".", "..", "../b", "loop"])
def test_links_in_a_circle_end_and_each_image_is_read_once(target: str, tmp_path: Path) -> None:
    paint(tmp_path / "photos", "a/1.png", "b/2.png")
    (tmp_path / "photos" / "a" / "loop").symlink_to(target)
    (tmp_path / "photos" / "b" / "back").symlink_to("../a")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert list_images(tmp_path / "photos").names == ("a/1.png", "b/2.png")
        assert set(load_labelled_images(tmp_path / "photos").classes) == {"a", "b"}


def test_links_that_multiply_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "MAX_WAYS", 20)
    for level in range(8):
        (tmp_path / f"{level}").mkdir()
        for name in ("x", "y"):
            (tmp_path / f"{level}" / name).symlink_to(tmp_path / f"{level + 1}")
    paint(tmp_path / "8", "a.png")
    with pytest.raises(clipedit.ImageError, match="links lead to it in more than 20 ways"):
        load_labelled_images(tmp_path / "0")
    assert len(list_images(tmp_path / "0")) == 1


# What is passed over.


def test_hidden_and_foreign_files_are_counted_and_said(tmp_path: Path) -> None:
    paint(tmp_path, "a.png", ".b.png", ".cache/c.png", "@eaDir/d.png")
    for index in range(25):
        (tmp_path / f"{index}.PSD").write_bytes(b"x")
    (tmp_path / "read.txt").write_text("x")
    (tmp_path / "LICENSE").write_text("x")
    with pytest.warns(UserWarning, match=r"passed over 30 files: 25 \.psd, 1 \.txt, 1 without a suffix, 3 hidden$"):
        assert list_images(tmp_path).names == ("a.png",)


def test_a_folder_of_nothing_but_foreign_files_says_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(b"x")
    with pytest.raises(clipedit.ImageError, match=r"it holds no image\..* passed over 1 file: 1 \.raw"):
        list_images(tmp_path)


def test_heic_is_read_where_its_package_is_installed_and_else_the_package_is_named(tmp_path: Path) -> None:
    paint(tmp_path, "a.png")
    try:
        import pillow_heif
    except ImportError:
        (tmp_path / "b.heic").write_bytes(b"x")
        with pytest.warns(UserWarning, match=r"1 \.heic; `pip install pillow-heif` reads \.heic"):
            assert len(list_images(tmp_path)) == 1
        return
    heif = pillow_heif.from_pillow(Image.new("RGB", (64, 48), (200, 20, 20)))
    heif.save(tmp_path / "b.HEIC")
    found = list_images(tmp_path)
    assert found.names == ("a.png", "b.HEIC") and found.open(1).size == (64, 48)
    assert abs(found.open(1).getpixel((5, 5))[0] - 200) < 8


@pytest.mark.parametrize(("name", "kind"), [("a.jfif", "JPEG"), ("a.jpe", "JPEG"), ("a.avif", "AVIF")])
def test_jfif_and_avif_are_read(name: str, kind: str, tmp_path: Path) -> None:
    if kind == "AVIF":
        pytest.importorskip("PIL._avif")
    Image.new("RGB", (32, 16), (200, 20, 20)).save(tmp_path / name, kind)
    found = list_images(tmp_path)
    assert found.open(0).size == (32, 16) and abs(found.open(0).getpixel((3, 3))[0] - 200) < 8


# Two kinds of sources.


def describe_shard(path: Path, count: int) -> None:
    table = {"url": ["u"] * count, "key": [f"{i:09d}" for i in range(count)], "status": ["success"] * count}
    pq.write_table(pa.table(table), path)


def hold_images(path: Path, *values: int) -> None:
    pq.write_table(pa.table({"image": [encode(value) for value in values]}), path)


def test_what_img2dataset_writes_is_read_as_it_stands(tmp_path: Path) -> None:
    for shard in range(2):
        members = {f"{shard}{i}.{end}": encode(shard * 10 + i) for i in range(3) for end in ("jpg", "txt", "json")}
        write_tar(tmp_path / f"0000{shard}.tar", members)
        describe_shard(tmp_path / f"0000{shard}.parquet", 3)
        (tmp_path / f"0000{shard}_stats.json").write_text("{}")
    with pytest.warns(UserWarning, match=r"passed over 4 files: 2 \.json, 2 \.parquet"):
        assert red_of(list_images(tmp_path)) == [0, 1, 2, 10, 11, 12]


def test_rows_that_img2dataset_could_not_fetch_are_no_bad_images(tmp_path: Path) -> None:
    rows = {"url": ["u"] * 3, "key": ["a", "b", "c"], "status": ["success", "failed_to_download", "success"]}
    pq.write_table(pa.table({**rows, "jpg": [encode(1), None, encode(3)]}), tmp_path / "00000.parquet")
    (tmp_path / "00000_stats.json").write_text("{}")
    with pytest.warns(UserWarning, match="passed over 1 rows whose status is no success"):
        found = list_images(tmp_path)
    assert red_of(found) == [1, 3] and found.names[1] == "00000.parquet#0/2:c"


def test_parquet_that_describes_images_is_not_a_source(tmp_path: Path) -> None:
    paint(tmp_path, "00000/0.png", "00000/1.png")
    describe_shard(tmp_path / "00000.parquet", 2)
    assert len(list_images(tmp_path)) == 2


def thumbnail(folder: Path) -> None:
    hold_images(folder / "data" / "train.parquet", 1, 2)
    paint(folder, "thumbnail.png")


def tars_and_parquet(folder: Path) -> None:
    hold_images(folder / "data" / "train.parquet", 1, 2)
    write_tar(folder / "a.tar", {"1.png": encode(1)})


def tars_and_images(folder: Path) -> None:
    write_tar(folder / "data" / "a.tar.gz", {"1.png": encode(1)})
    paint(folder, "1.png", "2.png")


@pytest.mark.parametrize(
    ("fill", "told"),
    [
        (thumbnail, r"1 Parquet shard \(data/train.parquet\) and 1 image \(thumbnail.png\)"),
        (tars_and_parquet, r"1 tar shard \(a.tar\) and 1 Parquet shard \(data/train.parquet\)"),
        (tars_and_images, r"2 images \(1.png, \.\.\.\) and 1 tar shard \(data/a.tar.gz\)"),
    ],
)
def test_two_kinds_of_sources_are_refused_with_what_to_give(
    fill: Callable[[Path], None], told: str, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    fill(tmp_path)
    with pytest.raises(
        clipedit.ImageError, match=f"cannot tell what to read in .*: it holds {told}. Give one"
    ) as error:
        list_images(tmp_path)
    patterns = re.findall(r"\S+\*\*/\*[\w.]+\w", str(error.value))
    found = [len(list_images(pattern)) for pattern in patterns if not pattern.endswith(".gz")]
    assert len(patterns) == 2 and all(found)


# Names.


@pytest.mark.parametrize("name", ["two\nlines.png", "n" * 250 + ".png", b"\xff\xfe.png"])
def test_any_name_is_scanned_and_segmented(name: str | bytes, run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    spelled = name if isinstance(name, str) else os.fsdecode(name)
    for other in range(8):
        Image.effect_noise((64, 64), 40 + other).convert("RGB").save(tmp_path / f"{other}.png")
    try:
        Image.effect_noise((64, 64), 90).convert("RGB").save(str(tmp_path / "x.png"))
        (tmp_path / "x.png").rename(os.path.join(tmp_path, spelled))
    except OSError:
        pytest.skip("this file system has no such names")
    out = tmp_path / "out"
    out.mkdir()
    code, _, said = run("scan", tmp_path, "-o", out / "s.safetensors", "--layers", "3")
    assert code == 0, said
    scan = clipedit.load_scan(out / "s.safetensors")
    assert scan.statistics.n == 9 and scan.sample is not None and spelled in scan.sample.names
    code, _, said = run("segment", tmp_path, "--text", "a circle", "-o", out / "masks")
    assert code == 0 and len(list((out / "masks").glob("*.png"))) == 9, said


# Tars.


def test_two_pictures_of_one_sample_are_one_sample(tmp_path: Path) -> None:
    members = {}
    for index in range(3):
        members |= {f"{index}.seg.png": encode(100), f"{index}.jpg": encode(index, "JPEG"), f"{index}.txt": b"text"}
    write_tar(tmp_path / "a.tar", members)
    with pytest.warns(UserWarning, match="over 3 pictures that are parts of samples with an image, such as 0.seg"):
        assert list_images(tmp_path / "a.tar").names == ("a.tar/0.jpg", "a.tar/1.jpg", "a.tar/2.jpg")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("0.jpg 0.seg.png 1.jpg 1.seg.png", "0.jpg 1.jpg"),
        ("0.jpg 1.jpg 0.seg.png 1.seg.png", "0.jpg 1.jpg"),
        ("0.png 0.jpg", "0.jpg"),
        ("0.mask.png 0.image.png 1.mask.png 1.image.png", "0.image.png 1.image.png"),
        # Photos: dots in their names part nothing.
        ("trip.01.jpg trip.02.jpg other.jpg", "trip.01.jpg trip.02.jpg other.jpg"),
        ("a.01.jpg a.02.jpg b.03.jpg b.04.jpg", "a.01.jpg a.02.jpg b.03.jpg b.04.jpg"),
        # The same keys in other folders, and again in a second tar.
        ("x/0.jpg y/0.png", "x/0.jpg y/0.png"),
        ("0.jpg 0.seg.png 0.jpg 0.seg.png", "0.jpg 0.jpg"),
    ],
)
def test_samples_have_one_image(names: str, expected: str) -> None:
    given = names.split()
    assert [given[position] for position in choose_images(given)] == expected.split()


@pytest.fixture
def whole(tmp_path: Path) -> tuple[bytes, list[int]]:
    data = write_tar(tmp_path / "whole.tar", {f"{i}.png": encode(i) for i in range(4)})
    with tarfile.open(tmp_path / "whole.tar") as tar:
        return data, [member.offset for member in tar]


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :]


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda data, at: data[: at[2]], "it is cut off after 1.png"),
        (lambda data, at: data[: at[2] + 200], "it is cut off after 1.png"),
        (lambda data, at: data[: at[2] + 530], "it is cut off in 2.png|unexpected end of data"),
        (lambda data, at: flip(data, at[2] + 10), "no header at byte .* after 1.png"),
        (lambda data, at: data[: at[2]] + b"x" * 512 + data[at[3] :], "no header at byte .* after 1.png"),
        (lambda data, at: data + b"something else" * 50, "no header at byte"),
        (lambda data, at: data + flip(data, 10), "no header at byte"),
    ],
)
def test_a_tar_that_is_cut_or_damaged_anywhere_is_refused(
    spoil: Callable[[bytes, list[int]], bytes], told: str, whole: tuple[bytes, list[int]], tmp_path: Path
) -> None:
    (tmp_path / "a.tar").write_bytes(spoil(*whole))
    with pytest.raises(clipedit.ImageError, match=rf"cannot read .*a\.tar: .*({told})"):
        list_images(tmp_path / "a.tar")


def test_concatenated_tars_are_read_whole(whole: tuple[bytes, list[int]], tmp_path: Path) -> None:
    data, _ = whole
    (tmp_path / "a.tar").write_bytes(data * 3)
    (tmp_path / "b.tar").write_bytes(data.rstrip(b"\0") + bytes(-len(data.rstrip(b"\0")) % 512 + 1024) + data)
    assert red_of(list_images(tmp_path / "a.tar")) == [0, 1, 2, 3] * 3
    assert red_of(list_images(tmp_path / "b.tar")) == [0, 1, 2, 3] * 2


def test_links_inside_a_tar_are_the_images_that_they_lead_to(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        entry = tarfile.TarInfo("x/0.png")
        entry.size = len(encode(7))
        tar.addfile(entry, io.BytesIO(encode(7)))
        for name, kind, target in (("y.png", tarfile.LNKTYPE, "x/0.png"), ("x/z.png", tarfile.SYMTYPE, "0.png")):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, target
            tar.addfile(entry)
        entry = tarfile.TarInfo("out.png")
        entry.type, entry.linkname = tarfile.SYMTYPE, "../../etc/passwd"
        tar.addfile(entry)
    assert red_of(list_images(tmp_path / "a.tar")) == [7, 7, 7]


# Masks and typographic sets.


def test_masks_are_matched_by_path_and_not_by_stem(tmp_path: Path) -> None:
    paint(tmp_path / "masks", "cat/1.png", "dog/1.png", "2.jpg.png")
    names = ["photos/dog/1.jpg", "cat/1.jpg", "bird/1.jpg", "2.jpg"]
    found = match_masks(tmp_path / "masks", names)
    assert [path and os.path.relpath(path, tmp_path / "masks") for path in found] == [
        "dog/1.png",
        "cat/1.png",
        None,
        "2.jpg.png",
    ]
    paint(tmp_path / "flat", "1.png")
    with pytest.raises(clipedit.ImageError, match="cannot tell whose mask .*flat/1.png is: a/1.jpg and b/1.jpg"):
        match_masks(tmp_path / "flat", ["a/1.jpg", "b/1.jpg"])
    paint(tmp_path / "both", "1.png", "1.jpg")
    with pytest.raises(clipedit.ImageError, match="cannot tell the masks .* apart"):
        match_masks(tmp_path / "both", ["1.jpg"])


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (("label=boeing_747_text=boeing_747", "label=cup_text=dog"), ("boeing 747/boeing 747", "cup/dog")),
        (("label=boeing_747_text=cup", "label=cup_text=boeing_747"), ("boeing 747/cup", "cup/boeing 747")),
        (("label=cup_text=boeing_747", "label=dog_text=cup"), ("cup/boeing 747", "dog/cup")),
        (("label=cup_text=dog_2", "label=dog_text=cup (3)"), ("cup/dog", "dog/cup")),
        (("label=cup_text=a380_1", "label=cup_text=a380_2"), ("cup/a380", "cup/a380")),
    ],
)
def test_a_number_of_a_name_stays_and_that_of_a_copy_goes(
    names: tuple[str, ...], pairs: tuple[str, ...], tmp_path: Path
) -> None:
    paint(tmp_path, *(f"{name}.png" for name in names))
    assert detect_layout(tmp_path) == "typographic"
    found = load_dataset(tmp_path)
    assert isinstance(found, LabelledImages)
    read = {f"{found.classes[a]}/{found.classes[b]}" for a, b in zip(found.labels, found.written, strict=True)}
    assert read == set(pairs)
