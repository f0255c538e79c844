"""The layout `sidecars`: beside each image a JSON file of the same name says what it is, as img2dataset writes them.

The module itself is the plugin: it has `is_there` and `read`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from clipedit.editor.errors import ImageError
from clipedit.editor.files.bounded import load_json
from clipedit.editor.images.labelled import label_source
from clipedit.editor.images.listing import list_folder
from clipedit.editor.images.published.asked import Asked
from clipedit.editor.images.source import LabelledImages


def is_there(path: Path) -> bool:
    """Whether a folder holds such a pair: some JSON file that has an image's name."""
    found = next(path.glob("*.json"), None) if path.is_dir() else None
    return found is not None and any(found.with_suffix(suffix).is_file() for suffix in (".jpg", ".png", ".webp"))


def read(path: Path, asked: Asked) -> LabelledImages:
    """Images with the classes and groups that their JSON files say; all images have the same keys.

    Raises:
        ImageError: If a file is missing or cannot be read, or lacks a key.
    """
    source = list_folder(path)
    rows = tuple(_read_row((path / name).with_suffix(".json")) for name in source.names)
    uneven = next((i for i, row in enumerate(rows) if row.keys() != rows[0].keys()), None)
    if uneven is not None:
        odd = ", ".join(sorted(rows[uneven].keys() ^ rows[0].keys()))
        raise ImageError(f"cannot read {path}: {source.names[uneven]} differs from {source.names[0]} in {odd}.")
    return label_source(path, replace(source, attributes=rows), asked)


def _read_row(file: Path) -> dict[str, str]:
    try:
        plain: Any = load_json(file)
    except (OSError, ValueError) as error:
        raise ImageError(f"cannot read {file}: {error}. Each image needs a JSON file of its name beside it.") from None
    if not isinstance(plain, dict):
        raise ImageError(f"cannot read {file}: it holds no object. Give names and values.")
    # A missing value is an empty cell, and is refused where it is needed.
    return {key: "" if value is None else str(value) for key, value in plain.items()}
