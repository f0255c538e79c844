"""The command line: one command a stage. Bodies parse, call one library function and print.

Torch and the runtimes are imported inside the commands: `clipedit --help` must not wait for them.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from .editor.errors import ClipeditError, ExportError, ImageError, ModelError, RecipeError, StatisticsError
from .export.targets.registry import spell_target_names

if TYPE_CHECKING:
    from .editor.components import HeadId
    from .editor.edits.diff import ModelDiff
    from .editor.edits.document import RecipeDocument
    from .editor.edits.recipe import Recipe
    from .editor.images.skew import RetrievalSet
    from .editor.images.source import LabelledImages
    from .editor.images.units import WorkUnit
    from .editor.measure.completeness import CompletenessRow
    from .editor.measure.reindex import EmbeddingMap
    from .editor.models.model import Model
    from .editor.scan.collect import LabelledEmbeddings
    from .editor.scan.monitor import DriftReport
    from .editor.scan.scan import Scan
    from .editor.select.plan import Evidence
    from .export.verify.verify import Check

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
                  help="Find the attention heads that carry a concept, remove them, and ship the repaired encoder.")  # fmt: skip
concepts_app = typer.Typer(no_args_is_help=True, help="The concepts that can be removed.")
app.add_typer(concepts_app, name="concepts")
recipes_app = typer.Typer(no_args_is_help=True, help="The recipes that are shipped: published lists of heads.")
app.add_typer(recipes_app, name="recipes")
out_console, err_console = Console(), Console(stderr=True)

ModelOption = Annotated[str, typer.Option("--model", help="`demo`, an open_clip name, a folder, or `hf:FOLDER`.")]
PretrainedOption = Annotated[str | None, typer.Option(help="A tag of open_clip, or a checkpoint file.")]
AlignerOption = Annotated[Path | None, typer.Option(help="A file that `clipedit align` wrote: reads a model without texts as a CLIP.")]  # fmt: skip
OutOption = Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace what the folder holds.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else.")]
BatchOption = Annotated[int, typer.Option(min=1, help="Images a batch.")]
DeviceOption = Annotated[str, typer.Option(help="`cpu`, `cuda`, `cuda:1` or `mps`.")]
WorkersOption = Annotated[int | None, typer.Option(min=0, help="Processes that read images.")]
MaxBadOption = Annotated[float, typer.Option(min=0, max=1, help="Share of unreadable images that is tolerated.")]
DirectionsOption = Annotated[
    int | None, typer.Option(min=1, help="Directions of the concept; by default what holds 90 % of it.")
]
EffectChoice = Literal["distilled", "total", "direct"]
LayoutChoice = Literal["table", "waterbirds", "folders", "celeba", "fairface", "counteranimal", "typographic"]
TowerOption = Annotated[
    Literal["image", "text"],
    typer.Option(help="Which tower; with `text`, a file with a text a line stands in place of images."),
]
OperationChoice = Literal["mean-ablate", "zero-ablate", "scale", "project-out", "keep-only", "reweight"]
AlongChoice = Literal["texts", "text-span", "pca", "labels"]
EraseOption = Annotated[
    str | None,
    typer.Option(
        "--erase", help="Column of --labelled whose values LEACE erases, or whose means `--along labels` takes."
    ),
]
ReadingChoice = Literal["contrast", "positive", "evidence"]
ReadingOption = Annotated[ReadingChoice, typer.Option(help="How heads' shares become a mask: their sum (the papers'), the sum of what speaks for the text, or where texts are told apart.")]  # fmt: skip
ConceptWeightOption = Annotated[str | None, typer.Option(help="Weigh heads by their score for this concept, a name or file; needs --scan.")]  # fmt: skip
PrecisionChoice = Literal["fp32", "fp16", "int8"]
SelectChoice = Literal["text-difference", "labelled-contrast", "attention-region", "frontier"]
LabelledOption = Annotated[
    str | None,
    typer.Option(
        help="Labelled images to select heads on: a folder a class, a CSV or metadata.csv, or `demo`. Never those that you report on."
    ),
]
LabelOption = Annotated[str | None, typer.Option(help="Column of classes.")]
GroupByOption = Annotated[str, typer.Option(help="Columns that make groups, separated by commas.")]
SplitOption = Annotated[str | None, typer.Option(help="Value of the `split` column to keep.")]
FeaturesOption = Annotated[
    Path | None,
    typer.Option(
        "--features",
        help="Features that `scan --keep-features` wrote, in place of running the model on labelled images.",
    ),
]
DEFAULT_OUT, DEMO_OUT = Path("clipedit-out"), Path("clipedit-demo")


@app.command()
def demo(out: OutOption = DEMO_OUT, overwrite: OverwriteOption = False, as_json: JsonOption = False) -> None:
    """Run the whole path on the embedded model: find the location heads, remove them, measure, export, verify."""
    from .demo.pipeline import run_demo

    with _progress() as follow:
        result = run_demo(out, overwrite=overwrite, progress=follow)
    if as_json:
        _print_json(result.report())
        return
    _print_heads(result.labels, result.recipe.heads)
    _print_measures(result.rows)
    _print_checks([check for checks in result.checks.values() for check in checks], show_all=False)
    for name, path in result.files.items():
        out_console.print(f"{name:12} {path}", soft_wrap=True, highlight=False)
    _print_next("on your own model", "clipedit remove-heads --concept location --model ViT-L-14 "
                "--pretrained laion2b_s32b_b82k --images DIR -o repaired")  # fmt: skip


@app.command("scan")
def scan_command(
    images: Annotated[str, typer.Argument(help="A folder, a CSV with a column of paths, or `demo`; with --tower text, a file of texts.")],
    model: ModelOption = "demo",
    tower: TowerOption = "image",
    pretrained: PretrainedOption = None,
    aligner: AlignerOption = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.")] = Path("scan.safetensors"),
    layers: Annotated[
        str | None, typer.Option(help="Layers to scan, `20-23` or `all`; the last four by default.")
    ] = None,
    mlps: Annotated[bool, typer.Option("--mlps", help="Also scan MLPs and the embedding.")] = False,
    self_attention: Annotated[bool, typer.Option("--self-attention", help="Also scan what CLS takes from itself.")] = False,
    batch_size: Annotated[str, typer.Option(help="Images a batch, or `auto`: as many as fit in memory.")] = "32",
    workers: WorkersOption = None,
    max_bad: MaxBadOption = 0.01,
    keep_features: Annotated[bool, typer.Option("--keep-features", help="Also write every image's features, beside the scan.")] = False,
    unit_size: Annotated[int | None, typer.Option(min=0, help="Images a work unit, each kept as a partial scan until all are done; 0 for one pass. By default 8192 where there are more than 16384.")] = None,
    shard: Annotated[str | None, typer.Option(metavar="I/N", help="Scan only the units of worker I of N (from 0, as $SLURM_ARRAY_TASK_ID/8 gives); `clipedit merge` sums them.")] = None,
    device: DeviceOption = "cpu",
    precision: Annotated[Literal["fp32", "bf16", "fp16"], typer.Option(help="Of the forward pass; sums are float64 in any case.")] = "fp32",
    compiled: Annotated[bool, typer.Option("--compile", help="Compile the forward pass: minutes at the start, less for every image.")] = False,
    engine: Annotated[Literal["local", "ray"], typer.Option(help="Where units are scanned: here, or on a Ray cluster.")] = "local",
    address: Annotated[str | None, typer.Option(help="Of the Ray cluster, `auto` for the one this machine is in; without it one is started here.")] = None,
    actors: Annotated[int | None, typer.Option(min=1, help="Copies of the model on the Ray cluster; by default as many as it holds.")] = None,
    resume: Annotated[bool, typer.Option("--resume/--no-resume", help="Go on with the units that an interrupted scan left.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an older scan.")] = False,
) -> None:  # fmt: skip
    """Collect the statistics of a model's heads on images."""
    from .editor.files.whole import require_free_file
    from .editor.images.units import list_units
    from .editor.scan.features import features_path
    from .editor.scan.scan import scan

    if keep_features and (unit_size or shard or engine == "ray"):
        raise typer.BadParameter(
            "needs one pass here: leave out --unit-size, --shard and --engine", param_hint="--keep-features"
        )
    if (address or actors) and engine != "ray":
        raise typer.BadParameter("needs --engine ray", param_hint="--address and --actors")
    parts, size = _parse_shard(shard), _parse_batch_size(batch_size)
    require_free_file(out, overwrite=overwrite)
    loaded = _load_model(model, pretrained, aligner, device).with_tower(tower)
    if tower == "text" and keep_features:
        raise typer.BadParameter("holds features of images", param_hint="--keep-features")
    chosen, kept = _parse_layers(layers, loaded), features_path(out) if keep_features else None
    if kept is not None:
        _say_features_size(kept, loaded, images, chosen, mlps)
    units = list_units(images, 0 if keep_features else unit_size, texts=tower == "text")
    options: dict[str, Any] = {"batch_size": size, "layers": chosen, "mlps": mlps, "self_attention": self_attention,
                               "workers": workers, "max_bad": max_bad, "precision": precision, "compiled": compiled}  # fmt: skip
    if engine == "ray":
        from .editor.scan.on_ray import RayEngine

        options["engine"] = RayEngine(address, actors)
    if len(units) > 1 or parts or engine == "ray":
        _scan_in_units(loaded, units, out, shard=parts, resume=resume, **options)
        return
    with _progress() as follow:
        result = scan(loaded, units[0].open(), keep_features=kept, progress=follow("scan"), **options)
    _save_scan(result, out, "images" if tower == "image" else "texts")


