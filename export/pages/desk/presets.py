"""Presets: edits to begin with. The default, that of a recipe, and those that a search by labels finds."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ....editor.concepts.concepts import Concept
from ....editor.edits.document import RecipeDocument, Step
from ....editor.edits.operations import project_output
from ....editor.errors import ClipeditError
from ....editor.select.frontier import Point, pareto_front, search_subsets
from ....editor.select.plan import default_heads
from ....editor.select.selectors import select_recipe
from ....editor.select.tables import TaskTable
from ....editor.select.whose_heads import HeldConcepts
from .concepts import Projection
from .labelled import Labelled, Question
from .terms import HeadParts, read_terms

MOST_POINTS = 24


@dataclass(frozen=True)
class Preset:
    """Strengths by head and by projected concept, in [0, 1]; what is not named is left alone."""

    kind: str
    title: str
    heads: dict[str, float]
    projections: dict[str, float]


def find_default(known: HeldConcepts, concept: Concept, effect: Any) -> RecipeDocument | None:
    """The edit that `remove-heads` would make; None where it finds none."""
    try:
        with warnings.catch_warnings():
            # What is said of an edit is said by the page, of whatever is on the desk.
            warnings.simplefilter("ignore", UserWarning)
            return select_recipe(known.scan, known.model, concept=concept, effect=effect, known=known)
    except ClipeditError:
        return None


def output_steps(documents: Sequence[RecipeDocument | None]) -> dict[str, Step]:
    """Projections of the output in recipes, by concept; of two the first."""
    found: dict[str, Step] = {}
    for document in documents:
        for step in document.steps if document else ():
            if _is_projection(step):
                found.setdefault(str(step.concept), step)
    return found


def _is_projection(step: Step) -> bool:
    return step.target == "output" and step.operation == "project-out" and step.along == "texts" and bool(step.concept)


def _fits(step: Step, known: Collection[str]) -> bool:
    """Whether a step can lie on the desk, which ablates heads, and clears the output of some concepts."""
    if step.target == "output":
        return _is_projection(step) and step.concept in known
    ablates = step.operation == "mean-ablate" or (step.operation == "scale" and _is_share(step.factor))
    return step.target == "heads" and ablates and not step.then


def _is_share(factor: float | None) -> bool:
    return factor is not None and 0 <= factor <= 1


def read_preset(document: RecipeDocument, kind: str, title: str, offered: Sequence[Projection]) -> Preset | None:
    """A recipe as strengths; None where a step of it cannot lie on the desk."""
    known = {one.name for one in offered}
    if not all(_fits(step, known) for step in document.steps):
        return None
    heads: dict[str, float] = {}
    projections: dict[str, float] = {}
    for step in document.steps:
        if step.target == "output":
            projections[str(step.concept)] = step.strength
        for head in step.heads:
            # Steps on one head follow each other: what is left of it is multiplied.
            taken = step.strength * (1 - (step.factor or 0.0) if step.operation == "scale" else 1.0)
            heads[head] = 1 - (1 - heads.get(head, 0.0)) * (1 - taken)
    return Preset(kind, title, heads, projections)


def search_front(
    known: HeldConcepts, parts: HeadParts, labelled: Labelled, default: Preset | None, offered: Sequence[Projection]
) -> list[Preset]:
    """Edits that no other beats on worst group and retention, of those that `frontier` tries, `direct` effect."""
    strength = max(default.projections.values(), default=0.0) if default else 0.0
    figure = next((one for one in labelled.figures if one.key == labelled.kept), None)
    kept = labelled.questions[figure.question] if figure is not None and figure.question else None
    points = []
    for projected in sorted({0.0, strength if offered else 0.0}):
        tables = [_tabulate(parts, labelled, one, projected, offered) for one in (labelled.questions[0], kept) if one]
        task, retained = tables[0], tables[1] if len(tables) > 1 else None
        points += search_subsets(task, retained, most=default_heads(known.scan, known.model), output_strength=projected)
    front = pareto_front(points)
    # Every so many where the front is long; both ends stay.
    taken = np.unique(np.linspace(0, len(front) - 1, min(MOST_POINTS, len(front))).round().astype(int))
    chosen = [front[at] for at in taken]
    # Beside it the best of every number of heads: how little would nearly do.
    sizes = {(len(point.heads), point.output_strength > 0) for point in points}
    best = [
        pareto_front(p for p in points if (len(p.heads), p.output_strength > 0) == size)[0] for size in sorted(sizes)
    ]
    rest = [point for point in best if point not in chosen and (point.heads or point.output_strength)]
    return [
        *(_preset("front", point, offered) for point in chosen),
        *(_preset("size", point, offered) for point in rest),
    ]


def _preset(kind: str, point: Point, offered: Sequence[Projection]) -> Preset:
    projected = f", output {point.output_strength:.2f}" if point.output_strength else ""
    return Preset(
        kind,
        f"{len(point.heads)} heads{projected}",
        dict.fromkeys(point.heads, 1.0),
        {offered[0].name: point.output_strength} if point.output_strength else {},
    )


def _tabulate(
    parts: HeadParts, labelled: Labelled, question: Question, strength: float, offered: Sequence[Projection]
) -> TaskTable:
    weights = question.weights.double()
    if strength:
        weights = weights @ project_output(offered[0].basis, strength)
    base, added = read_terms(parts, labelled.features, weights)
    groups = torch.from_numpy(np.unique(labelled.strata, return_inverse=True)[1])
    return TaskTable(
        parts.heads,
        base.T.float(),
        # [head, class, image] -> [head, image, class]
        added.transpose(1, 2).float(),
        torch.tensor(question.right),
        groups,
    )
