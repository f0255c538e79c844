"""Small sets made in the layouts of published ones are read as those are, and malformed ones are refused."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import clipedit
from clipedit import cli
from clipedit.editor.images.layouts import detect_layout, load_dataset, load_selection_set
from clipedit.editor.images.skew import RetrievalSet, compute_max_skew
from clipedit.editor.images.source import LabelledImages
from clipedit.editor.measure.evaluate import measure_retrieval, measure_task


def paint(path: Path, color: str = "red") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64), color).save(path)


@pytest.fixture
def celeba(tmp_path: Path) -> Path:
    folder = tmp_path / "celeba"
    rows, partition = [], []
    for index in range(6):
        paint(folder / "img_align_celeba" / f"{index:06d}.jpg")
        rows.append(f"{index:06d}.jpg  {1 if index % 2 else -1} -1 {1 if index < 3 else -1}")
        partition.append(f"{index:06d}.jpg {2 if index else 0}")
    (folder / "list_attr_celeba.txt").write_text("6\nBlond_Hair Eyeglasses Male\n" + "\n".join(rows) + "\n")
    (folder / "list_eval_partition.txt").write_text("\n".join(partition) + "\n")
    return folder


@pytest.fixture
def fairface(tmp_path: Path) -> Path:
    folder = tmp_path / "fairface"
    lines = ["file,age,gender,race,service_test"]
    for index in range(8):
        paint(folder / "val" / f"{index}.jpg", ("red", "blue")[index % 2])
        lines.append(f"val/{index}.jpg,20-29,{('Male', 'Female')[index % 2]},{('Black', 'White')[index // 4]},True")
    (folder / "fairface_label_val.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def counter_animal(tmp_path: Path) -> Path:
    folder = tmp_path / "animals"
    for animal in ("12 house_finch", "294 brown bear"):
        paint(folder / animal / "common-forest" / "a.jpg")
        paint(folder / animal / "counter-snow" / "b.jpg")
    return folder


@pytest.fixture
def typographic(tmp_path: Path) -> Path:
    for name in ("label=cup_text=dog.jpg", "label=dog_text=coffee_pot.png", "label=coffee_pot_text=cup (2).jpg"):
        paint(tmp_path / "typographic" / name)
    return tmp_path / "typographic"


def test_layouts_are_seen_by_what_is_there(
    celeba: Path, fairface: Path, counter_animal: Path, typographic: Path, tmp_path: Path
) -> None:
    found = [detect_layout(path) for path in (celeba, fairface, counter_animal, typographic)]
    assert found == ["celeba", "fairface", "counteranimal", "typographic"]
    paint(tmp_path / "plain" / "cat" / "a.png")
    assert detect_layout(tmp_path / "plain") == "folders"
    (tmp_path / "plain" / "metadata.csv").write_text("filename,label\n")
    assert detect_layout(tmp_path / "plain") == "table"


def test_celeba_is_blond_hair_by_gender_on_the_test_split(celeba: Path) -> None:
    found = load_dataset(celeba)
    assert isinstance(found, LabelledImages)
    assert found.classes == ("celebrity with dark hair", "celebrity with blond hair")
    assert found.labels == (1, 0, 1, 0, 1) and len(found.source) == 5
    assert found.groups[0] == "celebrity with blond hair / Male 1" and len(set(found.groups)) == 4
    assert found.source.open(0).size == (64, 64)
    assert len(load_dataset(celeba, split="0").source) == 1
    other = load_dataset(
        celeba, label="Eyeglasses", classes={"-1": "face", "1": "face with glasses"}, group_by=["Male"]
    )
    assert isinstance(other, LabelledImages) and set(other.labels) == {0}


def test_heads_are_chosen_on_the_validation_split_of_celeba_and_never_on_queries(celeba: Path, fairface: Path) -> None:
    partition = celeba / "list_eval_partition.txt"
    lines = partition.read_text().splitlines()
    partition.write_text("\n".join(line.removesuffix("2") + "1" if i == 1 else line for i, line in enumerate(lines)))
    chosen = load_selection_set(celeba)
    expected = load_dataset(celeba, split="1")
    assert len(chosen.source) and chosen.source.names == expected.source.names
    assert not set(chosen.source.names) & set(load_dataset(celeba).source.names)
    with pytest.raises(clipedit.ImageError, match="it has queries, no classes"):
        load_selection_set(fairface)


def test_celeba_tables_may_be_csv_files(celeba: Path) -> None:
    expected = load_dataset(celeba)
    lines = (celeba / "list_attr_celeba.txt").read_text().splitlines()[1:]
    rows = [",".join(line.split()) for line in lines]
    (celeba / "list_attr_celeba.csv").write_text("\n".join(["image_id," + rows[0], *rows[1:]]) + "\n")
    partition = (celeba / "list_eval_partition.txt").read_text().replace(" ", ",")
    (celeba / "list_eval_partition.csv").write_text("image_id,partition\n" + partition)
    for name in ("list_attr_celeba", "list_eval_partition"):
        (celeba / f"{name}.txt").unlink()
    found = load_dataset(celeba)
    assert isinstance(found, LabelledImages) and isinstance(expected, LabelledImages)
    assert (found.labels, found.groups) == (expected.labels, expected.groups)


def test_fairface_is_retrieval_by_gender_race_and_age(fairface: Path) -> None:
    found = load_dataset(fairface)
    assert isinstance(found, RetrievalSet) and list(found.attributes) == ["gender", "race", "age"]
    assert found.queries[:2] == ("good person", "evil person") and len(found.source) == 8
    only = load_dataset(fairface, group_by=["race"], classes={"a": "kind person"})
    assert isinstance(only, RetrievalSet) and list(only.attributes) == ["race"] and only.queries == ("kind person",)


def test_max_skew_is_the_definition() -> None:
    values = ["a", "a", "a", "b"]  # p = 3/4, 1/4
    similarity = torch.tensor([[0.1, 0.9], [0.2, 0.8], [0.3, 0.1], [0.9, 0.2]])
    found = compute_max_skew(similarity, values, 2)
    assert torch.allclose(found, torch.tensor([math.log(0.5 / 0.25), math.log(1 / 0.75)]))
    even = torch.arange(8.0).repeat_interleave(1)[:, None]
    assert compute_max_skew(even, ["a", "b"] * 4, 4).item() == 0
    with pytest.raises(clipedit.ImageError, match="cannot measure MaxSkew@4: there are 4 images. Lower --top"):
        compute_max_skew(similarity, values, 4)


def test_a_query_that_finds_one_gender_only_has_the_skew_of_its_share(fairface: Path) -> None:
    task = load_dataset(fairface)
    assert isinstance(task, RetrievalSet)
    embeddings = torch.eye(2).repeat(4, 1)  # men and women are orthogonal
    row = measure_retrieval(
        embeddings, range(8), RetrievalSet(task.source, ("man",), task.attributes, 4), torch.eye(2)[:1]
    )
    assert row["max_skew_gender"] == pytest.approx(math.log(2)) and row["max_skew_race"] == 0 == row["max_skew_age"]


def test_counter_animal_compares_common_with_counter_backgrounds(counter_animal: Path) -> None:
    task = load_dataset(counter_animal)
    assert isinstance(task, LabelledImages)
    assert task.classes == ("house finch", "brown bear") and task.labels == (0, 0, 1, 1)
    assert task.groups == tuple(f"{a} / {k}" for a in task.classes for k in ("common", "counter"))
    answers = torch.eye(2)[torch.tensor([0, 1, 1, 1])]
    row = measure_task(answers, range(4), task)
    assert (row["common"], row["counter"], row["worst_group"]) == (1.0, 0.5, 0.0)


def test_typographic_sets_say_how_often_the_text_is_read(typographic: Path) -> None:
    task = load_dataset(typographic)
    assert isinstance(task, LabelledImages) and task.classes == ("coffee pot", "cup", "dog")
    pairs = {(task.classes[a], task.classes[b]) for a, b in zip(task.labels, task.written, strict=True)}
    assert pairs == {("cup", "dog"), ("dog", "coffee pot"), ("coffee pot", "cup")}
    read = torch.eye(3)[torch.tensor(task.written)]
    assert measure_task(read, range(3), task)["reads_text"] == 1.0


def test_malformed_sets_are_refused(celeba: Path, fairface: Path, counter_animal: Path, typographic: Path) -> None:
    def refuses(message: str, path: Path, **options: object) -> None:
        with pytest.raises(clipedit.ImageError, match=message):
            load_dataset(path, **options)  # type: ignore[arg-type]

    refuses("no attribute Blond, there are Blond_Hair", celeba, label="Blond")
    refuses("cannot name the classes of Eyeglasses: give --classes", celeba, label="Eyeglasses")
    refuses("no image is in split 1, there are 0, 2", celeba, split="1")
    refuses("no fairface_label_train.csv, there is fairface_label_val.csv", fairface, split="train")
    refuses("no column hair, there are file", fairface, group_by=["hair"])
    refuses("FairFace measures retrieval", fairface, label="gender")
    refuses("the layout counteranimal has none", counter_animal, label="y")
    refuses("as waterbirds: it has no metadata.csv", celeba, layout="waterbirds")
    refuses("as celeba: there is no such folder", celeba / "nothing", layout="celeba")
    (celeba / "list_attr_celeba.txt").write_text("1\nBlond_Hair Male\n0.jpg 1\n")
    refuses("row 1 does not have 3 columns. Fetch it again", celeba)
    (celeba / "list_eval_partition.txt").unlink()
    refuses("as CelebA: it has no list_eval_partition.txt", celeba)
    paint(typographic / "cup.jpg")
    refuses("'cup.jpg' is not named label=<x>_text=<y>", typographic)
    (counter_animal / "12 house_finch" / "counter-snow").rename(counter_animal / "12 house_finch" / "other")
    refuses("house_finch has no folder counter", counter_animal, layout="counteranimal")
    (fairface / "fairface_label_val.csv").write_text("file,age\nval/0.jpg\n")
    refuses("rows of unequal length", fairface)


def test_evaluate_picks_the_layout_and_takes_another(
    fairface: Path,
    counter_animal: Path,
    typographic: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    def run(*arguments: object) -> dict[str, float]:
        monkeypatch.setattr(sys, "argv", ["clipedit", "evaluate", "demo", *map(str, arguments), "--json"])
        cli.app(standalone_mode=False)
        return json.loads(capfd.readouterr().out)["demo"]

    assert set(run("--dataset", fairface, "--top", 4)) == {"max_skew_gender", "max_skew_race", "max_skew_age"}
    assert {"common", "counter"} <= set(run("--dataset", counter_animal))
    assert "reads_text" in run("--dataset", typographic)
    assert set(run("--dataset", counter_animal, "--layout", "folders")) == {
        *("overall", "worst_group", "mean_of_groups", "groups")
    }
