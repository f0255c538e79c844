"""Selection: from what is known of the heads to an unbound recipe. A selector returns a document, never weights.

Every selector is one function of a scan, a model, the plan (what should happen to the heads it chooses) and the
evidence (what it may look at beyond the scan). The one here needs no labels: it takes the heads of highest score.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ..choices import DEFAULT_EFFECT, Along, Effect, HeadOperation
from ..components import HeadId
from ..concepts.concepts import Concept, load_concept
from ..concepts.directions import compute_concept_directions
from ..concepts.scores import HeadScore, score_heads
from ..edits.bind import holds_output
from ..edits.document import Base, RecipeDocument, Step
from ..errors import ConceptError, ImageError, RecipeError
from ..images.source import LabelledImages
from ..models.model import Model
from ..scan.features import CachedFeatures
from ..scan.scan import Scan
from ..scan.tally import Progress
from .options import EditOptions, HeadChoice

# Whatever says which heads: at most so many of them, of small towers no more than a quarter.
DEFAULT_HEADS, DEFAULT_SHARE = 8, 4
DEFAULT_OUTPUT_STRENGTH = 0.9
LEAST_GROUP = 5
SPANNED_ANGLE = 45.0
PLAIN_OPERATIONS = ("mean-ablate", "zero-ablate", "scale")


@dataclass(frozen=True)
class EditPlan:
    """What is to happen to the heads that a selector chooses.

    Attributes:
        concept: What is removed; None where the evidence says it without words.
        keep: A concept whose heads are spared, and which a projection of the output leaves as it is.
        heads: How many heads; for selectors that search, at most so many.
        strength: Of the operation on heads, in [0, 1].
        output_strength: Of the projection of the concept's texts out of the output; 0 leaves that step out.
        choice: What `heads` and `output_strength` were chosen by, kept in the recipe's `measured`; None where given.
        directions: Number of directions of the concept.
        along: Where the directions of projections come from, as in a recipe's step.
        weights: Of `reweight`, by head; else they come from the concept.
        factor: Of `scale`.
        leace: Erase labels from the output, last.
    """

    concept: Concept | None
    heads: int
    output_strength: float
    effect: Effect = DEFAULT_EFFECT
    keep: Concept | str | None = None
    choice: Mapping[str, Any] | None = None
    operation: HeadOperation | str = EditOptions.operation
    strength: float = EditOptions.strength
    directions: int | None = EditOptions.directions
    along: Along = EditOptions.along
    weights: dict[str, tuple[float, ...]] | None = None
    factor: float | None = EditOptions.factor
    leace: bool = EditOptions.leace


@dataclass(frozen=True)
class Evidence:
    """What a selector may look at beyond the scan; never the images that a result is reported on.

    Attributes:
        labelled: Images with classes and groups.
        retention: A second task on which nothing should change; without one, overall accuracy on `labelled` is kept.
        regions: For `attention-region`, a folder of masks, or the name of a column of boxes `left top right bottom`.
        budget: Points of accuracy that may be lost, for `frontier` and `attention-region`.
        cached: Features of these images, kept by a scan.
    """

    labelled: LabelledImages | None = None
    retention: LabelledImages | None = None
    regions: Path | str | None = None
    budget: float = HeadChoice.budget
    cached: CachedFeatures | None = None
    progress: Progress | None = None


Selector = Callable[[Scan, Model, EditPlan, Evidence], RecipeDocument]


def select_by_text_difference(scan: Scan, model: Model, plan: EditPlan, evidence: Evidence) -> RecipeDocument:
    """The heads of highest `score_heads`: concept minus kept concept, from texts alone; never one at or below zero.

    Raises:
        ConceptError: If the plan has no concept.
        RecipeError: If fewer heads were scored, or none above zero.
    """
    if plan.concept is None:
        raise ConceptError("cannot select heads by text-difference: no concept is named. Add --concept.")
    scores = score_heads(scan, model, concept=plan.concept, keep=plan.keep, directions=plan.directions)
    positive = {row.component for row in scores if row.score > 0}
    chosen = [head for head in select_top_heads(scores, plan.heads) if str(head) in positive]
    if plan.heads and not chosen:
        raise RecipeError(
            f"cannot select heads for {plan.concept.name}: none of {len(scores)} components holds more of it than "
            "nothing. Scan more layers, or name another concept."
        )
    return write_document(plan, chosen, model)


def write_document(plan: EditPlan, heads: Sequence[HeadId], model: Model) -> RecipeDocument:
    """The unbound recipe of a plan for some heads; the concept's texts are written into it."""
    concept = plan.concept
    named = {"concept": concept.name, "texts": concept.texts, "directions": plan.directions} if concept else {}
    steps = []
    if heads:
        # Plain operations have no directions: a recipe states what it uses, and nothing else.
        extra = {} if plan.operation in PLAIN_OPERATIONS else named | {"along": plan.along, "weights": plan.weights}
        steps.append(
            Step(
                operation=plan.operation,
                heads=tuple(map(str, sorted(heads))),
                strength=plan.strength,
                factor=plan.factor,
                **extra,
            )
        )
    if plan.output_strength > 0 and concept:
        kept = find_kept(concept, plan.keep, model)
        spared = None if kept is None else kept.texts
        steps.append(
            Step(operation="project-out", target="output", strength=plan.output_strength, spared=spared, **named)
        )
    # Last: it is fitted to what the steps before it leave.
    if plan.leace:
        steps.append(Step(operation="leace", target="output"))
    return RecipeDocument(
        schema_version=1,
        name=f"remove-{concept.name}" if concept else "remove-heads",
        base=Base(model=model.name, pretrained=model.pretrained),
        effect=plan.effect,
        steps=tuple(steps),
        measured=None if plan.choice is None else {"choice": dict(plan.choice)},
    )


