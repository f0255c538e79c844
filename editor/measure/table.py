"""Tables of what was measured: a row of figures for each model, and flat rows with numbers of images and intervals."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import Bool
from pydantic import Field, TypeAdapter, ValidationError

from ..files.whole import staged_file
from .benchmarks.result import Benchmark
from .intervals import Outcomes, wilson_interval

FlatRow = dict[str, Any]
# Of the groups that are served worst, where people read them; a file has room for all of them.
MOST_GROUPS = 16


@dataclass(frozen=True)
class Spread:
    """Of how many images a figure is, and its 95 % interval; none for figures that are no share of right answers."""

    n: int
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Share:
    """How many of some images were answered rightly."""

    right: int
    n: int

    @property
    def value(self) -> float:
        return self.right / self.n

    @property
    def spread(self) -> Spread:
        """With the interval of Wilson (1927)."""
        return Spread(self.n, *wilson_interval(self.right, self.n))

    def __str__(self) -> str:
        return spell_interval(self.value, *wilson_interval(self.right, self.n))


@dataclass(frozen=True)
class Details:
    """What a row of figures does not say: the spread of each figure, and the share of every group."""

    figures: Mapping[str, Spread] = field(default_factory=dict)
    groups: Mapping[str, Share] = field(default_factory=dict)

    def flat(self, row: Mapping[str, float], **named: Any) -> list[FlatRow]:
        """A flat row for each figure, and one for each group, the worst first; `named` stands first in all of them."""
        rows = []
        for name, value in row.items():
            if not name.startswith("group: "):
                spread = self.figures.get(name)
                rows.append(_flat(named, name, "", value, spread))
        worst_first = sorted(self.groups.items(), key=lambda item: item[1].value)
        return rows + [_flat(named, "accuracy", name, share.value, share.spread) for name, share in worst_first]

    def with_figure(self, name: str, other: Details, theirs: str) -> Details:
        """With a figure of other images."""
        return replace(self, figures={**self.figures, name: other.figures[theirs]})

    def report(self) -> dict[str, Any]:
        """Plain data."""
        groups = [
            {"group": name, "n": share.n, "accuracy": share.value, "low": share.spread.low, "high": share.spread.high}
            for name, share in self.groups.items()
        ]
        return {"intervals": {name: vars(spread) for name, spread in self.figures.items()}, "groups": groups}


def _flat(named: Mapping[str, Any], figure: str, group: str, value: float, spread: Spread | None) -> FlatRow:
    measured = {"figure": figure, "group": group, "value": value}
    return {**named, **measured, "n": spread and spread.n, "low": spread and spread.low, "high": spread and spread.high}


class FigureTable(dict[str, dict[str, float]]):
    """A row of figures for each model, in order, by the model's name.

    Attributes:
        details: By model, numbers of images, intervals and groups; none for rows that are means over several models.
        outcomes: By model, what was answered rightly, and the group of every image.
        measure: In words, what was measured.
        benchmarks: By model, the same as CLIP_benchmark calls it; none for sets that it has no task for.
    """

    def __init__(self, measure: str = "") -> None:
        super().__init__()
        self.details: dict[str, Details] = {}
        self.outcomes: dict[str, tuple[Outcomes, list[str]]] = {}
        self.measure = measure
        self.benchmarks: dict[str, Benchmark] = {}

    def add(
        self,
        name: str,
        row: dict[str, float],
        details: Details | None = None,
        outcomes: tuple[Outcomes, list[str]] | None = None,
    ) -> None:
        """Add a model's row."""
        self[name] = row
        if details is not None:
            self.details[name] = details
        if outcomes is not None:
            self.outcomes[name] = outcomes

    def report(self) -> dict[str, dict[str, Any]]:
        """Plain data: each model's figures, and where there are groups, `n`, accuracy and interval of each."""
        groups = {name: found.report()["groups"] for name, found in self.details.items()}
        return {name: {**row, **({"groups": groups[name]} if groups.get(name) else {})} for name, row in self.items()}

    @property
    def rows(self) -> list[FlatRow]:
        """Flat dictionaries with the same keys, as `pandas.DataFrame` and `csv` take them.

        `model`, `figure`, `group` (empty for figures of all images), `value`, `n`, and `low` and `high`, the ends of
        the 95 % interval.
        """
        return [flat for name, row in self.items() for flat in self.details.get(name, Details()).flat(row, model=name)]


