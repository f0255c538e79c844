"""SugarCrepe: at each image a caption and one that is wrong in a word or two; the right one is to be nearer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import ImageError
from ...files.bounded import load_json
from ..labelled_options import ALL
from ..listing import source_of_rows
from ..source import LabelledImages
from .asked import Asked

KINDS = ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")
_IMAGES = ("val2017", "coco/val2017", "coco/images/val2017", "images/val2017", "images", ".")
_FIELDS = ("filename", "caption", "negative_caption")


def find_sugarcrepe(path: Path) -> list[Path]:
    """Its files, `add_att.json` to `swap_obj.json`: the given one, or those in the given folder or its `data`."""
    if path.is_file():
        return [path] if path.stem in KINDS and path.suffix == ".json" else []
    for folder in (path, path / "data"):
        found = [folder / f"{kind}.json" for kind in KINDS if (folder / f"{kind}.json").is_file()]
        if found:
            return found
    return []


def load_sugarcrepe(path: Path, asked: Asked) -> LabelledImages:
    """The captions of each image as its only two classes, in groups by kind; `--split` names one kind.

    Images are those of COCO's validation set, beside the files in `val2017/`.

    Raises:
        ImageError: If a file or an entry is not so, or heads are to be chosen on it.
    """
    if asked.label or asked.group_by or asked.classes or asked.retention:
        raise ImageError(f"cannot use columns with {path}: the layout sugarcrepe has captions. Leave them out.")
    if asked.purpose != "report":
        raise ImageError(f"cannot choose heads on {path}: it has captions, no classes. Give images with classes.")
    files = [file for file in find_sugarcrepe(path) if asked.split in (None, ALL, file.stem)]
    if not files:
        raise ImageError(f"cannot read {path} as SugarCrepe: it has no {asked.split or KINDS[0]}.json. Add it.")
    entries = [(file.stem, entry) for file in files for entry in _read_entries(file)]
    folder = _find_images(files[0].parent, entries[0][1]["filename"])
    rows = [{"kind": kind} for kind, _ in entries]
    source = source_of_rows([folder / entry["filename"] for _, entry in entries], rows)
    captions = tuple(entry[field] for _, entry in entries for field in _FIELDS[1:])
    right = range(0, len(captions), 2)
    return LabelledImages(
        source,
        captions,
        tuple(right),
        tuple(kind for kind, _ in entries),
        options=tuple((place, place + 1) for place in right),
        # The captions themselves are what is asked.
        templates=("{}",),
        split=asked.split,
    )


def _read_entries(file: Path) -> list[Mapping[str, str]]:
    try:
        found: Any = load_json(file)
    except (OSError, ValueError) as error:
        raise ImageError(f"cannot read {file}: {error}. Fetch it again.") from None
    entries = dict(enumerate(found)) if isinstance(found, list) else found if isinstance(found, dict) else {}
    for key, entry in entries.items():
        named = entry if isinstance(entry, dict) else {}
        missing = next((field for field in _FIELDS if not isinstance(named.get(field), str) or not named[field]), None)
        if missing is not None:
            raise ImageError(f"cannot read {file}: entry {key} has no {missing}. Fetch it again.")
    if not entries:
        raise ImageError(f"cannot read {file}: it holds no entries with {', '.join(_FIELDS)}. Fetch it again.")
    return list(entries.values())


def _find_images(folder: Path, first: str) -> Path:
    places = [root / inner for root in (folder, folder.parent) for inner in _IMAGES]
    # Where none has it, the usual place is what is said to lack it.
    return next((place for place in places if (place / first).is_file()), folder / _IMAGES[0])
