"""Labelled images on the command line: one way to name them, their columns and prompts, for every command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..editor.files.whole import require_free_file
from ..editor.images.demo_name import is_demo
from .console import say
from .options import given, split_columns

if TYPE_CHECKING:
    from ..editor.images.labelled_options import LabelledOptions
    from ..editor.images.layouts import Dataset
    from ..editor.images.source import LabelledImages

# What says how the images are read; the demo's are read in one way only.
_COLUMNS = ("layout", "label", "group_by", "split", "retention", "classes", "templates")


def read_options(asked: Mapping[str, Any]) -> LabelledOptions:
    """From a command's parameters to how labelled images are read; files of classes and prompts are read now."""
    from ..editor.images.labelled import load_lines
    from ..editor.images.labelled_options import LabelledOptions

    classes, templates = read_classes(asked.get("classes")), asked.get("templates")
    found = given(**{name: asked.get(name) for name in ("layout", "label", "split", "retention", "top", "exif")})
    found["group_by"] = split_columns(asked.get("group_by") or "")
    if classes:
        found["classes"] = classes
    if templates:
        found["templates"] = tuple(load_lines(templates))
    return LabelledOptions(**found)


def read_classes(path: Path | None) -> Mapping[str, str] | None:
    """From a column's values to words, from a file."""
    if path is None:
        return None
    # Late: it brings numpy, and a misspelt concept is refused without.
    from ..editor.images.labelled import load_classes

    return load_classes(path)


def read_dataset_options(asked: Mapping[str, Any]) -> LabelledOptions | None:
    """How `--dataset` is read where `--labelled` may stand beside it: the split and the second task are that one's."""
    if asked.get("dataset") is None or is_demo(asked["dataset"]):
        return None
    shared = ("label", "group_by", "classes", "templates") if asked.get("labelled") else _COLUMNS
    return read_options({name: asked.get(name) for name in (*shared, "top", "exif")})


def require_own_columns(asked: Mapping[str, Any]) -> None:
    """Usage errors: the demo has its own columns, and without labelled images there are none.

    Raises:
        typer.BadParameter: Naming the option.
    """
    named = [name for name in _COLUMNS if asked.get(name)]
    # With --labelled the columns are those of the images that heads are chosen on.
    if not named or asked.get("labelled"):
        return
    spelled = f"--{named[0].replace('_', '-')}"
    if is_demo(asked.get("dataset")):
        raise typer.BadParameter("the demo has its own classes, prompts and groups", param_hint="--dataset demo")
    if asked.get("dataset") is None:
        raise typer.BadParameter("says how labelled images are read: give them with --dataset", param_hint=spelled)


def open_labelled(asked: Mapping[str, Any], purpose: Any = "report") -> Dataset:
    """The images of `--dataset`, read before anything is measured."""
    from ..editor.images.layouts import open_dataset

    return open_dataset(asked["dataset"], read_options(asked), purpose=purpose)


def open_training_images(asked: Mapping[str, Any]) -> LabelledImages:
    """The images of `--dataset` to train a head on."""
    from ..editor.errors import ImageError
    from ..editor.images.source import LabelledImages

    found = open_labelled(asked, "train")
    if not isinstance(found, LabelledImages):
        raise ImageError(
            f"cannot train on {asked['dataset']}: its images are there to measure on. Give images with classes."
        )
    return found


def csv_to(path: Path | None, *, overwrite: bool) -> Any:
    """What writes flat rows to a file, and says so; refused before the work starts if the file is not free."""
    if path is None:
        return lambda rows: None
    # Now, and not when the rows are there.
    require_free_file(path, overwrite=overwrite)

    def write(rows: Sequence[Mapping[str, Any]]) -> None:
        from ..editor.measure.table import write_csv

        write_csv(path, rows)
        say(f"wrote {path}: {len(rows)} rows")

    return write
