"""monitor: do new images, or the vectors of an index, still look as those of a scan did?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .checks import require_images
from .console import Follow, print_json, print_table, progress, say, say_next, say_result
from .labelled import open_labelled, read_options, require_own_columns
from .load import open_scan
from .options import (
    BatchOption,
    ClassesOption,
    ExifOption,
    GroupByOption,
    JsonOption,
    LabelOption,
    LayoutOption,
    MaxBadOption,
    MaybeDatasetOption,
    NoCacheOption,
    RetentionOption,
    ScanArgument,
    SplitOption,
    TemplatesOption,
    TopOption,
    WorkersOption,
    given,
)
from .running.exits import Exit

if TYPE_CHECKING:
    from ..editor.drift.monitor import DriftReport
    from ..editor.measure.verdict import Verdict
    from ..editor.models.model import Model
    from ..editor.scan.scan import Scan


def monitor(
    scan: ScanArgument,
    images: Annotated[
        str | None, typer.Argument(callback=require_images, help="New images, as for `scan`; at least 256.")
    ] = None,
    vectors: Annotated[
        Path | None,
        typer.Option(help="Stored embeddings in place of images: a .npy or .parquet file, or a folder of them."),
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="Column of vectors in Parquet files, if there are several.")
    ] = None,
    concept: Annotated[
        list[str] | None,
        typer.Option("--concept", help="Also say how this concept changed. Several times for several concepts."),
    ] = None,
    metrics: Annotated[
        Path | None, typer.Option(help="Also write every figure to this file, in Prometheus' text format.")
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="Look at the heads that this recipe edits only.")] = None,
    limit: Annotated[
        float | None,
        typer.Option(
            min=0, help="From what a change counts: of means in standard deviations, of covariances relative."
        ),
    ] = None,
    count: Annotated[int, typer.Option("--rows", min=1, help="Heads to print.")] = 10,
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
    batch_size: BatchOption = None,
    workers: WorkersOption = None,
    max_bad: MaxBadOption = None,
    as_json: JsonOption = False,
    no_cache: NoCacheOption = False,
) -> None:
    """Say whether new images, or stored vectors, still look like those of a scan.

    Exit 0 if they look the same to the heads, 4 if a recipe should be measured again. With --recipe and --dataset it is
    measured again at once, on new labelled images.
    """
    asked = locals()
    _require_sources(asked)
    # A recipe that cannot be read is refused before the scan and its model are loaded.
    heads = _heads_of(recipe)
    scanned, model = open_scan(scan)
    with progress() as follow:
        found = _compare(scanned, model, asked, heads, follow)
        again = _judge_again(scanned, model, asked, follow) if recipe and dataset else None
    if metrics is not None:
        _write_metrics(found, metrics, scan)
    said = {"verdict": again.word, "because": again.because} if again else {}
    whole = {**said, **asdict(found), "drifted": found.drifted, "re_measure": bool(found.drifted)}
    print_json(whole) if as_json else _print_drift(found, asked, again)
    # An exit code, so that a scheduled job needs to read no text.
    raise typer.Exit(Exit.DRIFT if found.drifted else Exit.FINE)


def _require_sources(asked: dict[str, Any]) -> None:
    require_own_columns(asked)
    if asked["dataset"] is not None and asked["recipe"] is None:
        raise typer.BadParameter("says what an edit does on new labelled images: give --recipe", param_hint="--dataset")
    if (asked["images"] is None) == (asked["vectors"] is None):
        found = "neither was given" if asked["images"] is None else "both were given"
        raise typer.BadParameter(f"stand in place of images: {found}", param_hint="--vectors")
    if asked["vectors"] is None and asked["column"] is not None:
        raise typer.BadParameter("is of stored vectors: give --vectors", param_hint="--column")
    if asked["vectors"] is not None and asked["recipe"] is not None:
        raise typer.BadParameter("names heads, which vectors tell nothing of: leave it out", param_hint="--recipe")
    if asked["column"] is not None and str(asked["vectors"]).lower().endswith(".npy"):
        raise typer.BadParameter("is of Parquet files, and a .npy file has no columns", param_hint="--column")
    if asked["metrics"] is not None:
        _require_metrics_file(asked["metrics"])


def _require_metrics_file(metrics: Path) -> None:
    if metrics.is_dir():
        raise typer.BadParameter("is a folder: give a file", param_hint="--metrics")
    if not metrics.resolve().parent.is_dir():
        raise typer.BadParameter("lies in a folder that is not there", param_hint="--metrics")


def _compare(
    scanned: Scan, model: Model, asked: dict[str, Any], heads: list[str] | None, follow: Follow
) -> DriftReport:
    from ..editor.drift.monitor import monitor as run
    from ..editor.drift.stored import monitor_vectors

    options = given(limit=asked["limit"], concepts=asked["concept"])
    if asked["vectors"] is not None:
        return monitor_vectors(scanned, model, asked["vectors"], column=asked["column"], **options)
    options |= given(**{name: asked[name] for name in ("batch_size", "workers", "max_bad")})
    return run(scanned, model, asked["images"], heads=heads, progress=follow("monitor"), **options)


def _write_metrics(found: DriftReport, metrics: Path, scan: Path) -> None:
    from ..editor.drift.prometheus import format_metrics
    from ..editor.files.whole import write_text

    # Whole or absent: a collector may read at any time.
    write_text(metrics, format_metrics(found, str(scan)))
    say(f"wrote {metrics}")


def _judge_again(scanned: Scan, model: Model, asked: dict[str, Any], follow: Follow) -> Verdict:
    from ..editor.edits.recipe import load_recipe
    from ..editor.measure.verdict import read_verdict
    from ..export.judge_folder import judge_recipe

    task, bound = open_labelled(asked), load_recipe(asked["recipe"])
    judged = judge_recipe(bound, scanned, model, task, labels=read_options(asked), follow=follow)
    return read_verdict(judged.document.measured)


def _heads_of(recipe: Path | None) -> list[str] | None:
    from ..editor.edits.document import load_document

    return load_document(recipe)[0].heads if recipe is not None else None


def _print_drift(found: DriftReport, asked: dict[str, Any], again: Verdict | None) -> None:
    rows = [
        [name, f"{part.mean_shift:.2f}", f"{part.covariance_distance:.2f}", "drifted" if part.drifted else ""]
        for name, part in ((name, found.parts[name]) for name in found.ranked[: asked["count"]])
    ]
    print_table(["head" if found.heads else "vectors", "mean shift / sd", "covariance distance", ""], rows)
    _print_concepts(found)
    new, scan = f"{found.images} {'images' if found.heads else 'vectors'}", asked["scan"]
    if not found.drifted:
        alike = f"to all {len(found.heads)} heads like the" if found.heads else "like the embeddings of the"
        say_result(f"no drift: {new} look {alike} {found.calibration_images} of {scan}")
    else:
        changed = f"{len(found.drifted)} of {len(found.heads)} heads" if found.heads else "the embedding"
        say_result(f"drift: {changed} changed by more than {found.limit:g}")
        again_scan = f"clipedit scan {asked['images'] or 'IMAGES'} -o new-scan.safetensors"
        say_next("measure the recipe again on such images, and calibrate on them", again_scan)
    if again:
        say_result(f"on the images of {asked['dataset']}: {again}")


def _print_concepts(found: DriftReport) -> None:
    if not found.concepts:
        return
    rows = [
        [
            name,
            *("-" if value is None else f"{value:.2f}" for value in (one.selectivity_then, one.selectivity_now)),
            *(f"{value:.3f}" for value in (one.share_then, one.share_now)),
            f"{one.mean_shift:.2f}",
        ]
        for name, one in found.concepts.items()
    ]
    header = ["concept", "selectivity then", "now", "share of variance then", "now", "mean shift / sd"]
    print_table(header, rows)
