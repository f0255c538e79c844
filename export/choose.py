"""Which edit: what a repair reads before it scans, and the recipe that it chooses; nothing is measured here."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..editor.concepts.concepts import Concept, load_concept
from ..editor.concepts.margins import Lean, name_classes
from ..editor.edits.bind import check_effect, default_effect
from ..editor.edits.document import RecipeDocument
from ..editor.edits.singular import load_weights
from ..editor.errors import ConceptError
from ..editor.images.demo_name import DEMO, is_demo
from ..editor.images.labelled_options import LabelledOptions
from ..editor.images.layouts import Dataset, list_classes, open_dataset
from ..editor.images.published.captions import CaptionSet
from ..editor.images.source import ImageSource
from ..editor.models.model import Model
from ..editor.scan.scan import Scan
from ..editor.scan.variety import require_variety
from ..editor.select.amounts import choose_for
from ..editor.select.choice import Candidate
from ..editor.select.options import EditOptions, HeadChoice
from ..editor.select.plan import Evidence
from ..editor.select.selectors import join_documents, select_each, select_recipe
from ..editor.select.whose_heads import HeldConcepts, Judgement
from .inputs import Follow, follow_nothing, load_evidence, scan_or_load

Leans = Mapping[str, Lean]
Asked = str | Concept | Sequence[str | Concept] | None


@dataclass(frozen=True)
class Request:
    """What is asked of a model, read and checked: nothing in it can be misspelt any more."""

    model: Model
    concepts: tuple[Concept, ...]
    keep: Concept | None
    options: EditOptions
    choice: HeadChoice
    evidence: Evidence

    @property
    def by_texts(self) -> bool:
        """Whether the concepts' texts choose the heads of an image tower, so that what the heads hold decides."""
        return self.choice.select == "text-difference" and self.model.side == "image"


@dataclass(frozen=True)
class Weighed:
    """One concept: whether a few heads hold it, the edits that were weighed (Methods, section 11), and the best."""

    judgement: Judgement
    weighed: tuple[Candidate, ...]
    chosen: Candidate

    def report(self) -> dict[str, Any]:
        """Plain data."""
        found = self.judgement
        return {
            "concept": found.concept,
            "verdict": found.verdict,
            "because": found.because,
            "selectivity": found.selectivity.value,
            "interval": list(found.interval),
            "weighed": [one.report() for one in self.weighed],
            "chosen": self.chosen.report(),
        }


@dataclass(frozen=True)
class Plan:
    """What a repair would do.

    Attributes:
        document: The unbound recipe.
        concepts: What was weighed for each concept; none where labels choose the heads, or of a text tower.
        refused: Why the repair would not be made without `force`.
    """

    document: RecipeDocument
    concepts: tuple[Weighed, ...] = ()
    refused: str | None = None

    def report(self) -> dict[str, Any]:
        """Plain data: what `clipedit remove-heads --dry-run --json` prints."""
        return {
            "recipe": self.document.name,
            "heads": self.document.heads,
            "effect": self.document.effect,
            "steps": [step.model_dump(mode="json", exclude_defaults=True) for step in self.document.steps],
            "concepts": [one.report() for one in self.concepts],
            "refused": self.refused,
        }


def read_request(
    model: Model, concept: Asked, keep: str | Concept | None, options: EditOptions, choice: HeadChoice
) -> Request:
    """Whatever can be wrong is read before the images are: a misspelt name must not cost a scan.

    Raises:
        ConceptError, ImageError, RecipeError: If something cannot be read.
    """
    if is_demo(model.name):
        choice = replace(choice, labelled=choice.labelled or DEMO)
    # Selectors that look at labels need no words, unless a concept is named.
    if choice.select == "text-difference" or concept or keep is not None:
        model.tokenizer(["a photo"])
    effect = options.effect or default_effect(model)
    check_effect(effect, model, output_strength=options.output_strength)
    asked = [concept] if concept is None or isinstance(concept, str | Path | Concept) else concept
    *named, kept = (load_concept(one, model.folder) if isinstance(one, str | Path) else one for one in (*asked, keep))
    weights = load_weights(options.weights) if isinstance(options.weights, Path) else options.weights
    concepts = tuple(one for one in named if one is not None)
    settled = replace(options, effect=effect, weights=weights)
    return Request(model, concepts, kept, settled, choice, load_evidence(choice))


def choose_recipe(request: Request, known: HeldConcepts) -> tuple[RecipeDocument, dict[str, RecipeDocument]]:
    """The unbound recipe that the request's selector finds in a scan, and that of each concept alone, by name.

    Raises:
        ConceptError, RecipeError, StatisticsError: If the selector finds nothing.
    """
    options = {"select": request.choice.select, "evidence": request.evidence, "keep": request.keep, "known": known}
    chosen: dict[str, Any] = {**options, **vars(request.options)}
    # Labels may say what is wrong without a word.
    if not request.concepts:
        return select_recipe(known.scan, request.model, **chosen), {}
    parts = select_each(known.scan, request.model, concepts=request.concepts, **chosen)
    return join_documents(list(parts.values())), parts


