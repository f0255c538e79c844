"""What `remove-heads --dry-run` prints: what was weighed, and what would be chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..console import print_table, say, say_result

if TYPE_CHECKING:
    from ...export.choose import Plan

_LEGEND = (
    "removed: share of the variance along instances that the heads were not chosen from; elsewhere: the most that goes "
    "of anything that must stay"
)


def print_plan(plan: Plan) -> None:
    """The verdict, a row for each edit that was weighed, and the steps of the recipe."""
    from ...editor.edits.document import describe_step

    if plan.judgement is not None:
        say_result(f"{plan.judgement.verdict}: {plan.judgement.because}")
    rows = [
        [
            str(one.heads),
            f"{one.output_strength:.2f}",
            f"{one.removed:.3f}",
            f"{one.elsewhere:.3f}",
            one.of,
            f"{one.gain:+.3f}",
            "<- chosen" if one is plan.chosen else "",
        ]
        for one in plan.weighed
    ]
    if rows:
        print_table(["heads", "output", "removed", "elsewhere", "of", "gain", ""], rows)
        say(_LEGEND)
    steps = [[describe_step(step)] for step in plan.document.steps]
    print_table([f"would be done ({plan.document.effect})"], steps or [["nothing"]])
    say("nothing was written: leave out --dry-run to do it")
