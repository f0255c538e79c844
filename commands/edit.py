"""Edits from saved recipes: apply one, see what it changed, carry stored embeddings over."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..editor.choices import Effect
from ..editor.files.inputs import require_history_folder, require_vectors_file
from ..editor.files.whole import require_apart
from ..editor.images.demo_name import DEMO
from ..editor.select.options import HeadChoice
from .checks import require_images, require_recipe, require_weights
from .console import (
    fail,
    out_console,
    print_json,
    print_measures,
    print_table,
    progress,
    say,
    say_next,
    say_result,
    say_skipped,
    write_line,
)
from .load import open_model, plain_checkpoint
from .options import (
    EraseOption,
    JsonOption,
    LabelledOption,
    ModelOption,
    NoCacheOption,
    OutOption,
    OverwriteOption,
    PretrainedOption,
    ScanOption,
    SplitOption,
)
from .tables.chain import print_chain

if TYPE_CHECKING:
    from ..editor.edits.diff import ModelDiff, TensorChange
    from ..editor.edits.document import RecipeDocument

DEFAULT_OUT, VECTORS_OUT = Path("clipedit-out"), Path("reindexed")
_NOT_UNDONE = ("pretrained", "images", "scan", "labelled", "erase", "split", "effect", "force")


def apply(
    recipe: Annotated[Path, typer.Argument(help="A recipe, a folder that holds one, or a shipped one's name.")],
    undo: Annotated[
        bool,
        typer.Option("--undo", help="Take back the last edit of the folder that is named in place of a recipe."),
    ] = False,
    model: ModelOption = DEMO,
    pretrained: PretrainedOption = None,
    images: Annotated[
        str | None, typer.Option(callback=require_images, help="Calibration images, for unbound recipes.")
    ] = None,
    scan: ScanOption = None,
    labelled: LabelledOption = None,
    erase: EraseOption = None,
    split: SplitOption = None,
    effect: Annotated[Effect | None, typer.Option(help="How an unbound recipe enters the model.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Apply to other weights than the recipe was made for.")
    ] = False,
    out: OutOption = DEFAULT_OUT,
    overwrite: OverwriteOption = False,
    no_cache: NoCacheOption = False,
) -> None:
    """Apply a saved recipe: the same base gives the same bytes.

    With --undo FOLDER, write what that folder was before its last edit.
    """
    if undo:
        return _undo(locals())
    require_apart(out, recipe, model, pretrained, images, scan)
    require_recipe(recipe)
    from ..editor.edits.recipe import load_recipe
    from ..export.apply import apply_in_memory
    from ..export.edited_folder import apply_to_folder

    loaded = load_recipe(recipe).with_effect(effect)
    writing: dict[str, Any] = {"force": force, "overwrite": overwrite}
    folder = plain_checkpoint(model, pretrained)
    # File to file: no model is built, and memory stays near the largest tensor.
    if loaded.is_bound and folder is not None:
        apply_to_folder(loaded, folder, out, **writing)
    else:
        base, choice = open_model(model, pretrained, scan=scan), HeadChoice(labelled=labelled, erase=erase, split=split)
        with progress() as follow:
            found = {"images": images, "scan": scan, "choice": choice, "progress": follow}
            say_skipped(apply_in_memory(loaded, base, out, **found, **writing))
    _say_applied(out, model, loaded.document)


def _undo(asked: dict[str, Any]) -> None:
    extra = next((name for name in _NOT_UNDONE if asked[name]), None)
    if extra is not None:
        raise typer.BadParameter(f"goes without --{extra}: all that it needs is in the folder", param_hint="--undo")
    folder, out = _as_folder(asked["recipe"]), asked["out"]
    require_apart(out, folder)
    require_history_folder(folder)
    from ..export.history.undo import undo_edit

    taken = undo_edit(folder, out, overwrite=asked["overwrite"])
    say(f"wrote {out}: {folder} without recipe {taken.name}, to the byte")


def log(
    folder: Annotated[Path, typer.Argument(help="A folder that `remove-heads` or `apply` wrote.")],
    as_json: JsonOption = False,
) -> None:
    """Say what was done to a folder: its base, every edit in order, and what else changed.

    Exit 0 if nothing else changed since the last edit, else 1.
    """
    folder = _as_folder(folder)
    require_history_folder(folder)
    from ..export.history.undo import read_chain

    chain = read_chain(folder)
    print_json(chain.report()) if as_json else print_chain(chain)
    if chain.changed:
        fail(f"{len(chain.changed)} things changed in {folder} since its last edit; the first: {chain.changed[0]}.")


def _as_folder(given: Path) -> Path:
    """`hf:FOLDER`, as the model in it is named, is the folder."""
    return Path(str(given).removeprefix("hf:"))


def _say_applied(out: Path, model: str, document: RecipeDocument) -> None:
    from ..editor.measure.verdict import read_verdict

    verdict = read_verdict(document.measured)
    say_result(str(verdict))
    say(f"wrote {out}: {model} with recipe {document.name} ({document.effect})")
    # `export` would refuse it.
    if verdict.word != "HARMS":
        say_next("for deployment", f"clipedit export {out} --target onnx -o {out}-onnx")


def diff(
    base: Annotated[
        str,
        typer.Argument(callback=require_weights, help="A folder, a safetensors file, `demo`, or `name:pretrained`."),
    ],
    edited: Annotated[str, typer.Argument(callback=require_weights, help="The same, of the edited model.")],
    model: Annotated[str | None, typer.Option("--model", help="The architecture, where neither side says it.")] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="What the edited model was made with; by default the recipe beside it.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what an edit changed, and that nothing else did.

    What the recipe makes of the base is computed again. Exit 0 if nothing else changed, else 1.
    """
    if recipe is not None:
        require_recipe(recipe)
    from ..editor.edits.diff import diff_models

    found = diff_models(base, edited, architecture=model, recipe=recipe)
    if as_json:
        print_json({**vars(found), "same": found.same, "changed": [vars(change) for change in found.changed]})
    else:
        _print_diff(found)
    if found.others:
        fail(f"{len(found.others)} things changed that the edit does not change; the first: {found.others[0]}.")


