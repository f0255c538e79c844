"""Objects with another class's name written on them."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from ...errors import ImageError
from ..listing import list_folder
from ..source import LabelledImages
from .asked import Asked

TYPOGRAPHIC = re.compile(r"label=(?P<label>.+)_text=(?P<text>.+)", re.DOTALL)
_NUMBERED_NAME = re.compile(r"(?P<name>.+)_(?P<number>\d{1,9})", re.DOTALL)


def load_typographic(path: Path, asked: Asked) -> LabelledImages:
    """`label=<x>_text=<y>.*`: an object with another class's name written on it; groups are the objects.

    Raises:
        ImageError: If a file is not named so, or a name is no class.
    """
    asked.require_no_columns(path, "typographic")
    source = list_folder(path, labelled=True)
    found = [TYPOGRAPHIC.fullmatch(Path(name).stem) for name in source.names]
    if None in found:
        wrong = source.names[found.index(None)]
        raise ImageError(
            f"cannot read {path} as typographic: {wrong!r} is not named label=<x>_text=<y>. Rename or remove it."
        )
    named = [(match["label"], match["text"]) for match in found if match]
    known = set(asked.classes) if asked.classes else {label for label, _ in named}
    pairs = list(zip((label for label, _ in named), strip_copies([text for _, text in named], known), strict=True))
    # What is only written counts as a class too: an image may be taken for it.
    names = asked.classes or {
        name: name.replace("_", " ") for name in sorted({name for pair in pairs for name in pair})
    }
    unknown = sorted({name for pair in pairs for name in pair} - names.keys())
    if unknown or len(names) < 2:
        raise ImageError(
            f"cannot read {path}: {unknown[0] if unknown else 'a single name'!r} is no class. Add it to --classes."
        )
    order = list(names)
    labels, written = (tuple(order.index(pair[i]) for pair in pairs) for i in (0, 1))
    return LabelledImages(source, tuple(names.values()), labels, tuple(names[x] for x, _ in pairs), written=written)


def strip_copies(texts: Sequence[str], known: Collection[str]) -> list[str]:
    """Written names without the numbers of copies: `dog (2)` and `dog_2` are `dog`, `boeing_747` is a name.

    A number belongs to the name where the name with it is known, and is a copy's where the name without it is. Where
    neither says so, copies count from 0, 1 or 2 on without a gap.
    """
    texts = [re.sub(r"\s*\(\d+\)$", "", text) or text for text in texts]
    plain = set(known) | {text for text in texts if not _NUMBERED_NAME.fullmatch(text)}
    numbers: dict[str, set[int]] = {}
    for match in filter(None, map(_NUMBERED_NAME.fullmatch, texts)):
        numbers.setdefault(match["name"], set()).add(int(match["number"]))

    def strip(text: str) -> str:
        match = _NUMBERED_NAME.fullmatch(text)
        if match is None or text in known:
            return text
        counted = numbers[match["name"]]
        is_count = min(counted) <= 2 and max(counted) - min(counted) < len(counted)
        return match["name"] if match["name"] in plain or is_count else text

    return [strip(text) for text in texts]
