"""Options that several commands take, each with its help; what is not given has the library function's default."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from ..editor.choices import AskedPrecision, Decode, Exif, Reading, Side
from ..editor.plugins import LAYOUT
from .checks import forget_cache, require_aligner, require_features, require_images, require_scan
from .running.plugin_options import option_of

ModelOption = Annotated[
    str, typer.Option("--model", help="`demo`, an open_clip or timm name, a folder, `hf:FOLDER`, or `hf-hub:ORG/NAME`.")
]
PretrainedOption = Annotated[str | None, typer.Option(help="A tag of open_clip or timm, or a checkpoint file.")]
AlignerOption = Annotated[
    Path | None,
    typer.Option(
        callback=require_aligner,
        help="A file that `clipedit align` wrote: reads a model without texts as a CLIP. Of an image tower that lies "
        "alone, the CLIP that it came from: `hf:FOLDER`, a folder, or `name:pretrained`.",
    ),
]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")]
ScanOutOption = Annotated[Path, typer.Option("--out", "-o", help="File to write.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace what the folder holds.")]
OverwriteFileOption = Annotated[bool, typer.Option("--overwrite", help="Replace an older file.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else.")]
FailIfWorseOption = Annotated[
    bool, typer.Option("--fail-if-worse", help="Exit 3 where the verdict is HARMS, after all was written and printed.")
]
NoCacheOption = Annotated[
    bool,
    typer.Option(
        "--no-cache",
        callback=forget_cache,
        help="Neither read nor keep embeddings of texts from run to run (CLIPEDIT_CACHE).",
    ),
]
BatchOption = Annotated[int | None, typer.Option(min=1, help="Images per batch.")]
DeviceOption = Annotated[str, typer.Option(help="`cpu`, `cuda`, `cuda:1` or `mps`.")]
WorkersOption = Annotated[int | None, typer.Option(min=0, help="Processes that read images.")]
MaxBadOption = Annotated[float | None, typer.Option(min=0, max=1, help="Share of unreadable images that is tolerated.")]
DirectionsOption = Annotated[
    int | None, typer.Option(min=1, help="Directions of the concept; by default what holds 90 % of it.")
]
TowerOption = Annotated[
    Side, typer.Option(help="Which tower; with `text`, a file with one text per line stands in place of images.")
]
ReadingOption = Annotated[
    Reading | None,
    typer.Option(
        help="How heads' shares become a mask: their sum (the papers', the default), the sum of what speaks for the "
        "text, or where texts are told apart."
    ),
]
ExifOption = Annotated[
    Exif | None,
    typer.Option(help="Photos turned as their EXIF says (`upright`, the default), or as stored, as open_clip does."),
]
DecodeOption = Annotated[
    Decode | None,
    typer.Option(
        help="Large JPEGs in full, as open_clip reads them, or smaller where that leaves twice what the model takes "
        "(`scaled`, the default)."
    ),
]
PrecisionOption = Annotated[
    AskedPrecision | None,
    typer.Option(
        help="Of the scan's forward pass; sums are float64 in any case. `auto`: bf16 where the device multiplies it, "
        "three times faster on such CPUs."
    ),
]
ScanArgument = Annotated[Path, typer.Argument(callback=require_scan, help="A file that `clipedit scan` wrote.")]
ScanOption = Annotated[
    Path | None, typer.Option(callback=require_scan, help="A scan made earlier, in place of --images.")
]
ImagesOption = Annotated[
    str | None, typer.Option(callback=require_images, help="Unlabelled images: a folder, a CSV, or shards.")
]
_DATASET: Any = typer.Option(
    "--dataset",
    callback=require_images,
    help="Labelled images: `demo`, a CSV, or a folder: Waterbirds, CelebA, FairFace, CounterAnimal, typographic, or "
    "one folder per class.",
)
DatasetOption = Annotated[str, _DATASET]
MaybeDatasetOption = Annotated[str | None, _DATASET]
LayoutOption = Annotated[str | None, option_of(LAYOUT, help="The layout, where it is not what is seen.")]
LabelledOption = Annotated[
    str | None,
    typer.Option(
        callback=require_images,
        help="Labelled images to choose heads on: one folder per class, a CSV or metadata.csv, or `demo`. "
        "Never those that you report on.",
    ),
]
SuiteOption = Annotated[
    Path | None, typer.Option("--suite", help="A YAML list of data sets with their options, in place of --dataset.")
]
ClipBenchmarkOption = Annotated[
    Path | None,
    typer.Option(help="With --suite: also write CLIP_benchmark's JSON files to this folder, for its `build`."),
]
LabelOption = Annotated[str | None, typer.Option(help="Column of classes.")]
GroupByOption = Annotated[str, typer.Option(help="Columns that make groups, separated by commas.")]
SplitOption = Annotated[
    str | None,
    typer.Option(
        help="Value of the `split` column to keep, or `all`. By default the test rows; for a head, the training rows."
    ),
]
RetentionOption = Annotated[
    str | None, typer.Option(help="A column with a second task, on which nothing should change.")
]
TopOption = Annotated[
    int | None,
    typer.Option("--top", min=1, help="K of FairFace's MaxSkew@K; lowered to half of the images where it is more."),
]
CsvOption = Annotated[
    Path | None, typer.Option("--csv", help="Also write every figure and group, with n and interval, to this file.")
]
EraseOption = Annotated[
    str | None,
    typer.Option(
        "--erase", help="Column of --labelled whose values LEACE erases, or whose means `--along labels` takes."
    ),
]
FeaturesOption = Annotated[
    Path | None,
    typer.Option(
        "--features",
        callback=require_features,
        help="Features that `scan --keep-features` wrote, in place of running the model on labelled images.",
    ),
]
ClassesOption = Annotated[Path | None, typer.Option(help="One class per line: `value: words for the prompt`.")]
TemplatesOption = Annotated[Path | None, typer.Option(help="One prompt per line, `{}` for the class.")]
SeedOption = Annotated[int | None, typer.Option(help="Of the random numbers.")]

Options = TypeVar("Options")


def given(**options: Any) -> dict[str, Any]:
    """The options that were given: the others keep the default of the function that they go to."""
    return {name: value for name, value in options.items() if value is not None}


def gather(kind: type[Options], options: Mapping[str, Any]) -> Options:
    """A dataclass of options from a command's parameters of the same names."""
    return kind(**{field.name: options[field.name] for field in fields(kind) if field.name in options})  # pyright: ignore[reportArgumentType]


