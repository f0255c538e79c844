"""Paths and names that can be wrong, refused while options are read: no torch is loaded for a misspelling."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ..editor.choices import CACHE_VARIABLE
from ..editor.errors import ModelError
from ..editor.files.inputs import (
    list_scan_files,
    require_aligner_or_clip,
    require_features_file,
    require_image_file,
    require_images_path,
    require_scan_file,
    require_verified_folder,
    require_weights_path,
)
from ..editor.identities import HeadId
from ..editor.images.demo_name import demo_folder, is_demo
from .running.listed import STDIN, save_listed_images

Given = TypeVar("Given", bound=str | Path | None)


def _checked(check: Callable[[Path], None]) -> Callable[[Given], Given]:
    """A callback of Typer: the value as it is, or an error."""

    def callback(value: Given) -> Given:
        # Names, URIs, globs and ranges are for the library to read.
        if value is not None and not is_demo(value) and not set("*?[{") & set(str(value)) and "://" not in str(value):
            check(Path(value))
        return value

    return callback


require_scan = _checked(require_scan_file)
require_features = _checked(require_features_file)
require_aligner = _checked(require_aligner_or_clip)
_require_images = _checked(require_images_path)
require_image = _checked(require_image_file)
require_weights = _checked(require_weights_path)
require_verified = _checked(require_verified_folder)


def require_partials(paths: list[Path]) -> list[Path]:
    """Refuse files and folders that hold no scan."""
    list_scan_files(paths)
    return paths


def require_images(value: Given) -> Given:
    """Refuse images that are not there; `-` stands for a list of them from stdin."""
    return save_listed_images() if value == STDIN else _require_images(value)  # pyright: ignore[reportReturnType]


def require_heads(heads: list[str] | None) -> list[str] | None:
    """Refuse a misspelt head."""
    for head in heads or ():
        try:
            HeadId.parse(head)
        except ValueError as error:
            raise ModelError(f"cannot use the head: {error}.") from None
    return heads


def forget_cache(asked: bool) -> bool:
    """Nothing is kept from run to run, here and in the processes that this one starts."""
    if asked:
        os.environ[CACHE_VARIABLE] = ""
    return asked


def concepts_folder(model: str) -> Path | None:
    """Where a model's own concepts are: its folder, if it has one."""
    # `demo` is a name, not a path: its folder is inside the package.
    if is_demo(model):
        return demo_folder()
    if model.startswith("hf-hub:"):
        from ..editor.models.hub.repository import fetch_repository

        return fetch_repository(model, weights=False).folder
    folder = Path(model.removeprefix("hf:"))
    return folder if folder.is_dir() else None


def require_concepts(model: str, *names: str | None) -> None:
    """Refuse a concept that cannot be read."""
    from ..editor.concepts.concepts import load_concept

    given = [name for name in names if name is not None]
    # Of a model of the hub its folder is fetched: once, and not for nothing.
    folder = concepts_folder(model) if given else None
    for name in given:
        load_concept(name, folder)


def require_edited(folder: Path) -> None:
    """Refuse a folder that holds no recipe which can be read."""
    from ..editor.edits.document import require_recipe_file

    require_recipe(require_recipe_file(folder))


def require_recipe(recipe: Path) -> None:
    """Refuse a recipe that cannot be read."""
    from ..editor.edits.document import load_document

    load_document(recipe)
