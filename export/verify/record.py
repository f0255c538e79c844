"""The record of an export: what it was made from and with, and hashes of its files, kept in its `reproduce/`."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from ...editor.edits.document import Base
from ...editor.models.loaders import lasting_name
from ...editor.models.model import Model
from ..graphs.adapters import save_adapter_recipes
from ..graphs.profile import Profile
from ..targets.patch import RECIPE_NAME
from .record_file import FOLDER, RECORD_NAME

ADAPTERS = "adapters"
# What writes the bytes of an export; other versions of the rest have not been seen to matter.
PACKAGES_THAT_WRITE = ("clipedit", "torch", "open_clip_torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu")
_OTHER_PACKAGES = ("safetensors", "timm", "transformers", "numpy", "pillow")


def write_record(model: Model, folder: Path, profile: Profile, options: dict[str, Any]) -> None:
    """Write `reproduce/` into an export: the recipe, and hashes of base, inputs and all files that are there by now."""
    # Before `reproduce/` is there: the record cannot hold its own hash.
    outputs = hash_files(folder)
    inner = folder / FOLDER
    inner.mkdir()
    recipe = model.recipe
    base = (
        recipe.document.base
        if recipe
        else Base(model=model.name, pretrained=model.pretrained, weights_hash=model.weights_hash)
    )
    # A patch is the recipe itself, and needs no second copy.
    if recipe is not None and RECIPE_NAME not in outputs:
        recipe.save(inner / RECIPE_NAME)
    save_adapter_recipes(inner / ADAPTERS, profile.adapters)
    record = {
        "schema_version": 1,
        "target": profile.target,
        "options": options,
        "edited": recipe is not None,
        "base": base.model_dump() | {"model": lasting_name(base.model)},
        "inputs": {
            "scan": recipe.document.calibration.model_dump() if recipe and recipe.document.calibration else None,
            "calibration": profile.calibration and profile.calibration.fingerprint(),
        },
        "edited_weights_hash": model.weights_hash,
        "environment": describe_environment(),
        "outputs": outputs,
    }
    (inner / RECORD_NAME).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def describe_environment() -> dict[str, str]:
    """Versions of what takes part, and the kind of machine."""
    found = {"python": platform.python_version(), "system": platform.system(), "machine": platform.machine()}
    for name in (*PACKAGES_THAT_WRITE, *_OTHER_PACKAGES):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def hash_files(folder: Path, names: Iterable[str] | None = None) -> dict[str, str]:
    """SHA-256 of files of a folder by relative path, those named or all; missing ones are left out."""
    every = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    wanted = every if names is None else [name for name in every if name in set(names)]
    return {name: _hash_file(folder / name) for name in wanted}


def _hash_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
