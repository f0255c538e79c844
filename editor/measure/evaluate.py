"""evaluate: accuracy, overall and by group, of models side by side: zero-shot, or by their own classifier."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from ..concepts.class_heads import classify_by_head
from ..concepts.class_weights import compute_class_weights
from ..errors import describe_given, require_kinds
from ..images.demo import test_source
from ..images.demo_name import is_demo
from ..images.labelled_options import LabelledOptions
from ..images.layouts import Dataset, open_dataset
from ..images.published.captions import CaptionSet
from ..images.skew import RetrievalSet, choose_top, compute_max_skew
from ..images.source import ImageSource, LabelledImages
from ..models.model import Model
from ..scan.collect import BATCH_SIZE, collect_embeddings
from ..scan.tally import Progress
from .accuracy import GROUP, compute_accuracies, predict
from .benchmarks.captions import CaptionRanks, encode_captions
from .benchmarks.clip_benchmark import Benchmark, measure_as_benchmark
from .demo_measure import DEMO_MEASURE, build_demo_measure, build_demo_outcomes, describe_demo
from .intervals import Cell, Outcomes
from .linear_head import require_unseen
from .table import (
    Details,
    FigureTable,
    Share,
    Spread,
    count_groups,
    spread_of_difference,
    spread_of_mean,
    spread_of_outcomes,
)

Measure = Callable[[Tensor, Sequence[int]], dict[str, float]]
Similarities = Sequence[Float[Tensor, "image class"]]


def evaluate(
    models: Mapping[str, Model],
    dataset: Dataset,
    *,
    labels: LabelledOptions | None = None,
    retention: LabelledImages | None = None,
    templates: Sequence[str] | None = None,
    batch_size: int = BATCH_SIZE,
    known: Mapping[str, tuple[Tensor, Sequence[int]]] | None = None,
    progress: Progress | None = None,
) -> FigureTable:
    """Measure models on the same labelled images.

    Args:
        models: By the name their row gets.
        dataset: `demo`, a folder or CSV as `load_dataset` reads them, or what that returns.
        labels: How the dataset is read, and the prompts of its classes.
        retention: A second task on other images, on which nothing should change; of one on the same images `labels`
            names the column.
        templates: Prompts in place of those of `labels`.
        known: Of models by name, embeddings of these images that were made already, and the images' positions.

    Returns:
        A row for each model, in order: `overall`, `worst_group`, `mean_of_groups`, and `retention` where asked for.
        Sets of parts (CounterAnimal) add the accuracy of each, typographic sets `reads_text`, the share answered with
        the written class, ImageNet-9 its `background_gap`. Retrieval sets have `max_skew_ATTRIBUTE` instead, sets with
        captions `image_retrieval_recall@K` and `text_retrieval_recall@K`, the demo its own columns
        (`editor/measure/demo_measure.py`). `.rows` are flat, with numbers of images, intervals and groups:
        `pandas.DataFrame(table.rows)`.

    Raises:
        ImageError: If images or labels cannot be read.
    """
    _require_models(models)
    labels = labels or LabelledOptions()
    prompts = tuple(templates or labels.templates)
    task = open_dataset(dataset, labels)
    if templates and isinstance(task, LabelledImages) and task.templates:
        task = replace(task, templates=prompts)
    # Whatever is wrong with labels or prompts is said before the first image is read.
    yardsticks = {name: build_yardstick(model, task, templates=prompts) for name, model in models.items()}
    table = FigureTable()
    for name, model in models.items():
        found, embedded = yardsticks[name], (known or {}).get(name)
        embedded = embedded or collect_embeddings(model, found.source, batch_size=batch_size, progress=progress)
        table.measure = found.measure
        table.add(name, found.figures(*embedded), found.details(*embedded), found.outcomes(*embedded))
        if found.benchmark is not None:
            table.benchmarks[name] = found.benchmark(*embedded)
        if retention is not None:
            # Classes of another task, on other images: it needs its own weights and embeddings.
            second = build_yardstick(model, retention, templates=prompts)
            embedded = collect_embeddings(model, second.source, batch_size=batch_size, progress=progress)
            table[name]["retention"] = second.figures(*embedded)["overall"]
            table.details[name] = table.details[name].with_figure("retention", second.details(*embedded), "overall")
    return table


def _require_models(models: object) -> None:
    if not isinstance(models, Mapping):
        raise TypeError(
            f"cannot evaluate: {describe_given('models', models)}, a mapping from names to models is needed. "
            'Give for example {"before": model, "after": edited}.'
        )
    for name, model in models.items():
        require_kinds("evaluate", **{f"models[{name!r}]": (model, Model)})


@dataclass(frozen=True)
class Yardstick:
    """How a model is measured on labelled images: what follows from embeddings and the positions of their images.

    Attributes:
        source: The images.
        figures: The row of figures.
        details: Numbers of images, intervals and groups.
        outcomes: What was answered rightly, by figure, and the group of every image: what paired intervals come from.
        measure: In words, what is measured.
        benchmark: The figures by which CLIP_benchmark calls the same; none where it has no such task.
    """

    source: ImageSource
    figures: Measure
    details: Callable[[Tensor, Sequence[int]], Details]
    outcomes: Callable[[Tensor, Sequence[int]], tuple[Outcomes, list[str]]]
    measure: str
    benchmark: Callable[[Tensor, Sequence[int]], Benchmark] | None = None


def build_yardstick(
    model: Model, dataset: Dataset, *, templates: Sequence[str] = LabelledOptions.templates, by_group: bool = False
) -> Yardstick:
    """What a model is measured by: reads labels and encodes classes, but no image.

    Args:
        by_group: Add the accuracy of every group to the row, as `group: NAME`.

    Raises:
        ImageError: If labels cannot be read, or to the model two classes are one.
    """
    task = open_dataset(dataset)
    if is_demo(task):
        # The demo's images and figures are its own: they need no reader of labels.
        return build_demo_yardstick(model, test_source(), by_group=by_group)
    if isinstance(task, RetrievalSet):
        return _build_retrieval(model, task, templates)
    if isinstance(task, CaptionSet):
        return _build_captions(model, task)
    if not isinstance(task, LabelledImages):
        raise TypeError(
            f"cannot evaluate: {describe_given('dataset', dataset)}. "
            "Give a folder or a CSV of labelled images, or `demo`."
        )
    return _build_task(model, task, templates, by_group=by_group)


def build_demo_yardstick(model: Model, source: ImageSource, *, by_group: bool = False) -> Yardstick:
    """As `build_yardstick`, of a source of the demo's world."""
    find = build_demo_outcomes(model, source)
    return Yardstick(
        source,
        build_demo_measure(model, source, by_group=by_group),
        lambda embeddings, kept: describe_demo(find(embeddings, kept)[0], [source.attributes[i] for i in kept]),
        find,
        DEMO_MEASURE,
    )


