"""make_recipe: a concept to a bound recipe, with nothing but a scan and texts."""

from __future__ import annotations

from collections.abc import Sequence

from ..choices import Effect, HeadOperation
from ..concepts.concepts import Concept
from ..edits.bind import bind_recipe, check_effect, default_effect
from ..edits.held_out import estimate_fidelity, require_enough_images
from ..edits.recipe import Recipe
from ..errors import require_kinds
from ..models.model import Model
from ..scan.scan import Scan
from ..scan.variety import require_variety
from .options import EditOptions
from .selectors import select_several


def make_recipe(
    scan: Scan,
    model: Model,
    *,
    concept: str | Concept | Sequence[str | Concept],
    keep: str | Concept | None = None,
    operation: HeadOperation | str = EditOptions.operation,
    effect: Effect | None = EditOptions.effect,
    heads: int | None = None,
    strength: float = EditOptions.strength,
    output_strength: float | None = None,
    directions: int | None = None,
) -> Recipe:
    """A bound recipe that removes a concept: edit the heads that carry it, and shrink its texts' directions of the
    output.

    Args:
        concept: One, or several that are removed together (`select_several`): one refit, in whatever order.
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
    effect = effect or default_effect(model)
    check_effect(effect, model, output_strength=output_strength)
    document = select_several(
        scan,
        model,
        concepts=[concept] if isinstance(concept, str | Concept) else concept,
        keep=keep,
        operation=operation,
        effect=effect,
        heads=heads,
        strength=strength,
        output_strength=output_strength,
        directions=directions,
    )
    recipe = bind_recipe(document, scan, model)
    require_enough_images(estimate_fidelity(recipe, scan, model), scan.statistics.n)
    return recipe
