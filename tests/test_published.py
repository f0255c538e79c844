"""Small sets made as published ones are laid out: right classes, groups, captions and errors."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import clipedit
from clipedit.editor.images.layouts import detect_layout, load_dataset, load_selection_set
from clipedit.editor.images.published.captions import CaptionSet
from clipedit.editor.images.skew import RetrievalSet
from clipedit.editor.images.source import LabelledImages


def paint(*paths: Path, color: str = "red") -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), color).save(path)


def read(path: Path, expected: str, **options: Any) -> LabelledImages:
    """A set with classes, whose layout is seen; every image can be opened."""
    assert detect_layout(path) == expected
    found = load_dataset(path, **options)
    assert isinstance(found, LabelledImages)
    assert found.source.open(len(found.source) - 1).size == (32, 32)
    return found


def refuse(path: Path, match: str, **options: Any) -> None:
    with pytest.raises(clipedit.ImageError, match=match):
        load_dataset(path, **options)


def write_tar(path: Path, members: Mapping[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def picture(color: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (32, 32), color).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards of three images each, classes 0, 1, 2 in turn, as `clip_benchmark_export_wds` writes them."""
    root = tmp_path / "wds"
    for shard in range(2):
        members = {}
        for index in range(3):
            key = f"s{3 * shard + index:07d}"
            members |= {f"{key}.cls": str((index + shard) % 3).encode(), f"{key}.png": picture("red")}
        write_tar(root / "test" / f"{shard}.tar", members)
    (root / "test" / "nshards.txt").write_text("2\n")
    (root / "classnames.txt").write_text("star\nring\nheart\n")
    (root / "zeroshot_classification_templates.txt").write_text("a photo of {c}.\nart of the {c}\n")
    return root


def test_a_webdataset_has_the_classes_and_prompts_of_its_files(shards: Path) -> None:
    found = read(shards, "webdataset")
    assert found.classes == ("star", "ring", "heart") and found.labels == (0, 1, 2, 1, 2, 0)
    assert found.templates == ("a photo of {}.", "art of the {}") and found.split == "test"
    assert Counter(found.groups) == {"star": 2, "ring": 2, "heart": 2}
    # Who gives the folder of the split means it.
    assert read(shards / "test", "webdataset").labels == found.labels
    named = load_dataset(shards, classes={"1": "circle", "heart": "love"})
    assert isinstance(named, LabelledImages) and named.classes == ("star", "circle", "love")


def test_a_webdataset_of_captions_has_those_of_each_image(shards: Path) -> None:
    for shard in range(2):
        keys = [f"{shard}{index}" for index in range(2)]
        members = {
            f"{key}.{end}": content
            for key in keys
            for end, content in (("png", picture("blue")), ("txt", f"a star {key}\nthe star {key}\n".encode()))
        }
        write_tar(shards / "test" / f"{shard}.tar", members)
    (shards / "dataset_type.txt").write_text("retrieval\n")
    found = load_dataset(shards)
    assert isinstance(found, CaptionSet) and len(found.source) == 4 and found.split == "test"
    assert found.captions[2] == ("a star 10", "the star 10")
    with pytest.raises(clipedit.ImageError, match="it has captions, no classes"):
        load_selection_set(shards)
    write_tar(shards / "test" / "1.tar", {"0.png": picture("red"), "0.txt": b"\n"})
    refuse(shards, r"test/1.tar/0.png: its .txt holds no caption")


@pytest.mark.parametrize(
    ("file", "content", "match"),
    [
        ("test/nshards.txt", "two", "nshards.txt: it says 'two', the number of shards is needed"),
        ("test/nshards.txt", "3", "nshards.txt says 3, but 2.tar is not there"),
        ("classnames.txt", "star\nring\n", r"test/0.tar/s0000002.png: its .cls says '2', a number from 0 to 1"),
        ("classnames.txt", "star\n\nheart\n", "classnames.txt: line 2 is empty"),
        ("zeroshot_classification_templates.txt", "a {c}\nart\n", "templates.txt: line 2 has no {c}"),
        ("dataset_type.txt", "multilabel", "dataset_type.txt says multilabel"),
    ],
)
def test_a_webdataset_that_is_wrong_is_refused_by_file_and_place(
    shards: Path, file: str, content: str, match: str
) -> None:
    (shards / file).write_text(content)
    refuse(shards, match)


