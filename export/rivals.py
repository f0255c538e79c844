"""Rivals from what a user names: a model, a concept, unlabelled images or a scan, and labelled images to fit to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ..editor.concepts.concepts import Concept, load_concept
from ..editor.errors import ImageError
from ..editor.images.demo import labelled_by, labelled_tasks
from ..editor.images.demo_name import DEMO, is_demo
from ..editor.images.labelled_options import LabelledOptions
from ..editor.images.layouts import Dataset, load_selection_set, open_dataset
from ..editor.images.listing import list_images
from ..editor.images.source import LabelledImages, find_shared
from ..editor.models.model import Model
from ..editor.rivals.measure import RivalTable, classes_of, measure_rivals, source_of
from ..editor.rivals.setting import Setting
from .inputs import Follow, follow_nothing, scan_or_load

# The column of the demo's images that its concept is about.
DEMO_COLUMN = "place"


def compare_rivals(
    models: Mapping[str, Model],
    dataset: Dataset,
    *,
    concept: str | Path | Concept,
    images: str | Path | None = None,
    scan: str | Path | None = None,
    labelled: str | None = None,
    erase: str | None = None,
    labels: LabelledOptions | None = None,
    progress: Follow | None = None,
) -> RivalTable:
    """Every other method of taking a concept out of the first model, beside the other models as they are.

    Args:
        models: The unedited one first.
        dataset: The images to report on.
        images, scan: Unlabelled images, or a scan of them; the demo model has its own.
        labelled: Other images with labels, for the methods that are fitted to some; the demo has its own.
        erase: Their column that says the concept.
        labels: How both sets are read.

    Raises:
        ConceptError, ImageError, StatisticsError: If what is named cannot be read, or images are shared.
    """
    labels, follow = labels or LabelledOptions(), progress or follow_nothing
    (_, model), *others = models.items()
    removed = concept if isinstance(concept, Concept) else load_concept(concept, model.folder)
    opened = open_dataset(dataset, labels)
    classes, templates = classes_of(opened, labels.templates)
    task, attribute, retention = _load_labels(opened, labelled, erase, labels)
    _require_apart(opened, task)
    named = images if images is not None or not is_demo(model.name) else DEMO
    scanned = scan_or_load(model, named, scan, options={}, follow=follow)
    decoding = model.decoding(scanned.exif, scanned.decode)
    seen = None if named is None else list_images(named).read_as(decoding)
    setting = Setting(model, scanned, removed, classes, templates, seen, task, attribute, retention)
    return measure_rivals(setting, opened, others=dict(others), progress=follow("evaluate"))


def _load_labels(
    dataset: Dataset, labelled: str | None, erase: str | None, labels: LabelledOptions
) -> tuple[LabelledImages | None, LabelledImages | None, LabelledImages | None]:
    """Classes, the concept's instances and what should stay, on the same images; None where nothing was given."""
    if is_demo(labelled) or (labelled is None and is_demo(dataset)):
        task, second = labelled_tasks()
        return task, labelled_by(erase or DEMO_COLUMN), second
    if labelled is None:
        return None, None, None
    # The split and the second task are those of the images that are reported on.
    columns = replace(labels, split=None, retention=None).columns()
    task = load_selection_set(labelled, exif=labels.exif, **columns)
    if erase is None:
        return task, None, None
    return task, load_selection_set(labelled, layout=labels.layout, label=erase, exif=labels.exif), None


def _require_apart(dataset: Dataset, task: LabelledImages | None) -> None:
    """Refuse to report on images that a method is fitted to.

    Raises:
        ImageError: With how many are shared.
    """
    source = source_of(dataset)
    shared = len(find_shared(task.source, source)) if task is not None and source is not None else 0
    if shared and source is not None:
        raise ImageError(
            f"cannot compare on images that methods are fitted to: {shared} of {len(source)} of --dataset are among "
            "those of --labelled, by content. Give others, or a `split` column."
        )
