"""What an export says of the model in its files: numbers that a consumer takes on trust, beside those of the model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...editor.errors import VerificationError
from ...editor.files.bounded import load_json

# Of numbers that went through JSON, or through another program's.
TOLERANCE = 1e-6
SHOWN = 3


@dataclass(frozen=True)
class Statement:
    """What one file of an export says, and what it should say.

    Attributes:
        file: Its path inside the folder.
        wanted: Of the model; what the file says beyond these keys is left alone.
        found: Of the file, in the same form.
    """

    file: str
    wanted: Mapping[str, Any]
    found: Mapping[str, Any]

    def differences(self) -> list[str]:
        """A phrase for each field that differs: `preprocess_cfg.mean is [0.9], the model has [0.5]`."""
        return list(_compare(self.wanted, self.found, ""))

    def describe(self) -> str:
        """The name of the check, with the first fields that differ."""
        found = self.differences()
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        named = f" ({'; '.join(found[:SHOWN])}{more})" if found else ""
        return f"{self.file}, fields that differ{named}"


def read_said(path: Path) -> dict[str, Any]:
    """A JSON file of an export.

    Raises:
        VerificationError: If it is missing, damaged, or holds no object.
    """
    try:
        found = load_json(path)
    except (OSError, ValueError) as error:
        raise VerificationError(f"cannot verify {path.parent}: {path.name} cannot be read ({error}).") from None
    if not isinstance(found, dict):
        raise VerificationError(f"cannot verify {path.parent}: {path.name} holds no JSON object.")
    return found


def _compare(wanted: Mapping[str, Any], found: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for key, value in wanted.items():
        given = found.get(key)
        if isinstance(value, Mapping) and isinstance(given, Mapping):
            yield from _compare(value, given, f"{prefix}{key}.")
        elif not _equals(value, given):
            said = f"is {given}" if key in found else "is missing"
            yield f"{prefix}{key} {said}, the model has {value}"


def _equals(wanted: Any, found: Any) -> bool:
    """Numbers to rounding, lists element by element; `true` is not 1."""
    if _is_list(wanted) and _is_list(found):
        return len(wanted) == len(found) and all(map(_equals, wanted, found))
    if _is_number(wanted) and _is_number(found):
        return math.isclose(wanted, found, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return type(wanted) is type(found) and wanted == found


def _is_list(value: Any) -> bool:
    # A string is a sequence too, and would be compared letter by letter, without end.
    return isinstance(value, Sequence) and not isinstance(value, str)


def _is_number(value: Any) -> bool:
    # To Python a bool is an int.
    return isinstance(value, int | float) and not isinstance(value, bool)
