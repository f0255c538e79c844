"""Does the tool know what it may act on? `selectivity.py {verdicts,choice,strength} [MODEL...]`, CSV on stdout.

`verdicts` judges every concept of the library on every model and number of calibration images, beside what is true of
that world; a confusion table goes to stderr. `choice` weighs every number of heads for `location` in closed form, and
measures the same edit on a labelled split of the demo world: what a rule without labels should have chosen.

`strength` measures more strengths of the projection beside the heads that are chosen, and the closed form that knows no
label: does either say how strongly? On the first 2,048 images.

`--places B` does all of it with a `location` that lists the other half of the places (A: what the shipped concept
lists).

Models are `demo` and folders of models trained apart; a folder whose name starts with `people` is of the people world
and needs `--calibration DIR`.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from methods import PLACE_SPLITS, location_of
from rows import print_rows

from clipedit.editor.concepts.queries import encode_unit
from clipedit.editor.images.demo import test_source, validation_source
from clipedit.editor.images.listing import list_images
from clipedit.editor.load import load_model
from clipedit.editor.measure.demo_measure import build_demo_measure
from clipedit.editor.scan.collect import collect_features
from clipedit.editor.scan.scan import scan
from clipedit.editor.select.choice import PROJECTION_ALONE, choose_edit, plan_removal, pose_task
from clipedit.editor.select.head_subsets import removed_share
from clipedit.editor.select.plan import default_heads
from clipedit.editor.select.selectivity import COUNTS, Probe, build_probe
from clipedit.editor.select.whose_heads import Measured, judge, measure, measure_library

# What a few heads hold in each world. Shape and texture are in the demo's images, but sit in MLPs and in color's heads.
HELD = {"demo": {"location", "color"}, "people": {"role", "skin-tone", "gender"}}
FIGURES = ("overall", "worst_group_listed", "worst_group_held_out", "place_accuracy", "retention")


STRENGTH_IMAGES = 2_048


def world_of(name: str) -> str:
    return "people" if Path(name).name.startswith("people") else "demo"


def library_of(probe: Probe, name: str, places: str) -> dict[str, Measured]:
    """The library on a model; in the demo's world with the `location` of one half."""
    own = {"location": measure(probe, location_of(PLACE_SPLITS[places]))} if world_of(name) == "demo" else {}
    return measure_library(probe) | own


def write_verdicts(name: str, calibration: str, counts: list[int], places: str) -> Iterator[list[object]]:
    """One row per concept and number of calibration images."""
    model, source = load_model(name), list_images(calibration)
    for count in counts:
        scanned = scan(model, source.subset(range(min(count, len(source)))), batch_size=64)
        library = library_of(build_probe(scanned, model), name, places)
        for concept, found in sorted(library.items(), key=lambda pair: -pair[1].selectivity.value):
            said, value = judge(found, library), found.selectivity
            numbers = [value.low, value.high, *(value.by_count[k] for k in COUNTS)]
            there = concept in HELD[world_of(name)]
            row = [Path(name).name, places, scanned.statistics.n, concept, len(value.instances), *map(show, numbers)]
            yield [*row, said.verdict, said.other or "none", show(said.cosine), "yes" if there else "no"]


def write_choice(name: str, split: str, places: str) -> Iterator[list[object]]:
    """A row per number of heads: heads alone, then with the projection at the square of their share, then at 0.9."""
    model = load_model(name)
    scanned = scan(model, "demo", batch_size=64)
    probe = build_probe(scanned, model)
    source = test_source() if split == "test" else validation_source()
    features, kept = collect_features(model, source, layers=())
    measured = build_demo_measure(model, source, listed=PLACE_SPLITS[places])
    concept, library = location_of(PLACE_SPLITS[places]), library_of(probe, name, places)
    choice = choose_edit(probe, concept, library, most=default_heads(scanned, model))
    every = choose_edit(probe, concept, library, most=len(probe.subsets.heads), project=False)
    weighed = {one.heads: one for one in every.weighed}
    span, ranked = plan_removal(probe, encode_unit(model, concept.texts))
    for count, one in weighed.items():
        held = max(0.0, removed_share(probe.subsets.quadratic_forms(span), ranked[:count]))
        for kind, strength in (("none", 0.0), ("share squared", held**2), ("constant", PROJECTION_ALONE)):
            figures = measured(embed(probe, features.final, ranked[:count], span, strength), kept)
            chosen = count == len(choice.heads) and abs(strength - choice.output_strength) < 1e-9
            row = [
                Path(name).name,
                places,
                split,
                count,
                kind,
                show(strength),
                show(one.removed),
                show(one.elsewhere),
                one.of,
            ]
            yield [*row, *(show(figures[key]) for key in FIGURES), "yes" if chosen else "no"]


