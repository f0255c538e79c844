"""The record of an export as it is read; nothing here needs torch: what is no export is refused without."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from ...editor.choices import WeightPrecision
from ...editor.edits.document import Base
from ...editor.errors import ExportError
from ...editor.files.bounded import load_json
from ...editor.files.inputs import EXPORT_FOLDER as FOLDER

RECORD_NAME = "reproduce.json"


class _Record(BaseModel):
    """What is read of a record."""

    target: str
    options: dict[str, Any]
    edited: bool
    base: Base
    inputs: dict[str, Any]
    edited_weights_hash: str
    environment: dict[str, str]
    outputs: dict[str, str]


def load_record(folder: Path) -> dict[str, Any]:
    """The record of an export.

    Raises:
        ExportError: If there is none, or it is damaged.
    """
    path = folder / FOLDER / RECORD_NAME
    try:
        record = load_json(path)
        if record["schema_version"] != 1:
            raise ValueError("it is of another version")
        _Record.model_validate(record)
        if record["options"]["precision"] not in get_args(WeightPrecision) or "calibration" not in record["inputs"]:
            raise ValueError("its options or inputs are damaged")
    except FileNotFoundError:
        raise ExportError(f"cannot reproduce {folder}: it holds no {FOLDER}/{RECORD_NAME}. Give an export.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(f"cannot reproduce {folder}: {path} cannot be read ({error}). Export again.") from None
    return record
