"""What the recipe in a folder says of its edit, for the report of the folder's verification."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...editor.edits.document import find_recipe_file, load_document
from ...editor.errors import RecipeError, VerificationError
from ...editor.measure.certificate import read_certificate
from ...editor.measure.verdict import Verdict, read_verdict
from ...editor.models.model import Model


def find_verdict(model: Model) -> Verdict | None:
    """The verdict on a model's edit, also of one that was exported before; None where it was not edited.

    Raises:
        RecipeError: If its recipe cannot be read.
    """
    if model.recipe is not None:
        return read_verdict(model.recipe.document.measured)
    path = find_recipe_file(model.folder) if model.folder is not None else None
    return None if path is None else read_verdict(load_document(path)[0].measured)


def read_evidence(folder: Path) -> dict[str, Any]:
    """`verdict`, `because` and `certificate` of a folder's recipe; empty where its model was not edited.

    Raises:
        VerificationError: If the recipe cannot be read.
    """
    path = find_recipe_file(folder)
    if path is None:
        return {}
    try:
        measured = load_document(path)[0].measured
    except RecipeError as error:
        raise VerificationError(f"cannot verify {folder}: {error}") from None
    verdict, certificate = read_verdict(measured), read_certificate(measured)
    said = {"verdict": verdict.word, "because": verdict.because}
    return said | {"certificate": certificate.report() if certificate else None}
