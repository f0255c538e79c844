"""Results as CLIP_benchmark writes them: one JSON file for a model and a set, of which its `build` makes a table."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...files.whole import staged_file
from ...images.source import LabelledImages
from ..accuracy import predict
from .result import Benchmark

_TOP = 5


def measure_as_benchmark(
    similarity: Float[Tensor, "image class"], kept: Sequence[int], task: LabelledImages
) -> Benchmark:
    """`acc1`, `acc5` and `mean_per_class_recall`; where two captions are asked at each image, `acc` and `text_acc`.

    `acc5` is None with fewer than five classes, as there.
    """
    labels = torch.tensor([task.labels[index] for index in kept])
    right = (predict(similarity, kept, task) == labels).float()
    if task.options:
        found = float(right.mean())
        # There is one image to choose from.
        return Benchmark("image_caption_selection", {"image_acc": 1.0, "text_acc": found, "acc": found})
    recalls = [float(right[labels == label].mean()) for label in labels.unique()]
    among = similarity.topk(_TOP, 1).indices if similarity.shape[1] >= _TOP else None
    return Benchmark(
        "zeroshot_classification",
        {
            "acc1": float(right.mean()),
            "acc5": None if among is None else float((among == labels[:, None]).any(1).float().mean()),
            "mean_per_class_recall": sum(recalls) / len(recalls),
        },
    )


def write_result(folder: Path, dataset: str, model: str, found: Benchmark) -> Path:
    """Write `<dataset>_<pretrained>_<model>_en_<task>.json`; `model` is `NAME:PRETRAINED`, a name or a folder.

    Raises:
        ExportError: If it cannot be written.
    """
    name, _, pretrained = model.partition(":") if not Path(model).exists() else (Path(model).name, "", model)
    record = spell_result(dataset, name, pretrained, found)
    parts = (dataset, pretrained, name, record["language"], found.task)
    path = folder / ("_".join(re.sub(r"[^\w.@-]+", "-", part) for part in parts if part) + ".json")
    folder.mkdir(parents=True, exist_ok=True)
    with staged_file(path) as temporary:
        temporary.write_text(json.dumps(record) + "\n", encoding="utf-8")
    return path


def spell_result(dataset: str, name: str, pretrained: str, found: Benchmark) -> dict[str, Any]:
    """The fields of a result, as CLIP_benchmark's `eval` writes and its `build` reads them."""
    return {
        "dataset": dataset,
        "model": name,
        "pretrained": pretrained,
        "task": found.task,
        "metrics": dict(found.metrics),
        "language": "en",
    }
