"""The main path: the demo, and `remove-heads` on one's own model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..editor.choices import Along, Effect
from ..editor.files.whole import require_free_folder
from ..editor.images.demo_name import DEMO
from ..editor.plugins import OPERATION, SELECTOR
from ..editor.select.options import EditOptions, HeadChoice
from ..export.output import Output
from .checks import require_concepts
from .console import (
    exit_if_worse,
    out_console,
    print_checks,
    print_groups,
    print_heads,
    print_json,
    print_measures,
    print_readable,
    progress,
    say,
    say_next,
    say_result,
    say_skipped,
)
from .labelled import read_classes, read_dataset_options, require_own_columns
from .load import open_model
from .options import (
    AlignerOption,
    BatchOption,
    ClassesOption,
    DecodeOption,
    DirectionsOption,
    EraseOption,
    ExifOption,
    FailIfWorseOption,
    FeaturesOption,
    GroupByOption,
    ImagesOption,
    JsonOption,
    LabelledOption,
    LabelOption,
    LayoutOption,
    MaxBadOption,
    MaybeDatasetOption,
    ModelOption,
    NoCacheOption,
    OutOption,
    OverwriteOption,
    PrecisionOption,
    PretrainedOption,
    RetentionOption,
    ScanOption,
    SplitOption,
    TemplatesOption,
    TopOption,
    TowerOption,
    gather,
    given,
    split_columns,
)
from .running.plugin_options import OpenCommand, option_of
from .running.shared import configured
from .tables.plan import print_plan
from .tables.repair import print_repair

if TYPE_CHECKING:
    from ..demo.pipeline import DemoResult
    from ..editor.models.model import Model
    from ..export.repair import Repair
    from ..export.verify.verify import Verifier

DEFAULT_OUT, DEMO_OUT = Path("clipedit-out"), Path("clipedit-demo")
OWN_MODEL = (
    "clipedit remove-heads --concept location --model ViT-L-14 --pretrained laion2b_s32b_b82k --images DIR -o repaired"
)
PANELS = {
    "What": ("concept", "model", "images", "pretrained", "keep", "scan", "aligner", "tower"),
    "How": (
        *("operation", "effect", "select", "heads", "strength", "output_strength", "directions", "along", "factor"),
        *("weights", "leace", "labelled", "erase", "regions", "budget", "features", "force"),
    ),
    # How labelled images are read, those to choose by and those to measure on.
    "Measure": (
        *("dataset", "layout", "classes", "templates", "label", "group_by", "split", "top", "retention"),
        *("fail_if_worse", "batch_size", "max_bad", "exif", "decode", "precision", "no_cache"),
    ),
    "Output": ("out", "overwrite", "dry_run", "report", "plot", "as_json", "quiet", "log_json", "config", "help"),
}
_PANEL_OF = {option: panel for panel, options in PANELS.items() for option in options}


class PanelledCommand(OpenCommand):
    """A command whose help shows its options in the panels above."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters, each told its panel."""
        found = list(super().get_params(ctx))
        for parameter in found:
            parameter.rich_help_panel = _PANEL_OF[parameter.name]  # pyright: ignore[reportAttributeAccessIssue]
        return found


def demo(
    out: OutOption = DEMO_OUT,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
    no_cache: NoCacheOption = False,
) -> None:
    """Run the whole path on the embedded model, in a minute.

    Find the location heads, remove them, measure, export, verify.
    """
    require_free_folder(out, overwrite=overwrite)
    from ..export.verify.verify import Verifier

    # Before torch is loaded: it loads its own meanwhile.
    with Verifier() as verifier, progress() as follow:
        from ..demo.pipeline import run_demo

        result = run_demo(out, overwrite=overwrite, progress=follow, verifier=verifier)
    print_json(result.report()) if as_json else _print_demo(result)