def _build_retrieval(model: Model, task: RetrievalSet, templates: Sequence[str]) -> Yardstick:
    weights, top = compute_class_weights(model, task.queries, templates), choose_top(task.top, len(task.source))
    return Yardstick(
        task.source,
        lambda embeddings, kept: measure_retrieval(embeddings, kept, task, weights),
        lambda embeddings, kept: Details({f"max_skew_{name}": Spread(len(kept)) for name in task.attributes}),
        lambda embeddings, kept: ({}, []),
        f"MaxSkew@{top}, mean over {len(task.queries)} queries",
    )


def _build_captions(model: Model, task: CaptionSet) -> Yardstick:
    found = CaptionRanks(task, encode_captions(model, task))
    return Yardstick(task.source, found.figures, found.details, found.outcomes, found.measure, found.benchmark)


def _build_task(model: Model, task: LabelledImages, templates: Sequence[str], *, by_group: bool) -> Yardstick:
    require_unseen(model, task.source)
    templates = task.templates or templates
    # The second task is on the same images: one pass serves both.
    tasks = [task] if task.retention is None else [task, task.retention]
    answers = [build_answer(model, one.classes, templates, published=bool(one.templates)) for one in tasks]

    def answer(embeddings: Tensor) -> Similarities:
        return [find(embeddings) for find in answers]

    return Yardstick(
        task.source,
        lambda embeddings, kept: _measure_tasks(answer(embeddings), kept, task, by_group=by_group),
        lambda embeddings, kept: _describe_task(answer(embeddings), kept, task),
        lambda embeddings, kept: _find_outcomes(answer(embeddings), kept, task),
        describe_measure(model, task, templates),
        lambda embeddings, kept: measure_as_benchmark(answer(embeddings)[0], kept, task),
    )


def describe_measure(model: Model, task: LabelledImages, templates: Sequence[str]) -> str:
    """What accuracy is measured, in words."""
    prompts = f"zero-shot, {len(templates)} prompts per class" if model.has_texts else "by the model's own classifier"
    kept = f", split {task.split}" if task.split is not None else ""
    among = f"{len(task.options[0])} texts of each image" if task.options else f"{len(task.classes)} classes"
    return f"{len(task.source)} images{kept}; one of {among} ({prompts}); worst of {len(set(task.groups))} groups"


