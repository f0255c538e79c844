"""The published tables, run where weights and data exist; published figures stand beside the measured ones.

    python benchmarks/papers.py --waterbirds waterbird_complete95_forest2water2 \\
        --imagenet imagenet/val --imagenet-calibration imagenet/train-sample

`--set DIR`, which may be repeated, measures the unedited model on any set that `evaluate` reads: ImageNet-9 and its
background gap, SCAM, UrbanCars, Spawrious, CLIP_benchmark's webdatasets and the others of docs/measure.md.

Weights come from open_clip's cache, or from `--weights NAME=FILE`. What is missing is named, and the rest is run. Means
come from the training split of Waterbirds (split 0) and from `--imagenet-calibration`, never from the images that are
measured; the papers take the test images' own. The published Waterbirds figures stand beside the `waterbirds-protocol`
recipes, which mean-ablate what the paper does, at the readout; the recipes that edit the named heads only are measured
as other edits.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip

from clipedit import ClipeditError
from clipedit.editor.edits.bind import bind_recipe
from clipedit.editor.edits.recipe import Recipe, load_recipe
from clipedit.editor.images.labelled_options import LabelledOptions
from clipedit.editor.images.layouts import load_dataset
from clipedit.editor.images.source import LabelledImages
from clipedit.editor.images.texts import load_texts
from clipedit.editor.load import load_model
from clipedit.editor.measure.completeness import RANDOM_TEXTS, measure_completeness
from clipedit.editor.measure.control import measure_edit
from clipedit.editor.measure.evaluate import evaluate
from clipedit.editor.models.model import Model
from clipedit.editor.scan.scan import scan

# Worst group before and after, in per cent: Gandelsman et al. 2024, table 3.
WATERBIRDS = {"ViT-B-16": (45.6, 57.5), "ViT-L-14": (47.7, 72.9), "ViT-H-14": (37.2, 43.3)}
TAGS = {"ViT-B-16": "laion2b_s34b_b88k", "ViT-L-14": "laion2b_s32b_b82k", "ViT-H-14": "laion2b_s32b_b79k"}
KINDS = ("waterbirds-protocol", "waterbirds", "locate-then-correct")
# Zero-shot ImageNet, unedited and with 60 texts a head: Gandelsman et al. 2024, ViT-L-14.
IMAGENET, IMAGENET_60_TEXTS = 75.25, 72.77


def read_task(folder: Path, **options: Any) -> LabelledImages:
    """Images with classes, in whatever layout `evaluate` reads."""
    found = load_dataset(folder, **options)
    if not isinstance(found, LabelledImages):
        raise ClipeditError(f"cannot use {folder}: it has queries or captions, no classes. Give it with --set.")
    return found


def set_rows(model: Model, folder: Path) -> list[list[str]]:
    """Every figure of the unedited model on a set that `evaluate` reads, per cent, with n."""
    table = evaluate({"unedited": model}, folder)
    found = table.details["unedited"].figures
    return [
        [name, str(found[name].n if name in found else ""), f"{100 * value:.2f}"]
        for name, value in table["unedited"].items()
    ]


def waterbirds_rows(
    model: Model, recipes: Mapping[str, Recipe], folder: Path, published: tuple[float, float] | None
) -> list[list[str]]:
    """Worst group and overall accuracy, per cent: unedited, and every recipe with random heads beside it.

    Recipes that ablate whole parts are `direct`, which weights cannot carry; the others are measured distilled too.
    """
    task = read_task(folder)
    whole = any(step.layers for recipe in recipes.values() for step in recipe.document.steps)
    layers = range(model.tower.n_layers) if whole else None
    scanned = scan(model, read_task(folder, split="0").source, layers=layers, mlps=whole)
    rows, before = [], None
    for name, recipe in recipes.items():
        protocol = any(step.layers for step in recipe.document.steps)
        for effect in ("direct",) if protocol else ("direct", "distilled"):
            bound = bind_recipe(recipe.with_effect(effect).document, scanned, model)
            found = measure_edit(bound, scanned, model, task).rows
            if before is None:
                before = found["before"]
                rows.append(["unedited", _percent(published and published[0]), *_cells(before)])
            shown = published and published[1] if protocol else None
            rows.append([f"{name}, {effect}", _percent(shown), *_cells(found["after"])])
            rows.append([f"{name}, {effect}, random heads", "", *_cells(found["control"])])
    return rows


def imagenet_task(folder: Path, classes: Sequence[str]) -> LabelledImages:
    """A folder a WordNet id; the field's class names are in the order of the ids."""
    task = read_task(folder)
    if len(task.classes) != len(classes):
        raise ClipeditError(
            f"cannot use {folder}: it has {len(task.classes)} folders, {len(classes)} classes are needed. Give the "
            "whole set."
        )
    return replace(task, classes=tuple(classes), groups=tuple(classes[label] for label in task.labels))


