"""A timm model with a linear head that was trained here, in timm's own layout."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..editor.concepts.class_heads import find_head
from ..editor.errors import ModelError
from ..editor.files.whole import staged_folder, write_text
from ..editor.images.source import LabelledImages, mark_contents
from ..editor.measure.linear_head import TRAINED_ON_NAME, choose_head
from ..editor.models.model import Model
from ..editor.scan.collect import collect_embeddings
from .targets.timm import write_timm_folder


def train_head_to_folder(
    model: Model,
    task: LabelledImages,
    out: Path,
    *,
    seed: int = 0,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Train a linear head on a model's representation, and write both as one timm checkpoint with the classes' names.

    A list of the images goes beside it: `evaluate` refuses to measure on them.

    Returns:
        `decay`, chosen on a fifth of the images, and `held_out_accuracy` there.

    Raises:
        ModelError: If the model is a CLIP, or has no place for a head.
        ImageError: If images cannot be read, or a class has too few.
        ExportError: If the folder cannot be written.
    """
    if model.has_texts or "timm_cfg" not in model.config:
        raise ModelError(f"cannot train a head for {model.name}: it is a CLIP, its texts classify. Give a timm model.")
    embeddings, kept = collect_embeddings(model, task.source, progress=progress)
    labels = torch.tensor([task.labels[index] for index in kept])
    weight, bias, report = choose_head(embeddings, labels, len(task.classes), seed=seed)
    # The model in memory keeps its own head.
    module: Any = copy.deepcopy(model.module)
    module.reset_classifier(len(task.classes))
    with torch.no_grad():
        head = find_head(Model(model.name, None, module, model.tower, model.config))
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    # The classes' names go into the configuration: `classify_by_head` reads them there.
    config = _describe(model.config["timm_cfg"], task, {**report, "seed": seed, "images": len(kept)})
    with staged_folder(out, overwrite=overwrite) as folder:
        write_timm_folder(module.state_dict(), config, folder)
        trained = task.source.subset(kept)
        # By name and by content, as `require_unseen` reads them: a renamed copy is still a training image.
        write_text(folder / TRAINED_ON_NAME, "\n".join([*trained.marks(), *mark_contents(trained)]) + "\n")
    return report


def _describe(config: dict[str, Any], task: LabelledImages, trained: dict[str, float]) -> dict[str, Any]:
    inner = {**config.get("pretrained_cfg", {}), "num_classes": len(task.classes)}
    # They name the classes and the weights of the head that was replaced.
    for key in ("label_names", "label_descriptions", "tag"):
        inner.pop(key, None)
    named = {"num_classes": len(task.classes), "label_names": list(task.classes), "pretrained_cfg": inner}
    return {
        **{key: value for key, value in config.items() if key != "label_descriptions"},
        **named,
        "clipedit_head": trained,
    }
