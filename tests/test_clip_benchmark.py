"""CLIP_benchmark reads the same webdatasets, finds the same figures, and makes its table of our results."""

from __future__ import annotations

import csv
import io
import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

import clipedit
from clipedit.demo import world
from clipedit.editor.images.demo import test_source as report_source
from clipedit.editor.images.layouts import load_dataset
from clipedit.editor.measure.benchmarks.captions import rank_images, rank_texts
from clipedit.editor.measure.benchmarks.clip_benchmark import write_result
from clipedit.editor.measure.evaluate import evaluate

clip_benchmark_cli = pytest.importorskip("clip_benchmark.cli")
builder = pytest.importorskip("clip_benchmark.datasets.builder")
classification = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification")
retrieval = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval")
webdataset = pytest.importorskip("webdataset")
pytestmark = pytest.mark.filterwarnings("ignore")
IMAGES = 48


def write_shards(root: Path, part: str) -> Path:
    """The first test images of the demo in shards of 20, as CLIP_benchmark's own export writes them."""
    (root / "test").mkdir(parents=True)
    source = report_source()
    with webdataset.ShardWriter(str(root / "test" / "%d.tar"), maxcount=20, verbose=0) as sink:
        for index in range(IMAGES):
            row, stream = source.attributes[index], io.BytesIO()
            source.open(index).save(stream, "PNG")
            said = f"a {row['color']} {row['shape']}\na {row['shape']} in the {row['place']}"
            content = {"cls": world.SHAPES.index(row["shape"]), "txt": said}[part]
            sink.write({"__key__": f"s{index:07d}", "png": stream.getvalue(), part: content})
        shards = sink.shard
    (root / "test" / "nshards.txt").write_text(f"{shards}\n")
    return root


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_shards(tmp_path_factory.mktemp("wds") / "shapes", "cls")
    (root / "classnames.txt").write_text("\n".join(world.SHAPES) + "\n")
    (root / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\na red {c} in a forest\n")
    return root


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_shards(tmp_path_factory.mktemp("wds") / "said", "txt")
    (root / "dataset_type.txt").write_text("retrieval\n")
    return root


def ask_clip_benchmark(root: Path, model: clipedit.Model) -> tuple[dict[str, float], Any]:
    task = "zeroshot_retrieval" if (root / "dataset_type.txt").is_file() else "zeroshot_classification"
    options = {"transform": model.preprocess, "split": "test", "task": task}
    dataset = builder.build_dataset(f"wds/{root.name}", root=str(root), **options)
    loader = torch.utils.data.DataLoader(dataset.batched(16), batch_size=None)
    if dataset.classes is None:
        found = retrieval.evaluate(
            model.module, loader, model.tokenizer, device="cpu", amp=False, recall_k_list=[1, 5, 10]
        )
    else:
        loader.dataset.classes = dataset.classes
        found = classification.evaluate(
            model.module, loader, model.tokenizer, dataset.classes, dataset.templates, device="cpu", amp=False
        )
    return found, dataset


def share_among_first(output: torch.Tensor, target: torch.Tensor, topk: tuple[int, ...]) -> list[float]:
    """As CLIP_benchmark's own, which stops with NumPy 2.4: there an array of one number is no number."""
    return [float((output.topk(k, 1).indices == target[:, None]).any(1).float().mean()) for k in topk]


def test_accuracies_are_those_of_clip_benchmark(
    classes: Path, demo_model: clipedit.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classification, "accuracy", share_among_first)
    expected, dataset = ask_clip_benchmark(classes, demo_model)
    task = load_dataset(classes)
    assert list(task.classes) == dataset.classes  # type: ignore[union-attr]
    table = evaluate({"demo": demo_model}, task)
    assert table.benchmarks["demo"].task == "zeroshot_classification"
    assert dict(table.benchmarks["demo"].metrics) == pytest.approx(expected)
    assert table["demo"]["overall"] == pytest.approx(expected["acc1"])
    # Each class is a group: the mean over classes is the mean of groups.
    assert table["demo"]["mean_of_groups"] == pytest.approx(expected["mean_per_class_recall"])
    assert 0.2 < expected["acc1"] <= 1


def test_recalls_are_those_of_clip_benchmark(captions: Path, demo_model: clipedit.Model) -> None:
    expected, _ = ask_clip_benchmark(captions, demo_model)
    table = evaluate({"demo": demo_model}, load_dataset(captions))
    assert table["demo"] == pytest.approx(expected) and len(expected) == 6
    spread = table.details["demo"].figures["image_retrieval_recall@5"]
    assert spread.n == 2 * IMAGES and spread.low is not None
    assert spread.low <= expected["image_retrieval_recall@5"] <= (spread.high or 0)


def test_ranks_count_what_is_nearer_and_equal_ones_in_order() -> None:
    images = torch.eye(3)
    texts = torch.tensor([[1.0, 0, 0], [0, 0.6, 0.8], [0, 0, 1], [0, 1, 0]])
    owners = torch.tensor([0, 1, 2, 2])
    assert rank_images(texts, images, owners).tolist() == [0, 1, 0, 2]
    # Of the second image's captions 0.6 is beaten by the last caption, which is another image's.
    assert rank_texts(images, texts, owners).tolist() == [0, 1, 0]
    # A model to which all is one finds nothing but by place.
    same = torch.ones(3, 3)
    assert rank_images(same, same, torch.arange(3)).tolist() == [0, 1, 2]


def test_its_build_makes_a_table_of_our_results(
    classes: Path, captions: Path, demo_model: clipedit.Model, tmp_path: Path
) -> None:
    files = []
    for root in (classes, captions):
        table = evaluate({"demo": demo_model}, load_dataset(root))
        files.append(write_result(tmp_path / "results", f"wds/{root.name}", "ViT-B-32:tag", table.benchmarks["demo"]))
    assert files[0].name == "wds-shapes_tag_ViT-B-32_en_zeroshot_classification.json"
    assert set(json.loads(files[0].read_text())) == {"dataset", "model", "pretrained", "task", "metrics", "language"}
    clip_benchmark_cli.main_build(Namespace(files=list(map(str, files)), output=str(tmp_path / "b.csv")))
    with (tmp_path / "b.csv").open(newline="") as stream:
        rows = {row["dataset"]: row for row in csv.DictReader(stream)}
    assert rows["wds/shapes"]["model_fullname"] == "ViT-B-32 tag"
    assert float(rows["wds/shapes"]["acc1"]) == pytest.approx(json.loads(files[0].read_text())["metrics"]["acc1"])
    assert 0 <= float(rows["wds/said"]["text_retrieval_recall@10"]) <= 1
