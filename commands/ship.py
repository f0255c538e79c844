"""From an edited model to what its consumer reads: export, verify, reproduce."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..editor.choices import WeightPrecision
from ..editor.files.whole import require_apart
from ..export.targets.registry import TARGET_KIND, require_target_name, spell_target_names
from .checks import require_verified
from .console import print_checks, print_json, print_table, progress, say, say_next, say_result, write_line
from .labelled import open_labelled, read_options, require_own_columns
from .load import open_model
from .options import (
    ClassesOption,
    ExifOption,
    GroupByOption,
    ImagesOption,
    JsonOption,
    LabelOption,
    LayoutOption,
    MaybeDatasetOption,
    NoCacheOption,
    OutOption,
    OverwriteOption,
    PretrainedOption,
    RetentionOption,
    SplitOption,
    TemplatesOption,
    TopOption,
    given,
)
from .running.exits import Exit

if TYPE_CHECKING:
    from ..editor.measure.verdict import Verdict
    from ..editor.models.model import Model
    from ..export.push import Pushed, Upload
    from ..export.verify.verify import Check, Verifier

DEFAULT_OUT = Path("clipedit-out")


def export(
    model: Annotated[str, typer.Argument(help="A model: a folder, `demo`, or an open_clip name.")],
    target: Annotated[
        str,
        typer.Option(callback=require_target_name, help=spell_target_names(TARGET_KIND.own)),
    ],
    recipes: Annotated[
        list[str] | None,
        typer.Argument(help="With --switchable: recipes or edited folders, `NAME=RECIPE` for a name of its own."),
    ] = None,
    out: OutOption = DEFAULT_OUT,
    switchable: Annotated[
        bool,
        typer.Option(
            "--switchable", help="One graph of the model, and a small adapter file per recipe that a run may add."
        ),
    ] = False,
    pretrained: PretrainedOption = None,
    precision: Annotated[WeightPrecision | None, typer.Option(help="Of the weights.")] = None,
    prune: Annotated[bool, typer.Option("--prune", help="Leave out heads that `--effect total` ablated.")] = False,
    calibration: Annotated[str | None, typer.Option(help="Images for static int8, without them it is dynamic.")] = None,
    images: ImagesOption = None,
    dataset: MaybeDatasetOption = None,
    layout: LayoutOption = None,
    classes: ClassesOption = None,
    templates: TemplatesOption = None,
    label: LabelOption = None,
    group_by: GroupByOption = "",
    split: SplitOption = None,
    top: TopOption = None,
    retention: RetentionOption = None,
    exif: ExifOption = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Export although the edit harms, or a lower precision although it answers too differently."
        ),
    ] = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
    no_cache: NoCacheOption = False,
) -> None:
    """Write a model in the layout its consumer reads.

    What was written is run by that consumer in a fresh process, against the model's own answers. With --dataset the
    edit is measured on these images first, and an edit that harms there is refused.
    """
    asked = locals()
    require_own_columns(asked)
    switched = _read_recipes(recipes, out, switchable=switchable)
    require_apart(out, model, pretrained, images, calibration, dataset)
    from ..export.verify.verify import Verifier

    # Before torch is loaded: it loads its own meanwhile.
    with Verifier() as verifier:
        found, checks = _export(asked, switched, verifier)
    said = {"verdict": found.word, "because": found.because} if found else {}
    whole = {**said, "out": str(out), "checks": [vars(check) for check in checks]}
    print_json(whole) if as_json else _print_export(found, checks, out)


def _export(
    asked: dict[str, Any], switched: list[str] | None, verifier: Verifier
) -> tuple[Verdict | None, list[Check]]:
    """The verdict on what was exported, and the checks of the folder."""
    from ..export.targets.registry import require_target
    from ..export.verify.evidence import find_verdict
    from ..export.verify.verify import verify_if_edited
    from ..export.write import export_model

    # A misspelt target is refused before a model is loaded.
    require_target(asked["target"], **given(precision=asked["precision"]))
    verify_if_edited(asked["model"], verifier)  # What was edited must still be what it was when it was measured.
    base = open_model(asked["model"], asked["pretrained"])
    base = base if asked["dataset"] is None else _judge_again(base, asked)
    options = given(**{name: asked[name] for name in ("precision", "calibration", "images")}, switchable=switched)
    kept = {name: asked[name] for name in ("target", "prune", "overwrite", "force")}
    checks = export_model(base, asked["out"], **kept, **options, verifier=verifier)
    return find_verdict(base), checks


def _read_recipes(recipes: list[str] | None, out: Path, *, switchable: bool) -> list[str] | None:
    if recipes and not switchable:
        raise typer.BadParameter("are what one graph can switch to: give --switchable", param_hint="RECIPES")
    from ..editor.edits.document import split_named_recipe

    # Of `NAME=RECIPE` the path alone.
    require_apart(out, *(split_named_recipe(one)[1] or one for one in recipes or ()))
    return list(recipes or ()) if switchable else None


def _print_export(found: Verdict | None, checks: Sequence[Check], out: Path) -> None:
    if found:
        say_result(str(found))
    print_checks(checks)
    say(f"wrote {out}")
    say_next("whenever you doubt it", f"clipedit verify {out}")


def _judge_again(edited: Model, asked: dict[str, Any]) -> Model:
    from ..export.judge_folder import judge_again

    task = open_labelled(asked)
    with progress() as follow:
        return judge_again(edited, task, read_options(asked), follow)


def verify(
    folder: Annotated[Path, typer.Argument(help="A folder that `export` or `remove-heads` wrote.")],
    trust: Annotated[
        bool, typer.Option("--trust", help="Load what can run code that is in it: torch-export programs.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Run an export with its consumer and compare the answers.

    In a fresh process, against the edited model's own answers.
    """
    from ..editor.errors import VerificationError
    from ..export.verify.verify import verify as run

    try:
        checks = run(folder, trust=trust)
    except VerificationError as error:
        if as_json:  # A script reads what failed where it reads what holds.
            print_json([check.report() for check in error.checks] or [_describe_failure(error)])
        raise
    print_json([check.report() for check in checks]) if as_json else print_checks(checks)


