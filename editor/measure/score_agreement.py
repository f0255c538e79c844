"""Do scores say what heads do? Scores need no labels; here they meet retrieval on labelled images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..components import Features
from ..concepts.class_weights import DEFAULT_TEMPLATES, compute_class_weights
from ..concepts.concepts import Concept, list_concepts, load_concept
from ..concepts.scores import score_heads
from ..errors import ImageError
from ..images.listing import PATH_COLUMNS
from ..images.source import ImageSource
from ..models.model import Model
from ..scan.collect import collect_features
from ..scan.scan import Scan
from ..scan.tally import Progress

MOST_VALUES = 50


@dataclass(frozen=True)
class ScoreTest:
    """Scores and retrieval of every scanned head for every concept, and their rank correlations in [-1, 1].

    Attributes:
        scores: By concept, then by head.
        retrieval: As `scores`: mean average precision over the concept's values, scaled so that chance is 0, perfect is
            1.
        between: By concept: Spearman's rank correlation over heads. Does the score find the right head?
        within: Mean over heads of the rank correlation over concepts. Does it find what a head is for?

    A correlation is None where it is undefined: of a single concept, or of what never varies.
    """

    scores: Mapping[str, Mapping[str, float]]
    retrieval: Mapping[str, Mapping[str, float]]
    between: Mapping[str, float | None]
    within: float | None


def evaluate_scores(
    scan: Scan,
    model: Model,
    labelled: ImageSource,
    *,
    columns: Mapping[str, str] | None = None,
    measure: str = "covariance-share",
    progress: Progress | None = None,
) -> ScoreTest:
    """The scoring function's quantitative test (Balasubramanian et al., NeurIPS 2024).

    A head retrieves the images of a value ("ocean") by its own contribution alone: they are ranked by
    `t . contribution / |z|`, with `t` the embedding of the value's prompts, centred on those of the column's other
    values.

    Args:
        labelled: Images with attributes, none of them scanned.
        columns: From a concept's name or file to the column that says which of its values an image shows. By default
            every column of 2 to 50 values, which is also the concept's name; where there is no concept of that name,
            the column's values are its texts.
        measure: As `score_heads`.

    Raises:
        ImageError: If there is no such column, or it has one value.
        ConceptError, StatisticsError: As `score_heads`.
    """
    chosen = columns or {name: name for name in find_label_columns(labelled)}
    values = {concept: _column_values(labelled, column) for concept, column in chosen.items()}
    found = {
        name: score_heads(scan, model, concept=_find_concept(name, values[name], model), keep=None, measure=measure)
        for name in chosen
    }
    features, kept = collect_features(model, labelled, layers=scan.layers, progress=progress)
    heads = [str(identity) for group in scan.groups(model) for identity in group.ids if identity.kind == "head"]
    retrieval = {}
    for name, column in chosen.items():
        labels = torch.tensor([values[name].index(labelled.attributes[index][column]) for index in kept])
        # Float64, as the features that they meet: einsum takes one dtype.
        weights = compute_class_weights(model, values[name], DEFAULT_TEMPLATES).double()
        # Centred: every value's prompts share "a photo of a".
        reached = compute_head_retrieval(model, features, weights - weights.mean(0), labels)
        retrieval[name] = dict(zip(heads, reached.tolist(), strict=True))
    by_head = {name: {row.component: row.concept for row in rows} for name, rows in found.items()}
    scores = {name: {head: rows[head] for head in heads} for name, rows in by_head.items()}
    between = {name: compute_spearman(list(scores[name].values()), list(retrieval[name].values())) for name in chosen}
    # A head whose scores or retrieval never vary has no rank correlation, and stays out of the mean.
    within = [compute_spearman([scores[n][h] for n in chosen], [retrieval[n][h] for n in chosen]) for h in heads]
    defined = [value for value in within if value is not None]
    return ScoreTest(scores, retrieval, between, float(np.mean(defined)) if defined else None)


def find_label_columns(labelled: ImageSource) -> list[str]:
    """The columns that can be a concept: 2 to 50 different values, neither paths nor the split.

    Raises:
        ImageError: If there is none.
    """
    names = [name for name in (labelled.attributes[0] if labelled.attributes else {}) if name not in PATH_COLUMNS]
    counts = {name: len({row[name] for row in labelled.attributes}) for name in names if name != "split"}
    found = [name for name, count in counts.items() if 2 <= count <= MOST_VALUES]
    if not found:
        raise ImageError(
            f"cannot test scores: no column has 2 to {MOST_VALUES} values, there are {', '.join(names) or 'none'}. "
            "Give a CSV with a column for each concept."
        )
    return found


def compute_head_retrieval(
    model: Model,
    features: Features,
    directions: Float[Tensor, "value d_embed"],
    labels: Int[Tensor, " image"],
) -> Float[Tensor, " head"]:
    """Mean over values of each head's average precision, `(precision - chance) / (1 - chance)`, in scanned order."""
    names = list(features.groups)
    layers = sorted({int(name[1:].partition(".")[0]) for name in names})
    groups = [group for group in model.tower.groups(layers, mlps=False) if group.name in names]
    readouts = model.tower.compute_readouts(groups)
    # By image: statistics and scores are of contributions over |z| as well.
    norm = features.embedding.double().norm(dim=1)
    found = []
    for group in groups:
        # R^T t, [head, value, k]: no contribution [image, head, d_embed] is ever built
        seen = torch.einsum("ve,hek->hvk", directions, readouts[group.name])
        # [head, value, k], [image, head, k] -> [image, head, value]
        ranks = torch.einsum("hvk,ihk->ihv", seen, features.groups[group.name].double()) / norm[:, None, None]
        found.append(compute_average_precision(ranks, labels).mean(1))
    return torch.cat(found)


