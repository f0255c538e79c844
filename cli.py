"""The command line: its commands in groups, and the boundary where errors become messages."""

from __future__ import annotations

import atexit
import os
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer

from . import __version__
from .commands import audit, edit, heads, library, look, measure, monitor, scan, ship, start
from .commands.console import fail, tell_error, warn
from .commands.running.configuration import name_variables
from .commands.running.exits import Exit
from .commands.running.plugin_options import OpenCommand
from .commands.running.shared import ConfigOption, LogJsonOption, QuietOption, take_shared
from .commands.running.voice import VOICE, begin, end
from .editor.errors import ClipeditError

GROUPS: dict[str, dict[str, Callable[..., None]]] = {
    "Start": {"demo": start.demo, "audit": audit.audit, "remove-heads": start.remove_heads},
    "Find": {"scan": scan.scan, "merge": scan.merge, "label": heads.label, "score": heads.score, "align": scan.align},
    "Fix": {"apply": edit.apply, "log": edit.log, "diff": edit.diff, "reindex": edit.reindex},
    "Measure": {
        "evaluate": measure.evaluate,
        "completeness": measure.completeness,
        "ablate-layers": heads.ablate_layers,
        "monitor": monitor.monitor,
        "train-head": measure.train_head,
    },
    "Look": {
        "desk": look.desk,
        "heatmap": look.heatmap,
        "segment": look.segment,
        "retrieve": look.retrieve,
        "report": look.report,
    },
    "Ship": {"export": ship.export, "verify": ship.verify, "reproduce": ship.reproduce, "push": ship.push},
    "Library": {"models": library.models, "plugins": library.plugins, "schema": library.schema},
}

# The base of all wrong usage, wherever Typer keeps it; its message is shown plain, not in a box.
_UsageError: Any = typer.BadParameter.__mro__[1]

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich")
for _group, _commands in GROUPS.items():
    for _name, _command in _commands.items():
        _kind = start.PanelledCommand if _name == "remove-heads" else OpenCommand
        app.command(_name, rich_help_panel=_group, cls=_kind)(take_shared(_command))
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
    config: ConfigOption = None,
    quiet: QuietOption = False,
    log_json: LogJsonOption = False,
) -> None:
    """Find the attention heads that carry a concept, remove them, and ship the repaired encoder."""


def run() -> NoReturn:
    """`main` as a process: it ends when the command does, where Python would first take every module of torch apart.

    That takes a second. What was registered for the end is done, and what was printed is flushed.
    """
    try:
        main()
    except SystemExit as stop:
        atexit._run_exitfuncs()
        os._exit(_flush(int(stop.code or 0)))


def _flush(code: int) -> int:
    """The exit code, or that of a failure if what was printed has lost its reader."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # The second of a stream that was closed.
            code = code or Exit.REFUSED
    return code


def main() -> NoReturn:
    """Run the command line: exit 0, or as `Exit` says, with a message on stderr."""
    # Pydantic would look for plugins in the metadata of every installed package, which takes longer than most commands.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")
    warnings.showwarning = lambda message, *_: warn(message)
    begin()
    # What no line below foresees ends in Python's own traceback, and its exit code.
    code: Any = Exit.REFUSED
    try:
        code = _run()
    except SystemExit as stop:
        code = stop.code
        raise
    finally:
        end(int(code or 0))
    sys.exit(code)


def _run() -> int:
    try:
        command = typer.main.get_command(app)
        name_variables(command)
        return command(standalone_mode=False) or Exit.FINE
    except _UsageError as error:
        tell_error(error.format_message()) if VOICE.as_json else error.show()
        sys.exit(Exit.USAGE)
    except ClipeditError as error:
        fail(str(error))
    except BrokenPipeError:
        # The reader went away: once closed, stderr cannot complain again when Python flushes stdout at exit.
        sys.stderr.close()
        sys.exit(Exit.REFUSED)
    except OSError as error:
        fail(f"{error.strerror or error}: {error.filename or ''}".rstrip(": "))


if __name__ == "__main__":
    run()
