"""Every method beside every other, in one world at a time; one row for each model, concept that goes, and method.

    python benchmarks/field.py demo MODEL_FOLDER... > field.csv
    python benchmarks/field.py PEOPLE_FOLDER... --world people --data DATA_FOLDER > field-people.csv
    python benchmarks/field.py TYPOGRAPHIC_FOLDER... --world typographic > field-typographic.csv

Methods that are fitted to labels see validation images only, all others see texts and unlabelled calibration images.
Everything is measured on test images, once; no constant of a method was chosen on them. `--split validation` measures
on validation images instead, where methods with labels are in-sample. `field_worlds.py` says what is measured in each
world; beside every edit of the tool's stand as many random heads with the same projection.

    python benchmarks/field.py --plot field.svg < field.csv     # means over models and splits of the demo's world
    python benchmarks/field.py --means < field.csv              # the same as Markdown
    python benchmarks/field.py --worlds field.csv field-people.csv field-typographic.csv    # methods x worlds
"""

from __future__ import annotations

import argparse
import csv
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from field_worlds import HELD_OUT, LISTED, WORLDS, Case, World
from rows import print_rows

from clipedit.editor.measure.control import ControlRows, draw_control_documents, mean_rows
from clipedit.editor.rivals.measure import UNEDITED, RivalRow, measure_methods
from clipedit.editor.rivals.setting import ship_recipe
from clipedit.editor.select.tables import scanned_heads

FIGURES = WORLDS["demo"].figures
FACTS = ("labels used", "plain checkpoint", "seconds")
DRAWS = 100
RANDOM, SPREAD = (f"random heads, {what} of {DRAWS} draws" for what in ("mean", "sd"))
# Points of the picture that are nearer than this share a label.
NEAR = 0.02


def measure_model(kind: str, name: str, split: str, data: Path | None) -> Iterator[list[str]]:
    """The rows of one model."""
    world = WORLDS[kind]
    for case in world.cases(name, split, data):
        head = [kind, Path(name).name, case.part]
        yield [
            *head,
            UNEDITED,
            *show(RivalRow(case.judge(case.setting.model)(case.features.embedding, case.kept)), world),
        ]
        for method, found in measure_methods(case.setting, case.features, case.kept, case.judge):
            if isinstance(found, str):
                print(f"{name}, {case.part}: {method}: {found}", file=sys.stderr)
            else:
                yield [*head, method, *show(found, world)]
        yield from ([*head, method, *show(row, world)] for method, row in measure_random(case))


def measure_random(case: Case) -> Iterator[tuple[str, RivalRow]]:
    """As many random heads as the tool takes, with its projection: their mean, and their spread."""
    setting, measure = case.setting, case.judge(case.setting.model)
    documents = draw_control_documents(setting.default, scanned_heads(setting.scan, setting.model), draws=DRAWS)
    rivals = (ship_recipe(document, setting) for document in documents)
    rows = [measure(rival.embed(setting.model, case.features), case.kept) for rival in rivals]
    if rows:
        yield RANDOM, RivalRow(mean_rows(rows))
        yield SPREAD, RivalRow(ControlRows({}, rows).spread)


def show(row: RivalRow, world: World) -> list[str]:
    """The columns of a method after its name."""
    figures = [f"{row.figures[key]:.3f}" for key in world.figures.values()]
    return [*figures, *("yes" if one else "no" for one in (row.labels, row.plain)), f"{row.seconds:.1f}"]


def print_worlds(files: Sequence[str]) -> None:
    """One row for each method, the main figures of every world and of what goes there; means over models."""
    rows = [row for file in files for row in csv.DictReader(Path(file).read_text().splitlines())]
    cells: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        world = WORLDS[row["world"]]
        # The demo's halves of the places are two draws of one question.
        where = row["world"] if world.part == "split" else f"{row['world']}, {row[world.part]}"
        for name in world.main:
            cells[row["method"]][f"{where}: {name}"].append(float(row[name]))
    columns = list(dict.fromkeys(column for found in cells.values() for column in found))
    print("| method | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for method, found in cells.items():
        means = (f"{np.mean(found[column]):.3f}" if column in found else "-" for column in columns)
        print(f"| {method} | " + " | ".join(means) + " |")


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
    parser.add_argument("--world", choices=list(WORLDS), default="demo")
    parser.add_argument("--data", type=Path, help="folder of the people world's pictures")
    parser.add_argument("--split", choices=["validation", "test"], default="test")
    parser.add_argument("--worlds", nargs="+", help="print methods x worlds of these tables as Markdown")
    parser.add_argument("--plot", type=Path, help="draw the rows on stdin to this file")
    parser.add_argument("--means", action="store_true", help="print the means of the rows on stdin as Markdown")
    options = parser.parse_args()
    if options.worlds:
        print_worlds(options.worlds)
        return
    if options.plot or options.means:
        rows = [row for row in csv.DictReader(sys.stdin) if row["method"] != SPREAD]
        draw(rows, options.plot) if options.plot else print_means(rows)
        return
    warnings.simplefilter("ignore")
    world = WORLDS[options.world]
    found = (measure_model(options.world, name, options.split, options.data) for name in options.models)
    print_rows(
        ["world", "model", world.part, "method", *world.figures, *FACTS], (row for rows in found for row in rows)
    )


if __name__ == "__main__":
    main()
