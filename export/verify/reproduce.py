"""reproduce: says what differs here from an export's record, and builds the export again to compare every byte."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...editor.edits.apply import apply_recipe
from ...editor.edits.recipe import load_recipe
from ...editor.errors import ClipeditError, ExportError
from ...editor.images.listing import list_images
from ...editor.images.source import ImageSource
from ...editor.load import load_model
from ...editor.models.model import Model
from ..graphs.adapters import load_adapter_recipes, open_adapters
from ..targets.patch import RECIPE_NAME
from ..written_for import find_written
from .record import ADAPTERS, PACKAGES_THAT_WRITE, describe_environment, hash_files
from .record_file import FOLDER, load_record


@dataclass(frozen=True)
class Difference:
    """A thing that is not as recorded. `severity`: `error` (it cannot come out the same), `warning` or `note`."""

    severity: str
    what: str
    recorded: str
    found: str

    def __str__(self) -> str:
        return f"{self.severity:7} {self.what}: recorded {self.recorded}, here {self.found}"


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
    pairs = {
        "base weights": (record["base"]["weights_hash"], base.weights_hash),
        "calibration images": (record["inputs"]["calibration"], source and source.fingerprint()),
    }
    # With other inputs a second build is bound to differ, and its differences would say nothing.
    inputs = [Difference("error", what, was[:12], now[:12]) for what, (was, now) in pairs.items() if was != now]
    return found + (inputs or _compare_build(folder, record, base, source))


def _compare_build(folder: Path, record: dict[str, Any], base: Model, source: ImageSource | None) -> list[Difference]:
    options = record["options"]
    edited = apply_recipe(load_recipe(_recipe_folder(folder)), base) if record["edited"] else base
    target = find_written(record["target"], options["precision"])
    recipes = load_adapter_recipes(folder / FOLDER / ADAPTERS, options.get("switchable", ()))
    adapters = open_adapters(edited, recipes)[1] if recipes else ()
    profile = replace(target.profile, prune="pruned" in options, calibration=source, adapters=adapters)
    # Without record and verification, which the recorded hashes do not cover.
    with tempfile.TemporaryDirectory() as name:
        target.write(target.shown(edited), Path(name), profile)
        found = compare_files(record["outputs"], hash_files(Path(name)), where="built again")
    was = record["edited_weights_hash"]
    if edited.weights_hash != was:
        found.insert(0, Difference("error", "edited weights", was[:12], edited.weights_hash[:12]))
    return found


def compare_environments(recorded: dict[str, str], here: dict[str, str]) -> list[Difference]:
    """Packages that write bytes are warnings; all else is a note."""
    names = dict.fromkeys([*recorded, *here])
    return [
        Difference(
            "warning" if name in PACKAGES_THAT_WRITE else "note",
            name,
            recorded.get(name, "none"),
            here.get(name, "none"),
        )
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
