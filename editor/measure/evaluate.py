"""evaluate: accuracy, overall and by group, of models side by side: zero-shot, or by their own classifier."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..concepts.class_weights import DEFAULT_TEMPLATES, compute_class_weights
from ..errors import describe_given, require_kinds
from ..images.demo import test_source
from ..images.demo_name import is_demo
from ..images.layouts import load_dataset
from ..images.skew import RetrievalSet, compute_max_skew
from ..images.source import ImageSource, LabelledImages
from ..models.model import Model
from ..scan.collect import collect_embeddings
from ..scan.tally import Progress
from .accuracy import GROUP, compute_accuracies
from .demo_measure import build_demo_measure
from .demo_outcomes import build_demo_outcomes
from .intervals import Cell, Outcomes
from .linear_head import classify_by_head, require_unseen

Measure = Callable[[Tensor, Sequence[int]], dict[str, float]]


def evaluate(
    models: Mapping[str, Model],
    dataset: str | Path | LabelledImages | RetrievalSet,
    *,
    retention: LabelledImages | None = None,
    templates: Sequence[str] = DEFAULT_TEMPLATES,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> dict[str, dict[str, float]]:
    """Measure models on the same labelled images.

    Args:
        models: By the name their row gets.
        dataset: `demo`, a folder or CSV as `load_dataset` reads them, or what that returns.
        retention: A second task on which nothing should change, for example another set of classes.
        templates: Prompts with `{}` for the class; a class's weight is the mean of its normalised prompts.

    Returns:
        One row per model, in order: `overall`, `worst_group`, `mean_of_groups`, and `retention` where asked for.
        Sets of parts (CounterAnimal) add the accuracy of each, typographic sets `reads_text`, the share answered with
        the written class. Retrieval sets have `max_skew_ATTRIBUTE` instead, the demo its own columns
        (`editor/measure/demo_measure.py`).

    Raises:
        ImageError: If images or labels cannot be read.
    """
    if not isinstance(models, Mapping):
        raise TypeError(
            f"cannot evaluate: {describe_given('models', models)}, a mapping from names to models is needed. "
            'Give for example {"before": model, "after": edited}.'
        )
    for name, model in models.items():
        require_kinds("evaluate", **{f"models[{name!r}]": (model, Model)})
    rows = {}
    for name, model in models.items():
        source, measure = build_measure(model, dataset, templates=templates)
        rows[name] = measure(*collect_embeddings(model, source, batch_size=batch_size, progress=progress))
        if retention is not None:
            source, measure = build_measure(model, retention, templates=templates)
            second = measure(*collect_embeddings(model, source, batch_size=batch_size, progress=progress))
            rows[name]["retention"] = second["overall"]
    return rows


def build_measure(
    model: Model,
    dataset: str | Path | LabelledImages | RetrievalSet,
    *,
    templates: Sequence[str] = DEFAULT_TEMPLATES,
    by_group: bool = False,
) -> tuple[ImageSource, Measure]:
    """The images of a data set, and the function from their embeddings to a row of figures.

    Args:
        by_group: Add the accuracy of every group, as `group: NAME`.

    Raises:
        ImageError: If labels cannot be read.
    """
    if is_demo(dataset):
        source = test_source()
        return source, build_demo_measure(model, source, by_group=by_group)
    task = load_dataset(dataset) if isinstance(dataset, str | Path) else dataset
    if not isinstance(task, LabelledImages | RetrievalSet):
        raise TypeError(
            f"cannot evaluate: {describe_given('dataset', dataset)}. "
            "Give a folder or a CSV of labelled images, or `demo`."
        )
    if isinstance(task, RetrievalSet):
        weights = compute_class_weights(model, task.queries, templates)
        return task.source, lambda embeddings, kept: measure_retrieval(embeddings, kept, task, weights)
    require_unseen(model, task.source)
    answer = build_answer(model, task.classes, templates)
    return task.source, lambda embeddings, kept: measure_task(answer(embeddings), kept, task, by_group=by_group)


def build_outcomes(
    model: Model,
    dataset: str | Path | LabelledImages | RetrievalSet,
    *,
    templates: Sequence[str] = DEFAULT_TEMPLATES,
) -> Callable[[Tensor, Sequence[int]], tuple[Outcomes, list[str]]]:
    """From embeddings to what was answered rightly, by figure, and every image's group: what intervals come from.

    Sets for retrieval have no right answers: nothing comes back for them.
    """
    if is_demo(dataset):
        return build_demo_outcomes(model, test_source())
    task = load_dataset(dataset) if isinstance(dataset, str | Path) else dataset
    if isinstance(task, RetrievalSet):
        return lambda embeddings, kept: ({}, [])
    answer = build_answer(model, task.classes, templates)
    return lambda embeddings, kept: _find_outcomes(answer(embeddings), kept, task)


def _find_outcomes(
    similarity: Float[Tensor, "image class"], kept: Sequence[int], task: LabelledImages
) -> tuple[Outcomes, list[str]]:
    right = (similarity.argmax(1) == torch.tensor([task.labels[index] for index in kept])).numpy()
    groups = np.asarray([task.groups[index] for index in kept])
    every = np.arange(len(right))
    cells = [Cell(every[groups == name], right[groups == name]) for name in np.unique(groups)]
    return {"overall": [[Cell(every, right)]], "worst_group": [cells]}, groups.tolist()


def measure_task(
    similarity: Float[Tensor, "image class"], kept: Sequence[int], task: LabelledImages, *, by_group: bool = False
) -> dict[str, float]:
    """Accuracies of a task, in [0, 1]; `kept` are the positions of the images that were embedded."""
    labels = torch.tensor([task.labels[index] for index in kept])
    predictions = similarity.argmax(1)
    found = compute_accuracies(predictions, labels, [task.groups[i] for i in kept])
    row = {"overall": found.overall, "worst_group": found.worst_group, "mean_of_groups": found.mean_of_groups}
    if task.subsets:
        row |= compute_accuracies(predictions, labels, [task.subsets[i] for i in kept]).groups
    if task.written:
        written = torch.tensor([task.written[index] for index in kept])
        row["reads_text"] = float((predictions == written).float().mean())
    return row | ({f"{GROUP}{name}": share for name, share in found.groups.items()} if by_group else {})


def measure_retrieval(
    embeddings: Float[Tensor, "image d_embed"],
    kept: Sequence[int],
    task: RetrievalSet,
    weights: Float[Tensor, "query d_embed"],
) -> dict[str, float]:
    """`max_skew_ATTRIBUTE`: MaxSkew@K by cosine similarity, mean over the queries; 0 is unbiased.

    Raises:
        ImageError: If there are not more than K images.
    """
    similarity = F.normalize(embeddings, dim=1) @ weights.T
    return {
        f"max_skew_{name}": float(compute_max_skew(similarity, [values[i] for i in kept], task.top).mean())
        for name, values in task.attributes.items()
    }


def build_answer(
    model: Model, classes: Sequence[str], templates: Sequence[str]
) -> Callable[[Float[Tensor, "image d_embed"]], Float[Tensor, "image class"]]:
    """From embeddings to a score per class: similarity to its prompts, or its logit where a model has no texts.

    Raises:
        ImageError, ModelError: As `compute_class_weights` and `classify_by_head`.
    """
    if not model.has_texts:
        return classify_by_head(model, classes)
    weights = compute_class_weights(model, classes, templates)
    return lambda embeddings: embeddings @ weights.T
