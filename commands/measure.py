"""Figures on labelled images: zero-shot accuracy side by side, what texts leave of heads, a linear head."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..editor.files.whole import require_apart, require_free_folder
from ..editor.images.demo_name import is_demo
from .checks import require_concepts, require_scan
from .console import (
    compare_with_first,
    print_json,
    print_measured,
    print_rivals,
    print_table,
    progress,
    say,
    say_measure,
    say_next,
    say_result,
)
from .labelled import csv_to, open_labelled, open_training_images, read_options, require_own_columns
from .load import open_all, open_named, open_scan
from .options import (
    AlignerOption,
    BatchOption,
    ClassesOption,
    ClipBenchmarkOption,
    CsvOption,
    DatasetOption,
    EraseOption,
    ExifOption,
    GroupByOption,
    ImagesOption,
    JsonOption,
    LabelledOption,
    LabelOption,
    LayoutOption,
    MaybeDatasetOption,
    NoCacheOption,
    OutOption,
    OverwriteFileOption,
    OverwriteOption,
    PretrainedOption,
    ReadingOption,
    RetentionOption,
    ScanOption,
    SeedOption,
    SplitOption,
    SuiteOption,
    TemplatesOption,
    TopOption,
    given,
    parse_steps,
    spelled,
)
from .suite import measure_suite, require_suite_or_dataset
from .tables.draw import plot_to

if TYPE_CHECKING:
    from ..editor.measure.completeness import CompletenessTable
    from ..editor.measure.table import FigureTable

HEAD_OUT = Path("clipedit-out")
HELD_OUT = ("held_out_accuracy", "low", "high")


def evaluate(
    models: Annotated[list[str], typer.Argument(help="Models: `demo`, folders, or `name:pretrained`.")],
    dataset: MaybeDatasetOption = None,
    aligner: AlignerOption = None,
    layout: LayoutOption = None,
    classes: ClassesOption = None,
    templates: TemplatesOption = None,
    label: LabelOption = None,
    group_by: GroupByOption = "",
    split: SplitOption = None,
    top: TopOption = None,
    retention: RetentionOption = None,
    segmentation: Annotated[
        bool,
        typer.Option(
            "--segmentation",
            help="Segment instead: --dataset is a folder with `images` and `masks`, gtsegs_ijcv.mat, or `demo`.",
        ),
    ] = False,
    reading: ReadingOption = None,
    control: Annotated[
        bool,
        typer.Option("--control", help="Beside each folder that `remove-heads` wrote, ten draws of random heads."),
    ] = False,
    fail_if_worse: Annotated[
        bool,
        typer.Option(
            "--fail-if-worse",
            help="Compare every model with the first: print the verdict, and exit 3 where one of them is HARMS.",
        ),
    ] = False,
    rivals: Annotated[
        str | None,
        typer.Option(
            "--rivals",
            help="A concept: beside the models, every other method of taking it out of the first one, with what each "
            "needs.",
        ),
    ] = None,
    suite: SuiteOption = None,
    clip_benchmark: ClipBenchmarkOption = None,
    images: ImagesOption = None,
    scan: ScanOption = None,
    labelled: LabelledOption = None,
    erase: EraseOption = None,
    batch_size: BatchOption = None,
    csv: CsvOption = None,
    overwrite: OverwriteFileOption = False,
    exif: ExifOption = None,
    as_json: JsonOption = False,
    no_cache: NoCacheOption = False,
) -> None:
    """Measure zero-shot accuracy of models side by side.

    Overall, worst group and mean of groups, and every group with its interval.
    """
    asked = locals()
    _require_usage(asked)
    # The file is refused now, before anything is measured.
    write = csv_to(csv, overwrite=overwrite)
    if rivals is not None or suite is not None:
        (_compare_rivals if suite is None else measure_suite)(asked, write)
        return
    table = _evaluate_segmentation(asked) if segmentation else _evaluate(asked)
    write(table.rows)
    _print_evaluated(table, as_json=as_json)
    if fail_if_worse:
        compare_with_first([("", table)])


def _print_evaluated(table: FigureTable, *, as_json: bool) -> None:
    if not as_json:
        print_measured(table)
        return
    print_json(table.report())
    say_measure(table, groups=True)


def _compare_rivals(asked: dict[str, Any], write: Any) -> None:
    require_concepts(asked["models"][0], asked["rivals"])
    from ..export.rivals import compare_rivals

    labels, loaded = read_options(asked), open_all(asked["models"], asked["aligner"])
    named = {name: asked[name] for name in ("images", "scan", "labelled", "erase")}
    with progress() as follow:
        table = compare_rivals(
            loaded, asked["dataset"], concept=asked["rivals"], labels=labels, progress=follow, **named
        )
    write(table.rows)
    print_json(table.report()) if asked["as_json"] else print_rivals(table)


def _require_usage(asked: dict[str, Any]) -> None:
    require_suite_or_dataset(asked)
    if asked["rivals"] is None:
        alone = next((name for name in ("images", "scan", "labelled", "erase") if asked[name] is not None), None)
        if alone is not None:
            raise typer.BadParameter("goes with --rivals", param_hint=f"--{alone}")
    elif asked["segmentation"] or asked["control"] or asked["fail_if_worse"]:
        raise typer.BadParameter("goes without --segmentation, --control, --fail-if-worse", param_hint="--rivals")
    if asked["fail_if_worse"] and (len(asked["models"]) < 2 or asked["segmentation"]):
        raise typer.BadParameter("give two models or more, the unedited one first", param_hint="--fail-if-worse")
    if not asked["segmentation"]:
        require_own_columns(asked | {"labelled": None})
        return
    if asked["label"] or asked["group_by"] or asked["split"] or asked["retention"] or asked["control"]:
        raise typer.BadParameter("masks have no labels, groups or controls", param_hint="--segmentation")
    if asked["classes"] is None and not is_demo(asked["dataset"]):
        raise typer.BadParameter("it needs the names of the classes, a file with one a line", param_hint="--classes")


def _evaluate(asked: dict[str, Any]) -> FigureTable:
    from ..editor.measure.control import explain_no_control, load_edits, prepare_controls
    from ..editor.measure.evaluate import evaluate as run

    options, task = read_options(asked), open_labelled(asked)
    loaded = open_all(asked["models"], asked["aligner"])
    with progress() as follow:
        names = asked["models"] if asked["control"] else []
        for why in filter(None, (explain_no_control(Path(name)) for name in names)):
            say_result(f"no control: {why}")
        batches = given(batch_size=asked["batch_size"])
        known, controls = prepare_controls(load_edits(names), loaded, task, progress=follow("evaluate"), **batches)
        table = run(loaded, task, labels=options, known=known, progress=follow("evaluate"), **batches)
        for name, draw in controls.items():
            rows = draw(task, templates=options.templates, progress=follow("control")).rows
            for row in rows:
                table.add(f"{name}, {row.replace('_', ' ')}", rows[row])
    return table


def _evaluate_segmentation(asked: dict[str, Any]) -> FigureTable:
    from ..editor.images.decode import Decoding
    from ..editor.images.demo import SHAPES
    from ..editor.look.segment import evaluate_segmentation, load_masked_images
    from ..editor.measure.table import FigureTable

    loaded = open_all(asked["models"], asked["aligner"])
    labels, masked = read_options(asked), load_masked_images(asked["dataset"])
    masked = masked.read_as(Decoding(labels.exif))
    names = list(labels.classes.values()) if labels.classes else SHAPES
    # Without a file of templates those of segmentation stay.
    options = given(templates=labels.templates if asked["templates"] else None, reading=asked["reading"])
    table = FigureTable(f"{len(masked.source)} masks of {len(names)} classes")
    with progress() as follow:
        for name, model in loaded.items():
            told = follow("segment")
            table.add(name, evaluate_segmentation(model, masked, classes=names, progress=told, **options))
    return table


def completeness(
    scan: Annotated[
        Path,
        typer.Argument(callback=require_scan, help="A scan; with all layers and --mlps the ablation study is run too."),
    ],
    dataset: DatasetOption,
    texts: Annotated[list[Path] | None, typer.Option(help="A pool, one text per line; may be repeated.")] = None,
    steps: Annotated[
        str,
        typer.Option(
            parser=spelled(parse_steps),
            metavar="TEXT",
            help="Texts per head, separated by commas; all up to d_head by default.",
        ),
    ] = "",
    layout: LayoutOption = None,
    classes: ClassesOption = None,
    templates: TemplatesOption = None,
    label: LabelOption = None,
    group_by: GroupByOption = "",
    split: SplitOption = None,
    top: TopOption = None,
    seed: SeedOption = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw the curves: .svg, .png or .pdf.")] = None,
    csv: CsvOption = None,
    overwrite: OverwriteFileOption = False,
    exif: ExifOption = None,
    as_json: JsonOption = False,
    no_cache: NoCacheOption = False,
) -> None:
    """Replace heads by their texts and measure what is left.

    Accuracy against the number of texts and the pool, with random controls.
    """
    asked, numbers = locals(), parse_steps(steps)
    require_own_columns(asked)
    # Both files are refused before the work starts.
    plotted, write = plot_to(plot, overwrite=overwrite), csv_to(csv, overwrite=overwrite)
    from ..editor.images.texts import load_pools
    from ..editor.look.plot import plot_completeness
    from ..editor.measure.completeness import measure_completeness

    scanned, model = open_scan(scan)
    labels, pools = read_options(asked), load_pools(texts, model.folder)
    options = given(steps=numbers or None, seed=seed) | {"labels": labels, "pools": pools}
    with progress() as follow:
        table = measure_completeness(scanned, model, dataset, progress=follow("measure"), **options)
    plotted(plot_completeness, table)
    write(table.rows)
    print_json(table.rows) if as_json else _print_completeness(table)


def _print_completeness(rows: CompletenessTable) -> None:
    from ..editor.measure.table import spell_interval

    cells = [
        [
            row.variant,
            "" if row.texts is None else str(row.texts),
            spell_interval(row.accuracy, row.low, row.high),
            "" if row.explained is None else f"{row.explained:.3f}",
        ]
        for row in rows
    ]
    print_table(["variant", "texts a head", f"accuracy (n {rows[0].n})", "variance of the heads held"], cells)
    say(f"measured: {rows.measure}")


def train_head(
    model: Annotated[str, typer.Argument(help="A timm model without texts: a name with its tag, or a folder.")],
    dataset: DatasetOption,
    layout: LayoutOption = None,
    classes: ClassesOption = None,
    templates: TemplatesOption = None,
    label: LabelOption = None,
    group_by: GroupByOption = "",
    split: SplitOption = None,
    top: TopOption = None,
    pretrained: PretrainedOption = None,
    out: OutOption = HEAD_OUT,
    seed: SeedOption = None,
    overwrite: OverwriteOption = False,
    exif: ExifOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a linear head on labelled images.

    On their training split, where they have one. What is written is an ordinary timm classifier.
    """
    asked = locals()
    if templates or top or group_by:
        raise typer.BadParameter(
            "a head is trained on classes: it has no prompts, groups or queries", param_hint="--templates"
        )
    # A folder that is not free must not cost the training.
    require_free_folder(out, overwrite=overwrite)
    require_apart(out, model, pretrained, dataset)
    from ..editor.measure.table import spell_interval
    from ..export.classifier_folder import train_head_to_folder

    task, loaded = open_training_images(asked), open_named(model, pretrained)
    with progress() as follow:
        report = train_head_to_folder(
            loaded, task, out, overwrite=overwrite, progress=follow("train"), **given(seed=seed)
        )
    accuracy = f"accuracy {spell_interval(*(report[key] for key in HELD_OUT))} on a held-out fifth"
    print_json(report) if as_json else say(f"wrote {out}: {accuracy}")
    # Its training images would be refused: `evaluate` knows them by their marks.
    say_next("on a split that it was not trained on", f"clipedit evaluate {out} --dataset {dataset} --split SPLIT")
