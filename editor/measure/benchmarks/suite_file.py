"""A suite: a YAML list of data sets, each with what would be said of it on the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ...choices import Exif, Layout
from ...concepts.concepts import describe_validation
from ...errors import ImageError
from ...files.bounded import load_yaml
from ...images.demo_name import is_demo
from ...images.labelled import load_classes, load_lines
from ...images.labelled_options import DEFAULT_TEMPLATES, DEFAULT_TOP, LabelledOptions
from ...images.layouts import Dataset
from ...plugin_names import NameOf
from ...plugins import LAYOUT


@dataclass(frozen=True)
class SuiteSet:
    """A data set of a suite: its name, where it is, and how it is read."""

    name: str
    dataset: str
    options: LabelledOptions

    def read(self, open_dataset: Callable[[str, LabelledOptions], Dataset]) -> Dataset:
        """The images and labels.

        Raises:
            ImageError: As `open_dataset`, beginning with the name of the set.
        """
        try:
            return open_dataset(self.dataset, self.options)
        except ImageError as error:
            raise ImageError(f"{self.name}: {error}") from None


class _Entry(BaseModel):
    """As it is written: options are called as on the command line, with `_` for `-`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    dataset: str = Field(min_length=1)
    layout: Annotated[Layout | str, NameOf(LAYOUT)] | None = None
    label: str | None = None
    group_by: tuple[str, ...] = ()
    # YAML reads `split: 2` as a number.
    split: str | int | None = None
    retention: str | None = None
    classes: dict[str | int, str] | list[str] | str | None = None
    templates: list[str] | str | None = None
    top: int = Field(default=DEFAULT_TOP, ge=1)
    exif: Exif = "upright"


_ENTRIES: TypeAdapter[list[_Entry]] = TypeAdapter(list[_Entry])


def load_suite(path: Path) -> list[SuiteSet]:
    """The data sets of a suite; paths in it are relative to it.

    Raises:
        ImageError: If it is no such list, or a name stands twice.
    """
    try:
        entries = _ENTRIES.validate_python(load_yaml(path))
    except ValidationError as error:
        raise ImageError(f"cannot use the suite {path}: {describe_validation(error)}.") from None
    except (OSError, ValueError) as error:
        raise ImageError(f"cannot read the suite {path}: {error}. Give a YAML list of data sets.") from None
    names = [entry.name for entry in entries]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None or not entries:
        what = f"the name {twice} stands twice" if twice else "it is empty"
        raise ImageError(f"cannot use the suite {path}: {what}. Give each data set a name of its own.")
    return [_read_entry(path.parent, entry) for entry in entries]


def _read_entry(folder: Path, entry: _Entry) -> SuiteSet:
    options = LabelledOptions(
        layout=entry.layout,
        label=entry.label,
        group_by=entry.group_by,
        split=None if entry.split is None else str(entry.split),
        classes=_read_classes(folder, entry.classes),
        retention=entry.retention,
        templates=_read_templates(folder, entry.templates),
        top=entry.top,
        exif=entry.exif,
    )
    dataset = entry.dataset if is_demo(entry.dataset) else str(folder / entry.dataset)
    return SuiteSet(entry.name, dataset, options)


def _read_classes(folder: Path, given: Any) -> Mapping[str, str] | None:
    if isinstance(given, str):
        return load_classes(folder / given)
    if isinstance(given, list):
        return {word: word for word in given}
    return given and {str(key): words for key, words in given.items()}


def _read_templates(folder: Path, given: list[str] | str | None) -> tuple[str, ...]:
    if isinstance(given, str):
        return tuple(load_lines(folder / given))
    return tuple(given) if given else DEFAULT_TEMPLATES