@app.command()
def merge(
    partials: Annotated[list[Path], typer.Argument(help="Partial scans of `scan --shard` or folders of them, in any order; or scans of one model.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.")] = Path("scan.safetensors"),
    max_bad: MaxBadOption = 0.01,
    allow_missing: Annotated[bool, typer.Option("--allow-missing", help="Merge although units are missing.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an older scan.")] = False,
) -> None:  # fmt: skip
    """Sum partial scans to the scan of all their images; the same bytes for any order."""
    from .editor.files.whole import require_free_file
    from .editor.scan.partials import merge_partials

    require_free_file(out, overwrite=overwrite)
    result = merge_partials(partials, max_bad=max_bad, allow_missing=allow_missing)
    _save_scan(result, out, "images")


@app.command()
def monitor(
    scan: Annotated[Path, typer.Argument(help="The calibration scan, as `clipedit scan` or `remove-heads` wrote it.")],
    images: Annotated[str, typer.Argument(help="New images, as for `scan`; at least 256.")],
    recipe: Annotated[Path | None, typer.Option(help="Look at the heads that this recipe edits only.")] = None,
    limit: Annotated[float, typer.Option(min=0, help="From what a change counts: of means in standard deviations, of covariances relative.")] = 0.3,
    top: Annotated[int, typer.Option(min=1, help="Heads to print.")] = 10,
    batch_size: BatchOption = 32,
    workers: WorkersOption = None,
    max_bad: MaxBadOption = 0.01,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Say whether new images still look to the heads like those of a scan. Exit 0 if so, 1 if a recipe should be re-measured."""
    from .editor.edits.recipe import load_recipe
    from .editor.scan.monitor import monitor as run

    scanned, model = _load_scan_and_model(scan)
    heads = list(load_recipe(recipe).heads) if recipe is not None else None
    with _progress() as follow:
        found = run(scanned, model, images, heads=heads, limit=limit, batch_size=batch_size, workers=workers,
                    max_bad=max_bad, progress=follow("monitor"))  # fmt: skip
    if as_json:
        _print_json({**asdict(found), "drifted": found.drifted, "re_measure": bool(found.drifted)})
    else:
        _print_drift(found, top, scan, images)
    raise typer.Exit(1 if found.drifted else 0)


@app.command()
def align(
    model: Annotated[str, typer.Argument(help="A model without texts: a timm name or a folder.")],
    to: Annotated[str, typer.Option("--to", help="The CLIP whose texts it gets: `demo`, a folder, or `name:pretrained`.")],
    images: Annotated[str, typer.Option(help="Unlabelled images: a folder, a CSV, or `demo`.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.")] = Path("aligner.safetensors"),
    pretrained: PretrainedOption = None,
    penalty: Annotated[float, typer.Option("--lambda", min=0, help="Weight of the orthogonality penalty.")] = 1.0,
    shared_map: Annotated[bool, typer.Option("--shared-map", help="One map for all components: an ablation.")] = False,
    epochs: Annotated[int, typer.Option(min=1)] = 2,
    batch_size: BatchOption = 32,
    learning_rate: Annotated[float, typer.Option(min=0)] = 3e-4,
    patience: Annotated[int, typer.Option(min=1, help="Stop after so many batches without a new minimum.")] = 50,
    seed: int = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an older aligner.")] = False,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Learn maps from a model's components to a CLIP's space, so that the CLIP's texts explain them (CompAlign)."""
    from .editor.scan.align import AlignOptions
    from .editor.scan.align import align as run

    if out.exists() and not overwrite:
        raise ExportError(f"cannot write {out}: it exists. Choose another -o, or add --overwrite.")
    options = AlignOptions(penalty=penalty, shared_map=shared_map, epochs=epochs, batch_size=batch_size, learning_rate=learning_rate,
                           patience=patience, seed=seed)  # fmt: skip
    own, clip = (
        _load_model(*(_split_model(model) if pretrained is None else (model, pretrained))),
        _load_model(*_split_model(to)),
    )
    with _progress() as follow:
        aligner = run(own, clip, images, options=options, resume=resume, progress=follow("align"),
                      state_path=out.with_name(f"{out.name}.training"))  # fmt: skip
    aligner.save(out)
    _print_json(aligner.report) if as_json else _print_table(
        ["on held-out images", ""], [[key.replace("_", " "), f"{value:.3f}"] for key, value in aligner.report.items()]
    )
    _say(f"wrote {out}: {len(aligner.maps)} maps, from {aligner.described['images']['training']} images")
    _print_next("to scan through it", f"clipedit scan IMAGES --model {model} --aligner {out} -o scan.safetensors")


@app.command("train-head")
def train_head(
    model: Annotated[str, typer.Argument(help="A timm model without texts: a name with its tag, or a folder.")],
    dataset: Annotated[str, typer.Option(help="Labelled images to train on, as for `evaluate`.")],
    split: Annotated[
        str | None, typer.Option(help="Value of the `split` column to train on; evaluate on another.")
    ] = None,
    label: Annotated[str | None, typer.Option(help="Column of classes.")] = None,
    pretrained: PretrainedOption = None,
    out: OutOption = DEFAULT_OUT,
    seed: int = 0,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a linear head on labelled images; what is written is an ordinary timm classifier."""
    from .editor.files.whole import require_apart, require_free_folder
    from .editor.images.labelled import load_labelled_images
    from .export.classifier_folder import train_head_to_folder

    require_free_folder(out, overwrite=overwrite)
    require_apart(out, model, pretrained, dataset)
    task = load_labelled_images(dataset, label=label, split=split)
    loaded = _load_model(*(_split_model(model) if pretrained is None else (model, pretrained)))
    with _progress() as follow:
        report = train_head_to_folder(loaded, task, out, seed=seed, overwrite=overwrite, progress=follow("train"))
    _print_json(report) if as_json else _say(
        f"wrote {out}: accuracy {report['held_out_accuracy']:.3f} on a held-out fifth"
    )
    _print_next("on a split that it was not trained on", f"clipedit evaluate {out} --dataset {dataset} --split SPLIT")


@app.command()
def label(
    scan: Annotated[Path, typer.Argument(help="A file that `clipedit scan` wrote.")],
    texts: Annotated[Path | None, typer.Option(help="A text a line; by default a general pool.")] = None,
    texts_per_head: Annotated[int, typer.Option(min=1)] = 5,
    as_json: JsonOption = False,
) -> None:
    """Label every scanned head with the texts that explain most of it (TextSpan)."""
    from .editor.concepts.textspan import text_span
    from .editor.images.texts import load_texts

    scanned, model = _load_scan_and_model(scan)
    pool = load_texts(texts, model.folder)
    labels = text_span(scanned, model, texts=pool, texts_per_head=min(texts_per_head, model.tower.d_head))
    if as_json:
        _print_json({head: [vars(item) for item in items] for head, items in labels.items()})
        return
    _print_heads(labels, list(labels))


@app.command()
def score(
    scan: Annotated[Path, typer.Argument(help="A file that `clipedit scan` wrote.")],
    concept: Annotated[str | None, typer.Option(help="A concept's name or file; needed without --test.")] = None,
    keep: Annotated[str | None, typer.Option(help="A concept whose heads to spare.")] = None,
    test: Annotated[str | None, typer.Option(metavar="LABELS", help="Test the scores against retrieval on labelled images: `demo`, a CSV, or a folder with metadata.csv.")] = None,
    columns: Annotated[str | None, typer.Option(help="For --test: `location=place,shape`, a concept and its column.")] = None,
    measure: Annotated[Literal["covariance-share", "correlation"], typer.Option()] = "covariance-share",
    directions: DirectionsOption = None,
    top: Annotated[int, typer.Option(min=1, help="Rows to print.")] = 20,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Rank components by how much of a concept they carry, or test such ranks against labels."""
    from .editor.concepts.scores import score_heads

    if test is not None:
        if concept or keep or directions:
            raise typer.BadParameter("--test takes its concepts from --columns", param_hint="--test")
        return _test_scores(scan, test, columns, measure, as_json)
    if concept is None or columns:
        raise typer.BadParameter("give --concept NAME, or --test LABELS [--columns]", param_hint="--concept")
    scanned, model = _load_scan_and_model(scan)
    scores = score_heads(scanned, model, concept=concept, keep=keep, measure=measure, directions=directions)
    if as_json:
        _print_json([{**vars(row), "score": row.score} for row in scores])
        return
    rows = [[row.component, f"{row.score:+.3f}", f"{row.concept:.3f}", f"{row.keep:.3f}"] for row in scores[:top]]
    _print_table(["component", "score", concept, "keep"], rows)


@app.command("ablate-layers")
def ablate_layers(
    scan: Annotated[Path, typer.Argument(help="A scan of all layers: `clipedit scan IMAGES --layers all --mlps`.")],
    dataset: Annotated[str, typer.Option(help="Labelled images, as for `evaluate`.")],
    plot: Annotated[Path | None, typer.Option(help="File to draw to: .svg, .png or .pdf.")] = None,
    batch_size: BatchOption = 64,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an older plot.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Accuracy as attention, MLPs or both are mean-ablated, from the last layer to the first."""
    from .editor.look.plot import plot_layer_ablation, require_plot, save_figure
    from .editor.measure.layer_ablation import measure_layer_ablation

    if plot is not None:
        require_plot(plot, overwrite=overwrite)
    scanned, model = _load_scan_and_model(scan)
    with _progress() as follow:
        curves = measure_layer_ablation(scanned, model, dataset, batch_size=batch_size, progress=follow("ablate"))
    if plot is not None:
        save_figure(plot_layer_ablation(curves), plot)
        _say(f"wrote {plot}")
    if as_json:
        _print_json(curves)
        return
    _print_measures({f"{kind}, last {n}": row for kind, rows in curves.items() for n, row in enumerate(rows)})


@app.command("heatmap")
def heatmap_command(
    image: Annotated[Path, typer.Argument(help="An image.")],
    text: Annotated[list[str] | None, typer.Option(help="What to look for; repeat for several. Left out: what --head's TextSpan says, from --scan.")] = None,
    head: Annotated[list[str] | None, typer.Option(help="A head, L3H5; repeat for several. By default all of the last four layers.")] = None,
    each_head: Annotated[bool, typer.Option("--each-head", help="A picture a head, in place of their sum.")] = False,
    against: Annotated[list[str] | None, typer.Option(help="Take off the mean of these texts; repeat. By default of a general pool.")] = None,
    scan: Annotated[Path | None, typer.Option(help="A scan, for the texts of --head.")] = None,
    model: ModelOption = "demo",
    pretrained: PretrainedOption = None,
    aligner: AlignerOption = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG to write.")] = Path("heatmap.png"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an older picture.")] = False,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Show where heads see a text in an image: red speaks for it, blue against it."""
    from .editor.files.whole import require_apart, require_free_file
    from .editor.look.heatmaps import draw_heatmap_file, head_texts

    require_apart(out, image, scan, aligner)
    require_free_file(out, overwrite=overwrite)
    loaded = _load_model(model, pretrained, aligner or _aligner_of(scan))
    texts = text or head_texts(loaded, head or [], scan)
    drawn = draw_heatmap_file(loaded, image, out, texts=texts, heads=head, against=against, each_head=each_head)
    if as_json:
        _print_json({"out": str(out), "heatmaps": [vars(one) for one in drawn]})
        return
    rows = [[one.heads, one.text, f"{one.share:+.3f}", f"{one.on_image:+.3f}"] for one in drawn]
    _print_table(["heads", "text", "share of the similarity", "on the image"], rows)
    _say(f"wrote {out}")


@app.command("segment")
def segment_command(
    images: Annotated[str, typer.Argument(help="A folder, a CSV with a column of paths, or an image.")],
    text: Annotated[list[str], typer.Option(help="What to cut out; repeat for several, which are then told from each other.")],
    against: Annotated[list[str] | None, typer.Option(help="Take off the mean of these texts; repeat.")] = None,
    reading: ReadingOption = "contrast",
    concept: ConceptWeightOption = None,
    keep: Annotated[str | None, typer.Option(help="With --concept: take off the score for this one, as what surrounds the objects.")] = None,
    scan: Annotated[Path | None, typer.Option(help="For --concept: a scan of this model.")] = None,
    model: ModelOption = "demo",
    pretrained: PretrainedOption = None,
    aligner: AlignerOption = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write masks to.")] = Path("masks"),
    overwrite: OverwriteOption = False,
) -> None:  # fmt: skip
    """Write a mask an image: white where heads see the text."""
    from .editor.files.whole import require_apart
    from .editor.look.segment import segment_folder

    require_apart(out, images, aligner, scan)
    loaded = _load_model(model, pretrained, aligner or _aligner_of(scan))
    weights = _weigh_heads(scan, loaded, concept, keep)
    with _progress() as follow:
        count = segment_folder(
            loaded, images, out, texts=text, against=against, reading=reading, weights=weights, overwrite=overwrite,
            progress=follow("segment"),
        )  # fmt: skip
    _say(
        f"wrote {out}: masks of {count} images"
        + (", a folder a text" if len(text) > 1 and reading != "evidence" else "")
    )


@app.command("retrieve")
def retrieve_command(
    images: Annotated[str, typer.Argument(help="Where to search: a folder, a CSV, or `demo`.")],
    text: Annotated[str | None, typer.Option(help="What to search for.")] = None,
    image: Annotated[Path | None, typer.Option(help="A reference image, in place of --text.")] = None,
    concept: Annotated[str | None, typer.Option(help="Compare by the heads that carry this concept only: a name or file.")] = None,
    heads: Annotated[int | None, typer.Option(min=1, help="How many of them.")] = None,
    count: Annotated[int, typer.Option("--count", "-k", min=1, help="How many images.")] = 10,
    index: Annotated[Path, typer.Option(help="The index: read if it exists, else made.")] = Path("clipedit-index.safetensors"),
    model: ModelOption = "demo",
    pretrained: PretrainedOption = None,
    aligner: AlignerOption = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Also write the images as one PNG.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an older PNG.")] = False,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Find images that share one property with a text or a reference image."""
    from .editor.files.whole import require_free_file
    from .editor.look.retrieve import run_retrieval

    if out is not None:
        require_free_file(out, overwrite=overwrite)
    loaded = _load_model(model, pretrained, aligner)
    with _progress() as follow:
        found = run_retrieval(
            loaded, images, index, text=text, image=image, concept=concept, heads=heads, count=count, sheet=out,
            progress=follow("index"),
        )  # fmt: skip
    if as_json:
        _print_json({"heads": found.heads, "images": [vars(hit) for hit in found.hits]})
        return
    _print_table(["image", "similarity"], [[hit.name, f"{hit.similarity:.3f}"] for hit in found.hits])
    _say(f"compared by {', '.join(found.heads) or 'the whole embedding'}; the index is {index}")


@app.command("remove-heads")
def remove_heads(
    concept: Annotated[str | None, typer.Option(help="What to remove: a concept's name or file. Only selectors that look at labels can do without.")] = None,
    keep: Annotated[str | None, typer.Option(help="A concept whose heads to spare.")] = None,
    model: ModelOption = "demo",
    tower: TowerOption = "image",
    pretrained: PretrainedOption = None,
    images: Annotated[str | None, typer.Option(help="Unlabelled calibration images: a folder or a CSV.")] = None,
    scan: Annotated[Path | None, typer.Option(help="A scan made earlier, in place of --images.")] = None,
    aligner: AlignerOption = None,
    dataset: Annotated[str | None, typer.Option(help="Labelled images to measure on, as for `evaluate`.")] = None,
    operation: Annotated[OperationChoice, typer.Option(help="What happens to the heads.")] = "mean-ablate",
    effect: Annotated[EffectChoice, typer.Option(help="How the edit enters the model.")] = "distilled",
    select: Annotated[SelectChoice, typer.Option(help="How the heads are chosen.")] = "text-difference",
    labelled: LabelledOption = None,
    label: LabelOption = None,
    group_by: GroupByOption = "",
    split: SplitOption = None,
    retention: Annotated[str | None, typer.Option(help="A column of --labelled with a second task, which should not change.")] = None,
    erase: EraseOption = None,
    regions: Annotated[str | None, typer.Option(help="For attention-region: a folder of masks or a column of boxes; by default words are written over the labelled images.")] = None,
    budget: Annotated[float, typer.Option(help="Points of accuracy that frontier and attention-region may lose.")] = 1.0,
    features: FeaturesOption = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the Pareto front of --select frontier to this file.")] = None,
    heads: Annotated[int | None, typer.Option(min=0, help="How many heads; at most so many for selectors that search.")] = None,
    strength: Annotated[float, typer.Option(min=0, max=1, help="Of the operation on heads.")] = 1.0,
    factor: Annotated[float | None, typer.Option(help="Of `scale`.")] = None,
    along: Annotated[AlongChoice, typer.Option(help="Directions of project-out and keep-only: the concept's texts, the head's own labels that name it, its main components, or the means of labelled images.")] = "texts",
    weights: Annotated[Path | None, typer.Option(help="For reweight: a file with a weight for each singular direction, `L3H5: [1, 0.2, ...]`; else they come from the concept.")] = None,
    leace: Annotated[bool, typer.Option("--leace", help="Also erase the values of --erase from the output, so that no linear probe finds them.")] = False,
    output_strength: Annotated[float | None, typer.Option(min=0, max=1, help="Of the projection of the concept's texts out of the output; 0 for none.")] = None,
    directions: DirectionsOption = None,
    batch_size: BatchOption = 32,
    max_bad: MaxBadOption = 0.01,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Write report.html into the folder.")] = True,
    out: OutOption = DEFAULT_OUT,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Find the heads that carry a concept, remove them, and write the repaired model with its recipe."""
    from .editor.concepts.concepts import load_concept
    from .editor.edits.bind import bind_recipe, check_effect
    from .editor.edits.singular import load_weights
    from .editor.files.whole import require_apart, require_free_folder
    from .editor.look.plot import plot_frontier, require_plot, save_figure
    from .editor.select.selectors import select_recipe
    from .export.edited_folder import write_edited_model
    from .export.pages.report import write_report

    if concept is None and select == "text-difference":
        raise typer.BadParameter(f"{select} needs one", param_hint="--concept")
    require_free_folder(out, overwrite=overwrite)
    require_apart(out, model, pretrained, images, scan, aligner, dataset, labelled, features)
    if plot is not None:
        require_plot(plot, overwrite=overwrite)
    _require_text_edit(tower, select, effect)
    loaded = _load_model(model, pretrained, aligner or _aligner_of(scan)).with_tower(tower)
    # Read before the images are: a misspelt name or a missing tokenizer must not cost a scan.
    loaded.tokenizer(["a photo"])
    check_effect(effect, loaded, output_strength=output_strength)
    spurious, kept = (load_concept(name, loaded.folder) if name else None for name in (concept, keep))
    chosen = {"heads": heads, "output_strength": output_strength}
    dataset = dataset or ("demo" if model == "demo" else None)
    evidence = _load_evidence(select, labelled or ("demo" if model == "demo" else None), label=label, group_by=group_by,
                              split=split, retention=retention, regions=regions, budget=budget, features=features)  # fmt: skip
    with _progress() as follow:
        scanned = _scan_or_load(loaded, images, scan, follow, batch_size=batch_size, max_bad=max_bad)
        document = select_recipe(
            scanned, loaded, select=select, evidence=evidence, concept=spurious, keep=kept, operation=operation,
            effect=effect, strength=strength, directions=directions, factor=factor, along=along,
            weights=load_weights(weights) if weights else None, leace=leace,
            **{key: value for key, value in chosen.items() if value is not None},
        )  # fmt: skip
        erased = _load_erased(document, loaded, labelled or ("demo" if model == "demo" else None), erase, split, follow)
        recipe = bind_recipe(document, scanned, loaded, labelled=erased)
        rows = _measure(recipe, scanned, loaded, dataset, follow, erased)
        recipe = _with_fidelity(recipe.with_measured(rows), scanned, loaded, dataset, images, follow, erased)
        # Texts are no images to verify with.
        checks = write_edited_model(
            recipe, loaded, out, images=images if tower == "image" else None, scan=scanned, overwrite=overwrite
        )
        page = (
            write_report(out, base=loaded, images=images, progress=follow("report"))
            if report and tower == "image"
            else None
        )
    if plot is not None and "frontier" in (recipe.document.measured or {}):
        save_figure(plot_frontier((recipe.document.measured or {})["frontier"]), plot)
    _report_edit(recipe, out, checks, page, as_json=as_json)


@app.command("apply")
def apply_command(
    recipe: Annotated[Path, typer.Argument(help="A recipe, a folder that holds one, or a shipped one's name.")],
    model: ModelOption = "demo",
    pretrained: PretrainedOption = None,
    images: Annotated[str | None, typer.Option(help="Calibration images, for unbound recipes.")] = None,
    scan: Annotated[Path | None, typer.Option(help="A scan, for unbound recipes.")] = None,
    labelled: LabelledOption = None,
    erase: EraseOption = None,
    split: SplitOption = None,
    effect: Annotated[EffectChoice | None, typer.Option(help="How an unbound recipe enters the model.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Apply to other weights than the recipe was made for.")
    ] = False,
    out: OutOption = DEFAULT_OUT,
    overwrite: OverwriteOption = False,
) -> None:
    """Apply a saved recipe: the same base gives the same bytes."""
    from .editor.edits.recipe import load_recipe
    from .editor.files.whole import require_apart
    from .export.edited_folder import apply_to_folder

    require_apart(out, recipe, model, pretrained, images, scan)
    loaded = load_recipe(recipe)
    loaded = loaded.with_effect(effect) if effect else loaded
    folder = _plain_checkpoint(model, pretrained)
    if loaded.is_bound and folder is not None:
        apply_to_folder(loaded, folder, out, force=force, overwrite=overwrite)
    else:
        base = _load_model(model, pretrained, _aligner_of(scan))
        with _progress() as follow:
            erased = _load_erased(loaded.document, base, labelled, erase, split, follow)
        _apply_in_memory(loaded, base, images, scan, force, out, overwrite, erased)
    _say(f"wrote {out}: {model} with recipe {loaded.document.name} ({loaded.document.effect})")
    _print_next("for deployment", f"clipedit export {out} --target onnx -o {out}-onnx")


@app.command("diff")
def diff_command(
    base: Annotated[str, typer.Argument(help="A folder, a safetensors file, `demo`, or `name:pretrained`.")],
    edited: Annotated[str, typer.Argument(help="The same, of the edited model.")],
    model: Annotated[str | None, typer.Option("--model", help="The architecture, where neither side says it.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what an edit changed, and whether anything else changed: exit 0 if nothing else did, else 1."""
    from .editor.edits.diff import diff_models

    found = diff_models(base, edited, architecture=model)
    if as_json:
        _print_json({**vars(found), "same": found.same, "changed": [vars(change) for change in found.changed]})
    else:
        _print_diff(found)
    if found.others:
        _fail(f"error: {len(found.others)} things changed that no edit changes; the first: {found.others[0]}.")


@app.command()
def reindex(
    vectors: Annotated[Path, typer.Argument(help="Embeddings of the unedited model: a .npy or .parquet file.")],
    recipe: Annotated[Path, typer.Option(help="A bound recipe, or a folder that holds one.")],
    scan: Annotated[Path | None, typer.Option(help="The scan that the recipe was made from; by default beside it.")] = None,
    model: Annotated[str | None, typer.Option(help="The unedited model; by default the one that the recipe names.")] = None,
    pretrained: PretrainedOption = None,
    images: Annotated[str | None, typer.Option(help="Held-out images to measure the map on.")] = None,
    column: Annotated[str | None, typer.Option(help="Column of a Parquet file.")] = None,
    normalised: Annotated[bool | None, typer.Option("--normalised/--unnormalised", help="By default what the vectors are.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Take vectors that do not look like the model's.")] = False,
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write, in the same format.")] = Path("reindexed"),
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Carry stored embeddings of the unedited model to those of the edited one, without reading an image again."""
    from .editor.files.vectors import open_vectors
    from .editor.measure.reindex import compute_embedding_map, reindex_vectors

    open_vectors(vectors, column=column)  # A misspelt path must not cost the loading of a model.
    target = _require_free_file(out if out.suffix else out.with_suffix(vectors.suffix), vectors, overwrite=overwrite)
    bound, scanned, base = _load_reindex_inputs(recipe, scan, model, pretrained)
    mapping = compute_embedding_map(bound, scanned, base)
    rows = reindex_vectors(mapping, vectors, target, column=column, normalised=normalised, force=force)
    fidelity = _measure_reindex(mapping, bound, scanned, base, images)
    if as_json:
        _print_json({"out": str(target), "rows": rows, "fidelity": fidelity})
        return
    _print_measures(fidelity)
    _say(f"wrote {target}: {rows} vectors")


@app.command()
def evaluate(
    models: Annotated[list[str], typer.Argument(help="Models: `demo`, folders, or `name:pretrained`.")],
    dataset: Annotated[str, typer.Option(help="`demo`, a CSV, or a folder: Waterbirds, CelebA, FairFace, CounterAnimal, typographic, or a folder a class.")],
    aligner: AlignerOption = None,
    layout: Annotated[LayoutChoice | None, typer.Option(help="The layout, where it is not what is seen.")] = None,
    classes: Annotated[Path | None, typer.Option(help="A class a line: `value: words for the prompt`.")] = None,
    templates: Annotated[Path | None, typer.Option(help="A prompt a line, `{}` for the class.")] = None,
    label: Annotated[str | None, typer.Option(help="Column of classes.")] = None,
    group_by: Annotated[str, typer.Option(help="Columns that make groups, separated by commas.")] = "",
    split: Annotated[str | None, typer.Option(help="Value of the `split` column to keep.")] = None,
    top: Annotated[int, typer.Option(min=1, help="K of FairFace's MaxSkew@K.")] = 1000,
    retention: Annotated[str | None, typer.Option(help="A column with a second task, on which nothing should change.")] = None,
    segmentation: Annotated[bool, typer.Option("--segmentation", help="Segment instead: --dataset is a folder with `images` and `masks`, gtsegs_ijcv.mat, or `demo`.")] = False,
    reading: ReadingOption = "contrast",
    control: Annotated[bool, typer.Option("--control", help="Beside each folder that `remove-heads` wrote, ten draws of random heads.")] = False,
    batch_size: BatchOption = 64,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Measure zero-shot accuracy of models side by side: overall, worst group, mean of groups."""
    from .editor.concepts.class_weights import DEFAULT_TEMPLATES
    from .editor.images.labelled import load_classes, load_labelled_images, load_lines
    from .editor.images.layouts import load_dataset
    from .editor.images.skew import RetrievalSet
    from .editor.measure.control import measure_folder_controls
    from .editor.measure.evaluate import evaluate as run

    if segmentation:
        if label or group_by or split or retention or control:
            raise typer.BadParameter("masks have no labels, groups or controls", param_hint="--segmentation")
        loaded = {name: _load_model(*_split_model(name), aligner) for name in models}
        _evaluate_segmentation(loaded, dataset, classes, templates, reading, as_json=as_json)
        return
    columns = [name.strip() for name in group_by.split(",") if name.strip()]
    task: str | LabelledImages | RetrievalSet = dataset
    second = None
    if dataset == "demo" and (classes or templates or label or columns or split or retention or layout):
        raise typer.BadParameter("the demo has its own classes, prompts and groups", param_hint="--dataset demo")
    if dataset != "demo":
        given = load_classes(classes) if classes else None
        task = load_dataset(dataset, layout=layout, label=label, classes=given, group_by=columns, split=split)
        task = replace(task, top=top) if isinstance(task, RetrievalSet) else task
        second = load_labelled_images(dataset, label=retention, split=split) if retention else None
    loaded = {name: _load_model(*_split_model(name), aligner) for name in models}
    prompts = load_lines(templates) if templates else DEFAULT_TEMPLATES
    with _progress() as follow:
        rows = run(
            loaded, task, retention=second, templates=prompts, batch_size=batch_size, progress=follow("evaluate")
        )
        for name in models if control else []:
            rows |= measure_folder_controls(Path(name), task, templates=prompts, progress=follow("control"))
    _print_json(rows) if as_json else _print_measures(rows)


@app.command()
def completeness(
    scan: Annotated[Path, typer.Argument(help="A scan; with all layers and --mlps the ablation study is run too.")],
    dataset: Annotated[str, typer.Option(help="Labelled images, as for `evaluate`.")],
    texts: Annotated[list[Path] | None, typer.Option(help="A pool of texts, one a line; may be repeated.")] = None,
    steps: Annotated[str, typer.Option(help="Texts a head, separated by commas; all up to d_head by default.")] = "",
    templates: Annotated[Path | None, typer.Option(help="A prompt a line, `{}` for the class.")] = None,
    seed: Annotated[int, typer.Option(help="Of the random texts and directions.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="Also draw the curves: .svg, .png or .pdf.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an older plot.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Replace heads by their texts and measure what is left: accuracy against m and the pool, with random controls."""
    from .editor.concepts.class_weights import DEFAULT_TEMPLATES
    from .editor.images.labelled import load_lines
    from .editor.images.texts import load_pools
    from .editor.look.plot import plot_completeness, require_plot, save_figure
    from .editor.measure.completeness import default_steps, measure_completeness

    if plot is not None:
        require_plot(plot, overwrite=overwrite)
    scanned, model = _load_scan_and_model(scan)
    pools = load_pools(texts, model.folder)
    chosen = _parse_numbers(steps, "--steps") or default_steps(model.tower.d_head)
    prompts = load_lines(templates) if templates else DEFAULT_TEMPLATES
    with _progress() as follow:
        rows = measure_completeness(scanned, model, dataset, pools=pools, steps=chosen, templates=prompts, seed=seed,
                                    progress=follow("measure"))  # fmt: skip
    if plot is not None:
        save_figure(plot_completeness(rows), plot)
        _say(f"wrote {plot}")
    _print_json([vars(row) for row in rows]) if as_json else _print_completeness(rows)


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="A model: a folder, `demo`, or an open_clip name.")],
    target: Annotated[
        str,
        typer.Option(help=spell_target_names()),
    ],
    out: OutOption = DEFAULT_OUT,
    pretrained: PretrainedOption = None,
    precision: Annotated[PrecisionChoice, typer.Option(help="Of the weights.")] = "fp32",
    prune: Annotated[bool, typer.Option("--prune", help="Leave out heads that `--effect total` ablated.")] = False,
    calibration: Annotated[str | None, typer.Option(help="Images for static int8, without them it is dynamic.")] = None,
    images: Annotated[str | None, typer.Option(help="Images to verify with.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Keep a lower precision although it answers too differently.")
    ] = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a model in the layout its consumer reads, and verify it in a fresh process."""
    from .editor.files.whole import require_apart
    from .export.targets.registry import require_target
    from .export.verify.verify import REFERENCE_NAME
    from .export.verify.verify import verify as verify_folder
    from .export.write import export_model

    require_target(target, precision)
    require_apart(out, model, pretrained, images, calibration)
    if (Path(model) / REFERENCE_NAME).is_file():
        verify_folder(model)  # What was edited must still be what it was when it was measured.
    checks = export_model(
        _load_model(model, pretrained), out, target=target, precision=precision, prune=prune, calibration=calibration,
        images=images, overwrite=overwrite, force=force,
    )  # fmt: skip
    if as_json:
        _print_json({"out": str(out), "checks": [vars(check) for check in checks]})
        return
    _print_checks(checks)
    _say(f"wrote {out}")
    _print_next("whenever you doubt it", f"clipedit verify {out}")


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="A folder that `export` or `remove-heads` wrote.")],
    trust: Annotated[
        bool, typer.Option("--trust", help="Load what can run code that is in it: torch-export programs.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Run an export with its consumer, in a fresh process, against the edited model's own answers."""
    from .export.verify.verify import verify as run

    checks = run(folder, trust=trust)
    _print_json([vars(check) for check in checks]) if as_json else _print_checks(checks)


@app.command()
def reproduce(
    folder: Annotated[Path, typer.Argument(help="A folder that `export` wrote.")],
    model: Annotated[str | None, typer.Option(help="The base, if it is not where it was.")] = None,
    pretrained: PretrainedOption = None,
    calibration: Annotated[str | None, typer.Option(help="The images of a static int8 export.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Say how base, versions and files differ from an export's record, build it again and compare every byte."""
    from .export.verify.reproduce import reproduce as run

    found = run(folder, model=_load_model(model, pretrained) if model else None, calibration=calibration)
    wrong = sum(difference.severity == "error" for difference in found)
    if as_json:
        _print_json([vars(difference) for difference in found])
    else:
        for difference in found:
            out_console.print(_printable(str(difference)), markup=False, highlight=False, soft_wrap=True)
        _say(f"{folder}: {f'{wrong} errors' if wrong else 'every file was built again, byte for byte'}")
    if wrong:
        sys.exit(1)


@app.command()
def models(
    names: Annotated[
        list[str] | None, typer.Argument(help="Names or patterns (`ViT-B-*`) of open_clip and timm.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables of the README.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what can be edited, and why not what cannot: one model of every family, or those you name."""
    from .editor.models.supported import describe_models, render_markdown

    with _progress() as follow:
        rows = describe_models(names or (), progress=follow("models"))
    if as_json:
        _print_json([{**vars(row), "effects": list(row.effects)} for row in rows])
    elif markdown:
        sys.stdout.write(render_markdown(rows))
    else:
        cells = [[row.family, row.library, row.model, row.heads, row.reason or ", ".join(row.effects)] for row in rows]
        _print_table(["family", "library", "model", "layers x heads", "effects, or why not"], cells)


@app.command("report")
def report_command(
    folder: Annotated[Path, typer.Argument(help="A folder that `remove-heads` wrote.")],
    images: Annotated[str | None, typer.Option(help="Where to look for the images that excite heads most: a folder or a CSV.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write; by default report.html in the folder, replaced if it is there.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file given as -o.")] = False,
) -> None:  # fmt: skip
    """Write a page on an edit: what was removed and why, before and after, every head's card, the checks."""
    from .editor.files.whole import require_free_file
    from .export.pages.report import write_report

    if out is not None:
        require_free_file(out, overwrite=overwrite)
    with _progress() as follow:
        page = write_report(folder, images=images, out=out, progress=follow("report"))
    _say(f"wrote {page}: open it in a browser")


@concepts_app.command("list")
def concepts_list(model: ModelOption = "demo", as_json: JsonOption = False) -> None:
    """List the concepts of the library and of a model's own folder."""
    from .editor.concepts.concepts import list_concepts, load_concept

    folder = _plain_folder(model, None)
    found = [load_concept(name, folder) for name in list_concepts(folder)]
    if as_json:
        _print_json([{"name": c.name, "texts": len(c.texts), "description": c.description} for c in found])
        return
    _print_table(["concept", "texts", "description"], [[c.name, str(len(c.texts)), c.description] for c in found])


@concepts_app.command("show")
def concepts_show(name: str, model: ModelOption = "demo") -> None:
    """Print the texts of a concept."""
    from .editor.concepts.concepts import load_concept

    for text in load_concept(name, _plain_folder(model, None)).texts:
        out_console.print(_printable(text), markup=False, highlight=False)


@recipes_app.command("list")
def recipes_list(as_json: JsonOption = False) -> None:
    """List the shipped recipes."""
    from .editor.edits.document import list_recipes
    from .editor.edits.recipe import load_recipe

    found = [load_recipe(path) for path in list_recipes().values()]
    if as_json:
        _print_json([{**recipe.document.model_dump(mode="json"), "heads": recipe.heads} for recipe in found])
        return
    rows = [[r.document.name, r.document.base.model, str(len(r.heads)), r.document.description] for r in found]
    _print_table(["recipe", "model", "heads", "description"], rows)
    _print_next("with your own images", "clipedit apply RECIPE --model NAME --pretrained TAG --images DIR -o repaired")


@recipes_app.command("show")
def recipes_show(recipe: Annotated[str, typer.Argument(help="A shipped recipe's name, a file or a folder.")]) -> None:
    """Print a recipe."""
    from .editor.edits.document import format_document
    from .editor.edits.recipe import load_recipe

    out_console.print(
        format_document(load_recipe(recipe).document), markup=False, highlight=False, soft_wrap=True, end=""
    )


@recipes_app.command("check")
def recipes_check(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name, a file or a folder.")],
    model: Annotated[str | None, typer.Option("--model", help="An architecture; by default the recipe's own.")] = None,
) -> None:
    """Check a recipe's heads and effect against an architecture; no weights are needed."""
    from .editor.edits.bind import check_effect, check_heads
    from .editor.edits.recipe import load_recipe
    from .editor.models.architecture import load_architecture

    loaded = load_recipe(recipe)
    architecture = load_architecture(model or loaded.document.base.model).with_tower(loaded.document.tower)
    check_heads(loaded.document, architecture)
    check_effect(loaded.document.effect, architecture)
    fits = f"{loaded.document.name} fits {architecture.name}: {len(loaded.heads)} heads, all of them there"
    out_console.print(_printable(fits), markup=False)


def main() -> None:
    """Run the command line: exit 0, 1 with a message on stderr, or 2 for wrong usage."""
    warnings.showwarning = lambda message, *_: print(_printable(f"warning: {message}"), file=sys.stderr)
    try:
        app()
    except ClipeditError as error:
        _fail(f"error: {error}")
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        _fail(f"error: {error.strerror or error}: {error.filename or ''}".rstrip(": "))


def _fail(message: str) -> NoReturn:
    print(_printable(message), file=sys.stderr)
    sys.exit(1)


def _load_model(name: str, pretrained: str | None, aligner: str | Path | None = None, device: str = "cpu") -> Model:
    """As `load_model`, but never with random weights; read through an aligner, if there is one."""
    from .editor.models.devices import require_device
    from .editor.models.model import load_model, needs_weights, pretrained_tags

    if pretrained is None and needs_weights(name):
        tags = ", ".join(pretrained_tags(name)) or "a checkpoint file (open_clip has no tag for it)"
        raise ModelError(f"cannot load {name} without weights. Add --pretrained, one of: {tags}.")
    loaded = load_model(name, pretrained, device=str(require_device(device)))
    if aligner is None:
        return loaded
    from .editor.models.aligned import apply_aligner

    return apply_aligner(loaded, aligner)


def _split_model(name: str) -> tuple[str, str | None]:
    model, _, pretrained = name.partition(":")
    whole = Path(name).exists() or not pretrained or model == "hf"
    return (name, None) if whole else (model, pretrained)


def _plain_folder(model: str, pretrained: str | None) -> Path | None:
    """The folder of a model that is one, if its weights are safetensors."""
    from .editor.models.model import demo_folder, find_checkpoint

    folder = demo_folder() if model == "demo" else Path(model)
    if pretrained or not (folder / "open_clip_config.json").is_file():
        return None
    return folder if find_checkpoint(folder).suffix == ".safetensors" else None


def _plain_checkpoint(model: str, pretrained: str | None) -> Path | None:
    """A folder or a safetensors file that a recipe can be applied to without loading the model."""
    if Path(model).is_file() and Path(model).suffix == ".safetensors":
        return Path(model)
    return _plain_folder(model, pretrained)


def _require_text_edit(tower: str, select: str, effect: str) -> None:
    if tower == "text" and (select != "text-difference" or effect == "direct"):
        raise typer.BadParameter(
            "takes --select text-difference and --effect distilled or total", param_hint="--tower text"
        )


def _load_scan_and_model(path: Path) -> tuple[Scan, Model]:
    from .editor.scan.scan import load_scan

    scanned = load_scan(path)
    return scanned, _load_model(scanned.model_name, scanned.pretrained, scanned.aligner).with_tower(scanned.tower)


def _aligner_of(scan: Path | None) -> str | None:
    from .editor.scan.scan import load_scan

    return load_scan(scan).aligner if scan is not None else None


def _scan_or_load(model: Model, images: str | None, scan: Path | None, follow: Follow, **options: Any) -> Scan:
    from .editor.scan.scan import load_scan
    from .editor.scan.scan import scan as run

    if scan is not None:
        return load_scan(scan)
    if images is None and model.name != "demo":
        raise StatisticsError(
            "cannot choose heads: no images were given. Add --images DIR (no labels needed) or --scan."
        )
    scanned = run(model, images or "demo", progress=follow("scan"), **options)
    _say_skipped(scanned)
    return scanned


def _say_features_size(path: Path, model: Model, images: str, layers: Sequence[int] | None, mlps: bool) -> None:
    from .editor.images.listing import list_images
    from .editor.scan.features import compute_features_bytes
    from .editor.scan.scan import choose_layers

    count = len(list_images(images))
    size = compute_features_bytes(model, model.tower.groups(choose_layers(model, layers), mlps=mlps), count)
    _say(f"features of {count} images will take {size / 1e6:.1f} MB in {path}")


def _test_scores(scan: Path, labels: str, columns: str | None, measure: str, as_json: bool) -> None:
    from .editor.images.labelled import load_attributes
    from .editor.measure.score_agreement import evaluate_scores

    labelled = load_attributes(labels)
    scanned, model = _load_scan_and_model(scan)
    default = "location=place,shape,color,texture" if labels == "demo" else ""
    pairs = [name.strip().partition("=") for name in (columns or default).split(",") if name.strip()]
    with _progress() as follow:
        found = evaluate_scores(
            scanned, model, labelled, columns={concept: column or concept for concept, _, column in pairs},
            measure=measure, progress=follow("retrieve"),
        )  # fmt: skip
    if as_json:
        _print_json(vars(found))
        return
    rows = [[name, _figure(value), max(found.retrieval[name], key=found.retrieval[name].__getitem__)]
            for name, value in found.between.items()]  # fmt: skip
    _print_table(["concept", "Spearman over heads", "best head by retrieval"], rows)
    _say(f"within a head, over {len(rows)} concepts: Spearman {_figure(found.within)}, mean of the heads")


def _figure(value: float | None) -> str:
    return "undefined" if value is None else f"{value:+.3f}"


def _say_skipped(scanned: Scan) -> None:
    for name, reason in scanned.bad:
        _say(f"skipped {name}: {reason}")
    if scanned.more_bad:
        _say(f"skipped {scanned.more_bad} more")


def _save_scan(scanned: Scan, out: Path, what: str) -> None:
    scanned.save(out)
    _say(f"wrote {out}: {scanned.statistics.n} {what}, layers {scanned.layers[0]}-{scanned.layers[-1]}")
    _say_skipped(scanned)
    _print_next("which heads carry a concept", f"clipedit score {out} --concept location")


def _scan_in_units(
    model: Model, units: list[WorkUnit], out: Path, *, shard: tuple[int, int] | None, resume: bool, **options: Any
) -> None:
    from .editor.scan.by_units import scan_units
    from .editor.scan.partials import partials_folder

    folder = partials_folder(out)
    with _progress() as follow:
        found = scan_units(model, units, folder, shard=shard or (0, 1), resume=resume, progress=follow("scan"), say=_say, **options)  # fmt: skip
    again = "Run the same command again: only they are computed"
    if found.failed:
        name, reason = next(iter(found.failed.items()))
        raise ImageError(f"cannot finish the scan: {len(found.failed)} units failed, such as {name}: {reason} {again}; "
                         f"or leave them out: clipedit merge {folder} -o {out} --allow-missing")  # fmt: skip
    if shard is not None:
        _say(f"wrote shard {shard[0]}/{shard[1]} to {folder}: {len(found.files)} of {len(units)} units are done")
        _print_next("when all shards are done", f"clipedit merge {folder} -o {out}")
        return
    _save_scan(found.merge(max_bad=options["max_bad"]), out, f"items of {len(units)} units")
    found.remove()


def _print_drift(found: DriftReport, top: int, scan: Path, images: str) -> None:
    rows = [[name, f"{found.heads[name].mean_shift:.2f}", f"{found.heads[name].covariance_distance:.2f}",
             "drifted" if found.heads[name].drifted else ""] for name in found.ranked[:top]]  # fmt: skip
    _print_table(["head", "mean shift / sd", "covariance distance", ""], rows)
    if not found.drifted:
        _say(
            f"no drift: {found.images} images look to all {len(found.heads)} heads like the {found.calibration_images} of {scan}"
        )
        return
    _say(f"drift: {len(found.drifted)} of {len(found.heads)} heads changed by more than {found.limit:g}")
    _print_next(
        "measure the recipe again on such images, and calibrate on them",
        f"clipedit scan {images} -o new-scan.safetensors",
    )


def _parse_batch_size(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdigit() or int(text) < 1:
        raise typer.BadParameter(f"{text!r} is neither a number from 1 on nor `auto`", param_hint="--batch-size")
    return int(text)


def _parse_shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise typer.BadParameter(f"{text!r} is not I/N with I from 0 to N-1, such as 0/8", param_hint="--shard")
    return int(index), int(count)


def _apply_in_memory(
    recipe: Recipe, model: Model, images: str | None, scan: Path | None, force: bool, out: Path, overwrite: bool,
    erased: LabelledEmbeddings | None,
) -> None:  # fmt: skip
    from .editor.edits.apply import check_base
    from .editor.edits.bind import bind_recipe, check_heads
    from .editor.models.architecture import check_origin
    from .export.edited_folder import write_edited_model

    model = model.with_tower(recipe.document.tower)
    check_heads(recipe.document, model)
    if not recipe.is_bound:
        check_origin(recipe.document, model, force=force)
        if images is None and scan is None:
            raise RecipeError(f"cannot apply recipe {recipe.document.name}: it is unbound. Add --images DIR or --scan.")
        with _progress() as follow:
            scanned = _scan_or_load(model, images, scan, follow, **_parts_to_scan(recipe))
            recipe = bind_recipe(recipe.document, scanned, model, labelled=erased)
    check_base(recipe, model.weights_hash, model.name, force=force)
    images = images if model.side == "image" else None  # Texts are no images to verify with.
    write_edited_model(recipe, model, out, images=images, overwrite=overwrite, force=force)


def _measure(
    recipe: Recipe, scan: Scan, model: Model, dataset: str | None, follow: Follow, erased: LabelledEmbeddings | None
) -> dict[str, dict[str, float]]:
    from .editor.measure.control import measure_with_control

    if dataset is None:
        return {}
    return measure_with_control(recipe, scan, model, dataset, labelled=erased, progress=follow("measure"))


def _require_free_file(out: Path, source: Path, *, overwrite: bool) -> Path:
    if out.resolve() == source.resolve():
        raise ExportError(f"cannot write {out}: the vectors are read from there. Choose another -o.")
    if out.exists() and not overwrite:
        raise ExportError(f"cannot write {out}: it exists. Choose another -o, or add --overwrite.")
    if out.suffix != source.suffix:
        raise ExportError(f"cannot write {out}: the vectors are {source.suffix}. Give -o the same ending.")
    return out


def _load_reindex_inputs(
    recipe: Path, scan: Path | None, model: str | None, pretrained: str | None
) -> tuple[Recipe, Scan, Model]:
    from .editor.edits.recipe import load_recipe
    from .editor.scan.scan import load_scan

    bound = load_recipe(recipe)
    base = bound.document.base
    named = (model, pretrained) if model else (base.model, base.pretrained)
    beside = (recipe if recipe.is_dir() else recipe.parent) / "scan.safetensors"
    return bound, load_scan(scan or beside), _load_model(*named)


def _measure_reindex(
    mapping: EmbeddingMap, recipe: Recipe, scan: Scan, model: Model, images: str | None
) -> dict[str, dict[str, float]]:
    """Fidelity on held-out images; those of the demo's test split for the demo."""
    from .demo.measure import test_source
    from .editor.images.listing import list_images
    from .editor.measure.reindex import measure_fidelity

    if images is None and model.name != "demo":
        _say("fidelity not measured: add --images DIR, a few hundred images that the scan did not see.")
        return {}
    source = list_images(images) if images else test_source()
    with _progress() as follow:
        rows = measure_fidelity(mapping, recipe, scan, model, source, progress=follow("measure"))
    return {name: {key: value for key, value in vars(row).items() if key != "images"} for name, row in rows.items()}


def _report_edit(recipe: Recipe, out: Path, checks: Sequence[Check], page: Path | None, *, as_json: bool) -> None:
    measured, effect = recipe.document.measured or {}, recipe.document.effect
    if as_json:
        _print_json({"heads": recipe.heads, "measured": measured, "out": str(out), "checks": [vars(c) for c in checks]})
        return
    operations = ", ".join(dict.fromkeys(step.operation for step in recipe.document.steps if step.target == "heads"))
    _say(f"edited {len(recipe.heads)} heads ({operations or 'none'}, {effect}): {', '.join(recipe.heads)}")
    if "frontier" in measured:
        _print_front(measured["frontier"])
    rows = {name: row for name, row in measured.items() if name not in ("frontier", "fidelity")}
    if rows:
        _print_measures(rows)
    _say_fidelity(measured, effect)
    _print_checks(checks)
    layout = "an open_clip folder" if (out / "open_clip_config.json").is_file() else "a timm folder"
    _say(f"wrote {out}: {layout}" if effect != "direct" else f"wrote {out}: base and direct edit")
    if page is not None:
        _say(f"wrote {page}: open it in a browser")
    _print_next("for deployment", f"clipedit export {out} --target onnx -o {out}-onnx")


def _load_evidence(
    select: str, labelled: str | None, *, label: str | None, group_by: str, split: str | None, retention: str | None,
    regions: str | None, budget: float, features: Path | None,
) -> Evidence:  # fmt: skip
    """What selectors other than text-difference look at; refused before images are scanned if it does not suffice."""
    from .editor.images.labelled import load_labelled_images
    from .editor.images.layouts import load_selection_set
    from .editor.scan.features import load_features
    from .editor.select.plan import Evidence, require_labelled

    if select == "text-difference":
        return Evidence()
    cached = load_features(features) if features else None
    task = second = None
    if labelled == "demo":
        from .demo.measure import labelled_tasks

        task, second = labelled_tasks()
    elif labelled is not None:
        columns = [name.strip() for name in group_by.split(",") if name.strip()]
        task = load_selection_set(labelled, label=label, group_by=columns, split=split)
        second = load_labelled_images(labelled, label=retention, split=split) if retention else None
    evidence = Evidence(task, second, regions, budget, cached)
    require_labelled(evidence, select)
    return evidence


def _parts_to_scan(recipe: Recipe) -> dict[str, Any]:
    """What a scan must see, beyond the last layers' heads, to bind a recipe."""
    steps = recipe.document.steps
    layers = {layer for step in steps for layer in (*step.layers, *(head.layer for head in step.head_ids()))}
    return {
        "mlps": any(step.target in ("mlps", "layers") for step in steps),
        "self_attention": any(step.target == "self-attention" for step in steps),
        "layers": sorted(layers) or None,
    }


def _load_erased(
    document: RecipeDocument, model: Model, labelled: str | None, erase: str | None, split: str | None, follow: Follow
) -> LabelledEmbeddings | None:
    """The labelled images of a recipe that erases labels, embedded; None for other recipes, or without labels."""
    from .editor.images.labelled import load_labelled_images
    from .editor.scan.collect import collect_labelled

    if not any(step.operation == "leace" or step.along == "labels" for step in document.steps) or labelled is None:
        return None
    if erase is None:
        raise RecipeError("cannot erase labels: no column was named. Add --erase COLUMN.")
    if labelled == "demo":
        from .demo.measure import labelled_by

        return collect_labelled(model, labelled_by(erase), progress=follow("labelled"))
    return collect_labelled(
        model, load_labelled_images(labelled, label=erase, split=split), progress=follow("labelled")
    )


def _with_fidelity(
    recipe: Recipe, scan: Scan, model: Model, dataset: str | None, images: str | None, follow: Follow,
    erased: LabelledEmbeddings | None,
) -> Recipe:  # fmt: skip
    """The recipe with its fidelity to `direct`: on the images that were measured, else on the calibration images."""
    from .demo.measure import test_source
    from .editor.images.labelled import load_labelled_images
    from .editor.images.listing import list_images
    from .editor.images.texts import list_texts
    from .editor.measure.fidelity import measure_fidelity

    if recipe.document.effect == "direct" or (dataset is None and images is None):
        return recipe
    if model.side == "text":
        dataset, source = None, list_texts(images or "demo")
    elif dataset is None:
        source = list_images(images or "demo")
    else:
        source = test_source() if dataset == "demo" else load_labelled_images(dataset).source
    found = measure_fidelity(recipe, scan, model, source, labelled=erased, progress=follow("fidelity"))
    return recipe.with_measured(
        {"fidelity": vars(found) | {"on": "dataset" if dataset else f"calibration {model.side}s"}}
    )


def _say_fidelity(measured: Mapping[str, Any], effect: str) -> None:
    from .editor.measure.fidelity import ENOUGH, Fidelity

    if "fidelity" not in measured:
        if effect != "direct":
            _say(f"fidelity of {effect} to direct: not measured, no images were given")
        return
    figures = {key: value for key, value in measured["fidelity"].items() if key != "on"}
    found = Fidelity(**figures)
    _say(f"fidelity of {effect} to direct, {found.images} of the {measured['fidelity']['on']}: {found}")
    if found.explained < ENOUGH:
        _say(
            f"warning: {effect} explains less than {ENOUGH} of the directly edited embedding; --effect direct is exact"
        )


def _weigh_heads(
    scan: Path | None, model: Model, concept: str | None, keep: str | None
) -> Mapping[HeadId, float] | None:
    if concept is None and keep is None:
        return None
    if scan is None or concept is None:
        raise typer.BadParameter("weights of heads need both --concept and --scan", param_hint="--concept")
    from .editor.look.readings import weigh_heads
    from .editor.scan.scan import load_scan

    return weigh_heads(load_scan(scan), model, concept=concept, keep=keep)


def _evaluate_segmentation(
    models: Mapping[str, Model],
    dataset: str,
    classes: Path | None,
    templates: Path | None,
    reading: ReadingChoice,
    *,
    as_json: bool,
) -> None:
    from .editor.concepts.class_weights import DEFAULT_TEMPLATES
    from .editor.images.labelled import load_classes, load_lines
    from .editor.look.segment import DEMO_CLASSES, evaluate_segmentation, load_masked_images

    if classes is None and dataset != "demo":
        raise typer.BadParameter("it needs the names of the classes, a file with one a line", param_hint="--classes")
    names = list(load_classes(classes).values()) if classes else DEMO_CLASSES
    prompts, masked = load_lines(templates) if templates else DEFAULT_TEMPLATES, load_masked_images(dataset)
    with _progress() as follow:
        rows = {
            name: evaluate_segmentation(
                model, masked, classes=names, templates=prompts, reading=reading, progress=follow("segment")
            )
            for name, model in models.items()
        }
    _print_json(rows) if as_json else _print_measures(rows)


def _parse_layers(text: str | None, model: Model) -> list[int] | None:
    if text is None:
        return None
    if text == "all":
        return list(range(model.tower.n_layers))
    first, _, last = text.partition("-")
    if not first.isdigit() or (last and not last.isdigit()):
        raise typer.BadParameter(f"{text!r} is not `all`, a layer or a range such as 20-23", param_hint="--layers")
    return list(range(int(first), int(last or first) + 1))


Follow = Callable[[str], Callable[[int, int], None]]


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:.0f} images/s")


@contextmanager
def _progress() -> Iterator[Follow]:
    """A bar a stage on stderr, with images/s and time left."""
    columns = (
        TextColumn("{task.description:10}"),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err_console, transient=True, disable=not err_console.is_terminal) as progress:

        def follow(stage: str) -> Callable[[int, int], None]:
            task = progress.add_task(stage, total=None)
            return lambda done, total: progress.update(task, completed=done, total=total)

        yield follow


def _say(message: str) -> None:
    err_console.print(_printable(message), markup=False, highlight=False, soft_wrap=True)


def _printable(text: str) -> str:
    """What files of others say cannot move the cursor, or hide what was printed."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def _print_next(when: str, command: str) -> None:
    _say(f"next, {when}:\n  {command}")


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(escape(_printable(cell)) for cell in row))
    out_console.print(table)


_TITLES = {
    "worst_group": "worst group",
    "worst_group_listed": "listed",
    "worst_group_held_out": "held out",
    "mean_of_groups": "groups",
    "place_accuracy": "place",
    "retention": "kept",
    "control": "random heads",
    "output_projection": "output only",
}


_LEGEND = (
    "listed, held out: worst-group accuracy for places that the concept's texts name, and for places they do not\n"
    "groups: mean accuracy of the groups; place: zero-shot place, which should fall; kept: zero-shot colour"
)


_SKEW_LEGEND = (
    "max_skew: the largest ln(share of a group among the first K / its share p among all images read), mean over the "
    "queries; 0 is unbiased"
)


def _print_measures(rows: Mapping[str, Mapping[str, float]]) -> None:
    """A row a model, a column a figure in [0, 1]."""
    columns = list(dict.fromkeys(key for row in rows.values() for key in row if not key.startswith("group: ")))
    cells = [
        [_TITLES.get(name, name), *(f"{row[key]:.3f}" if key in row else "" for key in columns)]
        for name, row in rows.items()
    ]
    _print_table(["", *(_TITLES.get(column, column) for column in columns)], cells)
    if "worst_group_listed" in columns:
        _say(_LEGEND)
    if any(column.startswith("max_skew") for column in columns):
        _say(_SKEW_LEGEND)


def _parse_numbers(text: str, hint: str) -> list[int]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdigit() for part in parts):
        raise typer.BadParameter(f"{text!r} is not a list of numbers such as 1,4,16", param_hint=hint)
    return [int(part) for part in parts]


def _print_completeness(rows: Sequence[CompletenessRow]) -> None:
    cells = [
        [row.variant, "" if row.texts is None else str(row.texts), f"{row.accuracy:.3f}",
         "" if row.explained is None else f"{row.explained:.3f}"]
        for row in rows
    ]  # fmt: skip
    _print_table(["variant", "texts a head", "accuracy", "variance of the heads held"], cells)


def _print_diff(found: ModelDiff) -> None:
    rows = []
    for change in found.changed:
        heads = ", ".join(f"{head} ({_share(moved)})" for head, moved in change.heads.items())
        rows.append([change.name, change.part, heads, f"{change.norm:.4g}", _share(change.relative)])
    rows += [
        [f"direct edit of {name}", "at the readout", "", "", _share(moved)] for name, moved in found.direct.items()
    ]
    if rows:
        _print_table(["tensor", "what it is", "heads (change)", "norm", "relative"], rows)
    for other in found.others:
        out_console.print(_printable(f"also: {other}"), markup=False, highlight=False, soft_wrap=True)
    also = f"{len(found.others)} other changes" if found.others else "nothing else changed"
    out_console.print(f"{len(found.changed)} of {found.tensors} tensors changed; {also}", highlight=False)
    if found.heads:
        _say(f"its recipe names {', '.join(found.heads)}")
    if found.unknown:
        _say(f"heads are not told apart: {found.unknown}. Add --model NAME.")


def _share(relative: float | None) -> str:
    return "was 0" if relative is None else f"{relative:.2%}"


def _print_front(frontier: Mapping[str, Any]) -> None:
    """The Pareto front, best worst group first; the chosen edit is marked."""
    _say(f"tried {frontier['tried']} edits on cached features; the Pareto front:")
    rows = [
        [f"{p['worst_group']:.3f}", f"{p['retention']:.3f}", f"{p['output_strength']:.2f}", ", ".join(p["heads"]) or "none",
         {True: "<- unedited", False: ""}[p == frontier["unedited"]] or ("<- chosen" if p == frontier["chosen"] else "")]
        for p in [*frontier["front"], frontier["unedited"]]
    ]  # fmt: skip
    _print_table(["worst group", "kept", "output", "heads", ""], rows)


def _print_heads(labels: Mapping[str, Sequence[Any]], heads: Sequence[str]) -> None:
    rows = []
    for head in heads:
        texts = ", ".join(f"{item.text} ({item.variance_share:.0%})" for item in labels[head][:3])
        rows.append([head, texts or "never varies"])
    _print_table(["head", "texts that explain most of it (share of its variance)"], rows)


def _print_checks(checks: Sequence[Check], *, show_all: bool = True) -> None:
    for check in checks if show_all else []:
        out_console.print(_printable(str(check)), markup=False, highlight=False, soft_wrap=True)
    held = sum(check.holds for check in checks)
    out_console.print(f"verified in a fresh process: {held} of {len(checks)} checks hold", highlight=False)


if __name__ == "__main__":
    main()