def test_a_webdataset_without_a_class_or_a_split_is_refused(shards: Path) -> None:
    refuse(shards, "it has no split val, there are test", split="val")
    refuse(shards, "cannot use columns", label="y")
    write_tar(shards / "test" / "1.tar", {"0.png": picture("red"), "1.cls": b"1", "1.png": picture("red")})
    refuse(shards, r"1.tar: test/1.tar/0.png has no .cls beside it")
    (shards / "classnames.txt").unlink()
    refuse(shards, "it has no classnames.txt")


def write_subpop(table: Path, names: Sequence[str], header: str = "id,filename,split,y,a") -> None:
    lines = [header]
    for index, name in enumerate(names):
        cells = {"id": index, "filename": name, "split": (0, 1, 2, 2)[index % 4], "y": index % 2, "a": index // 4 % 2}
        lines.append(",".join(str(cells[column]) for column in header.split(",")))
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("table", "folder", "classes"),
    [
        ("waterbirds/metadata_waterbirds.csv", "waterbird_complete95_forest2water2", ("landbird", "waterbird")),
        ("celeba/metadata_celeba.csv", "img_align_celeba", ("celebrity with dark hair", "celebrity with blond hair")),
        ("metashift/metadata_metashift.csv", "", ("dog", "cat")),
    ],
)
def test_subpopbench_has_groups_of_class_and_attribute(
    table: str, folder: str, classes: tuple[str, ...], tmp_path: Path
) -> None:
    path = tmp_path / table
    names = [f"{index}.png" for index in range(16)]
    write_subpop(path, names)
    paint(*(path.parent / folder / name for name in names))
    found = read(path.parent, "subpopbench")
    assert found.classes == classes and found.split == "2" and found.labels == (0, 1) * 4
    assert Counter(found.groups) == {f"{word} / a {a}": 2 for word in classes for a in "01"}
    assert found.source.names[0].endswith("2.png")
    # Heads are chosen on split 1; the file itself is read alike.
    assert len(load_selection_set(path).source) == 4
    assert read(path, "subpopbench").groups == found.groups


def test_subpopbench_tables_with_paths_of_another_machine_are_found(tmp_path: Path) -> None:
    root = tmp_path / "data" / "nicopp"
    inner = [f"public/train/{place}/{name}.png" for place in ("dim", "rock") for name in range(4)]
    write_subpop(root / "metadata.csv", [f"/old/data/nicopp/{name}" for name in inner], "split,filename,y,a")
    paint(*(root / name for name in inner))
    refuse(root, "cannot name the classes of .*metadata.csv: y is 0, 1, ... Give --classes")
    (root / "dg_label_id_mapping.json").write_text('{"hot_air_balloon": 1, "car": 0}')
    found = read(root, "subpopbench")
    assert found.classes == ("car", "hot air balloon") and len(found.source) == 4
    paint(tmp_path / "data" / "imagenet" / "n01" / "a.png")
    table = tmp_path / "data" / "breeds" / "metadata_living17.csv"
    table.parent.mkdir()
    table.write_text("filename,y,split,a\n/old/data/imagenet/n01/a.png,16,2,0\n/old/data/imagenet/n01/a.png,3,3,0\n")
    living = read(table, "subpopbench")
    assert living.classes[living.labels[0]] == "monkey" and len(living.classes) == 17
    other = load_dataset(table, split="3")
    assert isinstance(other, LabelledImages) and other.groups == ("snake / a 0",)


@pytest.mark.parametrize(
    ("name", "count", "last"), [("entity13", 13, "produce"), ("entity30", 30, "fruit"), ("nonliving26", 26, "squash")]
)
def test_subpopbench_names_the_superclasses_of_breeds(name: str, count: int, last: str, tmp_path: Path) -> None:
    table = tmp_path / "breeds" / f"metadata_{name}.csv"
    paint(tmp_path / "imagenet" / "n01" / "a.png")
    table.parent.mkdir()
    table.write_text(f"filename,y,split,a\n/old/imagenet/n01/a.png,{count - 1},2,0\n/old/imagenet/n01/a.png,0,2,0\n")
    found = read(table, "subpopbench")
    assert len(set(found.classes)) == count and found.classes[found.labels[0]] == last
    table.write_text(f"filename,y,split,a\n/old/imagenet/n01/a.png,{count},2,0\n")
    refuse(table, "cannot name the classes")


