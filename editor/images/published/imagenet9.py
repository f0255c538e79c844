"""ImageNet-9: the same objects on their own backgrounds, on others of their class, and on those of other classes.

Folders and the gap are those of its own evaluation (backgrounds_challenge at 46d224b, `in9_eval.py` and README), the
classes' folders those that SubpopBench opens in it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ...errors import ImageError
from ..labelled import Usual, label_source
from ..labelled_options import ALL
from ..listing import list_folder, named_below
from ..source import LabelledImages, join_sources
from .asked import Asked

# With the object there, and without it: there a right answer is read from the background.
WITH_OBJECT = ("original", "mixed_same", "mixed_rand", "mixed_next", "only_fg")
WITHOUT_OBJECT = ("no_fg", "only_bg_b", "only_bg_t")
VARIANTS = (*WITH_OBJECT, *WITHOUT_OBJECT)
WORDS = ("dog", "bird", "wheeled vehicle", "reptile", "carnivore", "insect", "musical instrument", "primate", "fish")
CLASSES = {f"{number:02d}_{word}": word for number, word in enumerate(WORDS)}
# What pixels of the background decide: between images that differ in the background only (Xiao et al. 2021).
BACKGROUND_GAP = ("background_gap", "mixed_same", "mixed_rand")


def find_imagenet9(path: Path) -> Path | None:
    """The folder with the variants, each with its classes in `val/`: the given one, or one of two names in it."""
    places = (path, path / "bg_challenge", path / "backgrounds_challenge")
    return next((place for place in places if _variants(place)), None)


def _variants(folder: Path) -> list[str]:
    """The variants that are there, each with the folder of a class."""
    return [name for name in VARIANTS if any((folder / name / "val" / key).is_dir() for key in CLASSES)]


def load_imagenet9(path: Path, asked: Asked) -> LabelledImages:
    """`<variant>/val/<class>/`: nine classes, in groups by class and variant, with the accuracy of each variant.

    Without `--split`, the variants with an object; those without one are measured alone, since there a right answer is
    a wrong reason. `background_gap` is `mixed_same` less `mixed_rand`.

    Raises:
        ImageError: If there is no variant, or not the one asked for.
    """
    root = find_imagenet9(path)
    if root is None:
        raise ImageError(
            f"cannot read {path} as ImageNet-9: it has no VARIANT/val/CLASS, as original/val/00_dog. Give its folder."
        )
    there = _variants(root)
    with_object = [name for name in there if name in WITH_OBJECT]
    asked_for = {None: with_object or there, ALL: there}.get(asked.split, [asked.split or ""])
    if not set(asked_for) <= set(there):
        raise ImageError(f"cannot use --split {asked.split} with {path}: there are {', '.join(there)}.")
    source = join_sources([named_below(name, list_folder(root / name / "val", labelled=True)) for name in asked_for])
    rows = tuple({"variant": name.split("/", 1)[0], "class": Path(name).parent.name} for name in source.names)
    wrong = next((name for name, row in zip(source.names, rows, strict=True) if row["class"] not in CLASSES), None)
    if wrong is not None:
        raise ImageError(f"cannot read {root}: {wrong!r} lies in no class's folder, as 00_dog. Move it away.")
    # Which variants are meant is decided above.
    usual = Usual("class", CLASSES, ("variant",))
    found = label_source(path, replace(source, attributes=rows), replace(asked, split=None), usual)
    gap = BACKGROUND_GAP if {"mixed_same", "mixed_rand"} <= set(asked_for) else None
    return replace(found, subsets=tuple(row["variant"] for row in rows), gap=gap, split=asked.split)
