"""export: an edited model to a folder that its consumer reads, verified before it takes its final name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..editor.errors import ExportError, nearest_names
from ..editor.files import require_free_folder, staged_folder
from ..editor.images import ImageSource
from ..editor.model import Model
from .onnx_graphs import write_onnx
from .open_clip_folder import write_open_clip_folder
from .reference import write_reference
from .verify import Check, verify_in_child

TARGETS: dict[str, Callable[[Model, Path], None]] = {"open-clip": write_open_clip_folder, "onnx": write_onnx}


def require_target(target: str) -> None:
    """Refuse unknown targets.

    Raises:
        ExportError: With the nearest names.
    """
    if target not in TARGETS:
        raise ExportError(f"unknown target {target!r}. {nearest_names(target, TARGETS)}")


def export_model(
    model: Model,
    out: str | Path,
    *,
    target: str,
    images: ImageSource | str | Path | None = None,
    overwrite: bool = False,
) -> list[Check]:
    """Write a model for one consumer and verify it in a fresh process; the folder appears only if every check holds.

    Args:
        images: Up to eight of them are used to verify; by default images of the demo world.

    Returns:
        The checks, each with its figure and tolerance; also in `verification.json`.

    Raises:
        ExportError: If the target is unknown or cannot hold the model, or the folder cannot be written.
        VerificationError: If a check fails; nothing is left under `out`.
    """
    require_target(target)
    require_free_folder(Path(out), overwrite=overwrite)
    with staged_folder(Path(out), overwrite=overwrite) as folder:
        TARGETS[target](model, folder)
        write_reference(model, folder, target=target, images=images)
        return verify_in_child(folder)