def test_subpopbench_with_an_empty_cell_names_the_row(tmp_path: Path) -> None:
    (tmp_path / "metadata_waterbirds.csv").write_text("id,filename,split,y,a\n0,a.png,2,0,1\n1,b.png,2,1,\n")
    refuse(tmp_path, r"b.png \(row 2 below the header\) has no a")
    (tmp_path / "metadata_waterbirds.csv").write_text("id,filename,split,y,a\n0,a.png,2,0,1\n1,b.png,2,5,1\n")
    refuse(tmp_path, "cannot name the classes")


def write_scam(folder: Path, *, lines: bool) -> list[dict[str, Any]]:
    rows = [
        {"file_name": f"{kind}_{index}.png", "type": kind, "object_label": thing, "attack_word": word}
        for kind in ("SCAM", "NoSCAM", "SynthSCAM")
        for index, (thing, word) in enumerate((("clock", "taxi"), ("tea pot", "bike")))
    ]
    paint(*(folder / row["file_name"] for row in rows))
    if lines:
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    else:
        table = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
        (folder / "metadata.csv").write_text("\n".join(table))
    return rows


@pytest.mark.parametrize(("lines", "inner"), [(False, ""), (True, ""), (True, "images/train")])
def test_scam_asks_for_the_object_or_the_word(tmp_path: Path, lines: bool, inner: str) -> None:
    (tmp_path / inner).mkdir(parents=True, exist_ok=True)
    write_scam(tmp_path / inner, lines=lines)
    found = read(tmp_path, "scam")
    assert found.classes == ("bike", "clock", "taxi", "tea pot") and found.labels == (1, 3) * 3
    assert found.written == (2, 0) * 3 and found.options[0] == (1, 2)
    assert Counter(found.groups) == {"SCAM": 2, "NoSCAM": 2, "SynthSCAM": 2} and found.subsets == found.groups
    one = load_dataset(tmp_path, split="SynthSCAM", group_by=["object_label"])
    assert isinstance(one, LabelledImages) and one.groups == ("clock", "tea pot") and one.split == "SynthSCAM"
    refuse(tmp_path, "no row has type RTA, there are NoSCAM, SCAM, SynthSCAM", split="RTA")


def test_scam_with_an_empty_cell_names_the_row(tmp_path: Path) -> None:
    rows = write_scam(tmp_path, lines=True)
    rows[3]["attack_word"] = None
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    refuse(tmp_path, r"line 4 \(NoSCAM_1.png\) has no attack_word")


def test_utkface_is_queries_or_zero_shot_by_what_names_say(tmp_path: Path) -> None:
    for index in range(20):
        age, gender, race = (1, 9, 25, 80)[index % 4], index % 2, index % 5
        paint(tmp_path / "UTKFace" / f"{age}_{gender}_{race}_2017010920034{index:04d}.jpg.chip.jpg")
    assert detect_layout(tmp_path) == "utkface"
    found = load_dataset(tmp_path)
    assert isinstance(found, RetrievalSet) and list(found.attributes) == ["gender", "race", "age"]
    assert Counter(found.attributes["age"]) == {"0-2": 5, "3-9": 5, "20-29": 5, "more than 70": 5}
    assert Counter(found.attributes["race"])["Others"] == 4
    by_gender = read(tmp_path, "utkface", label="gender", group_by=["race"])
    assert by_gender.classes == ("female", "male") and len(set(by_gender.groups)) == 10
    # Three published files lack a race.
    paint(tmp_path / "UTKFace" / "39_1_20170116174525125.jpg.chip.jpg")
    with pytest.warns(UserWarning, match="passed over 1 images without a gender or race .* UTKFace/39_1_2017"):
        assert len(load_dataset(tmp_path).source) == 20
    paint(tmp_path / "UTKFace" / "25_3_1_20170109150557335.jpg")
    paint(*(tmp_path / "UTKFace" / f"25_{index}.jpg" for index in range(3)))
    refuse(tmp_path, "'UTKFace/25_0.jpg' is not named age_gender_race_time", layout="utkface")


def test_fairface_with_an_empty_cell_names_the_row(tmp_path: Path) -> None:
    (tmp_path / "fairface_label_val.csv").write_text(
        "file,age,gender,race\nval/1.jpg,3-9,Male,Black\nval/2.jpg,3-9,,x\n"
    )
    refuse(tmp_path, r"fairface_label_val.csv: row 2 below the header \(val/2.jpg\) has no gender")
    found = load_dataset(tmp_path, group_by=["race"])
    assert isinstance(found, RetrievalSet) and found.attributes == {"race": ("Black", "x")}