def write_strength(name: str, split: str, places: str) -> Iterator[list[object]]:
    """A row for each strength of the projection beside the chosen heads, in shares of the concept that they hold."""
    model = load_model(name)
    scanned = scan(model, "demo", batch_size=64)
    probe = build_probe(scanned, model)
    source = (test_source() if split == "test" else validation_source()).subset(range(STRENGTH_IMAGES))
    features, kept = collect_features(model, source, layers=())
    measured = build_demo_measure(model, source, listed=PLACE_SPLITS[places])
    concept, library = location_of(PLACE_SPLITS[places]), library_of(probe, name, places)
    choice = choose_edit(probe, concept, library, most=default_heads(scanned, model))
    texts = encode_unit(model, concept.texts)
    task, (span, ranked) = pose_task(probe, concept, texts, library), plan_removal(probe, texts)
    taken = ranked[: len(choice.heads)]
    held = max(0.0, removed_share(probe.subsets.quadratic_forms(span), taken))
    strengths = {"none": 0.0, "share squared": held**2, "share": held, "root of share": held**0.5}
    for kind, strength in (strengths | {"constant": PROJECTION_ALONE, "whole": 1.0}).items():
        one = task.weigh_both(len(taken), strength)
        figures = measured(embed(probe, features.final, taken, span, strength), kept)
        weighed = [show(one.removed), show(one.elsewhere), show(one.gain)]
        yield [
            Path(name).name,
            places,
            split,
            len(taken),
            kind,
            show(strength),
            *weighed,
            *(show(figures[key]) for key in FIGURES),
        ]


def embed(probe: Probe, final: torch.Tensor, taken: list[int], span: torch.Tensor, strength: float) -> torch.Tensor:
    """Embeddings under the refit of some heads and a projection of the output."""
    subsets = probe.subsets
    readout = subsets.readout + sum(subsets.changes[index] @ subsets.readouts[index].T for index in taken)
    embedding = final.double() @ readout[:-1] + readout[-1]
    return (embedding - strength * embedding @ span @ span.T).float()


def show(value: float) -> str:
    return f"{value:.3f}"


VERDICTS = [
    "model",
    "listed places",
    "calibration images",
    "concept",
    "instances",
    "low",
    "high",
    *(f"selectivity at {k}" for k in COUNTS),
    "verdict",
    "compared with",
    "profile cosine",
    "truly held",
]
CHOICE = [
    "model",
    "listed places",
    "split",
    "heads",
    "projection",
    "strength",
    "removed, left-out instance",
    "removed elsewhere",
    "of",
    *(figure.replace("_", " ") for figure in FIGURES),
    "chosen",
]


STRENGTH = [*CHOICE[:6], "removed, left-out instance", "removed elsewhere", "gain", *CHOICE[9:-1]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", choices=("verdicts", "choice", "strength"))
    parser.add_argument("models", nargs="*", default=["demo"])
    parser.add_argument("--calibration", default="demo")
    parser.add_argument("--images", type=int, nargs="+", default=[64, 128, 512, 4096])
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--places", choices=tuple(PLACE_SPLITS), default="A")
    options = parser.parse_args()
    right: Counter[str] = Counter()
    header = {"verdicts": VERDICTS, "choice": CHOICE, "strength": STRENGTH}[options.table]
    print_rows(header, count_rows(options, right))
    print(dict(right), file=sys.stderr)


def count_rows(options: argparse.Namespace, right: Counter[str]) -> Iterator[Sequence[object]]:
    """The rows of a table over all models; of verdicts it is counted how often each is right."""
    for name in options.models:
        if options.table == "verdicts":
            rows = write_verdicts(name, options.calibration, options.images, options.places)
        else:
            write = write_strength if options.table == "strength" else write_choice
            rows = write(name, options.split, options.places)
        for row in rows:
            right[f"held {row[-1]}, said {row[11]}" if options.table == "verdicts" else "rows"] += 1
            yield row


if __name__ == "__main__":
    main()
