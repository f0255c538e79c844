"""Which mask belongs to which image: that with the image's path in its own folder, whatever the suffix."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePath

from ..errors import ImageError
from ..files.walk import walk_folder
from .decode import SUFFIXES


def match_masks(folder: Path, names: Sequence[str]) -> list[str | None]:
    """The mask of each image, None where there is none: `cat/1.jpg` has `cat/1.png`, also for `photos/cat/1.jpg`.

    The folders that an image lies in count as far as the folder of masks has them: images of one name in two folders
    have a mask each.

    Raises:
        ImageError: If two masks have one image, or two images one mask.
    """
    masks: dict[tuple[str, ...], str] = {}
    for name, path in walk_folder(folder).files:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in SUFFIXES:
            first = masks.setdefault(PurePath(stem).parts, path)
            if first != path:
                raise ImageError(f"cannot tell the masks {first} and {path} apart: remove one of them.")
    found = [_find_mask(masks, name) for name in names]
    _require_own(found, names)
    return found


def _find_mask(masks: dict[tuple[str, ...], str], name: str) -> str | None:
    # Some tools keep the image's suffix before that of the mask: `1.jpg.png`.
    for parts in (PurePath(os.path.splitext(name)[0]).parts, PurePath(name).parts):
        # The longest path first: the folder of masks has the same folders inside, or fewer.
        found = next((masks[parts[start:]] for start in range(len(parts)) if parts[start:] in masks), None)
        if found is not None:
            return found
    return None


def _require_own(found: Sequence[str | None], names: Sequence[str]) -> None:
    owners: dict[str, str] = {}
    for mask, name in zip(found, names, strict=True):
        if mask is not None and owners.setdefault(mask, name) != name:
            raise ImageError(
                f"cannot tell whose mask {mask} is: {owners[mask]} and {name} have that name. Give the masks the "
                "folders that the images are in."
            )
