"""The targets there are: a target is a file in this folder, `torch_export.py` is target `torch-export`.

Names come from the names of the files, so that `--help` and wrong names need no torch; a target's file is imported when
the target is used.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from ...editor.choices import WeightPrecision
from ...editor.errors import ClipeditError, ExportError, PluginError, nearest_names
from ...editor.plugins import Plugin, PluginKind, find_plugins, load_plugin
from .. import targets

if TYPE_CHECKING:
    from ..consumers.target import Target


def _own_names() -> tuple[str, ...]:
    # Listed and not imported, so that `--help` needs no torch.
    files = {module.name for module in pkgutil.iter_modules(targets.__path__)} - {"registry"}
    return tuple(sorted(file.replace("_", "-") for file in files))


TARGET_KIND = PluginKind("target", _own_names())


def target_names() -> tuple[str, ...]:
    """All targets: clipedit's own in the order of the alphabet, then those of plugins."""
    return TARGET_KIND.names()


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
        PluginError: If it is a plugin's that cannot be used.
    """
    require_target_name(name)
    if name not in TARGET_KIND.own:
        return _load_from_plugin(find_plugins(TARGET_KIND)[name])
    return importlib.import_module(f"{targets.__name__}.{name.replace('-', '_')}").TARGET


def _load_from_plugin(plugin: Plugin) -> Target:
    loaded = load_plugin(plugin, _why_no_target)
    if loaded.name != plugin.name or loaded.row is None:
        raise PluginError(f"cannot use {plugin}: its profile must say target={plugin.name!r}, and it needs a row.")
    # That a consumer's package is not installed is told as for any target.
    return loaded.guarded(partial(plugin.call, passing=(ClipeditError, ImportError)))


def _why_no_target(loaded: object) -> str | None:
    # By its members: the class itself would bring torch to whatever reads the names of targets.
    is_target = all(hasattr(loaded, member) for member in ("profile", "write", "load", "card", "row", "guarded"))
    return None if is_target else f"it is of type {type(loaded).__name__}, a Target is needed"


def require_target(name: str, precision: WeightPrecision = "fp32") -> Target:
    """A target that can be written in this precision.

    Raises:
        ExportError: With the nearest names, or the precisions there are.
    """
    target = load_target(name)
    target.profile.require_precision(precision)
    return target.at(precision)


def spell_target_names(names: Sequence[str] | None = None) -> str:
    """The help of `--target`, of all targets or of some."""
    *others, last = (f"`{name}`" for name in names or target_names())
    return f"{', '.join(others)} or {last}."


def render_targets_markdown() -> str:
    """The table of `docs/targets.md`: clipedit's own."""
    rows = ["| target | what is written | verified with | to install for that | precisions |", "|---|---|---|---|---|"]
    for name in TARGET_KIND.own:
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
