"""The command line: its commands in groups, and the boundary where errors become messages."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import typer

from . import __version__
from .commands import audit, edit, heads, library, look, measure, scan, ship, start
from .commands.console import fail, printable
from .editor.errors import ClipeditError

GROUPS: dict[str, dict[str, Callable[..., None]]] = {
    "Start": {"demo": start.demo, "audit": audit.audit, "remove-heads": start.remove_heads},
    "Find": {"scan": scan.scan, "merge": scan.merge, "label": heads.label, "score": heads.score, "align": scan.align},
    "Fix": {"apply": edit.apply, "diff": edit.diff, "reindex": edit.reindex},
    "Measure": {
        "evaluate": measure.evaluate,
        "completeness": measure.completeness,
        "ablate-layers": heads.ablate_layers,
        "monitor": scan.monitor,
        "train-head": measure.train_head,
    },
    "Look": {"heatmap": look.heatmap, "segment": look.segment, "retrieve": look.retrieve, "report": look.report},
    "Ship": {"export": ship.export, "verify": ship.verify, "reproduce": ship.reproduce},
    "Library": {"models": library.models},
}

# The base of all wrong usage, wherever Typer keeps it; its message is shown plain, not in a box.
_UsageError: Any = typer.BadParameter.__mro__[1]

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich")
for _group, _commands in GROUPS.items():
    for _name, _command in _commands.items():
        # Typer asks for the annotations three times, and each is a string that is evaluated anew: once is enough.
        _command.__annotations__ = get_type_hints(_command, include_extras=True)
        _kind: dict[str, Any] = {"cls": start.PanelledCommand} if _name == "remove-heads" else {}
        app.command(_name, rich_help_panel=_group, **_kind)(_command)
app.add_typer(library.concepts_app, name="concepts", rich_help_panel="Library")
app.add_typer(library.recipes_app, name="recipes", rich_help_panel="Library")


def _print_version(asked: bool) -> None:
    if asked:
        print(f"clipedit {__version__}")
        raise typer.Exit


@app.callback()
def describe(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Find the attention heads that carry a concept, remove them, and ship the repaired encoder."""


def main() -> None:
    """Run the command line: exit 0, 1 with a message on stderr, or 2 for wrong usage."""
    # Pydantic would look for plugins in the metadata of every installed package, which takes longer than most commands.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")
    # A warning is a line like others: where in the code it arose tells a user nothing.
    warnings.showwarning = lambda message, *_: print(printable(f"warning: {message}"), file=sys.stderr)
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except _UsageError as error:
        error.show()
        sys.exit(error.exit_code)
    except ClipeditError as error:
        fail(f"error: {error}")
    except BrokenPipeError:
        # The reader went away: once closed, stderr cannot complain again when Python flushes stdout at exit.
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        fail(f"error: {error.strerror or error}: {error.filename or ''}".rstrip(": "))


if __name__ == "__main__":
    main()