def imagenet_rows(
    model: Model, task: LabelledImages, calibration: Path | None, templates: Sequence[str], texts_per_head: int
) -> list[list[str]]:
    """Zero-shot accuracy, per cent, unedited and with every head of the last four layers replaced by its texts."""
    # Published names and prompts: two pairs of ImageNet's names are one.
    task = replace(task, templates=tuple(templates))
    if calibration is None:
        found = evaluate({"unedited": model}, task, templates=templates)["unedited"]["overall"]
        return [["unedited", _percent(IMAGENET), f"{100 * found:.2f}"]]
    scanned = scan(model, calibration)
    rows = measure_completeness(
        scanned,
        model,
        task,
        pools={"general": load_texts()},
        steps=[texts_per_head],
        labels=LabelledOptions(templates=tuple(templates)),
    )
    shown = {"unedited": IMAGENET, "general": IMAGENET_60_TEXTS, RANDOM_TEXTS: None}
    names = {"general": f"{texts_per_head} texts a head", RANDOM_TEXTS: f"{texts_per_head} random texts a head"}
    wanted = [row for row in rows if row.variant in shown]
    return [[names.get(r.variant, r.variant), _percent(shown[r.variant]), f"{100 * r.accuracy:.2f}"] for r in wanted]


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print(f"\n### {title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def parse_weights(given: Sequence[str]) -> dict[str, str]:
    """`NAME=FILE` options."""
    pairs = [item.partition("=") for item in given]
    wrong = next((name for name, _, file in pairs if name not in TAGS or not Path(file).is_file()), None)
    if wrong is not None:
        raise ClipeditError(f"cannot use the weights of {wrong!r}: give NAME=FILE, NAME one of {', '.join(TAGS)}.")
    return {name: file for name, _, file in pairs}


def run(options: argparse.Namespace) -> None:
    """Every table whose weights and data are there; a line with the reason for each that is not."""
    weights = parse_weights(options.weights)
    for name in options.models.split(","):
        try:
            model = load_model(name, weights.get(name, TAGS.get(name)))
        except ClipeditError as error:
            print(f"\n{name}: not run: {error} Or give --weights {name}=FILE.")
            continue
        run_model(name, model, options)


def run_model(name: str, model: Model, options: argparse.Namespace) -> None:
    """The tables of one model."""
    size = name.lower()
    for folder in options.set:
        print_table(f"{folder.name}, {name}", ["figure", "n", "unedited"], set_rows(model, folder))
    if options.waterbirds is None:
        print(f"\n{name}, Waterbirds: not run: give --waterbirds DIR, the folder with metadata.csv.")
    else:
        recipes = {kind: load_recipe(f"{kind}-{size}") for kind in KINDS}
        rows = waterbirds_rows(model, recipes, options.waterbirds, WATERBIRDS.get(name))
        columns = ["edit", "published worst group", "worst group", "overall", "mean of groups"]
        print_table(f"Waterbirds, {name}", columns, rows)
    if name != "ViT-L-14":
        return
    if options.imagenet is None:
        print(f"\n{name}, ImageNet: not run: give --imagenet DIR, a folder a WordNet id.")
        return
    task = imagenet_task(options.imagenet, open_clip.IMAGENET_CLASSNAMES)
    templates = [template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES]
    rows = imagenet_rows(model, task, options.imagenet_calibration, templates, 60)
    print_table(f"ImageNet zero-shot, {name}", ["model", "published", "accuracy"], rows)
    if options.imagenet_calibration is None:
        print("\nheads replaced by texts: not run: give --imagenet-calibration DIR, images for the statistics.")


def _cells(row: Mapping[str, float]) -> list[str]:
    return [f"{100 * row[key]:.1f}" for key in ("worst_group", "overall", "mean_of_groups")]


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(TAGS), help="names separated by commas")
    parser.add_argument("--weights", action="append", default=[], metavar="NAME=FILE", help="a safetensors checkpoint")
    parser.add_argument("--waterbirds", type=Path)
    parser.add_argument("--set", type=Path, action="append", default=[], metavar="DIR", help="any set of `evaluate`")
    parser.add_argument("--imagenet", type=Path)
    parser.add_argument("--imagenet-calibration", type=Path)
    try:
        run(parser.parse_args())
    except ClipeditError as error:
        parser.exit(1, f"error: {error}\n")


if __name__ == "__main__":
    main()
