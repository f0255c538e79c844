"""The demo's measurements: shape accuracy, the worst group of Waterbirds-like pairs, and what must not change.

For each pair of shapes and their two usual places there is a two-class zero-shot task with four groups, as in
Waterbirds. The worst group's accuracy is averaged over the pairs whose places are both listed in the concept, and over
those whose places are both held out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ..concepts.class_weights import compute_class_weights
from ..images.demo import COLOR_WORDS, COLORS, LISTED_PLACES, PLACES, SHAPES
from ..images.source import ImageSource
from ..models.model import Model
from .accuracy import GROUP
from .linear_head import classify_by_head

SHAPE_TEMPLATES = ("a photo of a {}", "a picture of a {}", "a {}")
PLACE_TEMPLATES = ("a photo of the {}", "{}")
COLOR_TEMPLATES = ("a photo of {} object", "{} object")


def build_demo_measure(
    model: Model, source: ImageSource, *, listed: Sequence[str] = LISTED_PLACES, by_group: bool = False
) -> Callable[[Tensor, Sequence[int]], dict[str, float]]:
    """From embeddings of a source of the world to a row of figures: see `measure_embeddings` and `measure_places`.

    A classifier of shapes is asked for shapes only.
    """
    if not model.has_texts:
        answer = classify_by_head(model, SHAPES)
        return lambda embeddings, kept: measure_similarity(
            {"shape": answer(embeddings).numpy()}, [source.attributes[index] for index in kept], listed=listed
        )
    weights = task_weights(model)

    def measure(embeddings: Tensor, kept: Sequence[int]) -> dict[str, float]:
        attributes = [source.attributes[index] for index in kept]
        places = measure_places(embeddings, attributes, weights["shape"], listed=listed) if by_group else {}
        return measure_embeddings(embeddings, attributes, weights, listed=listed) | places

    return measure


def task_weights(model: Model) -> dict[str, Float[Tensor, "class d_embed"]]:
    """Class weights of the three zero-shot tasks."""
    return {
        "shape": compute_class_weights(model, SHAPES, SHAPE_TEMPLATES),
        "place": compute_class_weights(model, PLACES, PLACE_TEMPLATES),
        "color": compute_class_weights(model, COLOR_WORDS, COLOR_TEMPLATES),
    }


def measure_embeddings(
    embeddings: Float[Tensor, "image d_embed"],
    attributes: Sequence[Mapping[str, str]],
    weights: Mapping[str, Float[Tensor, "class d_embed"]],
    *,
    listed: Sequence[str] = LISTED_PLACES,
) -> dict[str, float]:
    """Accuracies in [0, 1], zero-shot: see `measure_similarity`."""
    similarity = {name: (embeddings @ weight.T).numpy() for name, weight in weights.items()}
    return measure_similarity(similarity, attributes, listed=listed)


def measure_similarity(
    similarity: Mapping[str, np.ndarray], attributes: Sequence[Mapping[str, str]], *, listed: Sequence[str]
) -> dict[str, float]:
    """Accuracies in [0, 1], from a score `[image, class]` a task.

    Returns:
        `overall`: all shapes. `worst_group_listed`, `worst_group_held_out`: see the module. `mean_of_groups`: mean over
        the groups of all these pairs. `place_accuracy`: all places. `retention`: colour. The last two where there is
        such a task.
    """
    shape = np.array([SHAPES.index(row["shape"]) for row in attributes])
    place = np.array([PLACES.index(row["place"]) for row in attributes])
    color = np.array([COLORS.index(row["color"]) for row in attributes])
    inside = [PLACES.index(name) for name in listed]
    outside = [index for index in range(len(PLACES)) if index not in inside]
    pairs = {
        name: _pair_groups(similarity["shape"], shape, place, half)
        for name, half in (("listed", inside), ("held_out", outside))
    }
    found = {
        "overall": float((similarity["shape"].argmax(1) == shape).mean()),
        "worst_group_listed": float(np.mean([min(groups) for groups in pairs["listed"]])),
        "worst_group_held_out": float(np.mean([min(groups) for groups in pairs["held_out"]])),
        "mean_of_groups": float(np.mean([*pairs["listed"], *pairs["held_out"]])),
    }
    for name, task, right in (("place_accuracy", "place", place), ("retention", "color", color)):
        if task in similarity:
            found[name] = float((similarity[task].argmax(1) == right).mean())
    return found


def measure_places(
    embeddings: Float[Tensor, "image d_embed"],
    attributes: Sequence[Mapping[str, str]],
    weights: Float[Tensor, "class d_embed"],
    *,
    listed: Sequence[str] = LISTED_PLACES,
) -> dict[str, float]:
    """Shape accuracy in each place, as `group: PLACE, listed` or `group: PLACE, held out`."""
    answers = (embeddings @ weights.T).argmax(1).tolist()
    right = [SHAPES[answer] == row["shape"] for answer, row in zip(answers, attributes, strict=True)]
    return {
        f"{GROUP}{place}, {'listed' if place in listed else 'held out'}": float(
            np.mean([hit for hit, row in zip(right, attributes, strict=True) if row["place"] == place])
        )
        for place in PLACES
        if any(row["place"] == place for row in attributes)
    }


def _pair_groups(
    similarity: np.ndarray, shape: np.ndarray, place: np.ndarray, half: Sequence[int]
) -> list[list[float]]:
    """Accuracy of the four groups of each two-class task: shape i is usually seen in place i."""
    found = []
    for a, b in combinations(half, 2):
        answer = np.where(similarity[:, a] > similarity[:, b], a, b)
        groups = [(shape == s) & (place == p) for s in (a, b) for p in (a, b)]
        found.append([float((answer[group] == shape[group]).mean()) for group in groups])
    return found
