"""Images to statistics: scan, merge what workers scanned, align a model without texts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..editor.files.whole import require_free_file
from ..editor.images.demo_name import DEMO
from ..editor.scan.align_options import AlignOptions
from .checks import require_images, require_partials
from .console import print_json, print_table, progress, say, say_next, say_skipped
from .load import open_model, open_named
from .options import (
    AlignerOption,
    DecodeOption,
    DeviceOption,
    ExifOption,
    JsonOption,
    MaxBadOption,
    ModelOption,
    OverwriteFileOption,
    PrecisionOption,
    PretrainedOption,
    ScanOutOption,
    TowerOption,
    WorkersOption,
    gather,
    given,
    parse_batch_size,
    parse_layers,
    parse_shard,
    spelled,
)

if TYPE_CHECKING:
    from ..editor.scan.scan import Scan
    from ..editor.scan.scan_file import ScanFile

SCAN_OUT, ALIGNER_OUT = Path("scan.safetensors"), Path("aligner.safetensors")


def scan(
    images: Annotated[
        str,
        typer.Argument(
            callback=require_images,
            help="A folder, a CSV with a column of paths, shards, or `demo`; with --tower text, a file of texts.",
        ),
    ],
    model: ModelOption = DEMO,
    tower: TowerOption = "image",
    pretrained: PretrainedOption = None,
    aligner: AlignerOption = None,
    out: ScanOutOption = SCAN_OUT,
    layers: Annotated[
        str | None,
        typer.Option(
            parser=spelled(parse_layers), metavar="TEXT", help="Layers, `20-23` or `all`; the last four by default."
        ),
    ] = None,
    mlps: Annotated[bool, typer.Option("--mlps", help="Also scan MLPs and the embedding.")] = False,
    self_attention: Annotated[
        bool, typer.Option("--self-attention", help="Also scan what CLS takes from itself.")
    ] = False,
    batch_size: Annotated[
        str | None,
        typer.Option(
            parser=spelled(parse_batch_size),
            metavar="TEXT",
            help="Images per batch, or `auto`: as many as fit in memory.",
        ),
    ] = None,
    workers: WorkersOption = None,
    max_bad: MaxBadOption = None,
    exif: ExifOption = None,
    decode: DecodeOption = None,
    keep_features: Annotated[
        bool, typer.Option("--keep-features", help="Also write every image's features, beside the scan.")
    ] = False,
    unit_size: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Images per work unit, each kept as a partial scan until all are done; 0 for one pass. By default "
            "8192 where there are more than 16384.",
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            parser=spelled(parse_shard),
            metavar="I/N",
            help="Scan only the units of worker I of N (from 0, as $SLURM_ARRAY_TASK_ID/8 gives); `clipedit merge` "
            "sums them.",
        ),
    ] = None,
    device: DeviceOption = "cpu",
    precision: PrecisionOption = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the forward pass: minutes at the start, less for every image.")
    ] = False,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="Where units are scanned: here, or on a Ray cluster.")
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(help="Of the Ray cluster, `auto` for the one this machine is in; without it one is started here."),
    ] = None,
    actors: Annotated[
        int | None, typer.Option(min=1, help="Copies of the model on the Ray cluster; by default as many as it holds.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on with the units that an interrupted scan left.")
    ] = True,
    overwrite: OverwriteFileOption = False,
) -> None:
    """Collect the statistics of a model's heads on images."""
    asked = locals()
    # Wrong usage and a file that is not free are refused before the model is loaded.
    _require_one_pass(asked)
    options = _parse_options(asked)
    require_free_file(out, overwrite=overwrite)
    loaded = open_model(model, pretrained, aligner, device=device, tower=tower)
    from ..editor.scan.scan_file import scan_to_file

    # Only the model knows how many `all` are.
    options["layers"] = range(loaded.tower.n_layers) if options["layers"] == "all" else options["layers"]
    options["engine"] = _open_cluster(address, actors) if engine == "ray" else None
    with progress() as follow:
        written = scan_to_file(loaded, images, out, progress=follow("scan"), say=say, **options)
    _report(written)


def _parse_options(asked: dict[str, Any]) -> dict[str, Any]:
    """Those of `scan_to_file`; what was not given is left out, and keeps the default there."""
    plain = ("mlps", "self_attention", "compiled", "unit_size", "resume", "keep_features", "overwrite")
    options = {name: asked[name] for name in plain} | parse_batch_size(asked["batch_size"])
    options |= {"shard": parse_shard(asked["shard"]), "layers": parse_layers(asked["layers"])}
    return options | given(**{name: asked[name] for name in ("workers", "max_bad", "exif", "decode", "precision")})


