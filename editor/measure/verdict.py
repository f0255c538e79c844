"""The verdict on an edit: does it help, by figures that it was not made from, beyond chance and other heads?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import TypeAdapter

from .intervals import LEAST_GROUP, Difference, Outcomes, compare_outcomes
from .table import FigureTable

Word = Literal["HELPS", "HARMS", "NO DIFFERENCE", "NOT MEASURED"]
# How figures are called; worst groups are what an edit is for, the others are what must not fall.
GOALS = {
    "worst_group": "worst group",
    "worst_group_listed": "worst group (listed)",
    "worst_group_held_out": "worst group (held out)",
}
KEPT = {
    "overall": "overall accuracy",
    "retention": "retention",
    "mean_of_groups": "mean of groups",
    "image_retrieval_recall@1": "image retrieval, R@1",
    "text_retrieval_recall@1": "text retrieval, R@1",
}
# What users would not call harm: half a point.
TOLERATED = 0.005
CONTROL_SPREADS = 2.0


@dataclass(frozen=True)
class Verdict:
    """One word, and the sentence that says why."""

    word: Word
    because: str

    def __str__(self) -> str:
        return f"{self.word}: {self.because}"


def not_measured(why: str = "no labelled images were given") -> Verdict:
    """Nothing speaks for an edit or against it: why, and what to give."""
    return Verdict("NOT MEASURED", f"{why}. Add --dataset DIR: images with a class and a group.")


def read_verdict(measured: Mapping[str, Any] | None) -> Verdict:
    """The verdict among the figures of a recipe; NOT MEASURED where it holds none that can be read."""
    evidence = (measured or {}).get("evidence")
    found = evidence if isinstance(evidence, Mapping) else {}
    try:
        return TypeAdapter(Verdict).validate_python({"word": found.get("verdict"), "because": found.get("because")})
    except ValueError:
        return not_measured()


def describe_seen(measured: Mapping[str, Any] | None) -> list[str]:
    """A warning where an edit was measured on images that it was calibrated on; nothing where it was not."""
    evidence = (measured or {}).get("evidence")
    found = evidence.get("calibration_images") if isinstance(evidence, Mapping) else None
    if not isinstance(found, Mapping) or not found.get("among_measured"):
        return []
    return [
        f"{found['among_measured']} of {found.get('of')} calibration images looked at are among the images measured "
        "on: the edit was fitted to them, and does better there than on new ones. Give others with --dataset."
    ]


def read_leans(measured: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """How much the classes lean on each concept that was removed, as a recipe keeps it; what cannot be read is left
    out.
    """
    evidence = (measured or {}).get("evidence")
    rows = evidence.get("leans") if isinstance(evidence, Mapping) else None
    found = [dict(row) for row in rows if isinstance(row, Mapping)] if isinstance(rows, list | tuple) else []
    return [row for row in found if isinstance(row.get("because"), str)]


def describe_doubts(measured: Mapping[str, Any] | None) -> list[str]:
    """What speaks against the figures or the edit itself: classes that do not lean on what it removes, images seen."""
    not_leant = [row["because"] for row in read_leans(measured) if not row.get("leant_on")]
    return [*(f"{said}. Removing it may have nothing to give." for said in not_leant), *describe_seen(measured)]


def judge_edit(
    differences: Mapping[str, Difference],
    *,
    control: Mapping[str, float] | None = None,
    control_sd: Mapping[str, float] | None = None,
    projection: Mapping[str, float] | None = None,
) -> Verdict:
    """The verdict from paired differences, the matched control and the projection alone.

    HARMS where a worst group, overall accuracy or retention falls beyond its interval, and by more than half a point;
    HELPS where a worst group rises beyond its interval and nothing falls; else NO DIFFERENCE. Whether random heads, or
    the projection without heads, do as well is said with either.

    Args:
        differences: By figure, as `compare_outcomes` gives them; empty where nothing was measured.
        control, control_sd: Mean and spread of the same edit with other heads.
        projection: The edit's projection of the output, without its heads.
    """
    if not differences:
        return not_measured()
    named = GOALS | KEPT
    # Both: beyond chance, and by more than users would mind; with many images any change is beyond chance.
    fallen = [
        name for name, found in differences.items() if name in named and found.falls and found.change < -TOLERATED
    ]
    risen = [name for name in GOALS if name in differences and differences[name].rises]
    # Harm first: a rise does not make up for a fall.
    if fallen:
        worst = min(fallen, key=lambda name: differences[name].change)
        also = f"; {named[risen[0]]} {differences[risen[0]]}" if risen else ""
        return Verdict("HARMS", f"{named[worst]} falls: {differences[worst]}{also}.")
    if risen:
        best = max(risen, key=lambda name: differences[name].change)
        beside = _say_beside(best, differences[best].after, control or {}, control_sd or {}, projection or {})
        return Verdict("HELPS", f"{named[best]} rises: {differences[best]}{beside}, and nothing else falls.")
    said = next((name for name in (*GOALS, *KEPT) if name in differences), next(iter(differences)))
    return Verdict("NO DIFFERENCE", f"{named.get(said, said)} {differences[said]}.")


def _say_beside(
    name: str,
    after: float,
    control: Mapping[str, float],
    spread: Mapping[str, float],
    projection: Mapping[str, float],
) -> str:
    parts = []
    if name in control:
        # Within two standard deviations of the draws the chosen heads are no better than others.
        as_well = after <= control[name] + CONTROL_SPREADS * spread.get(name, 0.0)
        sd = f" (sd {spread[name]:.3f})" if name in spread else ""
        parts.append(f"random heads {control[name]:.3f}{sd}{', which is as good' if as_well else ''}")
    if name in projection:
        as_well = after <= projection[name]
        parts.append(f"the projection alone {projection[name]:.3f}{', which is as good' if as_well else ''}")
    return f" ({'; '.join(parts)})" if parts else ""


def compare_models(
    before: tuple[Outcomes, Sequence[str]], after: tuple[Outcomes, Sequence[str]]
) -> dict[str, Difference]:
    """Differences of two models on the same images; none where one could not read some image."""
    return compare_outcomes(before[0], after[0], before[1]) if before[1] == after[1] and before[1] else {}


def judge_table(table: FigureTable) -> dict[str, Verdict]:
    """The verdict on every model of a table against its first, on the same images; NOT MEASURED where they differ."""
    if not table.outcomes:
        return {}
    first, *others = table.outcomes
    differences = {name: compare_models(table.outcomes[first], table.outcomes[name]) for name in others}
    return {
        name: judge_edit(found) if found else judge_nothing(table[first], table[name])
        for name, found in differences.items()
    }


def judge_nothing(before: Mapping[str, float], after: Mapping[str, float]) -> Verdict:
    """Why two rows of figures are no verdict."""
    skews = [
        f"{name} {value:.3f} to {after[name]:.3f}" for name, value in before.items() if name.startswith("max_skew")
    ]
    if skews:
        return not_measured(f"a set of queries has no right answers to compare, only skews: {', '.join(skews)}")
    return Verdict(
        "NOT MEASURED", f"no {LEAST_GROUP} images were read by both models in any group. Give more with --dataset."
    )
