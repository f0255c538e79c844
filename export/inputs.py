"""What `repair` and `apply` read before they edit: the scan, labelled images to choose heads on, labels to erase."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..editor.edits.document import RecipeDocument
from ..editor.errors import RecipeError, StatisticsError
from ..editor.images.demo import labelled_by, labelled_tasks, test_source
from ..editor.images.demo_name import DEMO, is_demo
from ..editor.images.layouts import load_selection_set
from ..editor.images.source import ImageSource
from ..editor.models.model import Model
from ..editor.scan.collect import LabelledEmbeddings, collect_labelled
from ..editor.scan.features import load_features
from ..editor.scan.scan import Scan, load_scan, scan
from ..editor.scan.tally import Progress
from ..editor.select.options import HeadChoice
from ..editor.select.plan import Evidence, require_labelled

Follow = Callable[[str], Progress]


def follow_nothing(stage: str) -> Progress:
    """For callers that want no progress."""
    return lambda done, total: None


def demo_test_images() -> ImageSource:
    """What the demo model is measured on."""
    return test_source()


def scan_or_load(
    model: Model,
    images: str | Path | ImageSource | None,
    scanned: Scan | str | Path | None,
    *,
    options: Mapping[str, Any],
    follow: Follow,
) -> Scan:
    """A scan that was given, or was saved, or is made now; the demo model has images of its own.

    Raises:
        StatisticsError: If there are neither images nor a scan.
    """
    if isinstance(scanned, Scan):
        return scanned
    if scanned is not None:
        return load_scan(scanned)
    if images is None and not is_demo(model.name):
        raise StatisticsError(
            "cannot choose heads: no images were given. Add --images DIR (no labels needed) or --scan."
        )
    return scan(model, DEMO if images is None else images, progress=follow("scan"), **options)


def load_evidence(choice: HeadChoice) -> Evidence:
    """What selectors other than `text-difference` look at; refused before images are scanned if it does not suffice.

    Raises:
        ImageError: If there are no labelled images, or a group has fewer than five.
    """
    if choice.select == "text-difference":
        return Evidence()
    cached = load_features(choice.features) if choice.features else None
    task = second = None
    if is_demo(choice.labelled):
        task, second = labelled_tasks()
    elif choice.labelled is not None:
        names = ("layout", "label", "group_by", "split", "classes", "retention", "exif")
        task = load_selection_set(choice.labelled, **{name: getattr(choice, name) for name in names})
        second = task.retention
    evidence = Evidence(task, second, choice.regions, choice.budget, cached)
    # Here as well as in the selector: the images are scanned in between.
    require_labelled(evidence, choice.select)
    return evidence


def load_erased(
    document: RecipeDocument, model: Model, choice: HeadChoice, follow: Follow
) -> LabelledEmbeddings | None:
    """The labelled images of a recipe that erases labels, embedded; None for other recipes, or without labels.

    Raises:
        RecipeError: If labels are to be erased and no column was named.
    """
    erases = any(step.operation == "leace" or step.along == "labels" for step in document.steps)
    if not erases or choice.labelled is None:
        return None
    if choice.erase is None:
        raise RecipeError("cannot erase labels: no column was named. Add --erase COLUMN.")
    if is_demo(choice.labelled):
        task = labelled_by(choice.erase)
    else:
        names = ("layout", "split", "exif")
        columns = {name: getattr(choice, name) for name in names}
        task = load_selection_set(choice.labelled, label=choice.erase, **columns)
    return collect_labelled(model, task, progress=follow("labelled"))
