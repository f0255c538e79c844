"""The history of an edited folder: every edit in order, what each replaced, and what all tensors were after it.

It lies in `history/`, beside the weights: `log.json`, and a folder for each edit with the tensors that it replaced. Of
edits that were not the last it also holds the recipe. The replaced tensors are kept there, and not asked of whoever has
the base: they are few (a readout, or the output weights of some layers), and a base that is gone cannot be given.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ...editor.concepts.concepts import describe_validation
from ...editor.errors import ModelError
from ...editor.files import digests
from ...editor.files.bounded import load_json
from ...editor.files.inputs import HISTORY_FOLDER as FOLDER
from ...editor.files.tensors import ReadTensor
from ...editor.files.whole import save_tensors, write_text
from ...editor.models.hf.folder import find_weights as find_hf_weights
from ...editor.models.hf.folder import is_hf_folder
from ...editor.models.hub.repository import BASE_FOLDER
from ...editor.models.loaders import find_checkpoint
from ...editor.models.open_clip_config import CONFIG_NAME as OPEN_CLIP_CONFIG_NAME

LOG_NAME, REPLACED_NAME = "log.json", "replaced.safetensors"
REPLACED_KIND = "clipedit_replaced"
RECIPE_FILES = ("recipe.yaml", "recipe.safetensors")
# What the model's function depends on, or the next edit; what is written about it (cards, reports) may change.
_KEPT_SUFFIXES = frozenset({".json", ".txt", ".model"})
_NOT_KEPT = frozenset({"verification.json"})


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Edit(_Part):
    """One edit.

    Attributes:
        replaced: The digests of the tensors that it changed, as they were before, by their names in the file.
        tensors: The digest of every tensor after it.
        files: The digest of every file that counts beside them after it: configuration, tokenizer, recipe.
    """

    recipe: str
    replaced: dict[str, str]
    tensors: dict[str, str]
    files: dict[str, str]


class History(_Part):
    """All edits of a folder, the first one first."""

    schema_version: Literal[1] = 1
    edits: tuple[Edit, ...] = ()


def load_history(folder: Path) -> History:
    """What a folder says of its edits; none where it was not edited, or by a version that kept no history.

    Raises:
        ModelError: If that cannot be read.
    """
    path = folder / FOLDER / LOG_NAME
    try:
        return History.model_validate(load_json(path)) if path.is_file() else History()
    except ValidationError as error:
        raise ModelError(f"cannot read {path}: {describe_validation(error)}.") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path}: {str(error).splitlines()[0]}.") from None


def record_edit(
    folder: Path, recipe: str, before: Mapping[str, str], read: ReadTensor, *, base: Path | None = None
) -> None:
    """Add an edit to the history of the folder that it was just written to; the base's history comes before it.

    Args:
        before: The digests of the base's tensors, by their names in the file.
        read: Gives one of them.
        base: The base's folder, whose history is carried over; None where it has none.
    """
    earlier = load_history(base) if base is not None else History()
    if base is not None:
        _carry_over(base, folder / FOLDER, len(earlier.edits))
    after = digest_tensors(folder)
    changed = [name for name, digest in after.items() if before.get(name) != digest]
    place = folder / FOLDER / str(len(earlier.edits) + 1)
    place.mkdir(parents=True)
    save_tensors(place / REPLACED_NAME, {name: read(name) for name in changed}, REPLACED_KIND)
    edit = Edit(
        recipe=recipe, replaced={name: before[name] for name in changed}, tensors=after, files=digest_files(folder)
    )
    save_history(folder, History(edits=(*earlier.edits, edit)))


def _carry_over(base: Path, history: Path, count: int) -> None:
    """The history of the base, and its recipe under the number of its last edit: 0 where it has a recipe alone."""
    if count:
        shutil.copytree(base / FOLDER, history)
    for name in RECIPE_FILES:
        if (base / name).is_file():
            (history / str(count)).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(base / name, history / str(count) / name)


def save_history(folder: Path, history: History) -> None:
    """Write what a folder says of its edits."""
    write_text(folder / FOLDER / LOG_NAME, json.dumps(history.model_dump(mode="json"), indent=1) + "\n")


def find_weights(folder: Path) -> list[Path]:
    """The files of the weights of an edited folder; those of the base beside a `direct` edit.

    Several where a Hugging Face folder was written back in its own shards.
    """
    inner = folder / BASE_FOLDER
    place = inner if inner.is_dir() else folder
    # What open_clip reads may lie beside a configuration of transformers, which none of ours wrote weights for then.
    is_hf = not (place / OPEN_CLIP_CONFIG_NAME).is_file() and is_hf_folder(place)
    return find_hf_weights(place) if is_hf else [find_checkpoint(place)]


def digest_tensors(folder: Path) -> dict[str, str]:
    """The digest of each tensor of a folder's weights, by its name in the files."""
    return digests.digest_files(find_weights(folder))


def digest_files(folder: Path) -> dict[str, str]:
    """The digest of each file that counts beside the weights, by its path in the folder."""
    inner = folder / BASE_FOLDER
    paths = [*folder.iterdir(), *(inner.iterdir() if inner.is_dir() else ()), *(folder / "concepts").glob("*.yaml")]
    recipe = [folder / name for name in RECIPE_FILES]
    counted = [
        path
        for path in paths
        if path in recipe or (path.suffix in _KEPT_SUFFIXES and path.name not in _NOT_KEPT and path.name[0] != ".")
    ]
    found = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in counted}
    return dict(sorted(found.items()))
