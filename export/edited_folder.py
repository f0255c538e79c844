"""What `remove-heads` and `apply` leave: a folder that is a model, with the recipe that made it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..editor.edits.apply import apply_recipe, rewrite_checkpoint
from ..editor.edits.recipe import Recipe
from ..editor.errors import RecipeError
from ..editor.files.checkpoint import read_layout
from ..editor.files.digests import digest_file, digest_state
from ..editor.files.tensors import tensor_reader
from ..editor.files.whole import staged_folder
from ..editor.images.source import ImageSource
from ..editor.models.hub.repository import BASE_FOLDER
from ..editor.models.loaders import find_checkpoint
from ..editor.models.model import Model
from ..editor.scan.scan import Scan
from .hf_folder import TARGET as HF_FOLDER
from .hf_folder import open_stored, write_hf_folder
from .history.record import record_edit
from .pages.model_card import write_model_card
from .targets.open_clip import write_open_clip_folder
from .targets.timm import write_timm_folder
from .verify.reference import write_reference
from .verify.verify import Check, Verifier, lend
from .written_for import find_written


def write_edited_model(
    recipe: Recipe,
    model: Model,
    out: Path,
    *,
    images: ImageSource | str | Path | None = None,
    scan: Scan | None = None,
    overwrite: bool = False,
    force: bool = False,
    verifier: Verifier | None = None,
    finish: Callable[[Path, Model], object] = lambda folder, edited: None,
) -> list[Check]:
    """Write the edited model, its bound recipe and the scan; verify it in a fresh process.

    Args:
        verifier: One that was entered already, so that its imports need not be waited for.
        finish: Called with the verified folder before it gets its name, and the edited model, for what else is to lie
            in it: a run that is killed until then leaves nothing that is in the next one's way.

    Raises:
        ExportError: If the folder cannot be written.
        VerificationError: If what was written is not what was made; nothing is left then.
    """
    require_writable(recipe.document.effect, model)
    # Through an aligner the scan is of the joint space.
    sample = scan.sample if scan is not None and model.alignment is None else None
    # A model that is read through an aligner is edited itself.
    model = model.editable.bare
    direct = recipe.document.effect == "direct"
    plain = HF_FOLDER.name if model.hf_towers else "timm" if "timm_cfg" in model.config else "open-clip"
    known = model.checkpoint is None or read_layout(model.checkpoint).is_known_to_all
    # Who else reads such a folder knows nothing of the edit, or finds no tensor under its wrappers' names.
    target = find_written(plain if not direct and known else "clipedit")
    model = find_written(plain).shown(model)
    edited = apply_recipe(recipe, model, force=force)
    with staged_folder(out, overwrite=overwrite) as folder, lend(verifier) as lent:
        # File to file where there is a file: the same bytes as `apply_to_folder` gives.
        if model.folder is not None and model.checkpoint is not None:
            _rewrite(recipe, model.folder, folder, force=force)
        else:
            # A loader that knows nothing of the edit must not take the base for the edited model.
            inner = folder / BASE_FOLDER if direct else folder
            inner.mkdir(exist_ok=True)
            _write_plain(model if direct else edited, inner)
            recipe.save(folder / "recipe.yaml")
            _record_written(recipe, model, folder)
        if scan is not None:
            scan.save(folder / "scan.safetensors")
        reference = write_reference(edited, folder, target=target.name, images=images, sample=sample)
        write_model_card(edited, folder, target, images=len(reference.images()))
        checks = lent.verify(folder)
        # Not beside the verification: on few cores the threads of both wait for each other.
        finish(folder, edited)
    return checks


def _record_written(recipe: Recipe, model: Model, folder: Path) -> None:
    """The history of what was written from memory; of a Hugging Face folder in its files' own names."""
    if model.hf_towers and model.folder is not None:
        record_edit(folder, recipe.document.name, *open_stored(model.folder), base=model.folder)
    else:
        state = model.stored_state()
        record_edit(folder, recipe.document.name, digest_state(state), lambda name: state[name])


def _write_plain(model: Model, folder: Path) -> None:
    if model.hf_towers:
        write_hf_folder(model, folder)
    elif "timm_cfg" in model.config:
        write_timm_folder(model.stored_state(), model.config["timm_cfg"], folder)
    else:
        write_open_clip_folder(model, folder)


def require_writable(effect: str, model: Model) -> None:
    """Refuse an edit that the files of a tower alone cannot hold, though it can be made in memory.

    Raises:
        RecipeError: Naming the effect that they can.
    """
    if effect == "direct" and model.lent is not None and model.lent.names:
        raise RecipeError(
            f"cannot write a direct edit of {model.name}: it acts after the projection of {model.lent.clip.name}, "
            "which the folder does not hold. Use --effect total."
        )


def apply_to_folder(recipe: Recipe, base: Path, out: Path, *, force: bool = False, overwrite: bool = False) -> None:
    """Apply a bound recipe file to file: memory near the largest tensor, the same bytes every time.

    Raises:
        RecipeError: If the recipe is unbound or was made for other weights.
        ExportError: If the folder cannot be written.
    """
    with staged_folder(out, overwrite=overwrite) as folder:
        _rewrite(recipe, base, folder, force=force)


def _rewrite(recipe: Recipe, base: Path, folder: Path, *, force: bool) -> None:
    """The edited weights, and how the base's are had again."""
    rewrite_checkpoint(recipe, base, folder, force=force)
    source = base if base.is_file() else find_checkpoint(base)
    origin = base if base.is_dir() else None
    record_edit(folder, recipe.document.name, digest_file(source), tensor_reader(source), base=origin)