def compute_average_precision(
    similarity: Float[Tensor, "image head value"], labels: Int[Tensor, " image"]
) -> Float[Tensor, "head value"]:
    """Average precision of the images of each value, less chance (their share), over what chance leaves."""
    count = torch.arange(1, len(labels) + 1, dtype=torch.float64)[:, None]
    columns = []
    for value in range(similarity.shape[2]):
        # Stable, so that equal similarities give the same precision on every run. [image, head]
        order = similarity[:, :, value].argsort(dim=0, descending=True, stable=True)
        right = (labels == value)[order].double()
        # The precision at the rank of each image of the value, mean over these images.
        precision = (right * right.cumsum(0) / count).sum(0) / right.sum(0).clamp_min(1)
        # A random order reaches about the share of the value's images.
        chance = right.mean(0)
        columns.append((precision - chance) / (1 - chance))
    return torch.stack(columns, 1)


def compute_spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Rank correlation, ties sharing their mean rank; None if one of the two never varies."""
    ranks = [_mean_ranks(np.asarray(values)) for values in (first, second)]
    if len(first) < 2 or min(rank.std() for rank in ranks) == 0:
        return None
    return float(np.corrcoef(np.stack(ranks))[0, 1])


def _mean_ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    # Of a tied run that ends at rank r and holds c values, the mean rank is r - (c - 1) / 2.
    return (counts.cumsum() - (counts - 1) / 2)[inverse]


def _column_values(labelled: ImageSource, column: str) -> list[str]:
    names = labelled.attributes[0] if labelled.attributes else {}
    if column not in names:
        raise ImageError(f"cannot test scores by {column}: the columns are {', '.join(names)}. Correct --columns.")
    values = sorted({row[column] for row in labelled.attributes})
    if len(values) < 2:
        raise ImageError(
            f"cannot test scores by {column}: every image has {values[0]!r}. Give images that differ in it."
        )
    return values


def _find_concept(name: str, values: Sequence[str], model: Model) -> Concept:
    if name.endswith((".yaml", ".yml")) or name in list_concepts(model.folder):
        return load_concept(name, model.folder)
    texts = [template.replace("{}", value) for value in values for template in DEFAULT_TEMPLATES]
    return Concept(name=name, texts=tuple(texts))
