"""Selection: from what is known of the heads to an unbound recipe. A selector returns a document, never weights.

Every selector is one function of a scan, a model, the plan (what should happen to the heads it chooses) and the evidence
(what it may look at beyond the scan). The one here needs no labels: it takes the heads of highest score.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .components import HeadId
from .concepts import Concept
from .datasets import LabelledImages
from .errors import ConceptError, ImageError, RecipeError
from .features import CachedFeatures
from .model import Model
from .recipe import Base, Effect, HeadOperation, RecipeDocument, Step
from .scan import Progress, Scan
from .scores import HeadScore, score_heads

LEAST_GROUP = 5
PLAIN_OPERATIONS = ("mean-ablate", "zero-ablate")


@dataclass(frozen=True)
class EditPlan:
    """What is to happen to the heads that a selector chooses.

    Attributes:
        concept: What is removed; None where the evidence says it without words.
        keep: A concept whose heads are spared.
        heads: How many heads; for selectors that search, at most so many.
        strength: Of the operation on heads, in [0, 1].
        output_strength: Of the projection of the concept's texts out of the output; 0 leaves that step out.
        directions: Number of directions of the concept.
        factor: Of `scale`.
    """

    concept: Concept | None
    heads: int
    output_strength: float
    keep: Concept | str | None = None
    operation: HeadOperation = "mean-ablate"
    effect: Effect = "distilled"
    strength: float = 1.0
    directions: int | None = None
    factor: float | None = None


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
    budget: float = 1.0
    cached: CachedFeatures | None = None
    progress: Progress | None = None


Selector = Callable[[Scan, Model, EditPlan, Evidence], RecipeDocument]


def select_by_text_difference(scan: Scan, model: Model, plan: EditPlan, evidence: Evidence) -> RecipeDocument:
    """The heads of highest `score_heads`: concept minus kept concept, from texts alone.

    Raises:
        ConceptError: If the plan has no concept.
        RecipeError: If fewer heads were scored.
    """
    if plan.concept is None:
        raise ConceptError("cannot select heads by text-difference: no concept is named. Add --concept.")
    scores = score_heads(scan, model, concept=plan.concept, keep=plan.keep, directions=plan.directions)
    return write_document(plan, select_top_heads(scores, plan.heads), model)


def write_document(plan: EditPlan, heads: Sequence[HeadId], model: Model) -> RecipeDocument:
    """The unbound recipe of a plan for some heads; the concept's texts are written into it."""
    concept = plan.concept
    named = {"concept": concept.name, "texts": concept.texts, "directions": plan.directions} if concept else {}
    steps = []
    if heads:
        extra = {} if plan.operation in PLAIN_OPERATIONS else named
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
        steps.append(Step(operation="project-out", target="output", strength=plan.output_strength, **named))
    return RecipeDocument(
        schema_version=1,
        name=f"remove-{concept.name}" if concept else "remove-heads",
        base=Base(model=model.name, pretrained=model.pretrained),
        effect=plan.effect,
        steps=tuple(steps),
    )


def require_labelled(evidence: Evidence, selector: str) -> LabelledImages:
    """The labelled images of a selector that needs them.

    Raises:
        ImageError: If there are none, or a group has fewer than five images.
    """
    labelled = evidence.labelled
    if labelled is None:
        raise ImageError(
            f"cannot select heads by {selector}: it needs labelled images. Add --labelled DIR (a folder a class, or a "
            "metadata.csv with label and group columns)."
        )
    names, counts = np.unique(labelled.groups, return_counts=True)
    if counts.min() < LEAST_GROUP:
        small = names[counts.argmin()]
        raise ImageError(
            f"cannot select heads by {selector}: group {str(small)!r} has {counts.min()} images, at least {LEAST_GROUP} "
            "are needed. Add images, or group by fewer columns with --group-by."
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
