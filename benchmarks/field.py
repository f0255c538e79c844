"""Every method beside every other, on the demo's world: `python benchmarks/field.py demo MODEL_FOLDER... > field.csv`.

One row for each model, split of the places and method. The concept lists half of the places; methods that are fitted to
labels see validation images of these places only, all others see texts and unlabelled calibration images. Everything is
measured on test images, once; no constant of a method was chosen on them. `--split validation` measures on validation
images instead, where the listed column of methods with labels is in-sample.

    python benchmarks/field.py --plot field.svg < field.csv     # means over models and splits
    python benchmarks/field.py --means < field.csv              # the same as Markdown
"""

from __future__ import annotations

import argparse
import csv
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from methods import PLACE_SPLITS, location_of
from rows import print_rows

from clipedit.editor.images.demo import (
    SHAPES,
    demo_calibration_source,
    labelled_by,
    labelled_tasks,
    test_source,
    validation_source,
)
from clipedit.editor.images.source import ImageSource
from clipedit.editor.load import load_model
from clipedit.editor.measure.demo_measure import SHAPE_TEMPLATES, build_demo_measure
from clipedit.editor.rivals.measure import UNEDITED, RivalRow, measure_methods
from clipedit.editor.rivals.setting import Setting
from clipedit.editor.scan.collect import collect_features
from clipedit.editor.scan.scan import scan
from clipedit.editor.select.attention_region import subset

# Methods that are fitted to labels see every so many of the 2,048 labelled images: 16 of each shape and place.
EVERY = 4
LISTED, HELD_OUT = "worst group, listed", "worst group, held out"
FIGURES = {
    LISTED: "worst_group_listed",
    HELD_OUT: "worst_group_held_out",
    "overall": "overall",
    "place": "place_accuracy",
    "color": "retention",
}
COLUMNS = ["world", "model", "split", "method", *FIGURES, "labels used", "plain checkpoint", "seconds"]
# Points of the picture that are nearer than this share a label.
NEAR = 0.02


def measure_model(name: str, source: ImageSource) -> Iterator[list[object]]:
    """The rows of one model, both splits of the places."""
    model = load_model(name)
    scanned = scan(model, "demo", batch_size=128)
    features, kept = collect_features(model, source, layers=(), batch_size=256)
    for split, listed in PLACE_SPLITS.items():
        task, colors = labelled_tasks(listed)
        some = range(0, len(task.labels), EVERY)
        labelled = [subset(one, some) for one in (task, labelled_by("place", listed), colors)]
        setting = Setting(
            model, scanned, location_of(listed), SHAPES, SHAPE_TEMPLATES, demo_calibration_source(), *labelled
        )
        judge = partial(build_demo_measure, source=source, listed=listed)
        head = ["demo", Path(name).name, split]
        yield [*head, UNEDITED, *show(RivalRow(judge(model)(features.embedding, kept)))]
        for method, found in measure_methods(setting, features, kept, judge):
            if isinstance(found, str):
                print(f"{name}, split {split}: {method}: {found}", file=sys.stderr)
            else:
                yield [*head, method, *show(found)]


def show(row: RivalRow) -> list[str]:
    """The columns of a method after its name."""
    figures = [f"{row.figures[key]:.3f}" for key in FIGURES.values()]
    return [*figures, *("yes" if one else "no" for one in (row.labels, row.plain)), f"{row.seconds:.1f}"]


def compute_means(rows: Sequence[Mapping[str, str]]) -> dict[str, dict[str, float]]:
    """Of every method that has a row for each model and split: figures, and how often it leads the tool's own edit."""
    found: dict[str, list[Mapping[str, str]]] = defaultdict(list)
    for row in rows:
        found[row["method"]].append(row)
    own = {(row["model"], row["split"]): mean_worst(row) for row in found["clipedit"]}
    return {
        method: {name: float(np.mean([float(row[name]) for row in of])) for name in FIGURES}
        | {
            "mean of both": float(np.mean([mean_worst(row) for row in of])),
            "better than clipedit": sum(mean_worst(row) > own[row["model"], row["split"]] for row in of),
            "of": len(of),
        }
        for method, of in found.items()
    }


