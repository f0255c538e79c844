"""`clipedit.toml`: options of commands from a file, below the command line and the environment.

Click asks three places in turn: the command line, an option's environment variable, and a context's `default_map`. The
file becomes that map, its values spelled as on the command line, so that they are read and refused in the same way.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from ...editor.errors import ClipeditError, nearest_names

CONFIG_NAME, PREFIX = "clipedit.toml", "CLIPEDIT"
# What asks and stops, and the file itself: nothing to configure.
NOT_IN_FILES = ("help", "version", "config", "install-completion", "show-completion")

# What runs code of others, publishes or replaces files: a file that came with a folder must not say it.
ONLY_NAMED = ("trust", "public", "overwrite")


class ConfigurationError(ClipeditError):
    """A configuration file cannot be read, or says what no command takes."""


def name_variables(command: Any, prefix: str = PREFIX, taken: frozenset[str] = frozenset()) -> None:
    """Give every option its environment variable, spelled as the option is: `CLIPEDIT_REMOVE_HEADS_OUTPUT_STRENGTH`.

    By themselves Typer and Click would take the names of parameters, which nobody sees.

    Args:
        taken: Names that mean something else already: `log --json` has none, since `--log-json` has that one.
    """
    for name, option in list_options(command).items():
        variable = f"{prefix}_{_as_variable(name)}"
        if name not in ("help", "version", "install-completion", "show-completion") and variable not in taken:
            option.envvar = variable
            # In the help of every option it would be longer than the help.
            option.show_envvar = False
    own = frozenset(option.envvar for option in list_options(command).values() if option.envvar)
    for name, inner in getattr(command, "commands", {}).items():
        name_variables(inner, f"{prefix}_{_as_variable(name)}", taken | own)


def list_options(command: Any) -> dict[str, Any]:
    """The options of a command by their long names, without dashes before them."""
    options = [one for one in command.params if one.param_type_name == "option"]
    return {max(option.opts, key=len).lstrip("-"): option for option in options}


def load_configuration(path: Path, root: Any, *, named: bool = True) -> dict[str, Any]:
    """Read a file and check all of it, sections of other commands too.

    Args:
        named: Whether the user named it; else it was found where the command runs.

    Returns:
        Its sections as Click takes them: parameters by name, commands as maps of their own.

    Raises:
        ConfigurationError: With the section and the key.
    """
    try:
        plain = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}.") from None
    found = _read_section(plain, root.command, root, path, ())
    if not named:
        _require_harmless(found, path)
    return found


def _require_harmless(found: Mapping[str, Any], path: Path) -> None:
    for command, options in found.items():
        said = [name for name in ONLY_NAMED if isinstance(options, dict) and options.get(name)]
        if said:
            raise ConfigurationError(
                f"cannot read {path}: [{command}] {said[0]} is taken from a file that you name only, since this one "
                f"may have come with the folder. Give --{said[0]}, or --config {path}."
            )


def _read_section(
    plain: Mapping[str, Any], command: Any, context: typer.Context, path: Path, names: tuple[str, ...]
) -> dict[str, Any]:
    options = {name: one for name, one in list_options(command).items() if name not in NOT_IN_FILES}
    commands = getattr(command, "commands", {})
    found: dict[str, Any] = {}
    for key, value in plain.items():
        spelled = key.replace("_", "-")
        if spelled in commands and isinstance(value, Mapping):
            inner = commands[spelled]
            below = typer.Context(inner, info_name=spelled, parent=context)
            found[spelled] = _read_section(value, inner, below, path, (*names, spelled))
        elif spelled in options:
            found[options[spelled].name] = _read_value(
                options[spelled], value, context, f"{path}: {_place(names, key)}"
            )
        else:
            _require_no_command(key, value, spelled in commands, path, names)
            where = f"in [{'.'.join(names)}]" if names else "at the top"
            raise ConfigurationError(
                f"cannot read {path}: {key} {where} is no {'option' if names else 'command, nor an option of all'}. "
                f"{nearest_names(spelled, [*options, *commands])}"
            )
    return found


def _require_no_command(key: str, value: Any, is_command: bool, path: Path, names: tuple[str, ...]) -> None:
    if is_command:
        section = ".".join((*names, key))
        raise ConfigurationError(
            f"cannot read {path}: {key} = {value!r} gives a command a value. Write its options below [{section}]."
        )


def _read_value(option: Any, value: Any, context: typer.Context, place: str) -> Any:
    """A value as the command line would spell it, refused here if it would be refused there."""
    values = value if option.multiple and isinstance(value, list) else [value]
    fits = bool if option.is_flag else str | int | float
    if not all(isinstance(one, fits) and isinstance(one, bool) == option.is_flag for one in values):
        needed = (
            "true or false" if option.is_flag else "a text or a number" + (", or a list" if option.multiple else "")
        )
        raise ConfigurationError(f"cannot read {place} = {value!r}: {needed} is needed.")
    if option.is_flag:
        return value
    spelled = [str(one) for one in values] if option.multiple else str(value)
    try:
        _convert(option, spelled, context)
    except typer.BadParameter as error:
        raise ConfigurationError(f"cannot read {place} = {value!r}: {error.message}") from None
    return spelled


def _convert(option: Any, value: Any, context: typer.Context) -> None:
    # Click's name for it, and that of Typer since it has a copy of Click.
    if hasattr(option, "type_cast_value"):
        option.type_cast_value(context, value)
    else:
        option.get_runtime_param().coerce(value, param=option, ctx=context)


def find_configured(context: typer.Context) -> Iterator[tuple[str, str, Any]]:
    """The options of a run that were not given on the command line: where each comes from, its name and its value."""
    for name, option in list_options(context.command).items():
        source = getattr(context.get_parameter_source(option.name), "name", "")
        if source == "ENVIRONMENT":
            yield "environment", name, context.params.get(option.name)
        elif source == "DEFAULT_MAP":
            yield "file", name, context.params.get(option.name)


def _place(names: tuple[str, ...], key: str) -> str:
    return f"[{'.'.join(names)}] {key}" if names else key


def _as_variable(name: str) -> str:
    return name.replace("-", "_").upper()
