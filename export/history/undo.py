"""The last edit taken back, to the byte; and what a folder's history says, compared with what lies there."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...editor.edits.document import RecipeDocument, load_document
from ...editor.errors import VerificationError
from ...editor.files.digests import digest_state
from ...editor.files.inputs import require_history_folder
from ...editor.files.tensors import copy_with_tensors, load_tensors, read_header
from ...editor.files.whole import staged_folder
from .record import (
    FOLDER,
    RECIPE_FILES,
    REPLACED_KIND,
    REPLACED_NAME,
    Edit,
    History,
    digest_files,
    digest_tensors,
    find_weights,
    load_history,
    save_history,
)

NAMED = 3


@dataclass(frozen=True)
class Chain:
    """What was done to a folder.

    Attributes:
        folder: That folder.
        recipes: What every edit's recipe says, the first one first.
        edits: What was noted of each.
        changed: The tensors and files that are not as the last edit left them.
        between: For each edit, the tensors that somebody else changed since the edit before it.
    """

    folder: Path
    recipes: tuple[RecipeDocument, ...]
    edits: tuple[Edit, ...]
    changed: tuple[str, ...]
    between: tuple[tuple[str, ...], ...]

    def report(self) -> dict[str, Any]:
        """Plain data: what `clipedit log --json` prints."""
        base = self.recipes[0].base
        edits = [
            {
                "recipe": recipe.name,
                "effect": recipe.effect,
                "heads": recipe.heads,
                "base": recipe.base.weights_hash,
                "replaced": sorted(edit.replaced),
                "changed_before": list(before),
            }
            for recipe, edit, before in zip(self.recipes, self.edits, self.between, strict=True)
        ]
        named = {"model": base.model, "pretrained": base.pretrained, "weights_hash": base.weights_hash}
        return {"base": named, "edits": edits, "changed": list(self.changed)}


def read_chain(folder: Path) -> Chain:
    """The history of an edited folder, compared with its files.

    Raises:
        ModelError: If it has none.
    """
    history = _require_history(folder)
    places = [folder / FOLDER / str(number) for number in range(1, len(history.edits))]
    recipes = tuple(load_document(place / RECIPE_FILES[0])[0] for place in [*places, folder])
    between = [()] + [
        _differing(first.tensors, second.tensors | second.replaced)
        for first, second in zip(history.edits, history.edits[1:], strict=False)
    ]
    return Chain(folder, recipes, history.edits, find_changes(folder, history.edits[-1]), tuple(between))


def find_changes(folder: Path, last: Edit) -> tuple[str, ...]:
    """The tensors, then the files, that are not as the last edit left them."""
    return _differing(last.tensors, digest_tensors(folder)) + _differing(last.files, digest_files(folder))


def undo_edit(folder: Path, out: Path, *, overwrite: bool = False) -> RecipeDocument:
    """Write what a folder was before its last edit: the same bytes of weights, configuration and tokenizer.

    Returns:
        The recipe that was taken back.

    Raises:
        ModelError: If the folder has no history.
        VerificationError: If it was changed since, or the tensors that were kept were.
        ExportError: If `out` cannot be written.
    """
    history = _require_history(folder)
    last, count = history.edits[-1], len(history.edits)
    _require_unchanged(folder, last)
    kept = folder / FOLDER / str(count) / REPLACED_NAME
    replaced, _ = load_tensors(kept, REPLACED_KIND)
    _require_same(_differing(last.replaced, digest_state(replaced)), f"{kept} was changed since it was written")
    taken, _ = load_document(folder / RECIPE_FILES[0])
    with staged_folder(out, overwrite=overwrite) as staged:
        weights = find_weights(folder)
        for path in weights:
            names = read_header(path).keys() & replaced.keys()
            copy_with_tensors(path, staged / path.name, {name: replaced[name] for name in names})
        _copy_files(weights[0].parent, staged, digest_files(weights[0].parent))
        _step_back(folder, staged, history)
        expected = last.tensors | last.replaced
        _require_same(_differing(expected, digest_tensors(staged)), "what was written is not what the base was")
    return taken


def _require_history(folder: Path) -> History:
    found = load_history(folder)
    require_history_folder(folder, is_empty=not found.edits)
    return found


def _require_unchanged(folder: Path, last: Edit) -> None:
    changed = find_changes(folder, last)
    _require_same(changed, f"{folder} was changed since its last edit")


def _require_same(differing: tuple[str, ...], what: str) -> None:
    if differing:
        more = f" and {len(differing) - NAMED} more" if len(differing) > NAMED else ""
        raise VerificationError(
            f"cannot undo the edit: {what}: {', '.join(differing[:NAMED])}{more}. Take the folder as it was written."
        )


def _differing(expected: Mapping[str, str], found: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)))


def _copy_files(source: Path, target: Path, names: Mapping[str, str]) -> None:
    for name in names:
        if name not in RECIPE_FILES:
            (target / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, target / name)


def _step_back(folder: Path, staged: Path, history: History) -> None:
    """The recipe of the edit before is the folder's own again, and the history ends with it."""
    before = len(history.edits) - 1
    for name in RECIPE_FILES:
        if (folder / FOLDER / str(before) / name).is_file():
            shutil.copyfile(folder / FOLDER / str(before) / name, staged / name)
    if before == 0:
        return
    for number in range(before + 1):
        for name in (REPLACED_NAME, *(RECIPE_FILES if number < before else ())):
            source, target = (root / FOLDER / str(number) / name for root in (folder, staged))
            if source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
    save_history(staged, History(edits=history.edits[:-1]))