def read_details(measured: Mapping[str, Any] | None) -> dict[str, Details]:
    """What a recipe says of numbers of images, intervals and groups, by row; what cannot be read is left out."""
    evidence = (measured or {}).get("evidence")
    found = evidence.get("details") if isinstance(evidence, Mapping) else None
    read = {}
    for name, one in found.items() if isinstance(found, Mapping) else ():
        with contextlib.suppress(ValidationError):
            read[str(name)] = _DETAILS.validate_python(one).to_details()
    return read


@dataclass(frozen=True)
class _Group:
    group: str
    n: Annotated[int, Field(ge=1)]
    accuracy: Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class _Reported:
    """As `Details.report` spells it."""

    intervals: dict[str, Spread]
    groups: list[_Group]

    def to_details(self) -> Details:
        shares = {one.group: Share(round(one.accuracy * one.n), one.n) for one in self.groups}
        # Files come from anybody: what is no interval of a share is drawn nowhere.
        sound = {name: one for name, one in self.intervals.items() if 0 <= (one.low or 0) <= (one.high or 0) <= 1}
        return Details(sound, shares)


_DETAILS = TypeAdapter(_Reported)


def spell_interval(value: float, low: float, high: float) -> str:
    """`0.935 (0.921 to 0.947)`."""
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write flat rows; what a row does not have stays empty.

    Raises:
        ExportError: If the file cannot be written.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    # newline="": csv writes its own line ends.
    with staged_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=columns)
        writer.writeheader()
        writer.writerows(rows)


def count_groups(right: Bool[np.ndarray, " image"], groups: Sequence[str]) -> dict[str, Share]:
    """The share of every group, by name."""
    names = np.asarray(groups)
    return {str(name): Share(int(right[names == name].sum()), int((names == name).sum())) for name in np.unique(names)}


def spread_of_difference(one: Share, other: Share) -> Spread:
    """The interval of a difference of two independent shares (Newcombe 1998, method 10)."""
    gap = one.value - other.value
    down = ((one.value - (one.spread.low or 0)) ** 2 + ((other.spread.high or 0) - other.value) ** 2) ** 0.5
    up = (((one.spread.high or 0) - one.value) ** 2 + (other.value - (other.spread.low or 0)) ** 2) ** 0.5
    return Spread(one.n + other.n, gap - down, gap + up)


def spread_of_mean(shares: Iterable[Share]) -> Spread:
    """The interval of a mean of independent shares: distances to their ends, added as squares (Zou and Donner 2008)."""
    parts = list(shares)
    ends = [(share.value, *wilson_interval(share.right, share.n)) for share in parts]
    middle = float(np.mean([value for value, _, _ in ends]))
    down = sum((value - low) ** 2 for value, low, _ in ends) ** 0.5 / len(ends)
    up = sum((high - value) ** 2 for value, _, high in ends) ** 0.5 / len(ends)
    return Spread(sum(share.n for share in parts), max(0.0, middle - down), min(1.0, middle + up))


def spread_of_outcomes(outcomes: Outcomes) -> dict[str, Spread]:
    """The interval of each figure: of one task that of its worst cell, of several the mean of theirs, never narrower.

    The worst of many groups is worst by chance too: its interval is that of the group, as if it had been named before.
    """
    found = {}
    for name, tasks in outcomes.items():
        worst = [
            min((Share(int(c.right.sum()), len(c.right)) for c in cells), key=lambda s: s.value) for cells in tasks
        ]
        spreads = [share.spread for share in worst]
        n = sum(spread.n for spread in spreads)
        found[name] = Spread(n, *(float(np.mean([getattr(s, end) for s in spreads])) for end in ("low", "high")))
    return found
