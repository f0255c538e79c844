"""What speaks for an edit, before anything is written: figures on labelled images, and what a scan says alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ..editor.concepts.concepts import Concept, list_concepts, load_concept
from ..editor.concepts.margins import Lean
from ..editor.edits.apply import apply_recipe
from ..editor.edits.bind import bind_recipe
from ..editor.edits.document import RecipeDocument
from ..editor.edits.held_out import Fidelity, HeldOut, hold_out
from ..editor.edits.recipe import Recipe
from ..editor.images.demo import JUDGED_CONCEPT
from ..editor.images.demo_name import DEMO, is_demo
from ..editor.images.labelled_options import LabelledOptions
from ..editor.images.layouts import Dataset
from ..editor.images.listing import list_images
from ..editor.images.source import ImageSource
from ..editor.images.texts import list_texts
from ..editor.measure.certificate import certify_recipe
from ..editor.measure.control import MeasuredEdit, measure_edit
from ..editor.measure.fidelity import measure_fidelity, spread_images
from ..editor.measure.readable import Readable, Reader, read_concepts, read_interactions, read_labelled
from ..editor.measure.verdict import Verdict, not_measured
from ..editor.models.model import Model
from ..editor.scan.collect import LabelledEmbeddings, collect_embeddings
from ..editor.scan.sample import count_seen
from ..editor.scan.scan import Scan
from ..editor.select.whose_heads import HeldConcepts
from .inputs import Follow, demo_test_images, follow_nothing


@dataclass(frozen=True)
class Made:
    """An edit as it was made, with what is known of it at no cost.

    Attributes:
        recipe: Bound to the scan.
        model: The unedited model.
        concept: What it removes; None where labels said it without words.
        others: What it removes besides.
        parts: Where it removes several concepts, the recipe of each alone, by name.
        leans: How much the classes lean on each concept, where there are classes.
        erased: The labelled images that it erases labels by.
        by_texts: Whether its heads were chosen by the concept's texts.
        known: What the heads of the model hold; by default it is found when it is asked for.
    """

    recipe: Recipe
    scan: Scan
    model: Model
    concept: Concept | None = None
    erased: LabelledEmbeddings | None = None
    by_texts: bool = True
    known: HeldConcepts | None = None
    others: Sequence[Concept] = ()
    parts: Mapping[str, RecipeDocument] = field(default_factory=dict)
    leans: Mapping[str, Lean] = field(default_factory=dict)

    @property
    def removed(self) -> list[Concept]:
        """All concepts that it removes."""
        return [one for one in (self.concept, *self.others) if one is not None]

    @cached_property
    def held(self) -> HeldOut | None:
        """The sample of the scan, each image left out of the edit."""
        return hold_out(self.recipe, self.scan, self.model, labelled=self.erased)

    @property
    def fitted(self) -> Fidelity | None:
        """The fidelity of a refit on images left out; None where nothing was refitted, or none could be left out."""
        distilled = self.recipe.document.effect == "distilled"
        return self.held.fidelity if distilled and self.held is not None and self.held.left_out else None


def judge_made(
    made: Made,
    dataset: Dataset | None,
    images: str | Path | ImageSource | None,
    follow: Follow,
    *,
    templates: Sequence[str] = LabelledOptions.templates,
) -> dict[str, Any]:
    """All figures of an edit, as its recipe keeps them: rows of the data set, `evidence` and `fidelity`.

    Args:
        templates: Prompts of the classes of the data set.
    """
    found = None
    if dataset is not None:
        options = {"templates": templates, "labelled": made.erased, "progress": follow("measure")}
        found = measure_edit(made.recipe, made.scan, made.model, dataset, **options)
    seen = _find_seen(made, dataset, images)
    evidence, fidelity = collect_evidence(made, found, seen, follow), _judge_fidelity(made, seen, follow)
    return {**(found.rows if found else {}), "evidence": evidence, **({"fidelity": fidelity} if fidelity else {})}


def collect_evidence(
    made: Made,
    found: MeasuredEdit | None,
    seen: tuple[ImageSource, str] | None = None,
    follow: Follow = follow_nothing,
) -> dict[str, Any]:
    """The verdict first, then what it rests on, the certificate, and which concepts can still be read."""
    evidence: dict[str, Any]
    if found is not None:
        evidence = found.report()
        evidence["calibration_images"] = _count_calibration_images(made, found)
    else:
        verdict = _say_unmeasured(made)
        evidence = {"verdict": verdict.word, "because": verdict.because}
    certificate = certify_recipe(made.recipe, made.scan, made.model, labelled=made.erased, held=made.held)
    readable = [asdict(row) for row in _read(made, found, seen, follow)]
    evidence |= {"certificate": certificate.report() if certificate else None, "readable": readable}
    if made.leans:
        evidence["leans"] = [lean.report(name) for name, lean in made.leans.items()]
    # Of one removal there is nothing to say to another.
    return evidence | ({"interactions": _read_interactions(made)} if made.others else {})


def _read_interactions(made: Made) -> list[dict[str, Any]]:
    """What each removal alone, and all of them together, do to every concept that is removed."""
    probe = (made.known or HeldConcepts(made.scan, made.model)).probe
    alone = {(name,): bind_recipe(document, made.scan, made.model) for name, document in made.parts.items()}
    removals: dict[tuple[str, ...], Recipe] = {**alone, tuple(made.parts): made.recipe}
    readers = {removed: Reader(probe, recipe) for removed, recipe in removals.items()}
    return [one.report() for one in read_interactions(readers, made.removed, made.scan)]


def _count_calibration_images(made: Made, found: MeasuredEdit) -> dict[str, int] | None:
    """How many of the scan's sample are among the images measured on, by content; None where there is no sample."""
    if made.scan.sample is None or found.source is None or found.answers is None or made.model.side == "text":
        return None
    embeddings = found.answers[0].embeddings
    count = count_seen(made.scan.sample, found.source, embeddings, decode=made.scan.decode)
    return {"among_measured": count, "of": len(made.scan.sample)}