def find_kept(concept: Concept, keep: Concept | str | None, model: Model) -> Concept | None:
    """What is kept beside a concept: the one given, else the one that the concept's file names."""
    kept = keep or concept.keep
    return load_concept(kept, model.folder) if isinstance(kept, str) else kept


def warn_of_overlap(plan: EditPlan, evidence: Evidence, model: Model) -> None:
    """Warn where the concept's texts span the core task, the kept concept or labelled classes, and say the angle."""
    concept = plan.concept
    keep = None if concept is None else find_kept(concept, plan.keep, model)
    if concept is None or (keep is None and evidence.labelled is None):
        return
    if keep is not None:
        core = keep.texts
    else:
        core = tuple(f"a photo of a {name}" for name in evidence.labelled.classes) if evidence.labelled else ()
    # As many directions as scores take: all texts would span a small head completely.
    most = max(1, model.tower.d_head // 4)
    spans = [compute_concept_directions(model.encode_text(list(t)).cpu(), most=most) for t in (concept.texts, core)]
    angle = compute_span_angle(*spans)
    if angle < SPANNED_ANGLE:
        warnings.warn(
            f"the texts of {concept.name} span the core task: {angle:.0f} degrees between them (0 is the same, 90 "
            "nothing in common), so that removing one removes the other. Use texts that do not name the classes.",
            stacklevel=3,
        )


def compute_span_angle(concept: Float[Tensor, "d_embed concept"], core: Float[Tensor, "d_embed core"]) -> float:
    """Degrees between a core task's directions and a concept's span: 0 if it holds all of them, 90 if none."""
    # Both are orthonormal: the mean squared cosine between the core's directions and the span.
    share = (concept.T @ core).square().sum() / core.shape[1]
    return float(share.clamp(0, 1).sqrt().arccos().rad2deg())


def require_labelled(evidence: Evidence, selector: str) -> LabelledImages:
    """The labelled images of a selector that needs them.

    Raises:
        ImageError: If there are none, or a group has fewer than five images.
    """
    labelled = evidence.labelled
    if labelled is None:
        raise ImageError(
            f"cannot select heads by {selector}: it needs labelled images. Add --labelled DIR (one folder per class or "
            "a metadata.csv with label and group columns)."
        )
    names, counts = np.unique(labelled.groups, return_counts=True)
    if counts.min() < LEAST_GROUP:
        small = names[counts.argmin()]
        raise ImageError(
            f"cannot select heads by {selector}: group {str(small)!r} has {counts.min()} images, at least "
            f"{LEAST_GROUP} are needed. Add images, or group by fewer columns with --group-by."
        )
    return labelled


def select_top_heads(scores: Sequence[HeadScore], count: int) -> list[HeadId]:
    """The `count` heads of highest score, in order of layer and head.

    Raises:
        RecipeError: If fewer heads were scored.
    """
    heads = [HeadId.parse(row.component) for row in scores if "H" in row.component]
    if not 0 <= count <= len(heads):
        raise RecipeError(f"cannot select {count} heads: the scan has {len(heads)}. Lower --heads or scan more layers.")
    return sorted(heads[:count])


def draw_random_heads(
    scanned: Sequence[HeadId], like: Sequence[HeadId], generator: np.random.Generator
) -> list[HeadId]:
    """A control: as many random heads as `like` names, from the same layers, as many in each layer.

    Layers in which every head is named cannot give other heads; the draw then repeats them.
    """
    drawn: list[HeadId] = []
    for layer in sorted({head.layer for head in like}):
        pool = [head for head in scanned if head.layer == layer]
        wanted = sum(head.layer == layer for head in like)
        drawn += [pool[index] for index in generator.choice(len(pool), wanted, replace=False)]
    return sorted(drawn)


def default_heads(scan: Scan, model: Model) -> int:
    """How many heads a search may take unless told: eight, at most a quarter of those scanned, at least one."""
    scanned = sum(model.tower.heads_per_layer[layer] for layer in scan.layers)
    return min(DEFAULT_HEADS, max(1, scanned // DEFAULT_SHARE))


def default_output_strength(effect: str, model: Model) -> float:
    """The default strength of projecting a concept's texts out of the output: 0 where the effect cannot hold it."""
    return DEFAULT_OUTPUT_STRENGTH if holds_output(effect, model) else 0.0
