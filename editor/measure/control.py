"""The control and the baseline that stand beside every edit: random heads, and the output projection without heads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ..components import HeadId
from ..concepts.class_weights import DEFAULT_TEMPLATES
from ..edits.apply import apply_recipe
from ..edits.bind import bind_recipe
from ..edits.direct import compute_recipe_embeddings
from ..edits.document import RecipeDocument
from ..edits.parts import ablated_names
from ..edits.recipe import Recipe, load_recipe, require_bound
from ..images.skew import RetrievalSet
from ..images.source import ImageSource, LabelledImages
from ..models.aligned import apply_aligner
from ..models.model import Model, load_model
from ..scan.collect import LabelledEmbeddings, collect_embeddings, collect_features
from ..scan.scan import Progress, Scan, load_scan
from ..select.plan import draw_random_heads
from .evaluate import Measure, build_measure

DRAWS = 10


def measure_with_control(
    recipe: Recipe,
    scan: Scan,
    model: Model,
    dataset: str | Path | LabelledImages | RetrievalSet,
    *,
    labelled: LabelledEmbeddings | None = None,
    draws: int = DRAWS,
    progress: Progress | None = None,
) -> dict[str, dict[str, float]]:
    """`before`, `after`, `control` and, where the recipe edits the output, `output_projection`; each with its groups.

    Before and after run the models themselves, with weights rounded as on disk.

    Raises:
        ImageError: If images or labels cannot be read.
    """
    if recipe.document.tower == "text":
        return measure_text_edit(recipe, scan, model, dataset, labelled=labelled, draws=draws, progress=progress)
    source, measure = build_measure(model.editable, dataset, by_group=True)
    edited = apply_recipe(recipe, model)
    # Of a classifier the edited answers are those of its edited head.
    _, measure_edited = build_measure(edited, dataset, by_group=True)
    rows = {
        "before": measure(*collect_embeddings(model.editable, source, progress=progress)),
        "after": measure_edited(*collect_embeddings(edited, source, progress=progress)),
    }
    return rows | measure_controls(
        recipe, scan, model, source, measure, labelled=labelled, draws=draws, progress=progress
    )


def measure_folder_controls(
    folder: Path,
    dataset: str | Path | LabelledImages | RetrievalSet,
    *,
    templates: Sequence[str] = DEFAULT_TEMPLATES,
    progress: Progress | None = None,
) -> dict[str, dict[str, float]]:
    """The controls of a folder that `remove-heads` wrote, from its own recipe, scan and base; empty for other models.

    Raises:
        ModelError: If the base that the scan names cannot be loaded.
    """
    if not (folder / "recipe.yaml").is_file() or not (folder / "scan.safetensors").is_file():
        return {}
    scan = load_scan(folder / "scan.safetensors")
    base, recipe = load_model(scan.model_name, scan.pretrained).with_tower(scan.tower), load_recipe(folder)
    base = apply_aligner(base, scan.aligner) if scan.aligner else base
    if recipe.document.tower == "text":
        rows = measure_text_edit(recipe, scan, base, dataset, templates=templates, progress=progress)
        rows = {name: row for name, row in rows.items() if name not in ("before", "after")}
    else:
        source, measure = build_measure(base.editable, dataset, templates=templates)
        rows = measure_controls(recipe, scan, base, source, measure, progress=progress)
    return {f"{folder}, {name.replace('_', ' ')}": row for name, row in rows.items()}


def measure_controls(
    recipe: Recipe,
    scan: Scan,
    model: Model,
    source: ImageSource,
    measure: Measure,
    *,
    labelled: LabelledEmbeddings | None = None,
    draws: int = DRAWS,
    progress: Progress | None = None,
) -> dict[str, dict[str, float]]:
    """`control`: mean of `draws` recipes with random heads; `output_projection`: the recipe without its heads.

    `direct` and `distilled` recipes share one pass over the images; `total` ones run the model once a draw.
    """
    embed = _embedder(recipe, model.editable, source, scan, progress)
    return _control_rows(recipe, scan, model, lambda bound: measure(*embed(bound)), labelled=labelled, draws=draws)


def measure_text_edit(
    recipe: Recipe,
    scan: Scan,
    model: Model,
    dataset: str | Path | LabelledImages | RetrievalSet,
    *,
    templates: Sequence[str] = DEFAULT_TEMPLATES,
    labelled: LabelledEmbeddings | None = None,
    draws: int = DRAWS,
    progress: Progress | None = None,
) -> dict[str, dict[str, float]]:
    """As `measure_with_control`, of an edit of the text tower: images are embedded once, classes by every edited model."""
    source, measure = build_measure(model, dataset, templates=templates)
    embedded = collect_embeddings(model, source, progress=progress)

    def figures(bound: Recipe) -> dict[str, float]:
        return build_measure(apply_recipe(bound, model), dataset, templates=templates)[1](*embedded)

    rows = {"before": measure(*embedded), "after": figures(recipe)}
    return rows | _control_rows(recipe, scan, model, figures, labelled=labelled, draws=draws)


def _control_rows(
    recipe: Recipe,
    scan: Scan,
    model: Model,
    figures: Callable[[Recipe], dict[str, float]],
    *,
    labelled: LabelledEmbeddings | None,
    draws: int,
) -> dict[str, dict[str, float]]:
    heads = [HeadId(layer, head) for layer in scan.layers for head in range(model.tower.heads_per_layer[layer])]
    rows: dict[str, dict[str, float]] = {}
    documents = draw_control_documents(recipe.document, heads, draws=draws)
    drawn = [figures(bind_recipe(document, scan, model, labelled=labelled)) for document in documents]
    if drawn:
        rows["control"] = mean_rows(drawn)
    outputs = tuple(step for step in recipe.document.steps if step.target == "output")
    if outputs:
        projection = recipe.document.model_copy(update={"steps": outputs})
        rows["output_projection"] = figures(bind_recipe(projection, scan, model, labelled=labelled))
    return rows


def draw_control_documents(
    document: RecipeDocument, scanned: Sequence[HeadId], *, draws: int = DRAWS, seed: int = 0
) -> Iterator[RecipeDocument]:
    """The recipe's operations on random heads of the same layers, its steps on the output left out."""
    generator = np.random.default_rng(seed)
    steps = [step for step in document.steps if step.target == "heads"]
    for _ in range(draws if steps else 0):
        drawn = (tuple(map(str, draw_random_heads(scanned, step.head_ids(), generator))) for step in steps)
        changed = (step.model_copy(update={"heads": heads}) for step, heads in zip(steps, drawn, strict=True))
        yield document.model_copy(update={"steps": tuple(changed), "base": document.base})


def mean_rows(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of several measurements, column by column."""
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


def _embedder(
    recipe: Recipe, model: Model, source: ImageSource, scan: Scan, progress: Progress | None
) -> Callable[[Recipe], tuple[Float[Tensor, "image d_embed"], list[int]]]:
    if recipe.document.effect == "total":
        return lambda which: collect_embeddings(apply_recipe(which, model), source, progress=progress)
    parts = ablated_names(require_bound(recipe))
    features, kept = collect_features(model, source, layers=scan.layers, parts=parts, progress=progress)
    return lambda which: (compute_recipe_embeddings(which, model, features), kept)
