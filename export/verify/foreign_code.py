"""What of an export could run code when its consumer loads it: refused, since a folder may come from anybody.

Most consumers read weights and graphs, which are data. The exceptions are known by target; a hook that Python itself calls
before it unpickles anything stands behind them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ...editor.errors import VerificationError
from ...editor.files.bounded import load_json
from ...editor.models.open_clip_config import CONFIG_NAME, read_open_clip_config

# Reading a program evaluates expressions that are in it.
RUNS_CODE = frozenset({"torch-export"})
ST_MODULE = "sentence_transformers.models.CLIPModel"


def require_no_code(folder: Path, target: str, *, trusted: bool) -> None:
    """Refuse a folder whose consumer would run code that is in it.

    Args:
        trusted: The user knows who wrote the folder, or it was written just now.

    Raises:
        VerificationError: With what it holds.
        ModelError: If its configuration asks for code.
    """
    if trusted:
        return
    if target in RUNS_CODE:
        raise VerificationError(
            f"cannot verify {folder}: loading a {target} program can run code that is in it. Add --trust if you know who "
            "wrote it."
        )
    if target == "transformers-js" and Path.cwd().resolve().is_relative_to(folder.resolve()):
        raise VerificationError(
            f"cannot verify {folder} from inside: Node looks for its packages there. Change to another folder."
        )
    if target == "sentence-transformers":
        _require_own_module(folder)
    if (folder / CONFIG_NAME).is_file():
        read_open_clip_config(folder)


def refuse_unpickling() -> None:
    """From now on this process unpickles no class and no function; for good, a hook cannot be taken back."""

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "pickle.find_class":
            raise VerificationError(
                f"cannot go on: a file holds a pickle of {arguments[0]}.{arguments[1]}, which could run code. Export again."
            )

    sys.addaudithook(refuse)


def _require_own_module(folder: Path) -> None:
    """sentence-transformers imports the classes that `modules.json` names, before version 6 from the folder itself."""
    try:
        types = [module["type"] for module in load_json(folder / "modules.json")]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise VerificationError(
            f"cannot verify {folder}: modules.json cannot be read ({error}). Export again."
        ) from None
    if any(kind != ST_MODULE for kind in types):
        raise VerificationError(
            f"cannot verify {folder}: modules.json names {', '.join(map(str, types))}, an export has {ST_MODULE}. "
            "Export again."
        )
