"""The options that every command takes, before its name or after: how it speaks on stderr."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import typer

from .voice import VOICE


def _be_quiet(asked: bool) -> bool:
    # Before the command's name or after it: once is enough.
    VOICE.quiet = VOICE.quiet or asked
    return asked


def _speak_json(context: typer.Context, asked: bool) -> bool:
    VOICE.command = context.command_path
    VOICE.as_json = VOICE.as_json or asked
    return asked


QuietOption = Annotated[
    bool,
    typer.Option(
        "--quiet",
        callback=_be_quiet,
        help="On stderr only verdicts, warnings and errors: no progress, nothing on what to run next.",
    ),
]
LogJsonOption = Annotated[
    bool,
    typer.Option(
        "--log-json",
        callback=_speak_json,
        is_eager=True,
        help="On stderr one JSON object a line; one for each stage, with seconds, images and peak memory.",
    ),
]
SHARED: dict[str, Any] = {"quiet": QuietOption, "log_json": LogJsonOption}


def take_shared(command: Callable[..., None]) -> Callable[..., None]:
    """A command that also takes these options; what they say is kept where it is needed, none reaches its body."""
    # Typer asks for the annotations three times, and each is a string that is evaluated anew: once is enough.
    hints = get_type_hints(command, include_extras=True)

    @functools.wraps(command)
    def run(**options: Any) -> None:
        command(**{name: value for name, value in options.items() if name not in SHARED})

    own = [one.replace(annotation=hints[one.name]) for one in inspect.signature(command).parameters.values()]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        for name, kind in SHARED.items()
    ]
    run.__signature__ = inspect.Signature([*own, *added])  # pyright: ignore[reportAttributeAccessIssue]
    run.__annotations__ = hints | SHARED
    return run
