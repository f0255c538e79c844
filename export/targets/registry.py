"""The targets there are: a target is a file in this folder, `torch_export.py` is target `torch-export`.

Names come from the names of the files, so that `--help` and wrong names need no torch; a target's file is imported when
the target is used.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

from ...editor.choices import WeightPrecision
from ...editor.errors import ExportError, nearest_names
from .. import targets

if TYPE_CHECKING:
    from ..consumers.target import Target


def target_names() -> tuple[str, ...]:
    """All targets, in the order of the alphabet."""
    # Listed and not imported, so that `--help` needs no torch.
    files = {module.name for module in pkgutil.iter_modules(targets.__path__)} - {"registry"}
    return tuple(sorted(file.replace("_", "-") for file in files))


def require_target_name(name: str) -> str:
    """A name that a target has, as it is.

    Raises:
        ExportError: With the nearest names.
    """
    if name not in target_names():
        raise ExportError(f"unknown target {name!r}. {nearest_names(name, target_names())}")
    return name


def load_target(name: str) -> Target:
    """A target in full precision.

    Raises:
        ExportError: With the nearest names.
    """
    require_target_name(name)
    return importlib.import_module(f"{targets.__name__}.{name.replace('-', '_')}").TARGET


def require_target(name: str, precision: WeightPrecision = "fp32") -> Target:
    """A target that can be written in this precision.

    Raises:
        ExportError: With the nearest names, or the precisions there are.
    """
    target = load_target(name)
    target.profile.require_precision(precision)
    return target.at(precision)


def spell_target_names() -> str:
    """The help of `--target`."""
    *others, last = (f"`{name}`" for name in target_names())
    return f"{', '.join(others)} or {last}."


def render_targets_markdown() -> str:
    """The table of `docs/targets.md`."""
    rows = ["| target | what is written | verified with | to install for that | precisions |", "|---|---|---|---|---|"]
    for name in target_names():
        target = load_target(name)
        assert target.row is not None
        cells = (
            f"`{name}`",
            target.row.written,
            target.row.verified_with,
            target.row.to_install,
            ", ".join(target.profile.precisions),
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"
