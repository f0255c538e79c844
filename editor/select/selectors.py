"""The selectors by name, and the way to all of them: a scan, a model and a plan to an unbound recipe."""

from __future__ import annotations

from ..choices import Along, Effect, HeadOperation
from ..concepts.concepts import Concept, load_concept
from ..edits.bind import check_effect, default_effect
from ..edits.document import RecipeDocument
from ..errors import RecipeError, nearest_names, require_kinds
from ..models.model import Model
from ..scan.scan import Scan
from .amounts import settle_amounts
from .attention_region import select_by_attention_region
from .frontier import select_by_frontier
from .labelled_contrast import select_by_labelled_contrast
from .options import EditOptions, HeadChoice
from .plan import (
    EditPlan,
    Evidence,
    Selector,
    select_by_text_difference,
    warn_of_overlap,
)
from .whose_heads import HeldConcepts

SELECTORS: dict[str, Selector] = {
    "text-difference": select_by_text_difference,
    "labelled-contrast": select_by_labelled_contrast,
    "attention-region": select_by_attention_region,
    "frontier": select_by_frontier,
}


def select_recipe(
    scan: Scan,
    model: Model,
    *,
    select: str = HeadChoice.select,
    evidence: Evidence | None = None,
    concept: str | Concept | None = None,
    keep: str | Concept | None = None,
    operation: HeadOperation = EditOptions.operation,
    effect: Effect | None = EditOptions.effect,
    heads: int | None = None,
    strength: float = EditOptions.strength,
    output_strength: float | None = None,
    directions: int | None = None,
    along: Along = EditOptions.along,
    weights: dict[str, tuple[float, ...]] | None = None,
    factor: float | None = None,
    leace: bool = EditOptions.leace,
    known: HeldConcepts | None = None,
) -> RecipeDocument:
    """An unbound recipe with the heads that a selector chooses; `bind_recipe` gives it its numbers.

    Args:
        select: `text-difference`, `labelled-contrast`, `attention-region` or `frontier`.
        evidence: Labelled images and the like, for selectors that need them.
        concept: Needed by `text-difference`, and by operations that work along its texts.
        heads: How many; by default as `settle_amounts` finds.
        output_strength: Of the projection of the concept's texts out of the output; by default as `settle_amounts`
            finds, none for `attention-region`, whose attack no list of texts names.
        known: What the heads of this model hold, where it was looked at already.

    Raises:
        RecipeError: If there is no such selector, or it finds nothing.
        ConceptError, ImageError, StatisticsError: If what the selector needs is missing.
    """
    require_kinds("choose heads", scan=(scan, Scan), model=(model, Model))
    if select not in SELECTORS:
        raise RecipeError(f"unknown selector {select!r}. {nearest_names(select, SELECTORS)}")
    effect = effect or default_effect(model)
    check_effect(effect, model)
    removed = load_concept(concept, model.folder) if isinstance(concept, str) else concept
    amounts = settle_amounts(
        scan,
        model,
        removed,
        select=select,
        effect=effect,
        keep=keep,
        heads=heads,
        output_strength=output_strength,
        known=known,
    )
    plan = EditPlan(
        concept=removed,
        heads=amounts.heads,
        output_strength=amounts.output_strength,
        choice=amounts.choice,
        keep=keep,
        operation=operation,
        effect=effect,
        strength=strength,
        directions=directions,
        along=along,
        weights=weights,
        factor=factor,
        leace=leace,
    )
    seen = evidence or Evidence()
    warn_of_overlap(plan, seen, model)
    return SELECTORS[select](scan, model, plan, seen)
