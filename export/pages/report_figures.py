"""What a report says in figures: its sentences, and the bars of before, after and control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...editor.concepts.concepts import Concept
from ...editor.concepts.scores import HeadScore
from ...editor.edits.document import Step
from ...editor.edits.recipe import Recipe
from ...editor.measure.accuracy import GROUP
from ...editor.measure.table import Details, Spread, read_details

_ROWS = {
    "before": "unedited",
    "control": "random heads, same projection",
    "output_projection": "texts projected out, no heads",
    "after": "this edit",
}
_MEASURES = {
    "worst_group": ("Worst group", "the group that is served worst"),
    "worst_group_listed": ("Worst group, listed", "two shapes, two places in the texts"),
    "worst_group_held_out": ("Worst group, held out", "two shapes, two unlisted places"),
    "overall": ("Overall", "all images, all classes"),
    "mean_of_groups": ("Mean of groups", "every group weighs the same"),
    "retention": ("Retention", "a task that should stay as it was"),
    "place_accuracy": ("Place", "can it still be read? lower is better"),
}
_VERBS = {
    "mean-ablate": "replaced by their mean",
    "zero-ablate": "set to zero",
    "scale": "scaled",
    "project-out": "projected onto what the concept's texts do not say",
}


@dataclass(frozen=True)
class Bar:
    """One row of a figure, in [0, 1], with its 95 % interval where it has one."""

    kind: str
    label: str
    value: float
    low: float | None = None
    high: float | None = None

    @property
    def interval(self) -> str:
        """`61 to 74`, in percent; empty where there is none."""
        if self.low is None or self.high is None:
            return ""
        return f"{self.low * 100:.0f} to {self.high * 100:.0f}"


@dataclass(frozen=True)
class Figure:
    """One measure, with a bar for each model; `n` is of how many images it is."""

    title: str
    note: str
    bars: tuple[Bar, ...]
    n: int | None = None

    def value(self, kind: str) -> float | None:
        """The value of one bar, if it was measured."""
        return next((bar.value for bar in self.bars if bar.kind == kind), None)


@dataclass(frozen=True)
class Measures:
    """`main`: figures of the whole; `groups`: one a group, the worst before the edit first."""

    main: tuple[Figure, ...] = ()
    groups: tuple[Figure, ...] = ()


def build_measures(measured: Mapping[str, Any] | None) -> Measures:
    """Figures from what a recipe holds of them; whatever is no share in [0, 1] is left out."""
    rows = {kind: row for kind, row in (measured or {}).items() if kind in _ROWS and isinstance(row, Mapping)}
    keys = list(dict.fromkeys(key for row in rows.values() for key in row))
    known = [key for key in _MEASURES if key in keys]
    others = [key for key in keys if key not in _MEASURES and not str(key).startswith(GROUP)]
    details = read_details(measured)
    main = [_figure(*_MEASURES.get(key, (str(key), "")), rows, key, details) for key in [*known, *others]]
    groups = [_figure(key.removeprefix(GROUP), "", rows, key, details) for key in keys if str(key).startswith(GROUP)]
    # The worst before the edit first.
    groups.sort(key=lambda figure: figure.value("before") or 0.0)
    return Measures(tuple(figure for figure in main if figure.bars), tuple(figure for figure in groups if figure.bars))


def describe_result(measured: Mapping[str, Any] | None) -> str:
    """The finding in one sentence; empty if nothing was measured."""
    for figure in build_measures(measured).main:
        before, after, control = (figure.value(kind) for kind in ("before", "after", "control"))
        if "Worst group" in figure.title and before is not None and after is not None:
            beside = f" (random heads: {control:.0%})" if control is not None else ""
            held_out = next((f for f in build_measures(measured).main if "held out" in f.title), None)
            if held_out is not None and held_out is not figure:
                return f"{describe_change(figure)}; {describe_change(held_out)}."
            return f"The worst group went from {before:.0%} to {after:.0%}{beside}."
    return ""


def describe_change(figure: Figure) -> str:
    """`Worst group, listed: 65% to 94% (random heads: 72%)`."""
    before, after, control = (figure.value(kind) for kind in ("before", "after", "control"))
    beside = f" (random heads: {control:.0%})" if control is not None else ""
    return f"{figure.title}: {before:.0%} to {after:.0%}{beside}" if before is not None and after is not None else ""


def describe_edit(recipe: Recipe, model: str, concept: Concept | None, scores: Sequence[HeadScore]) -> str:
    """What was removed and why, in one sentence."""
    parts = [_describe_step(step) for step in recipe.document.steps]
    what = "; ".join(part for part in parts if part) or "Nothing was changed"
    if not concept or not scores or not recipe.heads:
        return f"{what}."
    held = sum(row.concept for row in scores if row.component in recipe.heads)
    return (
        f"{what}: of all that {model} says about {concept.name} (the variance of its embeddings along the concept's "
        f"{len(concept.texts)} texts), {'these heads add' if len(recipe.heads) > 1 else 'this head adds'} {held:.0%}."
    )


def _describe_step(step: Step) -> str:
    strength = f" at strength {step.strength:.2g}" if step.strength != 1 else ""
    if step.target == "heads":
        noun = "head was" if len(step.heads) == 1 else "heads were"
        return (
            f"{len(step.heads)} attention {noun} {_VERBS.get(step.operation, f'edited by {step.operation}')}{strength}"
            if step.heads
            else ""
        )
    where = "the image embedding" if step.target == "output" else "all text embeddings"
    return f"the texts of {step.concept or 'the concept'} were projected out of {where}{strength}"


def _figure(
    title: str, note: str, rows: Mapping[str, Mapping[str, Any]], key: str, details: Mapping[str, Details]
) -> Figure:
    spreads = {kind: _find_spread(details.get(kind), key) for kind in _ROWS}
    bars = []
    for kind, label in _ROWS.items():
        if _is_share(rows.get(kind), key):
            spread = spreads[kind]
            ends = (spread.low, spread.high) if spread is not None else (None, None)
            bars.append(Bar(kind, label, float(rows[kind][key]), *ends))
    return Figure(title, note, tuple(bars), next((one.n for one in spreads.values() if one is not None), None))


def _find_spread(details: Details | None, key: str) -> Spread | None:
    if details is None:
        return None
    share = details.groups.get(key.removeprefix(GROUP)) if key.startswith(GROUP) else None
    return share.spread if share is not None else details.figures.get(key)


def _is_share(row: Mapping[str, Any] | None, key: str) -> bool:
    value = (row or {}).get(key)
    return isinstance(value, int | float) and 0 <= value <= 1
