"""Figures on labelled images: zero-shot accuracy side by side, what texts leave of heads, a linear head."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..editor.choices import Layout
from ..editor.files.whole import require_apart, require_free_folder
from ..editor.images.demo_name import is_demo
from .checks import require_images, require_scan
from .console import print_json, print_measures, print_table, progress, say, say_next
from .draw import plot_to
from .load import open_named, open_scan
from .options import (
    AlignerOption,
    BatchOption,
    ClassesOption,
    DatasetOption,
    GroupByOption,
    JsonOption,
    LabelOption,
    OutOption,
    OverwriteFileOption,
    OverwriteOption,
    PretrainedOption,
    ReadingOption,
    SeedOption,
    SplitOption,
    TemplatesOption,
    given,
    parse_numbers,
    split_columns,
)

if TYPE_CHECKING:
    from ..editor.measure.completeness import CompletenessRow

HEAD_OUT = Path("clipedit-out")


def evaluate(
    models: Annotated[list[str], typer.Argument(help="Models: `demo`, folders, or `name:pretrained`.")],
    dataset: Annotated[
        str,
        typer.Option(
            callback=require_images,
            help="`demo`, a CSV, or a folder: Waterbirds, CelebA, FairFace, CounterAnimal, typographic, or one folder "
            "per class.",
        ),
    ],
    aligner: AlignerOption = None,
    layout: Annotated[Layout | None, typer.Option(help="The layout, where it is not what is seen.")] = None,
    classes: ClassesOption = None,
    templates: TemplatesOption = None,
    label: LabelOption = None,
    group_by: GroupByOption = "",
    split: SplitOption = None,
    top: Annotated[int | None, typer.Option(min=1, help="K of FairFace's MaxSkew@K.")] = None,
    retention: Annotated[
        str | None, typer.Option(help="A column with a second task, on which nothing should change.")
    ] = None,
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
    batch_size: BatchOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure zero-shot accuracy of models side by side.

    Overall, worst group and mean of groups.
    """
    asked = locals()
    _require_usage(asked)
    run = _evaluate_segmentation if segmentation else _evaluate
    rows = run(asked)
    print_json(rows) if as_json else print_measures(rows)


def _require_usage(asked: dict[str, Any]) -> None:
    columns = asked["label"] or asked["group_by"] or asked["split"] or asked["retention"]
    if asked["segmentation"]:
        if columns or asked["control"]:
            raise typer.BadParameter("masks have no labels, groups or controls", param_hint="--segmentation")
        if asked["classes"] is None and not is_demo(asked["dataset"]):
            raise typer.BadParameter(
                "it needs the names of the classes, a file with one a line", param_hint="--classes"
            )
    elif is_demo(asked["dataset"]) and (columns or asked["classes"] or asked["templates"] or asked["layout"]):
        raise typer.BadParameter("the demo has its own classes, prompts and groups", param_hint="--dataset demo")


def _evaluate(asked: dict[str, Any]) -> dict[str, dict[str, float]]:
    from ..editor.measure.control import measure_folder_controls
    from ..editor.measure.evaluate import evaluate as run

    task, second = _load_tasks(asked)
    loaded = {name: open_named(name, None, asked["aligner"]) for name in asked["models"]}
    prompts = given(templates=_load_templates(asked["templates"]))
    batches = given(batch_size=asked["batch_size"])
    with progress() as follow:
        rows = run(loaded, task, retention=second, progress=follow("evaluate"), **prompts, **batches)
        for name in asked["models"] if asked["control"] else []:
            rows |= measure_folder_controls(Path(name), task, progress=follow("control"), **prompts)
    return rows


def _load_tasks(asked: dict[str, Any]) -> tuple[Any, Any]:
    """The data set, and the second task in it."""
    from ..editor.images.labelled import load_classes, load_labelled_images
    from ..editor.images.layouts import load_dataset
    from ..editor.images.skew import RetrievalSet

    dataset, label, split, retention = (asked[name] for name in ("dataset", "label", "split", "retention"))
    if is_demo(dataset):
        return dataset, None
    classes, columns = load_classes(asked["classes"]) if asked["classes"] else None, split_columns(asked["group_by"])
    task = load_dataset(dataset, layout=asked["layout"], label=label, classes=classes, group_by=columns, split=split)
    if isinstance(task, RetrievalSet) and asked["top"] is not None:
        task = replace(task, top=asked["top"])
    return task, load_labelled_images(dataset, label=retention, split=split) if retention else None


