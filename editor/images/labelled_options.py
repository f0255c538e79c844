"""How labelled images are read, each default in this one place: no torch, the command line reads it.

Which rows of a set with splits are meant is a default too: training rows for a head, validation rows to choose heads
on, test rows to report on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..choices import Exif, Layout

Purpose = Literal["train", "select", "report"]
ALL = "all"
# As Waterbirds and CelebA number their splits: training, validation, test.
NUMBERED: dict[Purpose, str] = {"train": "0", "select": "1", "report": "2"}
_WORDS: dict[Purpose, tuple[str, ...]] = {
    "train": ("train", "training"),
    "select": ("val", "valid", "validation", "dev"),
    "report": ("test", "testing"),
}
# Where a set lacks the split that is meant, the next one; what is reported on is never chosen on.
_INSTEAD: dict[Purpose, tuple[Purpose, ...]] = {
    "train": ("train",),
    "select": ("select", "train"),
    "report": ("report", "select"),
}
DEFAULT_TEMPLATES = ("a photo of a {}.", "a picture of a {}.", "a {}.")
DEFAULT_TOP = 1000


@dataclass(frozen=True)
class LabelledOptions:
    """What is said of labelled images: it means the same in every command and function that takes them.

    Attributes:
        layout: By default what is seen in the folder.
        label: The column of classes; by default the first there is of label, class, y, shape. CelebA: an attribute.
        group_by: Columns that make groups together with the class; by default `place`, or the layout's own.
        split: Keep the rows with this value of the `split` column; `all` keeps every row. By default the test rows; to
            choose heads on, the validation rows; for a head, the training rows.
        classes: From a column's values to the words used in prompts; by default the values themselves.
        retention: A column with a second task, on which nothing should change.
        templates: Prompts with `{}` for the class; a class's weight is the mean of its normalised prompts.
        exif: Photos turned as their EXIF says, or as they are stored.
        top: K of MaxSkew@K, for FairFace; lowered to half of the images where it is more.
    """

    layout: Layout | str | None = None
    label: str | None = None
    group_by: tuple[str, ...] = ()
    split: str | None = None
    classes: Mapping[str, str] | None = None
    retention: str | None = None
    templates: tuple[str, ...] = DEFAULT_TEMPLATES
    top: int = DEFAULT_TOP
    exif: Exif = "upright"

    def columns(self) -> dict[str, Any]:
        """What says how a table or a folder is read, as keyword arguments of `load_dataset`."""
        names = ("layout", "label", "group_by", "split", "classes", "retention")
        return {name: getattr(self, name) for name in names}


def choose_split(values: Iterable[str], purpose: Purpose) -> str | None:
    """The value of a `split` column that is meant for a purpose; None where no value says so, and all rows are meant.

    Known are the usual words, and `0`, `1`, `2` where these three are all the values there are.
    """
    found = _name_splits(set(values))
    for role in _INSTEAD[purpose]:
        # Without a test split validation rows are reported on: then heads are chosen on the training rows.
        if role in found and not (purpose == "select" and found[role] == choose_split(found.values(), "report")):
            return found[role]
    return None


def is_split(name: str) -> bool:
    """Whether a word is the usual name of a split, as of a folder that holds the folders of classes."""
    return bool(_name_splits({name}))


def _name_splits(values: set[str]) -> dict[Purpose, str]:
    if values == set(NUMBERED.values()):
        return dict(NUMBERED)
    return {role: value for role, words in _WORDS.items() for value in sorted(values) if value.strip().lower() in words}
