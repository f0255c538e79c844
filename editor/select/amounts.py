"""How many heads, and how strongly the output is projected, where nobody says: chosen for the concept and the model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..concepts.concepts import Concept
from ..edits.bind import holds_output
from ..models.model import Model
from ..scan.scan import Scan
from .choice import Choice, choose_edit
from .plan import default_heads, default_output_strength, find_kept
from .whose_heads import HeldConcepts, Measured


@dataclass(frozen=True)
class Amounts:
    """How much of an edit. `choice` is what it was chosen by, plain data; None where it was given or is a constant."""

    heads: int
    output_strength: float
    choice: Mapping[str, Any] | None = None


def settle_amounts(
    scan: Scan,
    model: Model,
    concept: Concept | None,
    *,
    select: str,
    effect: str,
    keep: Concept | str | None = None,
    heads: int | None = None,
    output_strength: float | None = None,
    known: HeldConcepts | None = None,
    library: Mapping[str, Measured] | None = None,
) -> Amounts:
    """What was asked for, and a choice in closed form for the rest (`editor/select/choice.py`).

    Selectors that look at labels search for themselves, up to a number; of texts as inputs nothing is known that must
    stay. Both take constants.

    Args:
        known: What the heads of this model hold, where it was looked at already.
        library: What else may have to stay; by default all of it.
    """
    # Nothing is left to choose: no library is measured.
    if heads is not None and output_strength is not None:
        return Amounts(heads, output_strength)
    if select != "text-difference" or concept is None or model.side == "text":
        constant = 0.0 if select == "attention-region" else default_output_strength(effect, model)
        return Amounts(
            default_heads(scan, model) if heads is None else heads,
            constant if output_strength is None else output_strength,
        )
    known = known or HeldConcepts(scan, model)
    options = {"keep": keep, "heads": heads, "output_strength": output_strength}
    chosen = choose_for(known, concept, effect, library=library, **options)
    if heads is None and not chosen.chosen.heads and not chosen.output_strength:
        _warn_of_no_gain(concept, chosen, default_heads(scan, model))
        constant = default_output_strength(effect, model)
        return Amounts(default_heads(scan, model), constant if output_strength is None else output_strength)
    return Amounts(
        chosen.chosen.heads if heads is None else heads, chosen.chosen.output_strength, chosen.chosen.report()
    )


def choose_for(
    known: HeldConcepts,
    concept: Concept,
    effect: str,
    *,
    library: Mapping[str, Measured] | None = None,
    keep: Concept | str | None = None,
    heads: int | None = None,
    output_strength: float | None = None,
) -> Choice:
    """As `choose_edit`, within what a model's scan and an effect allow; what a concept's file keeps is kept.

    Args:
        library: What else may have to stay; by default what the model's folder and the library know.
    """
    return choose_edit(
        known.probe,
        concept,
        known.library if library is None else library,
        # Beyond, random heads do nearly as well: an edit of most heads is a new readout of the few that are left.
        most=default_heads(known.scan, known.model),
        keep=find_kept(concept, keep, known.model),
        heads=heads,
        output_strength=output_strength,
        project=holds_output(effect, known.model),
    )


def _warn_of_no_gain(concept: Concept, chosen: Choice, count: int) -> None:
    """Where no edit is worth making, somebody still asked for one."""
    best = max(chosen.weighed, key=lambda one: one.gain)
    warnings.warn(
        f"no number of heads removes much more of {concept.name} than of anything else: at best {best.removed:.2f} of "
        f"its variance and {best.elsewhere:.2f} of that of {best.of}, with {best.heads} heads. {count} are taken.",
        stacklevel=4,
    )
