"""reproduce: what an export was made from and with, kept in its `reproduce/`; says what differs here, and builds it again."""

from __future__ import annotations

import hashlib
import json
import platform
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ...editor.edits.apply import apply_recipe
from ...editor.edits.recipe import Base, load_recipe
from ...editor.errors import ClipeditError, ExportError
from ...editor.files.bounded import load_json
from ...editor.files.whole import lasting_name
from ...editor.images.source import ImageSource, list_images
from ...editor.models.model import Model, load_model
from ..graphs.precision import LIMITS
from ..targets.patch import RECIPE_NAME
from ..targets.profile import Profile

FOLDER, RECORD_NAME = "reproduce", "reproduce.json"
# What writes the bytes of an export; other versions of the rest have not been seen to matter.
_WRITERS = ("clipedit", "torch", "open_clip_torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu")
_OTHERS = ("safetensors", "timm", "transformers", "numpy", "pillow")


class _Record(BaseModel):
    """What is read of a record."""

    target: str
    options: dict[str, Any]
    edited: bool
    base: Base
    inputs: dict[str, Any]
    edited_weights_hash: str
    environment: dict[str, str]
    outputs: dict[str, str]


@dataclass(frozen=True)
class Difference:
    """One thing that is not as recorded. `severity`: `error` (it cannot come out the same), `warning` (it may not) or `note`."""

    severity: str
    what: str
    recorded: str
    found: str

    def __str__(self) -> str:
        return f"{self.severity:7} {self.what}: recorded {self.recorded}, here {self.found}"


def write_record(model: Model, folder: Path, profile: Profile, options: dict[str, Any]) -> None:
    """Write `reproduce/` into an export: the recipe, and hashes of base, inputs and all files that are there by now."""
    outputs = hash_files(folder)
    inner = folder / FOLDER
    inner.mkdir()
    recipe = model.recipe
    base = (
        recipe.document.base
        if recipe
        else Base(model=model.name, pretrained=model.pretrained, weights_hash=model.weights_hash)
    )
    if recipe is not None and RECIPE_NAME not in outputs:
        recipe.save(inner / RECIPE_NAME)
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


def reproduce(
    folder: str | Path, *, model: Model | None = None, calibration: str | Path | None = None
) -> list[Difference]:
    """Compare an export with its record, and with a second build from its base and recipe; nothing is left of that.

    Args:
        model: The base, if it is not where it was.
        calibration: The images of a static int8 export.

    Returns:
        What differs; no `error` among it means that every file came out the same. With another base there is no build.

    Raises:
        ExportError: If the folder holds no record, or the base or the images are not found.
    """
    folder = Path(folder)
    record = load_record(folder)
    found = compare_environments(record["environment"], describe_environment())
    found += compare_files(record["outputs"], hash_files(folder, record["outputs"]), where="as it is now")
    base = model or _load_base(record["base"], folder)
    source = _find_calibration(record, calibration, folder)
    pairs = {"base weights": (record["base"]["weights_hash"], base.weights_hash),
             "calibration images": (record["inputs"]["calibration"], source and source.fingerprint())}  # fmt: skip
    inputs = [Difference("error", what, was[:12], now[:12]) for what, (was, now) in pairs.items() if was != now]
    return found + (inputs or _compare_build(folder, record, base, source))


def _compare_build(folder: Path, record: dict[str, Any], base: Model, source: ImageSource | None) -> list[Difference]:
    from ..targets.registry import require_target

    options = record["options"]
    edited = apply_recipe(load_recipe(_recipe_folder(folder)), base) if record["edited"] else base
    profile = require_target(record["target"], options["precision"]).at(options["precision"])
    profile = replace(profile, prune="pruned" in options, calibration=source)
    with tempfile.TemporaryDirectory() as name:
        profile.write(edited, Path(name), profile)
        found = compare_files(record["outputs"], hash_files(Path(name)), where="built again")
    was = record["edited_weights_hash"]
    if edited.weights_hash != was:
        found.insert(0, Difference("error", "edited weights", was[:12], edited.weights_hash[:12]))
    return found


def load_record(folder: Path) -> dict[str, Any]:
    """The record of an export.

    Raises:
        ExportError: If there is none, or it is damaged.
    """
    path = folder / FOLDER / RECORD_NAME
    try:
        record = load_json(path)
        if record["schema_version"] != 1:
            raise ValueError("it is of another version")
        _Record.model_validate(record)
        if record["options"]["precision"] not in LIMITS or "calibration" not in record["inputs"]:
            raise ValueError("its options or inputs are damaged")
    except FileNotFoundError:
        raise ExportError(f"cannot reproduce {folder}: it holds no {FOLDER}/{RECORD_NAME}. Give an export.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(f"cannot reproduce {folder}: {path} cannot be read ({error}). Export again.") from None
    return record


def describe_environment() -> dict[str, str]:
    """Versions of what takes part, and the kind of machine."""
    found = {"python": platform.python_version(), "system": platform.system(), "machine": platform.machine()}
    for name in (*_WRITERS, *_OTHERS):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def compare_environments(recorded: dict[str, str], here: dict[str, str]) -> list[Difference]:
    """Packages that write bytes are warnings; all else is a note."""
    names = dict.fromkeys([*recorded, *here])
    return [
        Difference("warning" if name in _WRITERS else "note", name, recorded.get(name, "none"), here.get(name, "none"))
        for name in names
        if recorded.get(name) != here.get(name)
    ]


def compare_files(recorded: dict[str, str], found: dict[str, str], *, where: str) -> list[Difference]:
    """Files whose bytes differ, that are missing, or that were not there."""
    return [
        Difference("error", f"{name} {where}", recorded.get(name, "none")[:12], found.get(name, "none")[:12])
        for name in sorted({*recorded, *found})
        if recorded.get(name) != found.get(name)
    ]


def hash_files(folder: Path, names: Iterable[str] | None = None) -> dict[str, str]:
    """SHA-256 of files of a folder by relative path, those named or all; missing ones are left out."""
    every = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    wanted = every if names is None else [name for name in every if name in set(names)]
    return {name: _hash_file(folder / name) for name in wanted}


def _hash_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _recipe_folder(folder: Path) -> Path:
    return folder if (folder / RECIPE_NAME).is_file() else folder / FOLDER


def _load_base(base: dict[str, Any], folder: Path) -> Model:
    try:
        return load_model(base["model"], base["pretrained"])
    except ClipeditError as error:
        raise ExportError(f"cannot reproduce {folder}: its base is not here. {error} Name it with --model.") from error


def _find_calibration(record: dict[str, Any], images: str | Path | None, folder: Path) -> ImageSource | None:
    """The images of a static int8 export.

    Raises:
        ExportError: If they are needed and not given.
    """
    if record["inputs"]["calibration"] is None:
        return None
    if images is None:
        raise ExportError(
            f"cannot reproduce {folder}: int8 was calibrated with images. Name the same ones with --calibration."
        )
    return list_images(images)