def test_spawrious_is_breeds_by_place_and_its_challenges(tmp_path: Path) -> None:
    root = tmp_path / "spawrious224"
    for part in "01":
        for place in ("desert", "jungle", "dirt", "snow", "mountain", "beach"):
            for breed in ("bulldog", "corgi", "dachshund", "labrador"):
                paint(root / part / place / breed / "1.png")
    found = read(tmp_path, "spawrious")
    assert len(found.source) == 48 and len(set(found.groups)) == 24
    assert read(root, "spawrious").labels == found.labels
    easy = load_dataset(tmp_path, split="o2o_easy")
    assert isinstance(easy, LabelledImages) and easy.split == "o2o_easy"
    expected = {"bulldog / place dirt", "dachshund / place snow", "labrador / place desert", "corgi / place jungle"}
    assert Counter(easy.groups) == dict.fromkeys(expected, 2)
    # Many-to-many: two places each, of the first part only.
    hard = load_dataset(tmp_path, split="m2m_hard")
    assert isinstance(hard, LabelledImages) and Counter(hard.groups)["dachshund / place beach"] == 1
    assert {group for group in hard.groups if group.startswith("corgi")} == {
        "corgi / place dirt",
        "corgi / place jungle",
    }
    train = load_selection_set(tmp_path, split="o2o_easy")
    assert "bulldog / place desert" in train.groups and not set(train.source.names) & set(easy.source.names)
    refuse(tmp_path, "--split hard with .*: there are o2o_easy", split="hard")


def test_urban_cars_are_cars_by_background_and_what_is_beside(tmp_path: Path) -> None:
    root = tmp_path / "urbancars" / "bg-0.5_co_occur_obj-0.5"
    kinds = [(a, b, c) for a in ("urban", "country") for b in ("urban", "country") for c in ("urban", "country")]
    for split, count in (("val", 1), ("test", 2)):
        for car, background, beside in kinds:
            folder = root / split / f"obj-{car}_bg-{background}_co_occur_obj-{beside}"
            paint(*(folder / f"{index:03d}.jpg" for index in range(count)))
    for path in (tmp_path, tmp_path / "urbancars", root):
        found = read(path, "urbancars")
        assert len(found.source) == 16 and found.split == "test" and found.classes == ("urban car", "country car")
    assert len(set(found.groups)) == 8 and "urban car / background country / beside urban" in found.groups
    assert Counter(found.subsets) == dict.fromkeys(
        ("both_common", "background_uncommon", "beside_uncommon", "both_uncommon"), 4
    )
    assert len(load_selection_set(root).source) == 8
    assert len(read(root / "val", "urbancars").source) == 8
    paint(root / "test" / "other" / "a.jpg")
    refuse(tmp_path, r"'.*test/other/a.jpg' does not lie in obj-CAR")


def test_spuco_is_birds_and_dogs_by_place(tmp_path: Path) -> None:
    for split in ("val", "test"):
        for name, classes, places in (
            ("spuco_birds", ("landbirds", "waterbirds"), ("land", "water")),
            ("spuco_dogs", ("small_dogs", "big_dogs"), ("indoor", "outdoor")),
        ):
            for kind in classes:
                for place in places:
                    paint(tmp_path / name / split / kind / place / f"{split}.jpg")
    found = read(tmp_path, "spuco")
    assert found.classes == ("landbird", "waterbird", "small dog", "big dog") and len(set(found.groups)) == 8
    birds = read(tmp_path / "spuco_birds", "spuco")
    assert birds.classes == ("landbird", "waterbird") and birds.split == "test"
    assert Counter(birds.groups)["waterbird / place land"] == 1
    paint(tmp_path / "spuco_dogs" / "test" / "a.jpg")
    refuse(tmp_path, "'spuco_dogs/test/a.jpg' does not lie in SPLIT/CLASS/PLACE")