def split_columns(text: str) -> tuple[str, ...]:
    """Names separated by commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def spelled(parse: Callable[[str], object]) -> Callable[[str], str]:
    """Refuses a text where it is read, so in a configuration file too; what it means is asked again by the command."""

    def check(text: str) -> str:
        parse(text)
        return text

    return check


def parse_steps(text: str) -> list[int]:
    """Numbers separated by commas."""
    parts = split_columns(text)
    if not all(part.isdigit() for part in parts):
        raise typer.BadParameter(f"{text!r} is not a list of numbers such as 1,4,16", param_hint="--steps")
    return [int(part) for part in parts]


def parse_batch_size(text: str | None) -> dict[str, int | None]:
    """`--batch-size` of `scan`: a number, or `auto`, which the library spells None."""
    if text is None:
        return {}
    if text != "auto" and (not text.isdigit() or int(text) < 1):
        raise typer.BadParameter(f"{text!r} is neither a number from 1 on nor `auto`", param_hint="--batch-size")
    return {"batch_size": None if text == "auto" else int(text)}


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """`--shard I/N`."""
    if text is None:
        return None
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise typer.BadParameter(f"{text!r} is not I/N with I from 0 to N-1, such as 0/8", param_hint="--shard")
    return int(index), int(count)


def parse_layers(text: str | None) -> list[int] | str | None:
    """`--layers`: `all`, a layer or a range; which layers `all` are, the model says."""
    if text is None or text == "all":
        return text
    first, _, last = text.partition("-")
    if not first.isdigit() or (last and not last.isdigit()):
        raise typer.BadParameter(f"{text!r} is not `all`, a layer or a range such as 20-23", param_hint="--layers")
    return list(range(int(first), int(last or first) + 1))
