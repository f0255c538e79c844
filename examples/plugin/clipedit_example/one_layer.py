"""The selector `one-layer`: all heads from the one layer that holds most of the concept."""

from __future__ import annotations

from clipedit.editor.components import HeadId
from clipedit.editor.concepts.scores import score_heads
from clipedit.editor.edits.document import RecipeDocument
from clipedit.editor.errors import ConceptError
from clipedit.editor.models.model import Model
from clipedit.editor.scan.scan import Scan
from clipedit.editor.select.plan import EditPlan, Evidence, write_document


def select_by_one_layer(scan: Scan, model: Model, plan: EditPlan, evidence: Evidence) -> RecipeDocument:
    """The best heads of the layer whose best heads score highest together; never one at or below zero.

    Raises:
        ConceptError: If the plan has no concept, or no head holds any of it.
    """
    if plan.concept is None:
        raise ConceptError("cannot select heads by one-layer: no concept is named. Add --concept.")
    scores = score_heads(scan, model, concept=plan.concept, keep=plan.keep, directions=plan.directions)
    # Best first, so that the first of each layer are its best.
    layers: dict[int, dict[HeadId, float]] = {}
    for row in scores:
        if "H" in row.component and row.score > 0:
            head = HeadId.parse(row.component)
            layer = layers.setdefault(head.layer, {})
            if len(layer) < plan.heads:
                layer[head] = row.score
    if not layers:
        raise ConceptError(f"cannot select heads for {plan.concept.name}: no head holds any of it.")
    best = max(layers.values(), key=lambda heads: sum(heads.values()))
    return write_document(plan, list(best), model)
