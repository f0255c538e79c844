"""Options that take names to which plugins may add. Entry points are read for the help of a command that has such an
option, and for a name that is none of clipedit's own; never for other commands.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand

from ...editor.plugins import LAYOUT, OPERATION, SELECTOR, PluginKind, find_plugins
from ...export.targets.registry import spell_target_names

# By the names of parameters.
_KINDS = {"operation": OPERATION, "select": SELECTOR, "layout": LAYOUT}


def option_of(kind: PluginKind, **options: Any) -> Any:
    """An option that takes the names of a kind, shown and completed as Typer does it for a fixed choice."""
    return typer.Option(parser=_make_parser(kind), metavar=_spell(kind.own), autocompletion=_complete(kind), **options)


def _make_parser(kind: PluginKind) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value in kind.own or value in find_plugins(kind):
            return value
        raise typer.BadParameter(f"{value!r} is not one of {', '.join(map(repr, kind.names()))}.")

    return parse


def _complete(kind: PluginKind) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        return [name for name in kind.names() if name.startswith(incomplete)]

    return complete


def _spell(names: tuple[str, ...]) -> str:
    return f"[{'|'.join(names)}]"


class OpenCommand(TyperCommand):
    """A command whose help also has the names of plugins."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The help."""
        for parameter in self.params:
            if parameter.name in _KINDS:
                parameter.metavar = _spell(_KINDS[parameter.name].names())
            elif parameter.name == "target":
                parameter.help = spell_target_names()  # pyright: ignore[reportAttributeAccessIssue]
        super().format_help(ctx, formatter)
