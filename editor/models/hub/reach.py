"""The Hugging Face hub: what was fetched earlier is read without it, and what cannot be fetched is said within seconds.

The libraries try again for minutes before they give up; here the hub is asked once, and a process that cannot reach it
works from the cache.
"""

from __future__ import annotations

import logging
import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

from ...errors import ModelError
from ..fitting import quiet

SECONDS = 5.0


@contextmanager
def reaching_hub(what: str, fix: str) -> Iterator[None]:
    """Load something that may lie on the hub inside the block.

    Args:
        what: What is loaded, for messages. fix: What to do without the hub.

    Raises:
        ModelError: If it is not in the cache, and the hub cannot be reached or may not be asked.
    """
    asked = not constants.is_offline_mode()
    reached = not asked or is_reachable(constants.ENDPOINT)
    try:
        with _working_from_the_cache(reached):
            yield
    except Exception as error:
        if not _is_missing(error):
            raise
        why = f"{constants.ENDPOINT} cannot be reached" if asked else "HF_HUB_OFFLINE is set"
        raise ModelError(
            f"cannot load {what}: it is not in the cache ({constants.HF_HUB_CACHE}), and {why}. {fix}"
        ) from None


@cache
def is_reachable(endpoint: str) -> bool:
    """Whether a server answers, whatever it says; asked once in a process."""
    answers: list[bool] = []
    # Names may take longer to look up than any timeout of a connection: the thread is left behind then.
    thread = threading.Thread(target=lambda: answers.append(_answers(endpoint)), daemon=True)
    thread.start()
    thread.join(SECONDS + 1)
    return bool(answers) and answers[0]


def _answers(endpoint: str) -> bool:
    try:
        with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=SECONDS):
            return True
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:
        # A certificate that is not known here may be known to the libraries.
        return isinstance(error.reason, ssl.SSLError)
    except (OSError, ValueError):
        return False


@contextmanager
def _working_from_the_cache(reached: bool) -> Iterator[None]:
    """Without a hub: the libraries look into the cache only, and do not write about it line by line."""
    if reached:
        yield
        return
    before = constants.HF_HUB_OFFLINE, socket.getdefaulttimeout()
    constants.HF_HUB_OFFLINE = True
    socket.setdefaulttimeout(SECONDS)
    try:
        with quiet(logging.CRITICAL):
            yield
    finally:
        constants.HF_HUB_OFFLINE = before[0]
        socket.setdefaulttimeout(before[1])


def _is_missing(error: BaseException | None) -> bool:
    """Whether an error, or one that it was raised for, says that a file is neither in the cache nor to be fetched."""
    while error is not None:
        if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled | urllib.error.URLError | TimeoutError):
            return True
        error = error.__cause__ or error.__context__
    return False
