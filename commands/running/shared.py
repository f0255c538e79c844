"""The options that every command takes, before its name or after: how it speaks on stderr, and its configuration."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from ...editor.files.claims import claimed
from .configuration import CONFIG_NAME, find_configured, load_configuration
from .voice import VOICE, say

# What was not given on the command line, by where it comes from; of this run only.
_CONFIGURED: dict[str, dict[str, Any]] = {}


def configured() -> dict[str, dict[str, Any]]:
    """The options of this run that a configuration file or the environment gave, for the record of what is made."""
    return {place: {name: _plain(value) for name, value in options.items()} for place, options in _CONFIGURED.items()}


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _be_quiet(asked: bool) -> bool:
    # Before the command's name or after it: once is enough.
    VOICE.quiet = VOICE.quiet or asked
    return asked


def _speak_json(asked: bool) -> bool:
    VOICE.as_json = VOICE.as_json or asked
    return asked


def _configure(context: typer.Context, given: Path | None) -> Path | None:
    """The first option that is read: with it every other has another default."""
    root = context.find_root()
    VOICE.command = context.command_path
    if context is root:
        return given
    # Beside the command's name, before it, or where the command runs.
    named = given or root.params.get("config")
    path = named or Path(CONFIG_NAME)
    if named is None and not path.is_file():
        return None
    section = whole = load_configuration(path, root, named=named is not None)
    for name in _names(context):
        section = section.get(name, {})
    context.default_map = section
    for name in ("quiet", "log_json"):
        if whole.get(name) and getattr(root.get_parameter_source(name), "name", "DEFAULT") == "DEFAULT":
            setattr(VOICE, "as_json" if name == "log_json" else name, True)
    return path


def _names(context: typer.Context) -> list[str]:
    parent: Any = context.parent
    return [] if parent is None else [*_names(parent), str(context.info_name)]


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        callback=_configure,
        is_eager=True,
        help=f"A file of options, a section for each command; by default {CONFIG_NAME} where the command runs.",
    ),
]
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
# The first is read first.
SHARED: dict[str, tuple[Any, Any]] = {
    "config": (ConfigOption, None),
    "quiet": (QuietOption, False),
    "log_json": (LogJsonOption, False),
}
_CONTEXT = "typer_context"


def take_shared(command: Callable[..., None]) -> Callable[..., None]:
    """A command that also takes these options; what they say is kept where it is needed, none reaches its body."""
    # Typer asks for the annotations three times, and each is a string that is evaluated anew: once is enough.
    hints = get_type_hints(command, include_extras=True)

    @functools.wraps(command)
    def run(**options: Any) -> None:
        _note_configured(options.pop(_CONTEXT))
        with _claimed_output(options):
            command(**{name: value for name, value in options.items() if name not in SHARED})

    own = [one.replace(annotation=hints[one.name]) for one in inspect.signature(command).parameters.values()]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in SHARED.items()
    ]
    context = inspect.Parameter(_CONTEXT, inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    run.__signature__ = inspect.Signature([*own, *added, context])  # pyright: ignore[reportAttributeAccessIssue]
    run.__annotations__ = hints | {name: kind for name, (kind, _) in SHARED.items()} | {_CONTEXT: typer.Context}
    return run


def _claimed_output(options: Mapping[str, Any]) -> AbstractContextManager[None]:
    """What a command writes, for itself. Shards of one scan are written side by side, each its own units."""
    out = options.get("out")
    return nullcontext() if out is None or options.get("shard") or options.get("dry_run") else claimed(out)


def _note_configured(context: typer.Context) -> None:
    _CONFIGURED.clear()
    file = context.params.get("config")
    for place, name, value in find_configured(context):
        if name not in ("config", "quiet", "log-json"):
            _CONFIGURED.setdefault(str(file) if place == "file" else place, {})[name] = value
    for place, options in _CONFIGURED.items():
        spelled = ", ".join(f"{name} = {value}" for name, value in options.items())
        say(f"from {'the environment' if place == 'environment' else place}: {spelled}")
