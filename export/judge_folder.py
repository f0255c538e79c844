"""The edit of a folder measured again, on images that its recipe has not seen: before it ships, or as new ones come."""

from __future__ import annotations

from dataclasses import replace

from ..editor.edits.recipe import Recipe
from ..editor.errors import ExportError
from ..editor.images.labelled_options import LabelledOptions
from ..editor.images.layouts import open_dataset
from ..editor.load import RECIPE_NAME, find_missing, load_edit
from ..editor.models.model import Model
from ..editor.scan.scan import Scan
from .inputs import Follow, follow_nothing
from .judge import Dataset, Made, judge_made
from .pages.report import find_concept


def judge_again(
    model: Model, dataset: Dataset, labels: LabelledOptions | None = None, follow: Follow | None = None
) -> Model:
    """An edited model of a folder with figures of other images in its recipe, in place of those that it came with.

    Args:
        model: From a folder that `remove-heads` wrote: its recipe and scan are there.
        labels: How the dataset is read, and the prompts of its classes.

    Raises:
        ExportError: If the folder has no recipe, or not the scan that it was made from.
        ImageError: If images or labels cannot be read.
    """
    missing = RECIPE_NAME if model.folder is None else find_missing(model.folder)
    if model.folder is None or missing is not None:
        raise ExportError(
            f"cannot measure the edit of {model.name}: it has no {missing}. Give a folder that `remove-heads` wrote, "
            "or leave out --dataset."
        )
    edit = load_edit(model.folder)
    recipe = judge_recipe(edit.recipe, edit.scan, edit.base, dataset, labels=labels, follow=follow)
    return replace(model, read_recipe=lambda: recipe)


def judge_recipe(
    recipe: Recipe,
    scan: Scan,
    base: Model,
    dataset: Dataset,
    *,
    labels: LabelledOptions | None = None,
    follow: Follow | None = None,
) -> Recipe:
    """A bound recipe with its figures on a data set: rows, verdict, control, and what can still be read.

    Args:
        scan: What the recipe was made from.
        base: The unedited model.

    Raises:
        ImageError: If images or labels cannot be read.
    """
    labels = labels or LabelledOptions()
    made = Made(recipe, scan, base, find_concept(recipe, base))
    opened = open_dataset(dataset, labels)
    measured = judge_made(made, opened, None, follow or follow_nothing, templates=labels.templates)
    return recipe.with_measured(measured)
