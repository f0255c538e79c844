"""SubpopBench: tables with `filename,split,y,a`, made on the machine that the images were fetched to.

Waterbirds, CelebA, MetaShift, NICO++, the background challenge, Living-17 and its kin. The paths are absolute, or
relative to a folder that only its code names; the classes and attributes are numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ...errors import ImageError
from ...files.bounded import load_json
from ..labelled import WATERBIRDS, Usual, label_source
from ..listing import source_of_rows
from ..source import LabelledImages
from .asked import Asked, read_heading, read_rows
from .celeba import CELEBA_CLASSES
from .imagenet9 import WORDS

COLUMNS = ("filename", "split", "y", "a")
# In the order of their numbers; the table's name or that of its folder says which set it is. Read from what writes the
# tables (SubpopBench's `scripts/download.py` at 4d3dbbe); those of BREEDS are its superclasses in the order of their
# WordNet numbers, as its hierarchy (BREEDS-Benchmarks at f83be50) gives them.
_LIVING17 = (
    *("salamander", "turtle", "lizard", "snake", "spider", "grouse", "parrot", "crab", "dog", "wolf", "fox"),
    *("domestic cat", "bear", "beetle", "butterfly", "ape", "monkey"),
)
_ENTITY13 = (
    *("garment", "bird", "reptile", "arthropod", "mammal", "accessory", "craft", "equipment", "furniture"),
    *("instrument", "man-made structure", "wheeled vehicle", "produce"),
)
_ENTITY30 = (
    *("snake", "passerine", "lizard", "arachnid", "aquatic bird", "crustacean", "carnivore", "insect", "ungulate"),
    *("primate", "bony fish", "barrier", "building", "electronic equipment", "footwear", "garment", "headdress"),
    *("home appliance", "kitchen utensil", "measuring instrument", "motor vehicle", "musical instrument", "neckwear"),
    *("sports equipment", "tableware", "tool", "vessel", "dish", "vegetable", "fruit"),
)
_NONLIVING26 = (
    *("bag", "ball", "boat", "body armor", "bottle", "bus", "car", "chair", "coat", "digital computer", "dwelling"),
    *("fence", "hat", "keyboard instrument", "store", "outbuilding", "percussion instrument", "pot", "roof", "ship"),
    *("skirt", "stringed instrument", "timepiece", "truck", "wind instrument", "squash"),
)
_WORDS: Mapping[str, Sequence[str]] = {
    "waterbirds": tuple(WATERBIRDS.values()),
    "celeba": tuple(CELEBA_CLASSES.values()),
    "metashift": ("dog", "cat"),
    "backgrounds_challenge": WORDS,
    "living17": _LIVING17,
    "entity13": _ENTITY13,
    "entity30": _ENTITY30,
    "nonliving26": _NONLIVING26,
}
# Where the images of those lie whose paths are relative to a folder that the code names.
_FOLDERS = ("waterbird_complete95_forest2water2", "img_align_celeba", "img_align_celeba/img_align_celeba")
# From names to numbers: that is how the tables' `y` is looked up in it.
_NICO_WORDS = "dg_label_id_mapping.json"


def find_subpop(path: Path) -> Path | None:
    """The table: the given file, or the one in the given folder; None where it has other columns."""
    tables = [path] if path.is_file() else sorted(path.glob("metadata*.csv"))
    return next((table for table in tables if table.suffix == ".csv" and _has_columns(table)), None)


def _has_columns(table: Path) -> bool:
    heading = read_heading(table, 1_000)
    return set(COLUMNS) <= {name.strip().strip('"') for name in re.split("[,;\t]", heading.strip())}


def load_subpop(path: Path, asked: Asked) -> LabelledImages:
    """A table with `filename,split,y,a`: groups are class and attribute, splits are numbered.

    Raises:
        ImageError: If there is no such table, images are not there, or the words of the classes are not known.
    """
    table = find_subpop(path)
    if table is None:
        raise ImageError(f"cannot read {path} as SubpopBench: no table with {', '.join(COLUMNS)}. Give that table.")
    rows = read_rows(table)
    source = source_of_rows(_locate(table, [row["filename"] for row in rows]), rows)
    numbered = {row["split"] for row in rows} <= {"0", "1", "2", "3"}
    words = asked.classes or (None if asked.label else _find_words(table, rows))
    return label_source(table, source, replace(asked, classes=words), Usual("y", groups=("a",), numbered=numbered))


def _find_words(table: Path, rows: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The words of the numbers in `y`."""
    numbers = sorted({row["y"] for row in rows}, key=lambda one: (len(one), one))
    if not all(one.isdigit() for one in numbers):
        return {one: one for one in numbers}
    named = f"{table.parent.name} {table.stem}".lower()
    words = next((list(found) for name, found in _WORDS.items() if name in named), None) or _read_nico(table)
    if not words or int(numbers[-1]) >= len(words):
        raise ImageError(
            f"cannot name the classes of {table}: y is {', '.join(numbers[:3])}, ... Give --classes with lines "
            "`0: words`."
        )
    return {str(number): word for number, word in enumerate(words)}


def _read_nico(table: Path) -> list[str]:
    """The words of NICO++, from the file that comes with it."""
    file = table.parent / _NICO_WORDS
    if not file.is_file():
        return []
    try:
        found = {int(number): str(word) for word, number in load_json(file).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ImageError(f"cannot read {file}: {error}. It maps each class to its number.") from None
    return [found.get(number, str(number)).replace("_", " ") for number in range(max(found, default=-1) + 1)]


def _locate(table: Path, names: Sequence[str]) -> list[Path]:
    """Where the images are: as the table says, beside it, or where its paths end if the data have been moved."""
    first = Path(names[0])
    roots = [table.parent, *(table.parent / folder for folder in _FOLDERS)]
    if first.is_file() and first.is_absolute():
        return [Path(name) for name in names]
    here = next((root for root in roots if not first.is_absolute() and (root / first).is_file()), None)
    if here is not None:
        return [here / name for name in names]
    # /old/place/metashift/train/cat.jpg -> the longest end that is there, below the table's folder or that above.
    ends = [
        (root, cut)
        for cut in range(len(first.parts))
        for root in (table.parent, table.parent.parent)
        if (root / Path(*first.parts[cut:])).is_file()
    ]
    if not ends:
        return [table.parent / name for name in names]
    root, cut = ends[0]
    return [root / Path(*Path(name).parts[cut:]) for name in names]