def mean_worst(row: Mapping[str, str]) -> float:
    """The mean of the worst groups in listed and in held-out places."""
    return (float(row[LISTED]) + float(row[HELD_OUT])) / 2


def print_means(rows: Sequence[Mapping[str, str]]) -> None:
    """One row for each method, the best mean first."""
    facts = {row["method"]: row for row in rows}
    names = [*FIGURES, "mean of both"]
    print("| method | " + " | ".join(names) + " | better than clipedit | labels | plain checkpoint |")
    print("|---" * (len(names) + 4) + "|")
    means = compute_means(rows)
    for method in sorted(means, key=lambda one: -means[one]["mean of both"]):
        row, fact = means[method], facts[method]
        cells = " | ".join(f"{row[name]:.3f}" for name in names)
        count = f"{row['better than clipedit']:.0f} of {row['of']:.0f}"
        print(f"| {method} | {cells} | {count} | {fact['labels used']} | {fact['plain checkpoint']} |")


def name_points(means: Mapping[str, Mapping[str, float]]) -> dict[tuple[float, float], list[str]]:
    """Names by where they stand: methods that a picture cannot tell apart share one place."""
    found: dict[tuple[float, float], list[str]] = {}
    for method, mean in means.items():
        here = (mean[LISTED], mean[HELD_OUT])
        near = next((one for one in found if max(abs(a - b) for a, b in zip(one, here, strict=True)) < NEAR), here)
        found.setdefault(near, []).append(method)
    return found


def draw(rows: Sequence[Mapping[str, str]], path: Path) -> None:
    """Every row as a faint point, every method's mean as a named one: listed to the right, held out upwards."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    axis = figure.subplots()
    facts, means = {row["method"]: row for row in rows}, compute_means(rows)
    for method, mean in means.items():
        fact = facts[method]
        color = "tab:green" if method.startswith("clipedit") else "tab:grey" if method == UNEDITED else None
        color = color or ("tab:orange" if fact["labels used"] == "yes" else "tab:blue")
        points = [(float(row[LISTED]), float(row[HELD_OUT])) for row in rows if row["method"] == method]
        axis.plot(*zip(*points, strict=True), ".", color=color, alpha=0.25, markersize=5)
        axis.plot(mean[LISTED], mean[HELD_OUT], "o" if fact["plain checkpoint"] == "yes" else "x", color=color)
    for point, names in name_points(means).items():
        # Below and to the left where several share a point on the right.
        side = {"xytext": (6, 3)} if len(names) == 1 else {"xytext": (-8, -4), "ha": "right", "va": "top"}
        axis.annotate("\n".join(names), point, textcoords="offset points", fontsize=8, **side)
    axis.set(
        xlabel="worst group, listed places",
        ylabel="worst group, places nobody listed",
        title="means over models and splits (small: each); green: clipedit, blue: without labels, orange: with labels\n"
        "circle: a plain checkpoint holds it; cross: something has to be done at inference",
    )
    axis.title.set_fontsize(9)
    axis.grid(alpha=0.3)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="`demo`, or folders of models trained with other seeds")
    parser.add_argument("--split", choices=["validation", "test"], default="test")
    parser.add_argument("--plot", type=Path, help="draw the rows on stdin to this file")
    parser.add_argument("--means", action="store_true", help="print the means of the rows on stdin as Markdown")
    options = parser.parse_args()
    if options.plot or options.means:
        rows = list(csv.DictReader(sys.stdin))
        draw(rows, options.plot) if options.plot else print_means(rows)
        return
    warnings.simplefilter("ignore")
    source = test_source() if options.split == "test" else validation_source()
    print_rows(COLUMNS, (row for name in options.models for row in measure_model(name, source)))


if __name__ == "__main__":
    main()
