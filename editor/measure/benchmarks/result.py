"""A figure of CLIP_benchmark: its task, and its metrics by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Task = Literal["zeroshot_classification", "zeroshot_retrieval", "image_caption_selection"]


@dataclass(frozen=True)
class Benchmark:
    """What CLIP_benchmark writes of a model on a set; None for a metric that cannot be computed."""

    task: Task
    metrics: Mapping[str, float | None]