def build_measure(
    model: Model, dataset: Dataset, *, templates: Sequence[str] = LabelledOptions.templates, by_group: bool = False
) -> tuple[ImageSource, Measure]:
    """The images of a data set, and the function from their embeddings to a row of figures: see `build_yardstick`."""
    found = build_yardstick(model, dataset, templates=templates, by_group=by_group)
    return found.source, found.figures


def _find_right(
    similarity: Float[Tensor, "image class"], kept: Sequence[int], task: LabelledImages
) -> Bool[np.ndarray, " image"]:
    return (predict(similarity, kept, task) == torch.tensor([task.labels[index] for index in kept])).numpy()


def _find_outcomes(similarities: Similarities, kept: Sequence[int], task: LabelledImages) -> tuple[Outcomes, list[str]]:
    right = _find_right(similarities[0], kept, task)
    groups = np.asarray([task.groups[index] for index in kept])
    every = np.arange(len(right))
    cells = [Cell(every[groups == name], right[groups == name]) for name in np.unique(groups)]
    # One task each: of a single cell, whose worst is the whole, and of all groups.
    found = {"overall": [[Cell(every, right)]], "worst_group": [cells]}
    if task.retention is not None:
        found["retention"] = [[Cell(every, _find_right(similarities[1], kept, task.retention))]]
    return found, groups.tolist()


def _describe_task(similarities: Similarities, kept: Sequence[int], task: LabelledImages) -> Details:
    outcomes, names = _find_outcomes(similarities, kept, task)
    right = outcomes["overall"][0][0].right
    groups, figures = count_groups(right, names), spread_of_outcomes(outcomes)
    figures["mean_of_groups"] = spread_of_mean(groups.values())
    if task.subsets:
        parts = count_groups(right, [task.subsets[index] for index in kept])
        figures |= {name: share.spread for name, share in parts.items()}
        if task.gap is not None:
            name, one, other = task.gap
            figures[name] = spread_of_difference(parts[one], parts[other])
    if task.written:
        written = predict(similarities[0], kept, task) == torch.tensor([task.written[index] for index in kept])
        figures["reads_text"] = Share(int(written.sum()), len(written)).spread
    return Details(figures, groups)


def _measure_tasks(
    similarities: Similarities, kept: Sequence[int], task: LabelledImages, *, by_group: bool
) -> dict[str, float]:
    row = measure_task(similarities[0], kept, task, by_group=by_group)
    if task.retention is None:
        return row
    return row | {"retention": float(_find_right(similarities[1], kept, task.retention).mean())}


def measure_task(
    similarity: Float[Tensor, "image class"], kept: Sequence[int], task: LabelledImages, *, by_group: bool = False
) -> dict[str, float]:
    """Accuracies of a task, in [0, 1]; `kept` are the positions of the images that were embedded."""
    labels = torch.tensor([task.labels[index] for index in kept])
    predictions = predict(similarity, kept, task)
    found = compute_accuracies(predictions, labels, [task.groups[i] for i in kept])
    row = {"overall": found.overall, "worst_group": found.worst_group, "mean_of_groups": found.mean_of_groups}
    if task.subsets:
        parts = compute_accuracies(predictions, labels, [task.subsets[i] for i in kept]).groups
        row |= parts
        if task.gap is not None:
            name, one, other = task.gap
            row[name] = parts[one] - parts[other]
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
        ImageError: If there are fewer than two images.
    """
    similarity = F.normalize(embeddings, dim=1) @ weights.T
    top = min(task.top, len(kept) // 2)  # What is said of that is said once, by `choose_top`.
    return {
        f"max_skew_{name}": float(compute_max_skew(similarity, [values[i] for i in kept], top).mean())
        for name, values in task.attributes.items()
    }


def build_answer(
    model: Model, classes: Sequence[str], templates: Sequence[str], *, published: bool = False
) -> Callable[[Float[Tensor, "image d_embed"]], Float[Tensor, "image class"]]:
    """From embeddings to a score per class: similarity to its prompts, or its logit where a model has no texts.

    Raises:
        ImageError, ModelError: As `compute_class_weights` and `classify_by_head`.
    """
    # Without a text tower there are no class vectors: the checkpoint's own classifier answers.
    if not model.has_texts:
        return classify_by_head(model, classes)
    weights = compute_class_weights(model, classes, templates, published=published)
    return lambda embeddings: embeddings @ weights.T
