"""A process that loads what a stranger may have written unpickles nothing: the last guard, whatever the consumer."""

from __future__ import annotations

import sys
from typing import Any

from ...editor.errors import VerificationError


def refuse_unpickling() -> None:
    """From now on this process unpickles no class and no function; for good, a hook cannot be taken back."""

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        # Plain containers and numbers unpickle without this event: code needs a class or a function.
        if event == "pickle.find_class":
            raise VerificationError(
                f"cannot go on: a file holds a pickle of {arguments[0]}.{arguments[1]}, which could run code. Export "
                "again."
            )

    sys.addaudithook(refuse)