def _print_diff(found: ModelDiff) -> None:
    rows = [_describe_change(change) for change in found.changed]
    rows += [
        [f"direct edit of {name}", "at the readout", "", "", _share(moved)] for name, moved in found.direct.items()
    ]
    if rows:
        print_table(["tensor", "what it is", "heads (change)", "norm", "relative"], rows)
    for other in found.others:
        write_line(f"also: {other}")
    also = f"{len(found.others)} other changes" if found.others else "nothing else changed"
    out_console.print(f"{len(found.changed)} of {found.tensors} tensors changed; {also}", highlight=False)
    if found.heads:
        say(f"its recipe names {', '.join(found.heads)}: {'; '.join(found.steps)}")
    if found.unknown:
        say(f"heads are not told apart: {found.unknown}. Add --model NAME.")


def _describe_change(change: TensorChange) -> list[str]:
    heads = ", ".join(f"{head} ({_share(moved)})" for head, moved in change.heads.items())
    return [change.name, change.part, heads, f"{change.norm:.4g}", _share(change.relative)]


def _share(relative: float | None) -> str:
    # A change from zero has no relative size.
    return "was 0" if relative is None else f"{relative:.2%}"


def reindex(
    vectors: Annotated[Path, typer.Argument(help="Embeddings of the unedited model: a .npy or .parquet file.")],
    recipe: Annotated[Path, typer.Option(help="A bound recipe, or a folder that holds one.")],
    scan: Annotated[
        Path | None, typer.Option(help="The scan that the recipe was made from; by default beside it.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The unedited model; by default the one that the recipe names.")
    ] = None,
    pretrained: PretrainedOption = None,
    images: Annotated[str | None, typer.Option(help="Held-out images to measure the map on.")] = None,
    column: Annotated[str | None, typer.Option(help="Column of a Parquet file.")] = None,
    normalised: Annotated[
        bool | None, typer.Option("--normalised/--unnormalised", help="By default what the vectors are.")
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Take vectors that do not look like the model's, or were carried over, and a poor map."
        ),
    ] = False,
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write, in the same format.")] = VECTORS_OUT,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Carry stored embeddings over to the edited model.

    No image is read again: those of the unedited model become those of the edited one.
    """
    require_vectors_file(vectors)
    require_recipe(recipe)
    from ..editor.files.vectors import open_vectors, require_free_vectors
    from ..export.reindex_file import load_inputs, reindex_file

    open_vectors(vectors, column=column)  # A misspelt path must not cost the loading of a model.
    target = require_free_vectors(out, vectors, overwrite=overwrite)
    bound, scanned, named = load_inputs(recipe, scan, model, pretrained)
    options = {"column": column, "normalised": normalised, "force": force, "images": images, "say": say}
    with progress() as follow:
        done = reindex_file(vectors, target, bound, scanned, open_model(*named), progress=follow("measure"), **options)
    if as_json:
        print_json({"out": str(target), **done})
        return
    print_measures(done["fidelity"])
    say(f"wrote {target}: {done['rows']} vectors")
