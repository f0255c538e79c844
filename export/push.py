"""push: a folder that clipedit wrote to a repository of the Hugging Face hub, with its card and a licence."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from io import BytesIO
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from .. import __version__
from ..editor.edits.document import find_recipe_file
from ..editor.errors import ClipeditError, ExportError
from ..editor.files.inputs import REPORT_NAME, require_verified_folder
from ..editor.models.hub.reach import is_reachable
from .pages.model_card import CARD_NAME, NO_LICENCE
from .verify.evidence import read_evidence
from .verify.record import hash_files
from .verify.record_file import FOLDER, RECORD_NAME, load_record
from .verify.verify import REFERENCE_NAME, verify

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_BRANCH = re.compile(r"[A-Za-z0-9][\w./-]*", re.ASCII)
# The line of a card's head that names its licence, filled in or not.
_HEAD_LINE = re.compile(r"^license:[ \t]*([^#\n]*?)[ \t]*(#[^\n]*)?$", re.MULTILINE)


@dataclass(frozen=True)
class Upload:
    """One file of a push: its name in the repository, and where its bytes are, on disk or in memory."""

    name: str
    content: Path | bytes

    @property
    def size(self) -> int:
        """In bytes."""
        return self.content.stat().st_size if isinstance(self.content, Path) else len(self.content)


@dataclass(frozen=True)
class Pushed:
    """What a push left.

    Attributes:
        name: `hf-hub:ORG/NAME@COMMIT`, by which the model is loaded again.
        kept: Files that the repository had and that this push neither replaced nor removed.
    """

    name: str
    url: str
    uploads: tuple[Upload, ...]
    kept: tuple[str, ...] = ()


def list_uploads(folder: Path, *, licence: str | None = None, exclude: Sequence[str] = ()) -> list[Upload]:
    """The files of a push in order of their names; hidden ones stay here. The card gets the licence, on its way only.

    Args:
        exclude: Patterns of names that stay here, such as `verification.safetensors`.

    Raises:
        ExportError: If clipedit did not write the folder, the card names another licence, or a link leads out of it.
    """
    require_verified_folder(folder)
    names = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    shown = [name for name in names if not any(part.startswith((".", "__pycache__")) for part in name.parts)]
    chosen = [name.as_posix() for name in shown if not any(fnmatch(name.as_posix(), one) for one in exclude)]
    outside = next((name for name in chosen if not (folder / name).resolve().is_relative_to(folder.resolve())), None)
    if outside is not None:
        raise ExportError(
            f"cannot push {folder}: {outside} is a link that leads out of it. Copy the file in its place."
        )
    uploads = [Upload(name, folder / name) for name in chosen if name != CARD_NAME]
    return sorted([*uploads, Upload(CARD_NAME, _fill_card(folder, licence))], key=lambda one: one.name)


def push_folder(
    folder: str | Path,
    repository: str,
    *,
    licence: str | None = None,
    public: bool = False,
    branch: str | None = None,
    message: str | None = None,
    exclude: Sequence[str] = (),
    force: bool = False,
) -> Pushed:
    """Push a folder that clipedit wrote, in one commit; the repository is made, private, where there is none.

    Args:
        repository: `ORG/NAME`.
        licence: The hub's word for the licence of the weights (`mit`, `apache-2.0`); not needed where the card of the
            folder names one.
        branch: Another one than `main`; made where there is none.
        exclude: As in `list_uploads`.
        force: Push although the edit harms.

    Raises:
        ExportError: If clipedit did not write the folder, its files are not what was written, its edit harms, no
            licence is named, or the hub refuses or cannot be reached.
        VerificationError: If an edited folder does not answer as it did when it was made.
    """
    folder = Path(folder)
    uploads = list_uploads(folder, licence=licence, exclude=exclude)
    _require_names(folder, repository, branch)
    if read_licence(folder) is None and licence is None:
        raise ExportError(
            f"cannot push {folder}: no licence is named. Add --licence, for example `--licence mit`: that of the base "
            "model binds these weights too."
        )
    require_pushable(folder, force=force)
    with _reaching(repository):
        return _push(folder, repository, uploads, public=public, branch=branch, message=message)


def require_pushable(folder: Path, *, force: bool) -> None:
    """Refuse an edit that harms, and files that are not those that were written and measured.

    Raises:
        ExportError, VerificationError: With what was found.
    """
    evidence = read_evidence(folder)
    if evidence.get("verdict") == "HARMS" and not force:
        raise ExportError(
            f"cannot push {folder}: its edit harms, {evidence['because'].rstrip('.')}. Edit again, or add --force to "
            "push it anyway."
        )
    if not (folder / FOLDER / RECORD_NAME).is_file():
        verify(folder)  # An edited folder keeps no hashes: it is run.
        return
    recorded = load_record(folder)["outputs"]
    found = hash_files(folder, recorded)
    changed = next((name for name in sorted(recorded) if found.get(name) != recorded[name]), None)
    if changed is not None:
        raise ExportError(f"cannot push {folder}: {changed} is not what was written and verified. Export again.")


def read_licence(folder: Path) -> str | None:
    """The licence that the folder's card names; None where it names none."""
    path = folder / CARD_NAME
    found = _HEAD_LINE.search(_head(path.read_text(encoding="utf-8"))) if path.is_file() else None
    return (found[1] or None) if found else None


def _head(card: str) -> str:
    """The YAML head of a card, between its two lines of dashes."""
    return card[: card.find("\n---", 3)] if card.startswith("---\n") else ""


