"""repair: the whole path in one function, from images to an edited model that was measured, written and verified."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..editor.concepts.concepts import Concept
from ..editor.edits.apply import apply_recipe
from ..editor.edits.bind import bind_recipe
from ..editor.edits.held_out import require_enough_images
from ..editor.edits.recipe import Recipe
from ..editor.errors import ImageError, require_kinds
from ..editor.images.demo import JUDGED_CONCEPT
from ..editor.images.demo_name import is_demo
from ..editor.images.labelled_options import LabelledOptions
from ..editor.images.layouts import open_dataset
from ..editor.images.published.captions import CaptionSet
from ..editor.images.skew import RetrievalSet
from ..editor.images.source import ImageSource, LabelledImages, find_shared
from ..editor.look.plot import plot_frontier, save_figure
from ..editor.measure.certificate import Certificate, read_certificate
from ..editor.measure.fidelity import describe_fidelity
from ..editor.measure.readable import Interaction, Readable, find_interactions, find_readable
from ..editor.measure.verdict import Verdict, read_leans, read_verdict
from ..editor.models.model import Model
from ..editor.notebook import html_facts, html_table
from ..editor.scan.scan import Scan
from ..editor.select.options import EditOptions, HeadChoice
from ..editor.select.plan import Evidence
from ..editor.select.whose_heads import HeldConcepts
from .choose import choose_recipe, measure_leans, read_request, require_held, require_not_yet_removed
from .edited_folder import require_writable, write_edited_model
from .hf_folder import describe_layout, describe_reach
from .inputs import Follow, follow_nothing, load_erased, scan_or_load
from .judge import Dataset, Made, choose_dataset, judge_made
from .output import Output
from .pages.desk.desk import Desk, desk
from .pages.model_card import NOT_ROWS
from .pages.report import NAME as REPORT_NAME
from .pages.report import find_concept, write_report
from .verify.verify import Check, Verifier


@dataclass(frozen=True)
class Repair:
    """A repaired model, and what speaks for it.

    Attributes:
        model: The unedited model.
        recipe: The bound recipe, with what was measured in it.
        scan: The statistics that the heads were chosen by, and the edit was computed from.
        checks: Of the folder that was written, run in a fresh process; none where nothing was written.
        out: That folder.
        page: The report in it.
    """

    model: Model
    recipe: Recipe
    scan: Scan
    checks: tuple[Check, ...] = ()
    out: Path | None = None
    page: Path | None = None

    @cached_property
    def edited(self) -> Model:
        """The edited model, in memory."""
        return apply_recipe(self.recipe, self.model)

    @property
    def measured(self) -> Mapping[str, Any]:
        """`before`, `after`, `control`, `output_projection` and `fidelity`, as far as there were images for them."""
        return self.recipe.document.measured or {}

    @property
    def rows(self) -> dict[str, Mapping[str, float]]:
        """A row of figures for each model: before, after, control, output_projection."""
        return {name: row for name, row in self.measured.items() if name not in NOT_ROWS}

    @property
    def verdict(self) -> Verdict:
        """Whether the edit helps, and why."""
        return read_verdict(self.measured)

    @property
    def certificate(self) -> Certificate | None:
        """What the edit can change at most, on any new image."""
        return read_certificate(self.measured)

    @property
    def readable(self) -> list[Readable]:
        """How well the concept, and every other that the model holds, can be read before and after."""
        return find_readable(self.measured)

    @property
    def interactions(self) -> list[Interaction]:
        """Where several concepts were removed, what each removal does to each of them."""
        return find_interactions(self.measured)

    @property
    def paths(self) -> dict[str, Path]:
        """What was written, by what it is."""
        if self.out is None:
            return {}
        found = {"model": self.out, "recipe": self.out / "recipe.yaml", "scan": self.out / "scan.safetensors"}
        return found | ({"report": self.page} if self.page else {})

    @property
    def layout(self) -> str:
        """What kind of folder was written."""
        if self.recipe.document.effect == "direct":
            return "base and direct edit"
        if self.model.hf_towers:
            return describe_layout(self.model)
        return "a timm folder" if "timm_cfg" in self.model.editable.config else "an open_clip folder"

    def report(self) -> dict[str, Any]:
        """Plain data: what `clipedit remove-heads --json` prints."""
        return {
            "verdict": self.verdict.word,
            "because": self.verdict.because,
            "certificate": self.certificate and self.certificate.report(),
            "readable": [vars(row) for row in self.readable],
            "leans": read_leans(self.measured),
            **({"interactions": [row.report() for row in self.interactions]} if self.interactions else {}),
            "heads": self.recipe.heads,
            "notes": self.describe_reach(),
            "measured": dict(self.measured),
            "out": None if self.out is None else str(self.out),
            "checks": [vars(check) for check in self.checks],
        }

    def describe_fidelity(self) -> list[str]:
        """How near the edit comes to the `direct` one, in a sentence, and a warning if that is not near enough."""
        return describe_fidelity(self.measured.get("fidelity"), self.recipe.document.effect)

    def describe_reach(self) -> list[str]:
        """Which programs see the edit, in a sentence; nothing for models that are read at their end."""
        found = describe_reach(self.model, self.recipe.document.effect, self.recipe.heads)
        return [] if found is None else [found]

    def desk(self, **options: Any) -> Desk:
        """The edit on a page where it is changed by hand; options as those of `clipedit.desk`."""
        named = options.pop("concept", None) or find_concept(self.recipe, self.model)
        return desk(self.scan, self.model, concept=named, recipe=self.recipe, **options)

    def _repr_html_(self) -> str:
        written = html_facts("written", self.paths.items()) if self.paths else ""
        rows = [(check.name, check.figure, check.relation, check.tolerance) for check in self.checks]
        return (
            self.recipe._repr_html_()
            + written
            + (html_table("checks", ("", "found", "", "needed"), rows) if rows else "")
        )


def repair(
    model: Model,
    *,
    images: str | Path | ImageSource | None = None,
    scan: Scan | str | Path | None = None,
    concept: str | Concept | Sequence[str | Concept] | None = None,
    keep: str | Concept | None = None,
    options: EditOptions | None = None,
    choice: HeadChoice | None = None,
    dataset: Dataset | None = None,
    labels: LabelledOptions | None = None,
    measure: bool = True,
    out: str | Path | None = None,
    output: Output | None = None,
    scan_options: Mapping[str, Any] | None = None,
    configuration: Mapping[str, Any] | None = None,
    progress: Follow | None = None,
    verifier: Verifier | None = None,
) -> Repair:
    """Find the heads that carry a concept, edit them, measure what that changed, write the model and verify it.

    Args:
        model: For edits of the text tower `model.with_tower("text")`; `images` is then a file with one text per line.
        images: Unlabelled calibration images; the demo model has its own.
        scan: A scan made earlier, or its file, in place of images.
        concept: What is removed, a name or a file, or several of them, which are refitted together. Only selectors that
            look at labels can do without.
        keep: A concept whose heads are spared; by default the one that the concept's file names.
        options: What happens to the heads.
        choice: How heads are chosen.
        dataset: Labelled images to measure on, beside random heads; for the demo model its test images by default.
        labels: How `dataset` is read: its columns, split and prompts.
        measure: False leaves the measuring to the caller.
        out: A folder for the edited model, its recipe, scan and report; without one nothing is written or verified.
        output: What is written there.
        scan_options: Passed to `scan`, such as `batch_size`.
        configuration: Which options a file or the environment gave; kept beside what was measured.
        progress: From a stage's name to a function that is told images done and in total.
        verifier: One that was entered already, so that its imports need not be waited for.

    Raises:
        ConceptError, ImageError, StatisticsError, RecipeError: If the edit cannot be made.
        ExportError: If the folder cannot be written.
        VerificationError: If what was written is not what was made; nothing is left then.
    """
    require_kinds("repair a model", model=(model, Model))
    out, follow = None if out is None else Path(out), progress or follow_nothing
    options, choice, output = options or EditOptions(), choice or HeadChoice(), output or Output()
    read = [one for one in (images, scan, dataset, choice.labelled, choice.features) if isinstance(one, str | Path)]
    # A folder that is not free is refused before the scan, not after it.
    output.check(out, model.folder, *read)
    request = read_request(model, concept, keep, options, choice)
    choice, concepts = request.choice, request.concepts
    if out is not None:
        require_writable(str(request.options.effect), model)
    require_not_yet_removed(request)
    # Of several the one that the demo's images cannot judge decides whether they are measured on.
    judged = next((one for one in concepts if one.name != JUDGED_CONCEPT), concepts[0] if concepts else None)
    dataset = choose_dataset(model, judged, dataset, choice.labelled)
    dataset = _open_dataset(model, dataset, labels, request.evidence, choice)
    scanned = scan_or_load(model, images, scan, options=scan_options or {}, follow=follow)
    # Prepared once: the refusal, the choice of heads and the readable concepts all ask it.
    known = HeldConcepts(scanned, model)
    require_held(request, known)
    prompts = (labels or LabelledOptions()).templates
    leans = measure_leans(request, known, dataset, prompts)
    document, parts = choose_recipe(request, known)
    erased = load_erased(document, model, choice, follow)
    recipe = bind_recipe(document, scanned, model, labelled=erased)
    by_texts, others = choice.select == "text-difference", [one for one in concepts if one is not judged]
    made = Made(recipe, scanned, model, judged, erased, by_texts, known, others, parts, leans)
    if erased is None and not choice.force:
        require_enough_images(made.fitted, scanned.statistics.n)
    # Measured before it is written, so that the folder's recipe holds the figures.
    if measure:
        recipe = recipe.with_measured(judge_made(made, dataset, images, follow, templates=prompts))
    if configuration:
        recipe = recipe.with_measured({"configuration": configuration})
    done = Repair(model, recipe, scanned)
    if out is not None:
        done = _write(done, out, images, output, follow=follow, verifier=verifier)
    if output.plot is not None and "frontier" in done.measured:
        save_figure(plot_frontier(done.measured["frontier"]), output.plot)
    return done


def _open_dataset(
    model: Model, dataset: Dataset | None, labels: LabelledOptions | None, evidence: Evidence, choice: HeadChoice
) -> Dataset | None:
    """The images to report on, read before anything is measured; never those that heads are chosen by.

    Raises:
        ImageError: If they cannot be read, or with how many are shared: any edit looks good there.
    """
    if dataset is None or model.side == "text":
        return dataset
    opened = open_dataset(dataset, labels)
    chosen = None if is_demo(choice.labelled) else evidence.labelled
    if chosen is None or not isinstance(opened, LabelledImages | RetrievalSet | CaptionSet):
        return opened
    shared = len(find_shared(chosen.source, opened.source))
    if shared:
        raise ImageError(
            f"cannot measure on the images that heads are chosen by: {shared} of {len(opened.source)} of --dataset are "
            "among those of --labelled, by content. Give others, or a `split` column: heads are chosen on validation "
            "rows, and figures are of test rows."
        )
    return opened


def _write(
    done: Repair,
    out: Path,
    images: str | Path | ImageSource | None,
    output: Output,
    *,
    follow: Follow,
    verifier: Verifier | None,
) -> Repair:
    # Texts are no images to verify with.
    shown = images if done.model.side == "image" else None
    reports = output.report and done.model.side == "image"

    def finish(folder: Path, edited: Model) -> None:
        if reports:
            write_report(folder, base=done.model, edited=edited, images=images, progress=follow("report"))

    options = {"images": shown, "scan": done.scan, "overwrite": output.overwrite, "finish": finish}
    checks = write_edited_model(done.recipe, done.model, out, verifier=verifier, **options)
    return replace(done, checks=tuple(checks), out=out, page=out / REPORT_NAME if reports else None)
