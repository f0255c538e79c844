"""make_recipe: a concept to a bound recipe, with nothing but a scan and texts."""

from __future__ import annotations

from ..choices import Effect, HeadOperation
from ..concepts.concepts import Concept, load_concept
from ..edits.bind import bind_recipe, check_effect
from ..edits.held_out import estimate_fidelity, require_enough_images
from ..edits.recipe import Recipe
from ..errors import require_kinds
from ..models.model import Model
from ..scan.scan import Scan
from ..scan.variety import require_variety
from .amounts import settle_amounts
from .options import EditOptions
from .plan import EditPlan, Evidence, select_by_text_difference, warn_of_overlap


def make_recipe(
    scan: Scan,
    model: Model,
    *,
    concept: str | Concept,
    keep: str | Concept | None = None,
    operation: HeadOperation = EditOptions.operation,
    effect: Effect = EditOptions.effect,
    heads: int | None = None,
    strength: float = EditOptions.strength,
    output_strength: float | None = None,
    directions: int | None = None,
) -> Recipe:
    """A bound recipe that removes a concept: edit the heads that carry it, and shrink its texts' directions of the
    output.

    Args:
        keep: A concept whose heads are spared, and which the projection of the output leaves as it is; by default the
            one that the concept's file names.
        operation: What happens to the chosen heads: `mean-ablate`, `zero-ablate` or `project-out`.
        heads: How many heads, those of highest score; by default as `choose_edit` weighs them.
        strength: Of the operation on heads, in [0, 1].
        output_strength: Of the projection on the output, in [0, 1]; 0 leaves that step out. By default as `choose_edit`
            weighs it, or 0 where the effect cannot hold it.
        directions: Number of directions of the concept.

    Raises:
        ConceptError, StatisticsError, RecipeError: As `select_by_text_difference` and `bind_recipe`.
    """
    require_kinds("make a recipe", scan=(scan, Scan), model=(model, Model))
    require_variety(scan)
    check_effect(effect, model, output_strength=output_strength)
    removed = concept if isinstance(concept, Concept) else load_concept(concept, model.folder)
    amounts = settle_amounts(
        scan,
        model,
        removed,
        select="text-difference",
        effect=effect,
        keep=keep,
        heads=heads,
        output_strength=output_strength,
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
    )
    warn_of_overlap(plan, Evidence(), model)
    recipe = bind_recipe(select_by_text_difference(scan, model, plan, Evidence()), scan, model)
    require_enough_images(estimate_fidelity(recipe, scan, model), scan.statistics.n)
    return recipe
