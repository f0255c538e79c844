"""CounterAnimal: the same animals on usual and on unusual backgrounds."""

from __future__ import annotations

import re
from pathlib import Path

from ...errors import ImageError
from ..listing import list_folder
from ..source import LabelledImages
from .asked import Asked


def load_counter_animal(path: Path, asked: Asked) -> LabelledImages:
    """`<class>/{common...,counter...}/`: the same animals on usual and on unusual backgrounds.

    Raises:
        ImageError: If an animal has no folder of a kind, or there are not two animals.
    """
    asked.require_no_columns(path, "counteranimal")
    folders = sorted(folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    for folder in folders:
        missing = {"common", "counter"} - {kind for _, kind in find_halves(folder)}
        if missing:
            raise ImageError(f"cannot read {path} as CounterAnimal: {folder.name} has no folder {min(missing)}...")
    source = list_folder(path, labelled=True)
    parts = [Path(name).parts for name in source.names]
    kinds = {(folder.name, inner): kind for folder in folders for inner, kind in find_halves(folder)}
    # An image that lies directly in a class's folder is in neither subset.
    kept = [i for i, names in enumerate(parts) if len(names) > 2 and names[:2] in kinds]
    words = asked.classes or {
        folder.name: re.sub(r"^\d+[ _-]+", "", folder.name).replace("_", " ") for folder in folders
    }
    unknown = sorted({parts[i][0] for i in kept} - words.keys())
    if len(folders) < 2 or unknown or not kept:
        found = f"folder {unknown[0]!r} is no class" if unknown else f"{len(folders)} classes, {len(kept)} images"
        raise ImageError(f"cannot read {path} as CounterAnimal: {found}. Two classes with images are needed.")
    order = list(words)
    subsets = tuple(kinds[parts[i][0], parts[i][1]] for i in kept)
    labels = tuple(order.index(parts[i][0]) for i in kept)
    groups = tuple(f"{words[parts[i][0]]} / {kind}" for i, kind in zip(kept, subsets, strict=True))
    return LabelledImages(source.subset(kept), tuple(words.values()), labels, groups, subsets=subsets)


def find_halves(folder: Path) -> list[tuple[str, str]]:
    """The folders of one animal, each with `common` or `counter`."""
    names = [item.name for item in folder.iterdir() if item.is_dir()]
    return [(name, kind) for name in names for kind in ("common", "counter") if name.lower().startswith(kind)]
