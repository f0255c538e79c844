"""What the demo's models answer rightly, image by image: what the intervals of its figures are drawn from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

import numpy as np
from torch import Tensor

from ..images.demo import COLORS, LISTED_PLACES, PLACES, SHAPES
from ..images.source import ImageSource
from ..models.model import Model
from .demo_measure import task_weights
from .intervals import Cell, Outcomes
from .linear_head import classify_by_head


def build_demo_outcomes(
    model: Model, source: ImageSource, *, listed: Sequence[str] = LISTED_PLACES
) -> Callable[[Tensor, Sequence[int]], tuple[Outcomes, list[str]]]:
    """From embeddings of a source of the world to the outcomes of the figures that `build_demo_measure` gives.

    Returns:
        The function; its second value is the group of every image: shape and place.
    """
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
    """Overall accuracy, both worst groups over their pairs of places, and retention where colours were asked for."""
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
    return found


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
