"""export: an edited model to a folder that its consumer reads, verified before it takes its final name."""

from __future__ import annotations

from pathlib import Path

from ..editor.errors import ExportError, nearest_names
from ..editor.files import require_free_folder, staged_folder
from ..editor.images import ImageSource
from ..editor.model import Model
from . import onnx_folder, open_clip_folder
from .profile import Precision, Profile, require_precision
from .reference import write_reference
from .verify import Check, verify_in_child

PROFILES: dict[str, Profile] = {module.PROFILE.target: module.PROFILE for module in (open_clip_folder, onnx_folder)}


def require_target(target: str, precision: Precision = "fp32") -> Profile:
    """The profile of a target that can be written in this precision.

    Raises:
        ExportError: With the nearest names, or the precisions there are.
    """
    if target not in PROFILES:
        raise ExportError(f"unknown target {target!r}. {nearest_names(target, PROFILES)}")
    require_precision(PROFILES[target], precision)
    return PROFILES[target].at(precision)


def export_model(
    model: Model,
    out: str | Path,
    *,
    target: str,
    precision: Precision = "fp32",
    images: ImageSource | str | Path | None = None,
    overwrite: bool = False,
    force: bool = False,
) -> list[Check]:
    """Write a model for one consumer and verify it in a fresh process; the folder appears only if every check holds.

    Args:
        images: Up to eight of them are used to verify; by default images of the demo world.
        force: Keep an export of lower precision although it answers too differently.

    Returns:
        The checks, each with its figure and tolerance; also in `verification.json`.

    Raises:
        ExportError: If the target is unknown or cannot hold the model, or the folder cannot be written.
        VerificationError: If a check fails; nothing is left under `out`.
    """
    profile = require_target(target, precision)
    require_free_folder(Path(out), overwrite=overwrite)
    with staged_folder(Path(out), overwrite=overwrite) as folder:
        profile.write(model, folder, profile)
        write_reference(model, folder, target=target, images=images)
        return verify_in_child(folder)
