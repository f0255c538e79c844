"""What `remove-heads` prints of a repair."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..console import (
    print_checks,
    print_groups,
    print_interactions,
    print_measures,
    print_readable,
    print_table,
    say,
    say_next,
    say_result,
)

if TYPE_CHECKING:
    from ...export.repair import Repair


def print_repair(done: Repair) -> None:
    """What was made: the verdict first, then what was chosen, measured and written, and what to run next."""
    from ...editor.measure.certificate import describe_certificate
    from ...editor.measure.table import read_details
    from ...editor.measure.verdict import describe_doubts

    document, measured, heads = done.recipe.document, done.measured, done.recipe.heads
    say_result(str(done.verdict))
    operations = ", ".join(dict.fromkeys(step.operation for step in document.steps if step.target == "heads"))
    say(f"edited {len(heads)} heads ({operations or 'none'}, {document.effect}): {', '.join(heads)}")
    for line in done.describe_reach():
        say(line)
    for name, chosen in (measured.get("choices") or {"this model": measured.get("choice")}).items():
        if chosen is not None:
            _print_choice(name, chosen)
    if "frontier" in measured:
        _print_front(measured["frontier"])
    if done.rows:
        print_measures(done.rows)
        print_groups(read_details(measured))
        say(f"measured: {measured['evidence'].get('measure')}")
    print_readable(done.readable)
    print_interactions(done.interactions)
    for line in (*describe_doubts(measured), *describe_certificate(done.certificate), *done.describe_fidelity()):
        say(line)
    print_checks(done.checks)
    say(f"wrote {done.out}: {done.layout}")
    if done.page is not None:
        say(f"wrote {done.page}: open it in a browser")
    _say_what_next(done)


def _say_what_next(done: Repair) -> None:
    """Deployment is next for an edit that was found to harm nothing; of any other, what would say so."""
    base = " ".join(filter(None, (done.model.name, done.model.pretrained))).replace(" ", ":")
    if done.verdict.word == "HARMS":
        say("nothing is exported from it without --force. Try fewer --heads, --keep, or another concept")
    elif done.verdict.word == "NOT MEASURED":
        say_next("to know whether it helps", f"clipedit evaluate {base} {done.out} --dataset DIR --control")
    elif done.model.is_alone:
        say_next("for deployment", f"put {done.out} in the place of {done.model.folder}")
    else:
        say_next("for deployment", f"clipedit export {done.out} --target onnx -o {done.out}-onnx")


def _print_choice(name: str, chosen: Mapping[str, Any]) -> None:
    """What the number of heads and the strength were weighed by, in one line."""
    projection = f"the output projected at {chosen['output_strength']:.2f}"
    of = "of texts in general" if chosen["of"] == "general" else f"of {chosen['of']}"
    say(
        f"chosen for {name}: {chosen['heads']} heads, {projection}: {chosen['removed']:.2f} of the variance along "
        f"instances left out goes, and {chosen['elsewhere']:.2f} of that {of} (--heads, --output-strength)"
    )


def _print_front(frontier: Mapping[str, Any]) -> None:
    """The Pareto front, best worst group first; the chosen edit is marked."""
    say(f"tried {frontier['tried']} edits on cached features; the Pareto front:")
    marks = [(frontier["unedited"], "<- unedited"), (frontier["chosen"], "<- chosen")]
    rows = [
        [
            f"{point['worst_group']:.3f}",
            f"{point['retention']:.3f}",
            f"{point['output_strength']:.2f}",
            ", ".join(point["heads"]) or "none",
            next((mark for marked, mark in marks if point == marked), ""),
        ]
        for point in [*frontier["front"], frontier["unedited"]]
    ]
    print_table(["worst group", "kept", "output", "heads", ""], rows)
