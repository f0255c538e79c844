"""Plugins: what installed packages add to clipedit's own tables, found by Python's entry points (`docs/plugins.md`).

Each table has a group, `clipedit.operations` for example. Names come from the packages' metadata, so that help and
wrong names run no code of a plugin; one is imported where it is used. What cannot be used is named in a warning and
left out; where it was asked for by name, that is an error.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args

from .choices import HeadOperation, Layout, Selection
from .errors import ClipeditError, PluginError

# Distributions whose plugins may be used, separated by commas; all where it is not set, none where it is empty.
PLUGINS_VARIABLE = "CLIPEDIT_PLUGINS"
PLUGIN_WORDS = ("layout", "operation", "selector", "target", "tower")
# Names become values of options and words in recipes.
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


@dataclass(frozen=True)
class PluginKind:
    """One table that plugins add to.

    Attributes:
        word: What one of them is called.
        own: The names that clipedit has itself, in the order of its help.
        reserved: Names that mean something else.
    """

    word: str
    own: tuple[str, ...] = ()
    reserved: tuple[str, ...] = ()

    @property
    def group(self) -> str:
        """The group of entry points."""
        return f"clipedit.{self.word}s"

    def names(self) -> tuple[str, ...]:
        """All names: clipedit's own, then those of plugins."""
        return (*self.own, *find_plugins(self))


OPERATION = PluginKind("operation", get_args(HeadOperation), reserved=("leace",))
SELECTOR = PluginKind("selector", get_args(Selection))
LAYOUT = PluginKind("layout", get_args(Layout))


@dataclass(frozen=True)
class Plugin:
    """One entry point of `importlib.metadata`, not loaded yet; `distribution` is the package that has it, with its
    version.
    """

    kind: PluginKind
    name: str
    distribution: str
    entry: Any

    def __str__(self) -> str:
        return f"the {self.kind.word} {self.name} of the plugin {self.distribution}"

    def call(
        self, function: Callable[..., Any], *given: Any, passing: tuple[type[Exception], ...] = (ClipeditError,)
    ) -> Any:
        """What a plugin's function answers; `passing` are errors that mean something to who called it.

        Raises:
            PluginError: If it fails by any other.
        """
        try:
            return function(*given)
        except passing:
            raise
        except Exception as error:
            raise PluginError(f"cannot go on: {self} failed ({_spell(error)}). Report it to its authors.") from error


@cache
def find_plugins(kind: PluginKind) -> Mapping[str, Plugin]:
    """The plugins of a kind by name, none of them loaded. Names that are taken or stand twice are left out, with a
    warning.
    """
    allowed = _allowed_distributions()
    found: dict[str, list[Plugin]] = {}
    for entry in _list_entries(kind.group):
        plugin = _describe(kind, entry)
        if allowed is None or plugin.distribution.split(" ")[0] in allowed:
            found.setdefault(entry.name, []).append(plugin)
    kept: dict[str, Plugin] = {}
    for name, plugins in sorted(found.items()):
        reason = _why_not_named(kind, plugins)
        if reason is None:
            kept[name] = plugins[0]
        else:
            _leave_out(plugins[0], reason)
    return kept


def _list_entries(group: str) -> Iterable[Any]:
    # Late: it takes a while, and most commands need no names of plugins.
    from importlib.metadata import distributions, entry_points

    try:
        return entry_points(group=group)
    except Exception:  # One package whose metadata is no metadata must not take the plugins of all others away.
        return [entry for found in distributions() for entry in _read_entries(found) if entry.group == group]


def _read_entries(distribution: Any) -> Iterable[Any]:
    try:
        return distribution.entry_points
    except Exception as error:
        place = getattr(distribution, "_path", "an installed package")
        warnings.warn(f"left out the plugins of {place}: its metadata cannot be read ({_spell(error)})", stacklevel=2)
        return ()


def _allowed_distributions() -> set[str] | None:
    said = os.environ.get(PLUGINS_VARIABLE)
    return None if said is None else {_normalise(name) for name in said.split(",") if name.strip()}


def _normalise(name: str) -> str:
    # As PyPI compares the names of distributions.
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def _describe(kind: PluginKind, entry: Any) -> Plugin:
    try:
        named = f"{_normalise(entry.dist.name)} {entry.dist.version}"
    except Exception:  # Metadata without a name or a version.
        named = "unknown"
    return Plugin(kind, entry.name, named, entry)


def _why_not_named(kind: PluginKind, plugins: list[Plugin]) -> str | None:
    name = plugins[0].name
    if not _NAME.fullmatch(name):
        return "a name has small letters, digits and single hyphens only"
    if name in kind.own or name in kind.reserved:
        return f"clipedit has {'an' if kind.word[0] in 'aeiou' else 'a'} {kind.word} of that name"
    if len(plugins) > 1:
        return f"{plugins[1].distribution} has one of that name too"
    return None


@cache
def load_plugin(plugin: Plugin, why_not: Callable[[Any], str | None]) -> Any:
    """What an entry point names.

    Args:
        why_not: What a loaded object lacks, in words, or None.

    Raises:
        PluginError: If it cannot be imported, or lacks something.
    """
    try:
        loaded = plugin.entry.load()
    except (Exception, SystemExit) as error:  # A module of others may do anything while it is imported.
        raise PluginError(f"cannot use {plugin}: it cannot be imported ({_spell(error)}).") from error
    reason = why_not(loaded)
    if reason is not None:
        raise PluginError(f"cannot use {plugin}: {reason}.")
    return loaded


def load_usable(kind: PluginKind, why_not: Callable[[Any], str | None]) -> Iterator[tuple[Plugin, Any]]:
    """All plugins of a kind that can be loaded; the others are named in a warning."""
    for plugin in find_plugins(kind).values():
        try:
            yield plugin, load_plugin(plugin, why_not)
        except PluginError as error:
            _leave_out(plugin, str(error).removeprefix(f"cannot use {plugin}: ").removesuffix("."))


def why_no_function(loaded: object) -> str | None:
    """What is wrong with what should be a function, or None."""
    return None if callable(loaded) else f"it is of type {type(loaded).__name__}, a function is needed"


@cache  # Once a process: a table may be asked for every model of a list.
def _leave_out(plugin: Plugin, reason: str) -> None:
    warnings.warn(f"left out {plugin}: {reason}", stacklevel=2)


def ask_plugin(plugin: Plugin, question: Callable[..., Any], *given: Any) -> Any:
    """What a plugin answers that is asked of everything, such as of each folder whether it is one of its own: None,
    and a warning, where it fails.
    """
    try:
        return question(*given)
    except Exception as error:
        _leave_out(plugin, _spell(error))
        return None


def _spell(error: BaseException) -> str:
    """The class and message of an error, on one line."""
    said = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