def describe_fitted(made: Made) -> dict[str, Any] | None:
    """The fidelity on images left out, as a recipe keeps it."""
    on = f"calibration {made.model.side}s, each left out"
    return None if made.fitted is None else _describe(made.fitted, on)


def choose_dataset(model: Model, concept: Concept | None, given: Dataset | None, labelled: object) -> Dataset | None:
    """What an edit is measured on; of the demo its own test images, if they can judge what is removed.

    They show shapes in places: of location they tell whether it is gone and shapes are seen better, of colour neither.

    Args:
        labelled: What heads are chosen by, where no concept says what is removed.
    """
    if given is not None or not is_demo(model.name):
        return given
    judged = concept.name == JUDGED_CONCEPT if concept is not None else is_demo(labelled)
    return DEMO if judged else None


def _say_unmeasured(made: Made) -> Verdict:
    if is_demo(made.model.name) and made.concept is not None and made.concept.name != JUDGED_CONCEPT:
        return not_measured(
            f"the demo's own test images judge {JUDGED_CONCEPT} only, of {made.concept.name} they say nothing"
        )
    return not_measured()


def _read(
    made: Made, found: MeasuredEdit | None, seen: tuple[ImageSource, str] | None, follow: Follow
) -> list[Readable]:
    """Which concepts can still be read; none where a model has no texts of its own to read them by."""
    model = made.model
    if not model.has_texts or model.alignment is not None:
        return []
    if model.side == "text":
        return _read_texts(made, found)
    known = made.known or HeldConcepts(made.scan, model)
    rows = found.attributes if found is not None else ()
    answers = found.answers if found is not None else None
    plain = _find_plain(made, found, seen, follow)
    reader = Reader(known.probe, made.recipe, rows, answers, plain, made.by_texts, not made.others)
    return read_concepts(reader, made.removed, known.library)


def _read_texts(made: Made, found: MeasuredEdit | None) -> list[Readable]:
    """Of a text tower, where the heads of images say nothing: every concept that a column of labelled images says."""
    if found is None or found.answers is None:
        return []
    names, rows = {one.name for one in made.removed}, []
    others = [load_concept(name, made.model.folder) for name in list_concepts(made.model.folder) if name not in names]
    for concept in (*made.removed, *others):
        rows.append(read_labelled(concept, found.attributes, found.answers, edited=concept.name in names))
    return [row for row in rows if row is not None]


def _find_plain(
    made: Made, found: MeasuredEdit | None, seen: tuple[ImageSource, str] | None, follow: Follow
) -> tuple[Float[Tensor, "image d_embed"], Float[Tensor, "image d_embed"]] | None:
    """Embeddings before and after: of the scan's sample, else of labelled images, else of some that are read again."""
    if made.held is not None:
        return made.held.before, made.held.after
    if found is not None and found.answers is not None:
        before, after = found.answers
        # Rows are paired by position: only the same images can be compared.
        return (before.embeddings, after.embeddings) if before.kept == after.kept else None
    if seen is None:
        return None
    some, told = spread_images(seen[0]), follow("read")
    before, kept = collect_embeddings(made.model, some, progress=told)
    after, kept_after = collect_embeddings(apply_recipe(made.recipe, made.model), some, progress=told)
    return (before, after) if kept == kept_after else None


def _judge_fidelity(made: Made, seen: tuple[ImageSource, str] | None, follow: Follow) -> dict[str, Any] | None:
    """The fidelity to `direct`: on the scan's own images, each left out, where it kept them; else on what there is."""
    effect = made.recipe.document.effect
    # `direct` is the yardstick itself.
    if made.fitted is not None or effect == "direct" or seen is None:
        return describe_fitted(made)
    found = measure_fidelity(
        made.recipe, made.scan, made.model, seen[0], labelled=made.erased, progress=follow("fidelity")
    )
    # A total edit is fitted to means only; another may have been fitted to the very images that it is judged on.
    return _describe(replace(found, held_out=effect == "total" or seen[1] == "dataset"), seen[1])


def _describe(found: Fidelity, on: str) -> dict[str, Any]:
    return asdict(found) | {"n": found.images, "on": on}


def _find_seen(
    made: Made, dataset: Dataset | None, images: str | Path | ImageSource | None
) -> tuple[ImageSource, str] | None:
    """What is looked at where the scan holds no sample: the images of the data set, else those of the calibration."""
    model, scan = made.model, made.scan
    if dataset is None and images is None:
        return None
    if model.side == "text":
        return list_texts(images or DEMO), "calibration texts"
    if dataset is None:
        return list_images(images or DEMO).read_as(model.decoding(scan.exif, scan.decode)), "calibration images"
    # A data set has been opened by now: what is left as a name is the demo's.
    return demo_test_images() if isinstance(dataset, str | Path) else dataset.source, "dataset"
