"""The selectors by name, and the way to all of them: a scan, a model and a plan to an unbound recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..choices import Along, Effect, HeadOperation
from ..concepts.concepts import Concept, load_concept
from ..edits.bind import check_effect, default_effect
from ..edits.document import RecipeDocument, Step
from ..errors import ConceptError, PluginError, RecipeError, nearest_names, require_kinds
from ..models.model import Model
from ..plugins import SELECTOR, find_plugins, load_plugin, why_no_function
from ..scan.scan import Scan
from .amounts import settle_amounts
from .attention_region import select_by_attention_region
from .frontier import select_by_frontier
from .labelled_contrast import select_by_labelled_contrast
from .options import EditOptions, HeadChoice
from .plan import (
    PLAIN_OPERATIONS,
    EditPlan,
    Evidence,
    Selector,
    select_by_text_difference,
    warn_of_overlap,
)
from .whose_heads import HeldConcepts, Measured

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
    operation: HeadOperation | str = EditOptions.operation,
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
    library: Mapping[str, Measured] | None = None,
) -> RecipeDocument:
    """An unbound recipe with the heads that a selector chooses; `bind_recipe` gives it its numbers.

    Args:
        select: `text-difference`, `labelled-contrast`, `attention-region`, `frontier`, or a plugin's.
        evidence: Labelled images and the like, for selectors that need them.
        concept: Needed by `text-difference`, and by operations that work along its texts.
        heads: How many; by default as `settle_amounts` finds.
        output_strength: Of the projection of the concept's texts out of the output; by default as `settle_amounts`
            finds, none for `attention-region`, whose attack no list of texts names.
        known: What the heads of this model hold, where it was looked at already.
        library: What else may have to stay; by default all of it.

    Raises:
        RecipeError: If there is no such selector, or it finds nothing.
        ConceptError, ImageError, StatisticsError: If what the selector needs is missing.
    """
    require_kinds("choose heads", scan=(scan, Scan), model=(model, Model))
    chosen_by = find_selector(select)
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
        library=library,
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
    return chosen_by(scan, model, plan, seen)


def find_selector(name: str) -> Selector:
    """The selector of a name: clipedit's own, or a plugin's.

    Raises:
        RecipeError: If there is none.
        PluginError: If a plugin's cannot be used.
    """
    if name in SELECTORS:
        return SELECTORS[name]
    plugin = find_plugins(SELECTOR).get(name)
    if plugin is None:
        raise RecipeError(f"unknown selector {name!r}. {nearest_names(name, SELECTOR.names())}")
    loaded = load_plugin(plugin, why_no_function)

    def select(*given: Any) -> RecipeDocument:
        found = plugin.call(loaded, *given)
        if not isinstance(found, RecipeDocument):
            raise PluginError(f"cannot use {plugin}: it must answer a RecipeDocument, not {type(found).__name__}.")
        return found

    return select


def select_several(
    scan: Scan, model: Model, *, concepts: Sequence[str | Concept], known: HeldConcepts | None = None, **options: Any
) -> RecipeDocument:
    """One unbound recipe that removes several concepts; of a single one as `select_recipe`.

    Heads that two of them point at are edited once, and one refit serves all. The order of the concepts does not
    matter.

    Raises:
        ConceptError, RecipeError: As `select_each`.
    """
    return join_documents(list(select_each(scan, model, concepts=concepts, known=known, **options).values()))


def select_each(
    scan: Scan, model: Model, *, concepts: Sequence[str | Concept], known: HeldConcepts | None = None, **options: Any
) -> dict[str, RecipeDocument]:
    """An unbound recipe for each of some concepts that are removed together, by name, in the order of names.

    Heads and strengths are chosen for each concept as if it were alone, but none of the others has to stay.

    Raises:
        ConceptError: If a concept is named twice.
        RecipeError: As `select_recipe`, and for several concepts with a selector that looks at labels.
    """
    found = [load_concept(one, model.folder) if isinstance(one, str) else one for one in concepts]
    names = [one.name for one in found]
    if len(set(names)) < len(names) or not names:
        raise ConceptError(f"cannot remove {', '.join(names) or 'nothing'}: name each concept once.")
    if len(found) == 1:
        return {names[0]: select_recipe(scan, model, concept=found[0], known=known, **options)}
    if options.get("select", HeadChoice.select) != HeadChoice.select:
        raise RecipeError(
            f"cannot remove {' and '.join(names)} by labels: they say one thing that is wrong. Leave out --select."
        )
    shared: dict[str, Any] = {"known": known, **options}
    # Where nothing is left to choose, no library has to be measured.
    if options.get("heads") is None or options.get("output_strength") is None:
        known = known or HeldConcepts(scan, model)
        library = {name: one for name, one in known.library.items() if name not in names}
        shared |= {"known": known, "library": library}
    ordered = sorted(found, key=lambda one: one.name)
    return {one.name: select_recipe(scan, model, concept=one, **shared) for one in ordered}


def join_documents(documents: Sequence[RecipeDocument]) -> RecipeDocument:
    """One recipe of several: what happens to heads first, then the projections; choices are kept by concept."""
    if len(documents) == 1:
        return documents[0]
    steps = [step for document in documents for step in document.steps]
    heads = [step for step in steps if step.target == "heads"]
    plain = [step for step in heads if step.operation in PLAIN_OPERATIONS]
    # Without directions the steps differ in their heads only: a head in two of them is scaled once.
    merged = [_merge_heads(plain)] if plain else []
    rest = [step for step in heads if step not in plain]
    names = [document.name.removeprefix("remove-") for document in documents]
    choices = {
        name: document.measured["choice"]
        for name, document in zip(names, documents, strict=True)
        if document.measured and "choice" in document.measured
    }
    update = {
        "name": f"remove-{'-and-'.join(names)}",
        "steps": (*merged, *rest, *(step for step in steps if step.target != "heads")),
        "measured": {"choices": choices} if choices else None,
    }
    return documents[0].model_copy(update=update)


def _merge_heads(steps: Sequence[Step]) -> Step:
    named = {head for step in steps for head in step.head_ids()}
    return steps[0].model_copy(update={"heads": tuple(map(str, sorted(named)))})
