"""Data sets in Parquet as the Hugging Face hub gives them: columns, words of classes, splits, what is read of them."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import clipedit
from clipedit.editor.images.layouts import detect_layout, load_dataset, load_selection_set
from clipedit.editor.images.packed import rows as packed_rows
from clipedit.editor.images.source import LabelledImages

NAMES = ("apple_pie", "beet salad", "tench, Tinca tinca")


def picture(red: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (red, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def write(
    path: Path, columns: dict[str, Any], *, first: int = 0, names: dict[str, Sequence[str]] | None = None
) -> Path:
    """A file as `datasets` writes it: images whose red says their number, columns, and `ClassLabel` in the schema."""
    count = len(next(iter(columns.values())))
    images = [{"bytes": picture(first + row), "path": f"{first + row}.png"} for row in range(count)]
    table = pa.table({"image": images, **columns})
    features = {name: {"names": list(known), "_type": "ClassLabel"} for name, known in (names or {}).items()}
    described = {"info": {"features": {"image": {"_type": "Image"}, **features}}}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(described)}), path, row_group_size=4)
    return path


def read(path: Path, expected: str = "parquet", **options: Any) -> LabelledImages:
    assert detect_layout(path) == expected
    found = load_dataset(path, **options)
    assert isinstance(found, LabelledImages)
    return found


def reds(found: LabelledImages) -> list[int]:
    pixels = [found.source.open(index).getpixel((0, 0)) for index in range(len(found.source))]
    return [pixel[0] for pixel in pixels if isinstance(pixel, tuple)]


def refuse(path: Path, match: str, **options: Any) -> None:
    with pytest.raises(clipedit.ImageError, match=match):
        load_dataset(path, **options)


def test_the_names_of_a_class_label_are_its_words(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"label": [2, 0, 1, 2, 0, 0]}, names={"label": NAMES})
    found = read(path)
    assert found.classes == ("apple pie", "beet salad", "tench, Tinca tinca")
    assert found.labels == (2, 0, 1, 2, 0, 0) and reds(found) == list(range(6))
    assert found.source.names[4] == "a.parquet/4:4.png" and found.split is None
    # A class is named by its number, its name or its words.
    named = read(path, classes={"0": "pie", "beet salad": "salad", "tench, Tinca tinca": "fish"})
    assert named.classes == ("pie", "salad", "fish") and named.labels == found.labels
    assert read(path, classes=dict.fromkeys(NAMES, "x")).labels == found.labels
    refuse(path, "label 'beet salad' is no class. Add it to --classes", classes={"0": "pie", "2": "fish"})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (["cat", "dog", "cat"], ("cat", "dog")),
        ([3, 10, 3], ("10", "3")),
        ([True, False, True], ("false", "true")),
        (pa.array(["cat", "dog", "cat"]).dictionary_encode(), ("cat", "dog")),
    ],
)
def test_columns_of_any_single_values_are_classes(values: Any, words: tuple[str, ...], tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"kind": values, "place": ["a", "b", "a"], "box": [[1, 2]] * 3})
    found = read(path, label="kind")
    assert found.classes == words and Counter(found.groups)[f"{words[found.labels[0]]} / place a"] == 2
    assert read(path, label="place", group_by=["kind"], retention="kind").groups[0].startswith("a / kind ")
    refuse(path, "no column label or .*, there are kind, place. Name one with --label")
    refuse(path, "cannot group by box: .*a.parquet has kind, place", label="kind", group_by=["box"])


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
        ("default/train/0000.parquet", "default/test/0000.parquet"),
        ("train.parquet", "test.parquet"),
    ],
)
def test_splits_are_those_of_the_names_of_files(train: str, test: str, tmp_path: Path) -> None:
    write(tmp_path / train, {"label": [0, 1, 2]}, names={"label": NAMES})
    write(tmp_path / test, {"label": [1, 1]}, first=3, names={"label": NAMES})
    (tmp_path / "README.md").write_text("")
    found = read(tmp_path)
    # Classes without an image in this split are classes still.
    assert found.split == "test" and found.labels == (1, 1) and len(found.classes) == 3 and reds(found) == [3, 4]
    chosen = load_selection_set(tmp_path)
    assert chosen.split == "train" and reds(chosen) == [0, 1, 2]
    assert sorted(reds(read(tmp_path, split="all"))) == list(range(5))
    refuse(tmp_path, r"no row has split val, there are test, train", split="val")


def test_only_rows_that_are_kept_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "train.parquet", {"label": [0, 1] * 8}, names={"label": NAMES})
    write(tmp_path / "test.parquet", {"label": [0, 1] * 3, "split": ["a", "b"] * 3}, first=16, names={"label": NAMES})
    fetched = []
    whole = packed_rows.read_content

    def count(value: Any, location: Any) -> bytes:
        fetched.append(location.name)
        return whole(value, location)

    monkeypatch.setattr(packed_rows, "read_content", count)
    # A column `split` goes before the names of files; the second task is of the same images.
    found = read(tmp_path, split="b", retention="label", label="label")
    assert reds(found) == [17, 19, 21] and fetched == ["test.parquet"] * 3
    assert found.retention is not None and found.retention.source is found.source


def test_scam_as_its_repository_keeps_it_is_scam(tmp_path: Path) -> None:
    columns = {
        "type": ["SCAM", "NoSCAM", "SynthSCAM"] * 2,
        "object_label": ["clock"] * 3 + ["tea pot"] * 3,
        "attack_word": ["taxi"] * 3 + ["bike"] * 3,
        "postit_area_pct": [1.5, None, 2.0] * 2,
        "id": [f"{kind}_{row}" for kind in "ab" for row in range(3)],
    }
    path = write(tmp_path / "data" / "train-00000-of-00001.parquet", columns)
    for place in (path, tmp_path):
        found = read(place, "scam")
        assert found.classes == ("bike", "clock", "taxi", "tea pot") and found.labels == (1, 1, 1, 3, 3, 3)
        assert found.options[0] == (1, 2) and Counter(found.groups) == dict.fromkeys(columns["type"], 2)
    one = read(tmp_path, "scam", split="SynthSCAM")
    assert reds(one) == [2, 5] and one.source.names[0].endswith("train-00000-of-00001.parquet/2:a_2")
    # With a column named it is a table as any other.
    assert read(tmp_path, "scam", label="type").classes == ("NoSCAM", "SCAM", "SynthSCAM")


def test_a_picture_beside_parquet_is_no_class_and_a_table_goes_before_it(tmp_path: Path) -> None:
    write(tmp_path / "data" / "train.parquet", {"label": [0, 1]}, names={"label": NAMES})
    (tmp_path / "teaser.png").write_bytes(picture(9))
    assert detect_layout(tmp_path) == "parquet" and reds(read(tmp_path)) == [0, 1]
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "teaser.png", "label": "a"}')
    assert detect_layout(tmp_path) == "folders"
    assert reds(load_dataset(tmp_path, layout="parquet")) == [0, 1]  # pyright: ignore[reportArgumentType]


def test_parquet_of_paths_is_a_table(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(picture(ord(name)))
    pq.write_table(pa.table({"file_name": ["a.png", "b.png"], "label": ["x", "y"]}), tmp_path / "t.parquet")
    assert reds(read(tmp_path / "t.parquet")) == [ord("a"), ord("b")]
    pq.write_table(pa.table({"url": ["a.png"], "label": ["x"]}), tmp_path / "u.parquet")
    refuse(tmp_path / "u.parquet", "of its columns url, label none holds images or their paths")


def test_parquet_that_is_wrong_is_refused_by_file_and_row(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"label": [0, -1, 1]}, names={"label": NAMES})
    refuse(path, r"a.parquet/1:1.png \(row 2\) has no label")
    refuse(write(path, {"label": [0, 3, 1]}, names={"label": NAMES}), "label is 3, which is none of its 3 classes")
    refuse(write(path, {"label": ["x", None]}), r"a.parquet/1:1.png \(row 2\) has no label")
    refuse(write(path, {"label": ["x", "x"]}), "label is 'x' everywhere, two classes are needed")
    path.write_bytes(path.read_bytes()[:-9])
    refuse(path, "cannot read .*a.parquet: .*[Ff]etch it again")
    refuse(tmp_path / "none.parquet", "none.parquet")
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", "it holds no file with images", layout="parquet")