def _print_demo(result: DemoResult) -> None:
    say_result(f"{result.evidence['verdict']}: {result.evidence['because']}")
    print_heads(result.labels, result.recipe.heads)
    print_measures(result.rows)
    print_groups(result.details)
    say(f"measured: {result.evidence['measure']}")
    print_readable(result.readable)
    print_checks([check for checks in result.checks.values() for check in checks], show_all=False)
    for name, path in result.files.items():
        out_console.print(f"{name:12} {path}", soft_wrap=True, highlight=False)
    say_next("on your own model", OWN_MODEL)


def remove_heads(
    concept: Annotated[
        list[str] | None,
        typer.Option(
            help="What to remove: a concept's name or file; may be repeated. Only selectors that look at labels can do "
            "without.",
        ),
    ] = None,
    model: ModelOption = DEMO,
    images: ImagesOption = None,
    pretrained: PretrainedOption = None,
    keep: Annotated[
        str | None, typer.Option(help="A concept that must stay: its heads are spared, and the output along its texts.")
    ] = None,
    scan: ScanOption = None,
    aligner: AlignerOption = None,
    tower: TowerOption = "image",
    operation: Annotated[str, option_of(OPERATION, help="What happens to the heads.")] = EditOptions.operation,
    effect: Annotated[
        Effect | None,
        typer.Option(help="How the edit enters the model: distilled, or of a tower alone total, where none is named."),
    ] = EditOptions.effect,
    select: Annotated[str, option_of(SELECTOR, help="How the heads are chosen.")] = HeadChoice.select,
    heads: Annotated[
        int | None,
        typer.Option(
            min=0, help="How many heads, at most so many for selectors that search; else chosen for the concept."
        ),
    ] = EditOptions.heads,
    strength: Annotated[float, typer.Option(min=0, max=1, help="Of the operation on heads.")] = EditOptions.strength,
    output_strength: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Of the projection of the concept's texts out of the output, 0 for none; else chosen for the concept.",
        ),
    ] = EditOptions.output_strength,
    directions: DirectionsOption = EditOptions.directions,
    along: Annotated[
        Along,
        typer.Option(
            help="Directions of project-out and keep-only: the concept's texts, the head's own labels that name it, "
            "its main components, or the means of labelled images.",
        ),
    ] = EditOptions.along,
    factor: Annotated[float | None, typer.Option(help="Of `scale`.")] = EditOptions.factor,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="For reweight: a file with a weight for each singular direction, `L3H5: [1, 0.2, ...]`; else they "
            "come from the concept.",
        ),
    ] = None,
    leace: Annotated[
        bool,
        typer.Option(
            "--leace",
            help="Also erase the values of --erase from the output, so that no linear probe finds them.",
        ),
    ] = EditOptions.leace,
    labelled: LabelledOption = HeadChoice.labelled,
    layout: LayoutOption = None,
    classes: ClassesOption = None,
    templates: TemplatesOption = None,
    label: LabelOption = HeadChoice.label,
    group_by: GroupByOption = "",
    split: SplitOption = HeadChoice.split,
    top: TopOption = None,
    retention: RetentionOption = HeadChoice.retention,
    erase: EraseOption = HeadChoice.erase,
    regions: Annotated[
        str | None,
        typer.Option(
            help="For attention-region: a folder of masks or a column of boxes; by default words are written over the "
            "labelled images.",
        ),
    ] = HeadChoice.regions,
    budget: Annotated[
        float,
        typer.Option(help="Points of accuracy that frontier and attention-region may lose."),
    ] = HeadChoice.budget,
    features: FeaturesOption = HeadChoice.features,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Edit although no few heads hold the concept, they are another's, or no class leans on it."
        ),
    ] = HeadChoice.force,
    dataset: MaybeDatasetOption = None,
    fail_if_worse: FailIfWorseOption = False,
    batch_size: BatchOption = None,
    max_bad: MaxBadOption = None,
    exif: ExifOption = None,
    decode: DecodeOption = None,
    precision: PrecisionOption = None,
    out: OutOption = DEFAULT_OUT,
    overwrite: OverwriteOption = False,
    report: Annotated[
        bool,
        typer.Option("--report/--no-report", help="Write report.html into the folder."),
    ] = Output.report,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Say what would be chosen, and what it was weighed against; no file is written."
        ),
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw the Pareto front of --select frontier to this file."),
    ] = Output.plot,
    as_json: JsonOption = False,
    no_cache: NoCacheOption = False,
) -> None:
    """Find the heads that carry a concept and remove them.

    Writes the repaired model with its recipe, its measurements and a report.
    """
    asked = locals()
    options, output = gather(EditOptions, asked), gather(Output, asked)
    choice = _gather_choice(asked)
    _require_usage(asked)
    output.check(None if dry_run else out, model, pretrained, images, scan, aligner, dataset, labelled, features)
    require_concepts(model, *(concept or []), keep)
    if dry_run:
        return _plan(asked, options, choice)
    from ..export.verify.verify import Verifier

    # Wrong usage is refused before; entered before torch is loaded, since it loads its own meanwhile.
    with Verifier() as verifier:
        done = _repair(asked, options, choice, output, verifier)
    say_skipped(done.scan if scan is None else None)
    print_json(done.report()) if as_json else print_repair(done)
    # Last: whoever asked for an exit code wants the files and the figures too.
    exit_if_worse([done.verdict.word] if fail_if_worse else [])


