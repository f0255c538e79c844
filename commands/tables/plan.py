"""What `remove-heads --dry-run` prints: what was weighed, and what would be chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..console import print_table, say, say_result

if TYPE_CHECKING:
    from ...editor.select.choice import Candidate
    from ...export.choose import Plan

_LEGEND = (
    "removed: share of the variance along instances that the heads were not chosen from; elsewhere: the most that goes "
    "of anything that must stay"
)


def print_plan(plan: Plan) -> None:
    """The verdict on each concept, a row for each edit that was weighed, and the steps of the recipe."""
    from ...editor.edits.document import describe_step

    for one in plan.concepts:
        say_result(f"{one.judgement.verdict}: {one.judgement.because}")
        rows = [_spell(edit, chosen=edit is one.chosen) for edit in one.weighed]
        print_table([f"{one.judgement.concept}: heads", "output", "removed", "elsewhere", "of", "gain", ""], rows)
    if plan.concepts:
        say(_LEGEND)
    steps = [[describe_step(step)] for step in plan.document.steps]
    print_table([f"would be done ({plan.document.effect})"], steps or [["nothing"]])
    say("nothing was written: leave out --dry-run to do it")


def _spell(edit: Candidate, *, chosen: bool) -> list[str]:
    shares = [f"{edit.removed:.3f}", f"{edit.elsewhere:.3f}", edit.of, f"{edit.gain:+.3f}"]
    return [str(edit.heads), f"{edit.output_strength:.2f}", *shares, "<- chosen" if chosen else ""]