def plan_repair(
    model: Model,
    *,
    images: str | Path | ImageSource | None = None,
    scan: Scan | str | Path | None = None,
    concept: Asked = None,
    keep: str | Concept | None = None,
    options: EditOptions | None = None,
    choice: HeadChoice | None = None,
    dataset: Dataset | None = None,
    labels: LabelledOptions | None = None,
    scan_options: Mapping[str, Any] | None = None,
    progress: Follow | None = None,
) -> Plan:
    """What `repair` would choose, and what it would weigh; nothing is edited, measured or written.

    A concept that it would refuse is planned as with `force`, and the refusal is said in the plan. Of the labelled
    images only the classes are read.
    """
    request = read_request(model, concept, keep, options or EditOptions(), choice or HeadChoice())
    require_not_yet_removed(request)
    opened = None if dataset is None else open_dataset(dataset, labels)
    scanned = scan_or_load(model, images, scan, options=scan_options or {}, follow=progress or follow_nothing)
    known, refused = HeldConcepts(scanned, model), None
    try:
        require_held(request, known)
        measure_leans(request, known, opened, (labels or LabelledOptions()).templates)
    except ConceptError as error:
        refused = str(error)
    document, _ = choose_recipe(request, known)
    ordered = sorted(request.concepts, key=lambda one: one.name) if request.by_texts else ()
    return Plan(document, tuple(_weigh(request, known, one, document.effect) for one in ordered), refused)


def _weigh(request: Request, known: HeldConcepts, concept: Concept, effect: str) -> Weighed:
    given = {name: getattr(request.options, name) for name in ("heads", "output_strength")}
    # None of what goes has to stay.
    names = {one.name for one in request.concepts}
    library = {name: one for name, one in known.library.items() if name not in names or len(names) == 1}
    found = choose_for(known, concept, effect, library=library, keep=request.keep, **given)
    return Weighed(known.judge(concept), found.weighed, found.chosen)


def require_not_yet_removed(request: Request) -> None:
    """Refuse to remove a concept twice: what is left of it is spread, and a second edit takes what must stay.

    Raises:
        ConceptError: If the model's own recipe names a concept.
    """
    model = request.model
    if not request.concepts or model.recipe is None or request.choice.force:
        return
    document = model.recipe.document
    # Heads that are ablated carry no texts: their step is followed by one that does, or the recipe is named for it.
    removed = {step.concept for step in document.steps} | set(document.name.removeprefix("remove-").split("-and-"))
    removed.add(document.name.removeprefix("remove-"))
    again = next((concept.name for concept in request.concepts if concept.name in removed), None)
    if again is not None:
        raise ConceptError(
            f"cannot remove {again} from {model.name}: its recipe {document.name} has done so, and there is "
            "nothing left to do. Edit the unedited model to choose otherwise, or add --force."
        )


def require_held(request: Request, known: HeldConcepts) -> None:
    """Refuse images that hardly differ, and concepts that no few heads hold or whose heads are another concept's.

    Raises:
        StatisticsError, ConceptError: With the figures, and what to do instead.
    """
    if request.choice.force:
        return
    require_variety(known.scan)
    for concept in request.concepts if request.by_texts else ():
        found = known.judge(concept)
        if found.verdict != "held":
            explained = found.other is not None and found.verdict == "other"
            advice = f"Look at `clipedit score SCAN --concept {found.other}`, or add" if explained else "Add"
            raise ConceptError(
                f"cannot remove {concept.name}: {found.because}. Nothing was changed. {advice} --force to edit anyway, "
                "with --heads 0 to project its texts out of the output and leave all heads."
            )


def measure_leans(request: Request, known: HeldConcepts, dataset: Dataset | None, templates: Sequence[str]) -> Leans:
    """How much the classes lean on each concept, before anything is measured; warns where they do not.

    The classes are those of the images to report on, else of those that heads are chosen by. Not asked are a concept
    whose texts name them, which is the task itself, and one that no few heads hold.

    Args:
        templates: Prompts of the classes.

    Raises:
        ConceptError: As `require_leant_on`.
        ImageError: If to the model two classes are one.
    """
    task = dataset if dataset is not None else request.evidence.labelled
    classes = () if task is None or isinstance(task, CaptionSet) else list_classes(task)
    if request.model.side == "text" or request.model.alignment is not None or len(classes) < 2:
        return {}
    asked = [one for one in request.concepts if not name_classes(one, classes) and known.judge(one).verdict == "held"]
    if not asked:
        return {}
    margins = known.build_margins(classes, getattr(task, "templates", ()) or templates)
    leans = {one.name: margins.rank(known.span_of(one), len(one.texts)) for one in asked}
    require_leant_on(request, leans)
    return leans


def require_leant_on(request: Request, leans: Leans) -> None:
    """Refuse what texts alone would remove though the classes clearly do not lean on it; else warn where they do not.

    Raises:
        ConceptError: With the figures, and what to do instead.
    """
    for name, lean in leans.items():
        if lean.is_clearly_not and request.by_texts and not request.choice.force:
            raise ConceptError(
                f"cannot remove {name}: {lean.describe(name)}, so that removing it has nothing to give and may "
                "harm. Name a concept that `clipedit audit` says they lean on, or add --force to edit anyway."
            )
        if not lean.is_leant_on:
            warnings.warn(f"{lean.describe(name)}: removing it may have nothing to give.", stacklevel=4)
