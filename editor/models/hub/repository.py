"""A repository of the Hugging Face hub as a folder: only the files that are read, kept in the hub's own cache.

`hf-hub:ORG/NAME@REVISION` is asked for; what comes back is named by the commit, which never changes: scans and recipes
keep that name, so that what is loaded for them later is what they were made from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ...errors import ModelError
from ...files.bounded import load_json
from ...files.whole import is_plain_name
from .reach import reaching_hub

HUB_PREFIX = "hf-hub:"
# Of a `direct` edit that clipedit wrote, whose base lies in a folder of its own.
BASE_FOLDER = "base"
_OPEN_CLIP, _CONFIG = "open_clip_config.json", "config.json"
# In the order of transformers: an index that was left behind does not count beside a whole file.
WEIGHT_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# In the order in which open_clip, and transformers or timm, look for them.
_WEIGHTS = {
    _OPEN_CLIP: ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin"),
    _CONFIG: WEIGHT_NAMES,
}
TOKENIZER_NAMES = (
    *("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt"),
)
_SMALL = (
    *(_OPEN_CLIP, _CONFIG, "preprocessor_config.json", "processor_config.json", *TOKENIZER_NAMES),
    # Of folders that clipedit wrote.
    *("recipe.yaml", "recipe.safetensors", "reproduce/recipe.yaml", "texts.txt", "concepts/*.yaml"),
)
_NAME = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[\w.-]+)(@(?P<revision>[A-Za-z0-9][\w./-]*))?", re.ASCII)


@dataclass(frozen=True)
class Repository:
    """One commit of a repository in the cache.

    Attributes:
        name: `hf-hub:ORG/NAME@COMMIT`.
        folder: Its files, as far as they were fetched.
    """

    name: str
    folder: Path


def is_hub_name(name: str | Path) -> bool:
    """Whether a model is named as a repository of the hub."""
    return str(name).startswith(HUB_PREFIX)


def fetch_repository(name: str, *, weights: bool = True) -> Repository:
    """The files of a repository that a model is made of, from the cache where they are there.

    Args:
        name: `hf-hub:ORG/NAME`, and after an `@` a branch, a tag or a commit.
        weights: Without them only configuration, tokenizer, recipe, concepts and texts are fetched.

    Raises:
        ModelError: If the name is no such name, there is no such repository or revision, it holds no model, or it is
            neither in the cache nor to be had.
    """
    repo, revision = _split(name)
    fix = f"Fetch it where there is a network: `hf download {repo}`; or copy the cache."
    with reaching_hub(name, fix), _explaining(name, repo):
        wanted = [pattern for inner in ("", f"{BASE_FOLDER}/") for pattern in (f"{inner}{one}" for one in _SMALL)]
        # Asked at each start which commit a branch is at; offline the cache remembers the last answer.
        folder = Path(
            snapshot_download(
                repo,
                revision=revision,
                allow_patterns=wanted,
                local_files_only=constants.is_offline_mode(),
            )
        )
        if weights:
            _fetch_weights(name, repo, folder)
    return Repository(f"{HUB_PREFIX}{repo}@{folder.name}", folder)


def _find_model(folder: Path) -> tuple[str, str] | None:
    """The folder inside a repository where its model is, with a slash, and its configuration; None if there is none."""
    places = [(inner, name) for inner in (f"{BASE_FOLDER}/", "") for name in _WEIGHTS]
    return next((place for place in places if (folder / "".join(place)).is_file()), None)


def _fetch_weights(name: str, repo: str, folder: Path) -> None:
    place = _find_model(folder)
    if place is None:
        raise ModelError(
            f"cannot load {name}: it has neither {_OPEN_CLIP} nor {_CONFIG}, of transformers or timm. Give a "
            "repository of a CLIP."
        )
    inner, config = place
    for candidate in _WEIGHTS[config]:
        found = _fetch_file(repo, folder.name, f"{inner}{candidate}")
        if found is None:
            continue
        for shard in _list_shards(found):
            _download(repo, folder.name, f"{inner}{shard}")
        return
    if constants.is_offline_mode():
        # The repository was not asked whether it has them, only the cache.
        _download(repo, folder.name, f"{inner}{_WEIGHTS[config][0]}")
    raise ModelError(f"cannot load {name}: it has none of {', '.join(_WEIGHTS[config])}. Give a repository of a CLIP.")


def _fetch_file(repo: str, commit: str, name: str) -> Path | None:
    """One file of a commit; None where it has no such file, or offline where the cache has not."""
    try:
        return _download(repo, commit, name)
    except EntryNotFoundError as error:
        # Also raised where the hub does not answer any more: that is not the same as having no such file.
        if isinstance(error, FileNotFoundError) and not constants.is_offline_mode():
            raise
        return None


def _download(repo: str, commit: str, name: str) -> Path:
    return Path(hf_hub_download(repo, name, revision=commit))


def _list_shards(path: Path) -> list[str]:
    """The files that an index names; none for a file of weights."""
    if path.suffix != ".json":
        return []
    try:
        names = sorted(set(load_json(path)["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"cannot read {path}: {error}. Its `weight_map` names the file of each tensor.") from None
    wrong = next((name for name in names if not isinstance(name, str) or not is_plain_name(name)), None)
    if wrong is not None:
        raise ModelError(f"cannot read {path}: {json.dumps(wrong)} is not the name of a file beside it.")
    return names


def _split(name: str) -> tuple[str, str | None]:
    found = _NAME.fullmatch(name.removeprefix(HUB_PREFIX))
    if found is None or ".." in name:
        raise ModelError(
            f"cannot load {name}: it is no repository of the hub. Write {HUB_PREFIX}ORG/NAME, or "
            f"{HUB_PREFIX}ORG/NAME@REVISION with a branch, a tag or a commit."
        )
    return found["id"], found["revision"]


@contextmanager
def _explaining(name: str, repo: str) -> Iterator[None]:
    """What the hub refuses, in one line."""
    try:
        yield
    except GatedRepoError:
        raise ModelError(
            f"cannot load {name}: its owners ask you to accept their terms. Do so at {constants.ENDPOINT}/{repo}, and "
            "log in: `hf auth login`."
        ) from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"cannot load {name}: {constants.ENDPOINT} has no such repository, or it is private. Correct the name, or "
            "log in: `hf auth login`."
        ) from None
    except RevisionNotFoundError:
        raise ModelError(
            f"cannot load {name}: the repository has no such revision. Give a branch, a tag or a whole commit."
        ) from None
    except HfHubHTTPError as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"cannot load {name}: {constants.ENDPOINT} answered: {said}") from None