def _describe_failure(error: Exception) -> dict[str, Any]:
    """A failure before anything could be compared, as a check that does not hold: no list of checks is empty."""
    return {"name": str(error), "figure": None, "relation": ">=", "tolerance": 1.0, "holds": False}


def reproduce(
    folder: Annotated[Path, typer.Argument(help="A folder that `export` wrote.")],
    model: Annotated[str | None, typer.Option(help="The base, if it is not where it was.")] = None,
    pretrained: PretrainedOption = None,
    calibration: Annotated[str | None, typer.Option(help="The images of a static int8 export.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Build an export again and compare every byte.

    Also says how the base, the versions and the files differ from the export's record.
    """
    from ..export.verify.record_file import load_record

    load_record(folder)  # What is no export is refused before torch is loaded.
    from ..export.verify.reproduce import reproduce as run

    found = run(folder, model=open_model(model, pretrained) if model else None, calibration=calibration)
    wrong = sum(difference.severity == "error" for difference in found)
    if as_json:
        print_json([vars(difference) for difference in found])
    else:
        for difference in found:
            write_line(str(difference))
        say_result(f"{folder}: {f'{wrong} errors' if wrong else 'every file was built again, byte for byte'}")
    if wrong:
        sys.exit(Exit.REFUSED)


def push(
    folder: Annotated[
        Path, typer.Argument(callback=require_verified, help="A folder that `export` or `remove-heads` wrote.")
    ],
    repository: Annotated[str, typer.Argument(help="ORG/NAME on the Hugging Face hub; made where there is none.")],
    licence: Annotated[
        str | None,
        typer.Option(
            "--licence", "--license", help="Of the weights, in the hub's words: `mit`. Asked for on a terminal."
        ),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="For all to see; private without it.")] = False,
    branch: Annotated[str | None, typer.Option("--branch", "--revision", help="Another branch than `main`.")] = None,
    message: Annotated[str | None, typer.Option("--message", "-m", help="Of the commit.")] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Names or patterns of files that stay here; may be repeated.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the files and their sizes, and push nothing.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Push although the edit harms.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Push an edited or exported folder to the Hugging Face hub.

    In one commit, with its model card. The repository is private without --public. Log in before: `hf auth login`.
    """
    from ..export.push import list_uploads, push_folder, require_pushable

    if dry_run:
        uploads = list_uploads(folder, licence=licence, exclude=exclude or ())
        require_pushable(folder, force=force)
        _print_uploads(uploads, {"repository": repository, "dry_run": True}, as_json=as_json)
        return
    options = {"public": public, "branch": branch, "message": message, "exclude": exclude or (), "force": force}
    pushed = push_folder(folder, repository, licence=licence or _ask_licence(folder), **options)
    whole = {"repository": repository, "dry_run": False, "name": pushed.name, "url": pushed.url, "kept": pushed.kept}
    _print_uploads(pushed.uploads, whole, as_json=as_json)
    _say_pushed(pushed)


def _ask_licence(folder: Path) -> str | None:
    """The licence, where a person can be asked and the card of the folder does not name one."""
    from ..export.push import list_uploads, read_licence

    list_uploads(folder)  # Nothing is asked of a folder that will be refused.
    if read_licence(folder) is not None or not sys.stdin.isatty():
        return None
    asked = "licence of these weights (that of the base model binds them too), for example mit or apache-2.0"
    return typer.prompt(asked, err=True).strip()


def _print_uploads(uploads: Sequence[Upload], whole: dict[str, Any], *, as_json: bool) -> None:
    from ..export.push import describe_uploads

    total = sum(one.size for one in uploads)
    if as_json:
        files = [{"name": one.name, "bytes": one.size} for one in uploads]
        print_json({**whole, "files": files, "bytes": total})
        return
    rows = [[one.name, f"{one.size:,}"] for one in uploads]
    print_table(["file", "bytes"], [*rows, [f"{len(uploads)} files", f"{total:,}"]])
    for line in describe_uploads(uploads):
        say(line)


def _say_pushed(pushed: Pushed) -> None:
    if pushed.kept:
        say(f"left as they are in the repository: {', '.join(pushed.kept)}")
    say_result(f"pushed {len(pushed.uploads)} files to {pushed.url}")
    say_next("to load it", f"clipedit scan IMAGES --model {pushed.name}")