def _require_one_pass(options: dict[str, Any]) -> None:
    """Usage errors: options that do not go together."""
    ray, kept = options["engine"] == "ray", options["keep_features"]
    # Features are kept from a single pass over all images, which units, shards and workers split up.
    if kept and (options["unit_size"] or options["shard"] or ray):
        raise typer.BadParameter(
            "needs one pass here: leave out --unit-size, --shard and --engine", param_hint="--keep-features"
        )
    if (options["address"] or options["actors"]) and not ray:
        raise typer.BadParameter("needs --engine ray", param_hint="--address and --actors")
    # Text scans read texts, of which there are no image features to keep.
    if options["tower"] == "text" and kept:
        raise typer.BadParameter("holds features of images", param_hint="--keep-features")


def _open_cluster(address: str | None, actors: int | None) -> Any:
    from ..editor.load import load_aligned
    from ..editor.scan.on_ray import RayEngine

    return RayEngine(load_aligned, address, actors)


def _report(written: ScanFile) -> None:
    if written.scan is None:
        _report_shard(written)
    else:
        _report_scan(written.scan, written.path, written.what)


def _report_shard(written: ScanFile) -> None:
    index, count = written.shard or (0, 1)
    say(f"wrote shard {index}/{count} to {written.folder}: {written.done} of {written.units} units are done")
    say_next("when all shards are done", f"clipedit merge {written.folder} -o {written.path}")


def _report_scan(scanned: Scan, out: Path, what: str) -> None:
    say(f"wrote {out}: {scanned.statistics.n} {what}, layers {scanned.layers[0]}-{scanned.layers[-1]}")
    say_skipped(scanned)
    say_next("which heads carry a concept", f"clipedit score {out} --concept location")


def merge(
    partials: Annotated[
        list[Path],
        typer.Argument(
            callback=require_partials,
            help="Partial scans of `scan --shard` or folders of them, in any order; or scans of one model.",
        ),
    ],
    out: ScanOutOption = SCAN_OUT,
    max_bad: MaxBadOption = None,
    allow_missing: Annotated[bool, typer.Option("--allow-missing", help="Merge although units are missing.")] = False,
    overwrite: OverwriteFileOption = False,
) -> None:
    """Sum partial scans to the scan of all their images.

    The order does not matter: the bytes are the same.
    """
    require_free_file(out, overwrite=overwrite)
    from ..editor.scan.partials import merge_partials

    result = merge_partials(partials, allow_missing=allow_missing, **given(max_bad=max_bad))
    result.save(out)
    _report_scan(result, out, "images")


def align(
    model: Annotated[str, typer.Argument(help="A model without texts: a timm name or a folder.")],
    to: Annotated[
        str, typer.Option("--to", help="The CLIP whose texts it gets: `demo`, a folder, or `name:pretrained`.")
    ],
    images: Annotated[
        str, typer.Option(callback=require_images, help="Unlabelled images: a folder, a CSV, or `demo`.")
    ],
    out: ScanOutOption = ALIGNER_OUT,
    pretrained: PretrainedOption = None,
    penalty: Annotated[
        float, typer.Option("--lambda", min=0, help="Weight of the orthogonality penalty.")
    ] = AlignOptions.penalty,
    shared_map: Annotated[
        bool, typer.Option("--shared-map", help="One map for all components: an ablation.")
    ] = AlignOptions.shared_map,
    epochs: Annotated[int, typer.Option(min=1)] = AlignOptions.epochs,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per batch.")] = AlignOptions.batch_size,
    learning_rate: Annotated[float, typer.Option(min=0)] = AlignOptions.learning_rate,
    patience: Annotated[
        int, typer.Option(min=1, help="Stop after so many batches without a new minimum.")
    ] = AlignOptions.patience,
    seed: int = AlignOptions.seed,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    overwrite: OverwriteFileOption = False,
    as_json: JsonOption = False,
) -> None:
    """Give a model without texts those of a CLIP (CompAlign).

    Learns maps from the model's components to the CLIP's space, so that the CLIP's texts explain them.
    """
    options = gather(AlignOptions, locals())
    require_free_file(out, overwrite=overwrite)
    from ..editor.scan.align import align as run

    own, clip, state = open_named(model, pretrained), open_named(to), out.with_name(f"{out.name}.training")
    with progress() as follow:
        found = run(own, clip, images, options=options, resume=resume, progress=follow("align"), state_path=state)
    found.save(out)
    rows = [[key.replace("_", " "), f"{value:.3f}"] for key, value in found.report.items()]
    print_json(found.report) if as_json else print_table(["on held-out images", ""], rows)
    say(f"wrote {out}: {len(found.maps)} maps, from {found.described['images']['training']} images")
    say_next("to scan through it", f"clipedit scan IMAGES --model {model} --aligner {out} -o scan.safetensors")
