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

from ..concepts.class_heads import classify_by_head
from ..concepts.class_weights import compute_class_weights
from ..images.demo import COLOR_WORDS, COLORS, LISTED_PLACES, PLACES, SHAPES
from ..images.source import ImageSource
from ..models.model import Model
from .accuracy import GROUP
from .intervals import Cell, Outcomes
from .table import Details, count_groups, spread_of_outcomes

DEMO_MEASURE = (
    "the demo's test images; one of 8 shapes, zero-shot with the demo's own prompts; worst groups of pairs: two shapes "
    "in their two usual places, one of two classes"
)
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
    # Once: the classes of all controls are the same.
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
        # A place without images has no accuracy.
        if any(row["place"] == place for row in attributes)
    }


def _pair_groups(
    similarity: np.ndarray, shape: np.ndarray, place: np.ndarray, half: Sequence[int]
) -> list[list[float]]:
    """Accuracy of the four groups of each two-class task: shape i is usually seen in place i."""
    found = []
    for a, b in combinations(half, 2):
        # Between the two classes only, as in Waterbirds, although there are eight shapes.
        answer = np.where(similarity[:, a] > similarity[:, b], a, b)
        groups = [(shape == s) & (place == p) for s in (a, b) for p in (a, b)]
        found.append([float((answer[group] == shape[group]).mean()) for group in groups])
    return found


def build_demo_outcomes(
    model: Model, source: ImageSource, *, listed: Sequence[str] = LISTED_PLACES
) -> Callable[[Tensor, Sequence[int]], tuple[Outcomes, list[str]]]:
    """From embeddings of a source of the world to the outcomes of the figures that `build_demo_measure` gives.

    Returns:
        The function; its second value is the group of every image: shape and place.
    """
    # A classifier of shapes has no answer for places or colours.
    answers = {"shape": classify_by_head(model, SHAPES)} if not model.has_texts else _by_texts(model)

    def find(embeddings: Tensor, kept: Sequence[int]) -> tuple[Outcomes, list[str]]:
        attributes = [source.attributes[index] for index in kept]
        similarity = {task: np.asarray(answer(embeddings)) for task, answer in answers.items()}
        groups = [f"{row['shape']} / {row['place']}" for row in attributes]
        return find_demo_outcomes(similarity, attributes, listed=listed), groups

    return find


def find_demo_outcomes(
    similarity: Mapping[str, np.ndarray], attributes: Sequence[Mapping[str, str]], *, listed: Sequence[str]
) -> Outcomes:
    """Overall accuracy, both worst groups over their pairs of places; colour and place where they were asked for."""
    shape = np.array([SHAPES.index(row["shape"]) for row in attributes])
    place = np.array([PLACES.index(row["place"]) for row in attributes])
    every = np.arange(len(shape))
    inside = [PLACES.index(name) for name in listed]
    outside = [index for index in range(len(PLACES)) if index not in inside]
    found: dict[str, list[list[Cell]]] = {
        "overall": [[Cell(every, similarity["shape"].argmax(1) == shape)]],
        "worst_group_listed": _pair_cells(similarity["shape"], shape, place, inside),
        "worst_group_held_out": _pair_cells(similarity["shape"], shape, place, outside),
    }
    if "color" in similarity:
        color = np.array([list(COLORS).index(row["color"]) for row in attributes])
        found["retention"] = [[Cell(every, similarity["color"].argmax(1) == color)]]
    if "place" in similarity:
        found["place_accuracy"] = [[Cell(every, similarity["place"].argmax(1) == place)]]
    return found


def describe_demo(
    outcomes: Outcomes, attributes: Sequence[Mapping[str, str]], *, listed: Sequence[str] = LISTED_PLACES
) -> Details:
    """Intervals of the demo's figures, and shape accuracy in each place, as `PLACE, listed` or `PLACE, held out`."""
    halves = [outcomes[name] for name in ("worst_group_listed", "worst_group_held_out")]
    # Each cell a task of its own: the mean over tasks is then the mean of groups.
    every = [[cell] for tasks in halves for cells in tasks for cell in cells]
    names = [f"{row['place']}, {'listed' if row['place'] in listed else 'held out'}" for row in attributes]
    groups = count_groups(outcomes["overall"][0][0].right, names)
    return Details(spread_of_outcomes({**outcomes, "mean_of_groups": every}), groups)


def _by_texts(model: Model) -> dict[str, Callable[[Tensor], Tensor]]:
    return {task: _against(weights) for task, weights in task_weights(model).items()}


def _against(weights: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda embeddings: embeddings @ weights.T


def _pair_cells(similarity: np.ndarray, shape: np.ndarray, place: np.ndarray, half: Sequence[int]) -> list[list[Cell]]:
    """The four groups of each two-class task: shape i is usually seen in place i."""
    found = []
    for a, b in combinations(half, 2):
        right = np.where(similarity[:, a] > similarity[:, b], a, b) == shape
        members = [np.flatnonzero((shape == s) & (place == p)) for s in (a, b) for p in (a, b)]
        found.append([Cell(images, right[images]) for images in members])
    return found