def _fill_card(folder: Path, licence: str | None) -> bytes:
    if licence is not None and not _LICENCE.fullmatch(licence):
        raise ExportError(f"cannot push {folder}: {licence!r} is no licence of the hub. Write for example `mit`.")
    named = read_licence(folder)
    if licence is not None and named not in (None, licence):
        raise ExportError(f"cannot push {folder}: its {CARD_NAME} says {named}, --licence {licence}. Correct one.")
    path = folder / CARD_NAME
    card = path.read_text(encoding="utf-8") if path.is_file() else _short_card(folder)
    if licence is None or named is not None:
        return card.encode()
    head = _head(card)
    filled = _HEAD_LINE.sub(f"license: {licence}", head, count=1)
    if filled == head:
        filled = head.replace("---\n", f"---\nlicense: {licence}\n", 1) if head else f"---\nlicense: {licence}\n---\n\n"
    return (filled + card[len(head) :]).replace(f"{NO_LICENCE}\n", "").encode()


def _short_card(folder: Path) -> str:
    """For models without a text tower, which have no card of their own."""
    recipe = find_recipe_file(folder)
    said = f"what was done is in `{recipe.relative_to(folder)}`" if recipe else "no edit was made"
    title = folder.resolve().name
    return (
        f"---\nlicense:\ntags: [clipedit]\n---\n\n# {title}\n\nWeights written by clipedit {__version__}: {said}, and "
        f"`{REPORT_NAME}` has every check that was made on these files.\n"
    )


def _require_names(folder: Path, repository: str, branch: str | None) -> None:
    if not _REPOSITORY.fullmatch(repository):
        raise ExportError(f"cannot push {folder}: {repository!r} is no repository of the hub. Write ORG/NAME.")
    if branch is not None and (not _BRANCH.fullmatch(branch) or ".." in branch):
        raise ExportError(f"cannot push {folder}: {branch!r} is no name of a branch.")


def _push(
    folder: Path, repository: str, uploads: list[Upload], *, public: bool, branch: str | None, message: str | None
) -> Pushed:
    api = HfApi(library_name="clipedit", library_version=__version__)
    held = _open_repository(api, repository, public=public, branch=branch)
    operations: list[Any] = [
        CommitOperationAdd(one.name, one.content if isinstance(one.content, Path) else BytesIO(one.content))
        for one in uploads
    ]
    made = api.create_commit(
        repository,
        operations,
        commit_message=message or f"{folder.resolve().name}, written by clipedit {__version__}",
        revision=branch,
    )
    kept = sorted(set(held) - {one.name for one in uploads} - {".gitattributes"})
    url = f"{constants.ENDPOINT}/{repository}"
    return Pushed(f"hf-hub:{repository}@{made.oid}", url, tuple(uploads), tuple(kept))


def _open_repository(api: HfApi, repository: str, *, public: bool, branch: str | None) -> list[str]:
    """The names of the files that it holds already; made where there is no such repository or branch."""
    try:
        private = api.model_info(repository).private
    except RepositoryNotFoundError:
        api.create_repo(repository, private=not public)
        private = not public
    # Nothing is shown to all that was not asked to be, and who asks is not left in the belief that it is.
    if not private and not public:
        raise ExportError(f"cannot push to {repository}: it is public. Add --public, or give another repository.")
    if private and public:
        raise ExportError(
            f"cannot push to {repository} with --public: it is private. Make it public at "
            f"{constants.ENDPOINT}/{repository}/settings, or leave --public out."
        )
    if branch is not None:
        api.create_branch(repository, branch=branch, exist_ok=True)
    try:
        return api.list_repo_files(repository, revision=branch)
    except RevisionNotFoundError:  # Of a repository without any commit.
        return []


@contextmanager
def _reaching(repository: str) -> Iterator[None]:
    """The hub's refusals, and a hub that is not there, in one line."""
    if constants.is_offline_mode():
        raise ExportError(f"cannot push to {repository}: HF_HUB_OFFLINE is set. Unset it.")
    if not is_reachable(constants.ENDPOINT):
        raise ExportError(f"cannot push to {repository}: {constants.ENDPOINT} cannot be reached. Try again later.")
    try:
        yield
    except ClipeditError:
        raise
    except HfHubHTTPError as error:
        raise ExportError(f"cannot push to {repository}: {_explain(error)}") from None
    except Exception as error:  # Connections that break raise kinds of their own in each version of the client.
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise ExportError(
            f"cannot push to {repository}: {said}. Push again: what was sent is not sent twice."
        ) from None


def _explain(error: HfHubHTTPError) -> str:
    status = getattr(error.response, "status_code", None)
    if status == 401:
        return "the hub does not know you. Log in: `hf auth login`, with a token that may write."
    if status == 403:
        return "you may not write there. Give a repository of yours, or a token that may write: `hf auth login`."
    said = error.server_message or (str(error).splitlines() or [type(error).__name__])[0]
    return f"{constants.ENDPOINT} answered {status}: {' '.join(said.split())}"


def describe_uploads(uploads: Sequence[Upload]) -> list[str]:
    """What a user should know of files before they are seen by others."""
    if not any(one.name == REFERENCE_NAME for one in uploads):
        return []
    return [
        f"{REFERENCE_NAME} holds the images that it was verified with: `--exclude {REFERENCE_NAME}` leaves them here, "
        "and nobody can verify the copy"
    ]
