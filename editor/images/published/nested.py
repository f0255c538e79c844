"""Sets whose folders say the class and what comes with it: Spawrious, UrbanCars, SpuCo's birds and dogs.

The folders of UrbanCars and SpuCo are those that their own readers open (Whac-A-Mole's `dataset/urbancars.py` at
c91b097, SpuCo's `spuco_birds.py` and `spuco_dogs.py` at 9184246).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from ...errors import ImageError
from ..labelled import Usual, label_source
from ..labelled_options import ALL
from ..listing import list_folder
from ..source import ImageSource, LabelledImages
from .asked import Asked

BREEDS, PLACES = (
    ("bulldog", "corgi", "dachshund", "labrador"),
    ("desert", "jungle", "dirt", "mountain", "snow", "beach"),
)
# By challenge: where bulldogs, dachshunds, labradors and corgis are in training, and where in the test.
_ORDER = ("bulldog", "dachshund", "labrador", "corgi")
CHALLENGES = {
    "o2o_easy": ("desert jungle dirt snow", "dirt snow desert jungle"),
    "o2o_medium": ("mountain beach dirt jungle", "jungle dirt beach snow"),
    "o2o_hard": ("jungle mountain snow desert", "mountain snow desert jungle"),
    "m2m_easy": ("desert mountain dirt jungle", "dirt jungle mountain desert"),
    "m2m_medium": ("beach snow mountain desert", "desert mountain beach snow"),
    "m2m_hard": ("dirt jungle snow beach", "snow beach dirt jungle"),
}
_CAR = re.compile(r"obj-(?P<car>urban|country)_bg-(?P<background>urban|country)_co_occur_obj-(?P<beside>urban|country)")
CARS = {"urban": "urban car", "country": "country car"}
SPUCO = {
    "spuco_birds": ({"landbirds": "landbird", "waterbirds": "waterbird"}, ("land", "water")),
    "spuco_dogs": ({"small_dogs": "small dog", "big_dogs": "big dog"}, ("indoor", "outdoor")),
}
_SPLITS = ("train", "val", "test")
Row = dict[str, str]


def find_spawrious(path: Path) -> Path | None:
    """The folder with `0/<place>/<breed>/`, which may be the given one or `spawrious224` in it."""
    return next(
        (folder for folder in (path / "spawrious224", path) if any(_holds_breeds(folder / part) for part in "01")), None
    )


def _holds_breeds(folder: Path) -> bool:
    return any((folder / place / breed).is_dir() for place in PLACES for breed in BREEDS)


def load_spawrious(path: Path, asked: Asked) -> LabelledImages:
    """`{0,1}/<place>/<breed>/`: four breeds of dogs in six places.

    `--split` names a challenge, such as `o2o_hard`: its test images, or to choose heads on, its training images.

    Raises:
        ImageError: If the folders are not so, or there is no such challenge.
    """
    root = find_spawrious(path)
    if root is None:
        raise ImageError(
            f"cannot read {path} as Spawrious: it has no 0/PLACE/BREED, as 0/desert/corgi. Give its folder."
        )
    if asked.split not in (None, ALL, *CHALLENGES):
        raise ImageError(f"cannot use --split {asked.split} with {path}: there are {', '.join(CHALLENGES)} and {ALL}.")

    def name(parts: tuple[str, ...]) -> Row | None:
        # `domain_adaptation_ds` holds other images of the same kinds.
        found = len(parts) == 4 and parts[0] in "01" and parts[1] in PLACES and parts[2] in BREEDS
        return {"part": parts[0], "place": parts[1], "breed": parts[2]} if found else None

    source = _name_images(root, name)
    chosen = [index for index, row in enumerate(source.attributes) if _is_asked(row, asked)]
    if not chosen:
        raise ImageError(f"cannot use {root}: it holds no image of {asked.split}. Choose a --split.")
    usual = Usual("breed", {breed: breed for breed in BREEDS}, ("place",))
    # A challenge is chosen above: what is left are all of its images.
    found = label_source(path, source.subset(chosen), replace(asked, split=None), usual)
    return replace(found, split=None if asked.split == ALL else asked.split)


def _is_asked(row: Mapping[str, str], asked: Asked) -> bool:
    if asked.split in (None, ALL):
        return True
    order = CHALLENGES[asked.split][asked.purpose == "report"].split()
    which = _ORDER.index(row["breed"])
    # Many-to-many: each breed is in both places of its pair, all in the first part.
    if asked.split.startswith("m2m"):
        pair = order[which // 2 * 2 : which // 2 * 2 + 2]
        return row["part"] == "0" and row["place"] in pair
    return row["place"] == order[which]


def is_urban_cars(path: Path) -> bool:
    """Whether a folder holds `obj-*_bg-*_co_occur_obj-*`, or the folders of splits with those; at most two below."""
    patterns = ("obj-*", "*/obj-*", "*/*/obj-*", "*/*/*/obj-*")
    return any(_CAR.fullmatch(found.name) for pattern in patterns for found in path.glob(pattern) if found.is_dir())


def load_urban_cars(path: Path, asked: Asked) -> LabelledImages:
    """`<split>/obj-<car>_bg-<background>_co_occur_obj-<object beside it>/`, each `urban` or `country`.

    `both_common`, `background_uncommon`, `beside_uncommon` and `both_uncommon` are the parts by what is unlike the car.

    Raises:
        ImageError: If there are no such folders, or the split is missing.
    """

    def name(parts: tuple[str, ...]) -> Row | None:
        match = _CAR.fullmatch(parts[-2]) if len(parts) > 1 else _CAR.fullmatch(path.name)
        split = next((part for part in (*reversed(parts[:-1]), path.name) if part in _SPLITS), "")
        return {**match.groupdict(), "split": split} if match else None

    source = _name_images(path, name, "obj-CAR_bg-BACKGROUND_co_occur_obj-OBJECT")
    found = label_source(path, source, asked, Usual("car", CARS, ("background", "beside")))
    return replace(found, subsets=tuple(map(_say_uncommon, found.source.attributes)))


def _say_uncommon(row: Mapping[str, str]) -> str:
    unlike = [name for name in ("background", "beside") if row[name] != row["car"]]
    return {0: "both_common", 1: f"{unlike[0] if unlike else ''}_uncommon", 2: "both_uncommon"}[len(unlike)]


def is_spuco(path: Path) -> bool:
    """Whether a folder holds `spuco_birds` or `spuco_dogs`, or is one of them."""
    if any((path / name).is_dir() for name in SPUCO):
        return True
    kinds = [kind for classes, _ in SPUCO.values() for kind in classes]
    return any((path / split / kind).is_dir() for split in _SPLITS for kind in kinds)


def load_spuco(path: Path, asked: Asked) -> LabelledImages:
    """`spuco_{birds,dogs}/<split>/<class>/<place>/`; with both, the four classes of SpuCoAnimals.

    Raises:
        ImageError: If the folders are not so, or the split is missing.
    """
    words = {key: word for classes, _ in SPUCO.values() for key, word in classes.items()}
    places = {place for _, found in SPUCO.values() for place in found}

    def name(parts: tuple[str, ...]) -> Row | None:
        split, kind, place = parts[-4:-1] if len(parts) > 3 else ("", "", "")
        found = split in _SPLITS and kind in words and place in places
        return {"split": split, "class": kind, "place": place} if found else None

    source = _name_images(path, name, "SPLIT/CLASS/PLACE, as test/landbirds/water")
    there = {row["class"] for row in source.attributes}
    usual = Usual("class", {key: word for key, word in words.items() if key in there}, ("place",))
    return label_source(path, source, asked, usual)


def _name_images(path: Path, name: Callable[[tuple[str, ...]], Row | None], expected: str = "") -> ImageSource:
    """The images whose folders say what they are, with that as attributes.

    Raises:
        ImageError: If there are none, or with `expected` if one lies elsewhere.
    """
    source = list_folder(path, labelled=True)
    named = [name(Path(one).parts) for one in source.names]
    wrong = next((one for one, row in zip(source.names, named, strict=True) if row is None), None)
    kept = [index for index, row in enumerate(named) if row is not None]
    if not kept or (wrong is not None and expected):
        raise ImageError(f"cannot read {path}: {wrong!r} does not lie in {expected or 'a known folder'}. Move it away.")
    return replace(source.subset(kept), attributes=tuple(row for row in named if row is not None))