def _repair(
    asked: Mapping[str, Any], options: EditOptions, choice: HeadChoice, output: Output, verifier: Verifier
) -> Repair:
    from ..export.repair import repair

    loaded, paths = _open(asked), _name_inputs(asked) | _name_outputs(asked)
    with progress() as follow:
        named = {"options": options, "choice": choice, "output": output, "verifier": verifier}
        return repair(loaded, **paths, **named, progress=follow)


def _open(asked: Mapping[str, Any]) -> Model:
    named = {name: asked[name] for name in ("pretrained", "aligner", "scan", "tower")}
    return open_model(asked["model"], **named)


def _gather_choice(asked: Mapping[str, Any]) -> HeadChoice:
    read = {"group_by": split_columns(asked["group_by"]), "classes": read_classes(asked["classes"])}
    return gather(HeadChoice, given(**{**asked, **read}))


def _require_usage(asked: Mapping[str, Any]) -> None:
    require_own_columns(asked)
    concept, tower, select, effect = (asked[name] for name in ("concept", "tower", "select", "effect"))
    if not concept and select == "text-difference":
        # The other selectors read labels, which say what is wrong without words.
        raise typer.BadParameter(f"{select} needs one", param_hint="--concept")
    if tower == "text" and (select != "text-difference" or effect == "direct"):
        raise typer.BadParameter(
            "takes --select text-difference and --effect distilled or total", param_hint="--tower text"
        )


def _name_inputs(asked: Mapping[str, Any]) -> dict[str, Any]:
    named: dict[str, Any] = {name: asked[name] for name in ("images", "scan", "concept", "keep")}
    scanned = ("batch_size", "max_bad", "exif", "decode", "precision")
    return named | {"scan_options": given(**{name: asked[name] for name in scanned})}


def _name_outputs(asked: Mapping[str, Any]) -> dict[str, Any]:
    named = {"dataset": asked["dataset"], "labels": read_dataset_options(asked), "out": asked["out"]}
    return named | {"configuration": configured()}


def _plan(asked: Mapping[str, Any], options: EditOptions, choice: HeadChoice) -> None:
    """`--dry-run`: as far as the choice; what would be refused is, after what it would have been."""
    from ..editor.errors import ConceptError
    from ..export.choose import plan_repair

    loaded = _open(asked)
    with progress() as follow:
        named = _name_inputs(asked) | {"dataset": asked["dataset"], "labels": read_dataset_options(asked)}
        found = plan_repair(loaded, **named, options=options, choice=choice, progress=follow)
    print_json(found.report()) if asked["as_json"] else print_plan(found)
    if found.refused:
        raise ConceptError(found.refused)
