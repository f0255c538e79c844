"""What a folder is read as: images, or shards of one kind; the rest is counted and said, and a doubt is refused.

Parquet files that hold no image bytes describe the images beside them, as img2dataset and `datasets` write them.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ..errors import ImageError
from ..files.locations import Location, locate_file
from ..files.walk import FolderListing, walk_folder
from .decode import SUFFIXES, say_how_to_read
from .packed.parquet import ARROW_SUFFIXES, PARQUET_SUFFIXES, holds_images
from .packed.tar import TAR_SUFFIXES

MOST_KINDS, MOST_LETTERS = 6, 12
_Named = tuple[str, str]


@dataclass(frozen=True)
class FolderSource:
    """What is read of a folder: `images`, each with its name relative to the folder and its path, or `shards`."""

    images: tuple[_Named, ...] = ()
    shards: tuple[Location, ...] = ()


def read_folder(folder: str | Path, *, labelled: bool = False) -> FolderSource:
    """What a folder is read as, searched recursively; what is passed over is a warning.

    Args:
        labelled: Its folders say what the images are: shards cannot be meant, and a folder of images that links lead to
            counts under each of its names.

    Raises:
        ImageError: If it holds images and shards, shards of two kinds, or neither.
    """
    listing = walk_folder(folder, each_once=not labelled)
    kinds = _sort_by_kind(listing)
    read = _choose_images(kinds) if labelled else _choose_kind(str(folder), kinds)
    used = {name for name, _ in kinds.get(read, [])}
    passed = Counter(_kind_of_name(name) for name, _ in listing.files if name not in used)
    said = _describe_passed(passed, listing)
    if not used:
        there = f" Here it {said}." if said else ""
        raise ImageError(
            f"cannot read images from {folder}: it holds no image. Looked for {', '.join(sorted(SUFFIXES))}.{there}"
        )
    if said:
        warnings.warn(f"in {folder} {said}", stacklevel=3)
    found = tuple(kinds[read])
    if read == "image":
        return FolderSource(images=found)
    return FolderSource(shards=tuple(locate_file(name.replace(os.sep, "/"), path) for name, path in found))


def _sort_by_kind(listing: FolderListing) -> dict[str, list[_Named]]:
    kinds: dict[str, list[_Named]] = {}
    for name, path in listing.files:
        kind = _kind_of(name)
        if kind:
            kinds.setdefault(kind, []).append((name, path))
    return kinds


def _kind_of(name: str) -> str:
    """`image`, a kind of shard, or nothing."""
    base = os.path.basename(name).lower()
    # `datasets` keeps results of its own beside the data.
    if base.endswith(ARROW_SUFFIXES) and base.startswith("cache-"):
        return ""
    ends = {"tar": TAR_SUFFIXES, "Parquet": PARQUET_SUFFIXES, "Arrow": ARROW_SUFFIXES, "image": tuple(SUFFIXES)}
    return next((kind for kind, suffixes in ends.items() if base.endswith(suffixes)), "")


def _choose_images(kinds: dict[str, list[_Named]]) -> str:
    return "image" if "image" in kinds else ""


def _choose_kind(folder: str, kinds: dict[str, list[_Named]]) -> str:
    """The only kind there is, Parquet files that describe others left out; "" for none.

    Raises:
        ImageError: If there are two.
    """
    if len(kinds) > 1 and "Parquet" in kinds:
        kinds["Parquet"] = [file for file in kinds["Parquet"] if not _only_describes(file, kinds)]
    present = [kind for kind, files in kinds.items() if files]
    if len(present) < 2:
        return present[0] if present else ""
    counted = " and ".join(_count(len(kinds[kind]), kind, kinds[kind][0][0]) for kind in present)
    # A pattern for each: which of them is meant, only the user knows.
    patterns = " or ".join(f"{folder}/**/*{_suffix(kinds[kind][0][0])}" for kind in present)
    raise ImageError(f"cannot tell what to read in {folder}: it holds {counted}. Give one of them, as {patterns}.")


def _only_describes(file: _Named, kinds: dict[str, list[_Named]]) -> bool:
    """Whether a Parquet file says of images what they are, and holds none."""
    stem = file[0][: -len(_suffix(file[0]))]
    # As img2dataset writes them: `00000.parquet` beside `00000.tar`, which can be told without pyarrow.
    beside = {name[: -len(_suffix(name))] for name, _ in kinds.get("tar", [])}
    return stem in beside or not holds_images(locate_file(*file))


def _count(count: int, kind: str, first: str) -> str:
    what = "image" if kind == "image" else f"{kind} shard"
    return f"{_plural(count, what)} ({first}{', ...' if count > 1 else ''})"


def _suffix(name: str) -> str:
    base = os.path.basename(name)
    double = next((suffix for suffix in TAR_SUFFIXES if base.lower().endswith(suffix)), None)
    return base[-len(double) :] if double else os.path.splitext(base)[1]


def _kind_of_name(name: str) -> str:
    """A suffix as it is counted: in small letters, cut where it is none."""
    suffix = _suffix(name).lower()
    return suffix if 1 < len(suffix) <= MOST_LETTERS else "without a suffix" if len(suffix) < 2 else "others"


def _describe_passed(passed: Counter[str], listing: FolderListing) -> str:
    """`passed over 27 files: 25 .heic, 2 .txt; ...`, or nothing."""
    shown = sorted(passed.items(), key=lambda item: (-item[1], item[0]))
    parts = [f"{count} {kind}" for kind, count in shown[:MOST_KINDS]]
    parts += [f"{sum(count for _, count in shown[MOST_KINDS:])} of other kinds"] if shown[MOST_KINDS:] else []
    parts += [f"{listing.hidden} hidden"] if listing.hidden else []
    total = passed.total() + listing.hidden
    said = [f"passed over {_plural(total, 'file')}: {', '.join(parts)}", *say_how_to_read(passed)] if parts else []
    if listing.repeated:
        links = _plural(len(listing.repeated), "link")
        said.append(f"did not follow {links} to folders that are read already, such as {listing.repeated[0]}")
    if listing.unreadable:
        said.append(
            f"could not read {_plural(len(listing.unreadable), 'folder')}, such as {listing.unreadable[0] or '.'}"
        )
    return "; ".join(said)


def _plural(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
