"""Everything clipedit raises on purpose.

    ClipeditError
    +-- ModelError        a model that cannot be found, read or decomposed
    +-- ImageError        images or labels that cannot be read
    +-- StatisticsError   scans that do not fit the model, or each other
    +-- AlignmentError    aligners that cannot be learnt or read, or are of another model
    +-- ConceptError      unknown concepts, concept or text files that cannot be used
    +-- VectorError       stored embeddings that cannot be read or mapped
    +-- RecipeError       recipes that cannot be read or applied
    +-- ExportError       targets that cannot hold the model, folders that cannot be written
    +-- VerificationError an export that does not compute what it should
    +-- PluginError       what an installed package adds to clipedit cannot be used

Messages say what could not be done, what was found, what is needed, and what fixes it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from os import PathLike
from typing import Any


class ClipeditError(Exception):
    """Base of all errors that a caller can act on; the command line prints the message and exits with 1."""


class ModelError(ClipeditError):
    """A model cannot be found, read or decomposed."""


class ImageError(ClipeditError):
    """Images or labels cannot be read."""


class StatisticsError(ClipeditError):
    """A scan does not fit the model it is used with, or the scan it is merged with."""


class AlignmentError(ClipeditError):
    """An aligner cannot be learnt or read, or is of another model."""


class ConceptError(ClipeditError):
    """A concept is unknown, or its file cannot be used."""


class VectorError(ClipeditError):
    """Stored embeddings cannot be read, or are not those of the model."""


class RecipeError(ClipeditError):
    """A recipe cannot be read, or not be applied to this model."""


class ExportError(ClipeditError):
    """A target cannot hold the model, or the folder cannot be written."""


class VerificationError(ClipeditError):
    """An export does not compute what the edited model computes.

    Attributes:
        checks: What was compared, if it came to that; the first that does not hold is the message's.
    """

    def __init__(self, message: str, checks: Sequence[Any] = ()):
        super().__init__(message)
        self.checks = tuple(checks)


class PluginError(ClipeditError):
    """What an installed package adds to clipedit is not there, or cannot be used."""


# What gives an object of a class that users hand from one function to the next; by name, since the classes stand above.
_SOURCES = {
    "Model": "`clipedit.load_model(NAME)`",
    "Scan": "`clipedit.scan(model, IMAGES)` or `clipedit.load_scan(FILE)`",
    "Recipe": "`clipedit.make_recipe(scan, model, ...)` or `clipedit.load_recipe(FILE)`",
    "RecipeDocument": "`clipedit.load_recipe(FILE).document`",
}


def require_kinds(doing: str, **arguments: tuple[object, type]) -> None:
    """Refuse arguments of another kind where they come in: further down the error would be of something else.

    Args:
        doing: What the caller is about to do, after "cannot".
        arguments: By name, what was given and the class that is needed.

    Raises:
        TypeError: Saying what was given, and what to give instead.
    """
    for name, (given, kind) in arguments.items():
        if not isinstance(given, kind):
            raise TypeError(
                f"cannot {doing}: {describe_given(name, given)}, a {kind.__name__} is needed. "
                f"Give what {_SOURCES[kind.__name__]} returned."
            )


def require_path(doing: str, path: object, needed: str) -> None:
    """Refuse what is neither a path nor a name.

    Raises:
        TypeError: Saying what was given, and what is needed.
    """
    if not isinstance(path, str | PathLike):
        raise TypeError(f"cannot {doing}: {describe_given('path', path)}. Give {needed}.")


def describe_given(name: str, given: object) -> str:
    """What an argument is: a word or a number itself, with its type; of anything else only the type."""
    kind = type(given).__name__
    if isinstance(given, str | int | float):
        return f"`{name}` is {repr(given)[:60]} ({kind})"
    return f"`{name}` is None" if given is None else f"`{name}` is of type {kind}"


def nearest_names(name: str, known: Iterable[str]) -> str:
    """A sentence with the closest known names, or with all of them when none is close."""
    names = sorted(known)
    close = difflib.get_close_matches(str(name), names, n=3, cutoff=0.6)
    return f"Did you mean {', '.join(close)}?" if close else f"Known: {', '.join(names[:40])}."