def test_imagenet9_is_nine_classes_and_the_gap_of_backgrounds(tmp_path: Path) -> None:
    root = tmp_path / "bg_challenge"
    for variant in ("original", "mixed_same", "mixed_rand", "only_bg_t"):
        for folder in ("00_dog", "02_wheeled vehicle", "08_fish"):
            paint(root / variant / "val" / folder / f"{variant}.JPEG")
    found = read(tmp_path, "imagenet9")
    assert len(found.classes) == 9 and found.labels == (0, 2, 8) * 3
    assert set(found.subsets) == {"original", "mixed_same", "mixed_rand"} and "dog / variant mixed_rand" in found.groups
    assert found.gap == ("background_gap", "mixed_same", "mixed_rand")
    # A right answer without an object is a wrong reason: never mixed with the others.
    alone = load_dataset(root, split="only_bg_t")
    assert isinstance(alone, LabelledImages) and set(alone.subsets) == {"only_bg_t"} and alone.gap is None
    refuse(root, "--split no_fg with .*: there are original", split="no_fg")
    paint(root / "original" / "val" / "99_other" / "a.JPEG")
    refuse(root, "'original/99_other/a.JPEG' lies in no class's folder")


def test_sugarcrepe_is_a_choice_of_two_captions(tmp_path: Path) -> None:
    entries = {
        str(7 * index): {
            "filename": f"{index}.jpg",
            "caption": f"a red cat {index}",
            "negative_caption": f"a red dog {index}",
        }
        for index in range(3)
    }
    for kind in ("swap_att", "add_obj"):
        (tmp_path / f"{kind}.json").write_text(json.dumps(entries))
    paint(*(tmp_path / "val2017" / f"{index}.jpg" for index in range(3)))
    found = read(tmp_path, "sugarcrepe")
    assert Counter(found.groups) == {"add_obj": 3, "swap_att": 3} and found.templates == ("{}",)
    assert found.options[1] == (2, 3) and found.classes[2:4] == ("a red cat 1", "a red dog 1") and found.labels[1] == 2
    assert len(read(tmp_path / "swap_att.json", "sugarcrepe").source) == 3
    assert load_dataset(tmp_path, split="add_obj").split == "add_obj"  # type: ignore[union-attr]
    with pytest.raises(clipedit.ImageError, match="it has captions, no classes"):
        load_selection_set(tmp_path)
    del entries["7"]["negative_caption"]
    (tmp_path / "add_obj.json").write_text(json.dumps(entries))
    refuse(tmp_path, "add_obj.json: entry 7 has no negative_caption")


@pytest.mark.parametrize("in_splits", [False, True])
def test_folders_of_hugging_face_have_the_columns_of_their_json_lines(tmp_path: Path, in_splits: bool) -> None:
    for split in ("train", "test") if in_splits else ("",):
        rows = [
            {"file_name": f"{index}.png", "label": ("ring", "star")[index % 2], "hue": index // 2} for index in range(4)
        ]
        paint(*(tmp_path / split / row["file_name"] for row in rows))
        (tmp_path / split / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    found = load_dataset(tmp_path, group_by=["hue"])
    assert isinstance(found, LabelledImages) and found.labels == (0, 1, 0, 1) and found.classes == ("ring", "star")
    assert found.groups == ("ring / hue 0", "star / hue 0", "ring / hue 1", "star / hue 1")
    assert found.split == ("test" if in_splits else None) and found.source.open(3).size == (32, 32)
    named = load_dataset(tmp_path, layout="table", group_by=["hue"])
    assert isinstance(named, LabelledImages) and named.groups == found.groups


def test_captions_beside_folders_of_classes_leave_the_folders_the_classes(tmp_path: Path) -> None:
    rows = [{"file_name": f"{name}/0.png", "text": "a thing"} for name in ("ring", "star")]
    paint(*(tmp_path / row["file_name"] for row in rows))
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = load_dataset(tmp_path)
    assert isinstance(found, LabelledImages) and found.classes == ("ring", "star")
    # Who says that it is a table gets its columns, and no folders.
    refuse(tmp_path, "no column label or .*, there are file_name, text. Name one with --label", layout="table")
    refuse(tmp_path / "ring", "as table: it has no metadata.csv or metadata.jsonl. Add one", layout="table")


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("{", "metadata.jsonl: line 2 is no JSON"),
        ("[1]", "metadata.jsonl: line 2 is no JSON object"),
        ('{"file_name": "b.png", "label": null}', r"b.png \(line 2\) has no label"),
        ('{"label": "ring"}', "metadata.jsonl: line 2 has no file_name"),
    ],
)
def test_a_wrong_line_of_json_is_named(tmp_path: Path, line: str, match: str) -> None:
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "label": "star"}\n' + line)
    refuse(tmp_path, match)
