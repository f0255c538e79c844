"""What heads carry: their texts, their scores, and what accuracy owes to whole layers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..editor.choices import ScoreMeasure
from ..editor.images.demo_name import is_demo
from .checks import require_scan
from .console import print_heads, print_json, print_measures, print_table, progress, say, say_result
from .labelled import csv_to, read_options, require_own_columns
from .load import open_scan
from .options import (
    BatchOption,
    ClassesOption,
    CsvOption,
    DatasetOption,
    DirectionsOption,
    ExifOption,
    GroupByOption,
    JsonOption,
    LabelOption,
    LayoutOption,
    NoCacheOption,
    OverwriteFileOption,
    RetentionOption,
    ScanArgument,
    SplitOption,
    TemplatesOption,
    TopOption,
    given,
    split_columns,
)
from .tables.draw import plot_to

if TYPE_CHECKING:
    from ..editor.measure.score_agreement import ScoreTest


def label(
    scan: ScanArgument,
    texts: Annotated[Path | None, typer.Option(help="One text per line; by default a general pool.")] = None,
    texts_per_head: Annotated[int, typer.Option(min=1)] = 5,
    as_json: JsonOption = False,
    no_cache: NoCacheOption = False,
) -> None:
    """Label heads with the texts that explain them (TextSpan)."""
    from ..editor.concepts.textspan import text_span
    from ..editor.images.texts import load_texts

    scanned, model = open_scan(scan)
    pool = load_texts(texts, model.folder)
    # A head of d_head dimensions has no variance left after d_head directions.
    labels = text_span(scanned, model, texts=pool, texts_per_head=min(texts_per_head, model.tower.d_head))
    if as_json:
        print_json({head: [vars(item) for item in items] for head, items in labels.items()})
        return
    print_heads(labels, list(labels))


def score(
    scan: Annotated[Path, typer.Argument(help="A file that `clipedit scan` wrote.")],
    concept: Annotated[str | None, typer.Option(help="A concept's name or file; needed without --test.")] = None,
    keep: Annotated[str | None, typer.Option(help="A concept whose heads to spare.")] = None,
    test: Annotated[
        str | None,
        typer.Option(
            metavar="LABELS",
            help="Test the scores against retrieval on labelled images: `demo`, a CSV, or a folder with metadata.csv.",
        ),
    ] = None,
    columns: Annotated[
        str | None, typer.Option(help="For --test: `location=place,shape`, a concept and its column.")
    ] = None,
    measure: Annotated[ScoreMeasure | None, typer.Option(help="How a head's share is computed.")] = None,
    directions: DirectionsOption = None,
    top: Annotated[int, typer.Option(min=1, help="Rows to print.")] = 20,
    as_json: JsonOption = False,
    no_cache: NoCacheOption = False,
) -> None:
    """Rank components by how much of a concept they carry.

    With --test, such ranks are compared with what the heads retrieve on labelled images.
    """
    # A test takes every column as a concept, so that a concept of its own would be ignored.
    if test is not None and (concept or keep or directions):
        raise typer.BadParameter("--test takes its concepts from --columns", param_hint="--test")
    if test is None and (concept is None or columns):
        raise typer.BadParameter("give --concept NAME, or --test LABELS [--columns]", param_hint="--concept")
    if test is not None:
        _test_scores(scan, test, columns, measure, as_json=as_json)
    else:
        _score(scan, concept or "", keep, measure, directions, top, as_json=as_json)


def _score(
    scan: Path,
    concept: str,
    keep: str | None,
    measure: str | None,
    directions: int | None,
    top: int,
    *,
    as_json: bool,
) -> None:
    require_scan(scan)
    from ..editor.concepts.scores import score_heads
    from ..editor.select.whose_heads import judge_concept

    scanned, model = open_scan(scan)
    scores = score_heads(scanned, model, concept=concept, **given(keep=keep, measure=measure, directions=directions))
    if as_json:
        print_json([{**vars(row), "score": row.score} for row in scores])
        return
    rows = [[row.component, f"{row.score:+.3f}", f"{row.concept:.3f}", f"{row.keep:.3f}"] for row in scores[:top]]
    print_table(["component", "score", concept, "keep"], rows)
    # Ranks alone mislead: some heads score highest for any words, present or not.
    found = judge_concept(scanned, model, concept)
    say_result(f"{found.verdict}: {found.because}")


def _test_scores(scan: Path, labels: str, columns: str | None, measure: str | None, *, as_json: bool) -> None:
    from ..editor.images.labelled import load_attributes
    from ..editor.measure.score_agreement import evaluate_scores

    labelled = load_attributes(labels)
    # The demo's column of places goes by another name than the concept.
    default = "location=place,shape,color,texture" if is_demo(labels) else ""
    scanned, model = open_scan(scan)
    options: dict[str, Any] = {"columns": _parse_columns(columns or default)} | given(measure=measure)
    with progress() as follow:
        found = evaluate_scores(scanned, model, labelled, progress=follow("retrieve"), **options)
    print_json(vars(found)) if as_json else _print_agreement(found)


def _parse_columns(text: str) -> dict[str, str]:
    """`location=place,shape`: the column of each concept, by default of the same name."""
    pairs = [name.partition("=") for name in split_columns(text)]
    return {concept: column or concept for concept, _, column in pairs}


def _print_agreement(found: ScoreTest) -> None:
    rows = [
        [name, _figure(value), max(found.retrieval[name], key=found.retrieval[name].__getitem__)]
        for name, value in found.between.items()
    ]
    print_table(["concept", "Spearman over heads", "best head by retrieval"], rows)
    say(f"within a head, over {len(rows)} concepts: Spearman {_figure(found.within)}, mean of the heads")


def _figure(value: float | None) -> str:
    return "undefined" if value is None else f"{value:+.3f}"


def ablate_layers(
    scan: Annotated[Path, typer.Argument(help="A scan of all layers: `clipedit scan IMAGES --layers all --mlps`.")],
    dataset: DatasetOption,
    layout: LayoutOption = None,
    classes: ClassesOption = None,
    templates: TemplatesOption = None,
    label: LabelOption = None,
    group_by: GroupByOption = "",
    split: SplitOption = None,
    top: TopOption = None,
    retention: RetentionOption = None,
    plot: Annotated[Path | None, typer.Option(help="File to draw to: .svg, .png or .pdf.")] = None,
    batch_size: BatchOption = None,
    csv: CsvOption = None,
    overwrite: OverwriteFileOption = False,
    exif: ExifOption = None,
    as_json: JsonOption = False,
    no_cache: NoCacheOption = False,
) -> None:
    """Measure accuracy as layers are mean-ablated.

    Attention, MLPs or both, from the last layer to the first.
    """
    asked, plotted, write = locals(), plot_to(plot, overwrite=overwrite), csv_to(csv, overwrite=overwrite)
    require_own_columns(asked)
    scanned, model = open_scan(require_scan(scan))
    from ..editor.look.plot import plot_layer_ablation
    from ..editor.measure.layer_ablation import measure_layer_ablation

    labels, options = read_options(asked), given(batch_size=batch_size)
    with progress() as follow:
        curves = measure_layer_ablation(scanned, model, dataset, labels=labels, progress=follow("ablate"), **options)
    plotted(plot_layer_ablation, curves)
    write(curves.rows)
    if as_json:
        print_json(curves)
        return
    print_measures({f"{kind}, last {n}": row for kind, rows in curves.items() for n, row in enumerate(rows)})
    say(f"measured: {curves.measure}; --csv FILE writes n, intervals and groups")