def _load_templates(path: Path | None) -> list[str] | None:
    from ..editor.images.labelled import load_lines

    return load_lines(path) if path else None


def _evaluate_segmentation(asked: dict[str, Any]) -> dict[str, dict[str, float]]:
    from ..editor.images.demo import SHAPES
    from ..editor.images.labelled import load_classes
    from ..editor.look.segment import evaluate_segmentation, load_masked_images

    loaded = {name: open_named(name, None, asked["aligner"]) for name in asked["models"]}
    names = list(load_classes(asked["classes"]).values()) if asked["classes"] else SHAPES
    options = given(templates=_load_templates(asked["templates"]), reading=asked["reading"])
    masked = load_masked_images(asked["dataset"])
    with progress() as follow:
        return {
            name: evaluate_segmentation(model, masked, classes=names, progress=follow("segment"), **options)
            for name, model in loaded.items()
        }


def completeness(
    scan: Annotated[Path, typer.Argument(help="A scan; with all layers and --mlps the ablation study is run too.")],
    dataset: DatasetOption,
    texts: Annotated[list[Path] | None, typer.Option(help="A pool, one text per line; may be repeated.")] = None,
    steps: Annotated[str, typer.Option(help="Texts per head, separated by commas; all up to d_head by default.")] = "",
    templates: TemplatesOption = None,
    seed: SeedOption = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw the curves: .svg, .png or .pdf.")] = None,
    overwrite: OverwriteFileOption = False,
    as_json: JsonOption = False,
) -> None:
    """Replace heads by their texts and measure what is left.

    Accuracy against the number of texts and the pool, with random controls.
    """
    numbers = parse_numbers(steps, "--steps")
    plotted = plot_to(plot, overwrite=overwrite)
    require_scan(scan)
    from ..editor.images.texts import load_pools
    from ..editor.look.plot import plot_completeness
    from ..editor.measure.completeness import measure_completeness

    scanned, model = open_scan(scan)
    pools = load_pools(texts, model.folder)
    options = given(steps=numbers or None, templates=_load_templates(templates), seed=seed)
    with progress() as follow:
        rows = measure_completeness(scanned, model, dataset, pools=pools, progress=follow("measure"), **options)
    plotted(plot_completeness, rows)
    print_json([vars(row) for row in rows]) if as_json else _print_completeness(rows)


def _print_completeness(rows: list[CompletenessRow]) -> None:
    cells = [
        [
            row.variant,
            "" if row.texts is None else str(row.texts),
            f"{row.accuracy:.3f}",
            "" if row.explained is None else f"{row.explained:.3f}",
        ]
        for row in rows
    ]
    print_table(["variant", "texts a head", "accuracy", "variance of the heads held"], cells)


def train_head(
    model: Annotated[str, typer.Argument(help="A timm model without texts: a name with its tag, or a folder.")],
    dataset: Annotated[
        str, typer.Option(callback=require_images, help="Labelled images to train on, as for `evaluate`.")
    ],
    split: Annotated[
        str | None, typer.Option(help="Value of the `split` column to train on; evaluate on another.")
    ] = None,
    label: LabelOption = None,
    pretrained: PretrainedOption = None,
    out: OutOption = HEAD_OUT,
    seed: SeedOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a linear head on labelled images.

    What is written is an ordinary timm classifier.
    """
    require_free_folder(out, overwrite=overwrite)
    require_apart(out, model, pretrained, dataset)
    from ..editor.images.labelled import load_labelled_images
    from ..export.classifier_folder import train_head_to_folder

    task, loaded = load_labelled_images(dataset, label=label, split=split), open_named(model, pretrained)
    with progress() as follow:
        report = train_head_to_folder(
            loaded, task, out, overwrite=overwrite, progress=follow("train"), **given(seed=seed)
        )
    accuracy = f"accuracy {report['held_out_accuracy']:.3f} on a held-out fifth"
    print_json(report) if as_json else say(f"wrote {out}: {accuracy}")
    say_next("on a split that it was not trained on", f"clipedit evaluate {out} --dataset {dataset} --split SPLIT")
