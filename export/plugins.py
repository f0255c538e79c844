"""Which plugins are installed, and which of them can be used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..editor.errors import PluginError
from ..editor.images.layouts import why_no_layout
from ..editor.plugins import LAYOUT, OPERATION, SELECTOR, Plugin, PluginKind, find_plugins, load_plugin, why_no_function
from ..editor.towers.build import TOWER, why_no_tower
from .targets.registry import TARGET_KIND, load_target

_LOADERS: dict[PluginKind, Callable[[Plugin], object]] = {
    LAYOUT: lambda plugin: load_plugin(plugin, why_no_layout),
    OPERATION: lambda plugin: load_plugin(plugin, why_no_function),
    SELECTOR: lambda plugin: load_plugin(plugin, why_no_function),
    TARGET_KIND: lambda plugin: load_target(plugin.name),
    TOWER: lambda plugin: load_plugin(plugin, why_no_tower),
}


@dataclass(frozen=True)
class PluginState:
    """A plugin: its kind, name and package, and why it cannot be used, or None."""

    kind: str
    name: str
    package: str
    reason: str | None


def check_plugins(kind: str | None = None) -> list[PluginState]:
    """Load every plugin, or those of one kind, by kind and name."""
    return [
        PluginState(known.word, plugin.name, plugin.distribution, _why_not(load, plugin))
        for known, load in _LOADERS.items()
        if kind in (None, known.word)
        for plugin in find_plugins(known).values()
    ]


def _why_not(load: Callable[[Plugin], object], plugin: Plugin) -> str | None:
    try:
        load(plugin)
    except PluginError as error:
        return str(error)
    return None
