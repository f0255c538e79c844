"""The frontier selector: search over sets of heads on cached features, worst group against what should not change."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..components import HeadId
from ..edits.document import RecipeDocument
from ..errors import RecipeError
from ..models.model import Model
from ..scan.scan import Scan
from .plan import EditPlan, Evidence, require_labelled, write_document
from .tables import TaskTable, load_task, measure_subsets, subset_rows, tabulate

BEAM = 8


@dataclass(frozen=True)
class Point:
    """One edit on the labelled images, `direct` effect: its worst group, retention and mean of groups, in [0, 1]."""

    heads: tuple[str, ...]
    output_strength: float
    worst_group: float
    retention: float
    mean_of_groups: float = 0.0

    @property
    def gain(self) -> tuple[float, float]:
        """What is searched for: of many small groups the worst may be 0 whatever is edited; then their mean decides."""
        return self.worst_group, self.mean_of_groups


def select_by_frontier(scan: Scan, model: Model, plan: EditPlan, evidence: Evidence) -> RecipeDocument:
    """The edit of best worst group that loses at most `evidence.budget` points of retention.

    Sets of up to `plan.heads` heads are grown head by head; of each size eight are grown further: those that no other
    beats on both figures, then those of best worst group (of equal ones, of best mean of groups). With a concept,
    projections of its texts out of the output are tried beside each (none, half and all of `plan.output_strength`).
    The Pareto front is kept in the recipe's `measured`.

    Raises:
        ImageError: If there are no labelled images, or a group has fewer than five.
        RecipeError: If no edit improves the worst group, or at an equal one the mean of groups, within the budget; the
            nearest point is named.
    """
    task = load_task(scan, model, require_labelled(evidence, "frontier"), evidence)
    # Images are read once; a table for each strength is made from their features.
    kept = load_task(scan, model, evidence.retention, evidence) if evidence.retention else None
    points: list[Point] = []
    for strength in sorted({0.0, plan.output_strength / 2, plan.output_strength} if plan.concept else {0.0}):
        tried = replace(plan, output_strength=strength)
        retained = tabulate(scan, model, tried, kept) if kept else None
        points += search_subsets(
            tabulate(scan, model, tried, task), retained, most=plan.heads, output_strength=strength
        )
    # The empty edit without a projection: strengths are sorted, and each search starts with the empty set.
    before = points[0]
    chosen = choose_within(points, before, evidence.budget)
    document = write_document(
        replace(plan, output_strength=chosen.output_strength), [HeadId.parse(head) for head in chosen.heads], model
    )
    return document.model_copy(update={"measured": describe_front(points, before, chosen)})


def search_subsets(
    task: TaskTable, kept: TaskTable | None, *, most: int, output_strength: float = 0.0, beam: int = BEAM
) -> list[Point]:
    """Every edit that was tried, the empty one first; at most `most` heads."""

    def measure(subsets: Sequence[frozenset[int]]) -> list[Point]:
        rows = subset_rows(task, subsets)
        # Without a second task, overall accuracy is what must stay.
        worst, overall, mean = measure_subsets(task, rows)
        retention = measure_subsets(kept, rows)[1] if kept else overall
        names = [tuple(str(task.heads[index]) for index in sorted(chosen)) for chosen in subsets]
        columns = zip(names, worst.tolist(), retention.tolist(), mean.tolist(), strict=True)
        return [Point(heads, output_strength, *figures) for heads, *figures in columns]

    found, frontier = measure([frozenset()]), [frozenset()]
    for _ in range(min(most, len(task.heads))):
        # Sorted, since sets have no order: equal points must be told apart alike on every run.
        grown = sorted(
            {chosen | {head} for chosen in frontier for head in range(len(task.heads))} - set(frontier), key=sorted
        )
        points = measure(grown)
        found += points
        best = [*pareto_front(points), *sorted(points, key=_best_first)]
        # Each once: the front's points are among the best as well.
        best = list(dict.fromkeys(best))[:beam]
        position = {point: chosen for point, chosen in zip(points, grown, strict=True)}
        frontier = [position[point] for point in best]
    return found


def pareto_front(points: Iterable[Point]) -> list[Point]:
    """The points that no other beats on both figures, best worst group first; of equal ones that with fewest heads."""
    ordered = sorted(points, key=lambda p: (*_best_first(p), len(p.heads), p.output_strength))
    # Best worst group first: a point is on the front if it keeps more than all before it.
    front: list[Point] = []
    for point in ordered:
        if not front or point.retention > front[-1].retention:
            front.append(point)
    return front


def choose_within(points: Sequence[Point], before: Point, budget: float) -> Point:
    """The point of best gain that improves on `before` and loses at most `budget` points of retention.

    Raises:
        RecipeError: If there is none, with the improving point that loses least.
    """
    # The budget is in points; the small term forgives rounding at the border.
    least = before.retention - budget / 100 - 1e-9
    better = [point for point in points if point.gain > before.gain]
    inside = [point for point in better if point.retention >= least]
    if inside:
        return pareto_front(inside)[0]
    nearest = max(better, key=lambda p: (p.retention, p.worst_group), default=None)
    found = (
        "no edit improves the worst group"
        if nearest is None
        else (
            f"the nearest edit loses {100 * (before.retention - nearest.retention):.2f} points for a worst group of "
            f"{nearest.worst_group:.3f} ({', '.join(nearest.heads) or 'no head'}, output {nearest.output_strength})"
        )
    )
    raise RecipeError(
        f"cannot meet a budget of {budget} points: without an edit the worst group is {before.worst_group:.3f} and "
        f"{before.retention:.3f} is kept, {found}. Raise --budget or --heads."
    )


def _best_first(point: Point) -> tuple[float, float, float]:
    return -point.worst_group, -point.mean_of_groups, -point.retention


def describe_front(points: Sequence[Point], before: Point, chosen: Point) -> dict[str, Any]:
    """Plain data: the number of edits tried, the unedited point, the chosen one and the front."""
    return {
        "frontier": {
            "tried": len(points),
            "unedited": _plain(before),
            "chosen": _plain(chosen),
            "front": [_plain(point) for point in pareto_front(points)],
        }
    }


def _plain(point: Point) -> dict[str, Any]:
    rounded = {key: round(value, 6) if isinstance(value, float) else value for key, value in asdict(point).items()}
    return rounded | {"heads": list(point.heads)}
