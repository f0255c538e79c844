"""What a user names, a scan or a folder, to the desk of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ....editor.concepts.concepts import Concept, load_concept
from ....editor.edits.document import find_recipe_file
from ....editor.edits.recipe import Recipe, load_recipe
from ....editor.errors import StatisticsError
from ....editor.images.demo import JUDGED_CONCEPT
from ....editor.images.demo_name import is_demo
from ....editor.images.labelled_options import LabelledOptions
from ....editor.images.layouts import Dataset
from ....editor.load import load_model
from ....editor.models.model import Model
from ....editor.scan.scan import Scan, load_scan
from ....editor.scan.tally import Progress
from ...judge import choose_dataset
from ..report import find_concept, find_scan, load_base
from .desk import COUNT, Desk, desk


@dataclass(frozen=True)
class Named:
    """What is named on the command line: a folder that `remove-heads` or `demo` wrote, or a scan; and the model."""

    folder: Path | None = None
    scan: Path | None = None
    model: str | None = None
    pretrained: str | None = None
    concept: str | None = None


def open_desk(
    named: Named,
    *,
    dataset: Dataset | None = None,
    labels: LabelledOptions | None = None,
    count: int | None = None,
    progress: Progress | None = None,
) -> Desk:
    """As `desk`; the demo model is measured on its own images, where they can judge the concept.

    Raises:
        StatisticsError: If there is no scan.
    """
    recipe = _find_recipe(named.folder)
    scan = _find_scan(named, recipe)
    model = load_model(named.model, named.pretrained) if named.model else load_base(recipe, scan)
    concept = _find_concept(named, recipe, model)
    return desk(
        scan,
        model,
        concept=concept,
        dataset=choose_dataset(model, concept, dataset, None),
        labels=labels,
        recipe=recipe,
        count=COUNT if count is None else count,
        progress=progress,
    )


def _find_recipe(folder: Path | None) -> Recipe | None:
    path = None if folder is None else find_recipe_file(folder)
    return None if path is None else load_recipe(path)


def _find_scan(named: Named, recipe: Recipe | None) -> Scan:
    if named.scan is not None:
        return load_scan(named.scan)
    found = None if named.folder is None else find_scan(named.folder, recipe)
    if found is None:
        where = f"{named.folder} holds no scan" if named.folder is not None else "no scan was given"
        raise StatisticsError(
            f"cannot lay out the desk: {where}. Give --scan SCAN, or a folder that `remove-heads` or `demo` wrote."
        )
    return found


def _find_concept(named: Named, recipe: Recipe | None, model: Model) -> Concept | None:
    if named.concept is not None:
        return load_concept(named.concept, model.folder)
    found = None if recipe is None else find_concept(recipe, model)
    # The demo's own images judge one concept only.
    return load_concept(JUDGED_CONCEPT, model.folder) if found is None and is_demo(model.name) else found
