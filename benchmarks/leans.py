"""What do classes lean on, and does removing it help? And should their prompts stay? CSV on stdout.

    python benchmarks/leans.py --split validation demo MODEL_FOLDER...      # choose the limits here
    python benchmarks/leans.py --split test demo CONTROL_FOLDER             # and report here
    python benchmarks/leans.py --one-place MODEL_FOLDER...                  # images that hardly show the concept

Every concept that a few heads hold: how much shapes and colours lean on it over unlabelled images (biased as in
training, and not), and the worst groups of shapes before and after the tool's own edit, chosen with nothing, the
margins of the classes or the span of their prompts among what must stay. `location` lists one half of the places (A),
or the other.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from audits import calibration_source
from methods import PLACE_SPLITS, location_of
from rows import print_rows
from selectivity import embed, show

import clipedit
from clipedit.editor.components import HeadId
from clipedit.editor.concepts.concepts import Concept
from clipedit.editor.concepts.directions import compute_concept_directions
from clipedit.editor.concepts.queries import encode_unit
from clipedit.editor.edits.bind import default_effect
from clipedit.editor.images.demo import COLOR_WORDS, SHAPES, test_source, validation_source
from clipedit.editor.images.source import ImageSource
from clipedit.editor.measure.demo_measure import COLOR_TEMPLATES, SHAPE_TEMPLATES, build_demo_measure
from clipedit.editor.scan.collect import collect_features
from clipedit.editor.select import choice
from clipedit.editor.select.amounts import choose_for
from clipedit.editor.select.plan import draw_random_heads
from clipedit.editor.select.whose_heads import HeldConcepts, Measured, judge, measure

IMAGES, CALIBRATION, DRAWS, RATES = 2_048, 1_024, 10, (0.9, 0.125)
CLASSES = {"shapes": (SHAPES, SHAPE_TEMPLATES), "colors": (COLOR_WORDS, COLOR_TEMPLATES)}
FIGURES = ("overall", "worst_group_listed", "worst_group_held_out", "retention")
EDIT = ["heads", "strength", "removed", "removed elsewhere", "of"]
LEANS = [f"{kind}, {name}" for name in CLASSES for kind in ("lean", "percentile")]
MEASURED = [f"{figure.replace('_', ' ')}, {row}" for row in ("before", "after", "random heads") for figure in FIGURES]
COLUMNS = [
    "model",
    "images",
    "split",
    "listed places",
    "concept",
    "verdict",
    "classes stay as",
    *EDIT,
    *LEANS,
    *MEASURED,
]


def calibrate(share: float | None) -> Mapping[str, ImageSource]:
    """Calibration images by what they are: at both rates, or biased ones in meadows and a share anywhere else."""
    if share is None:
        return {f"rate {rate:g}": calibration_source(rate).subset(range(CALIBRATION)) for rate in RATES}
    source = calibration_source(RATES[0])
    alone = [index for index, row in enumerate(source.attributes) if row["place"] == "meadow"]
    others = [index for index in range(len(source)) if index not in set(alone)]
    return {f"meadows, {share:g} elsewhere": source.subset(alone + others[: round(len(alone) * share / (1 - share))])}


def library_of(known: HeldConcepts, places: str) -> dict[str, Measured]:
    """The library, with the `location` of one half."""
    return known.library | {"location": measure(known.probe, location_of(PLACE_SPLITS[places]))}


def choose(known: HeldConcepts, concept: Concept, library: Mapping[str, Measured], stays: Mapping[str, torch.Tensor]):
    """The tool's choice, with more that must stay."""
    pose = choice.pose_task

    def pose_with_classes(*given, **named):
        task = pose(*given, **named)
        return replace(task, kept={**task.kept, **stays})

    with patch.object(choice, "pose_task", pose_with_classes):
        return choose_for(known, concept, default_effect(known.model), library=library)


def ways_to_stay(known: HeldConcepts) -> dict[str, dict[str, torch.Tensor]]:
    """The classes as directions: not at all, their margins, or the span of their prompts."""
    names, templates = CLASSES["shapes"]
    prompts = encode_unit(known.model, [template.format(name) for name in names for template in templates])
    margins = F.normalize(known.build_margins(names, templates).directions, dim=0)
    span = compute_concept_directions(prompts, most=known.probe.most)
    return {"nothing": {}, "margins": {"classes": margins}, "prompts": {"classes": span}}


def write_model(name: str, split: str, share: float | None) -> Iterator[list[str]]:
    model = clipedit.load_model(name)
    source = (test_source() if split == "test" else validation_source()).subset(range(IMAGES))
    features, kept = collect_features(model, source, layers=())
    for images, calibration in calibrate(share).items():
        known = HeldConcepts(clipedit.scan(model, calibration, batch_size=128), model)
        for places, listed in PLACE_SPLITS.items():
            library, figures = library_of(known, places), build_demo_measure(model, source, listed=listed)
            bench = Bench(known, library, features.final, lambda embedded, figures=figures: figures(embedded, kept))
            for concept in library if places == "A" else ("location",):
                verdict = judge(library[concept], library).verdict
                # Where images hardly show it, whatever is said of it.
                if verdict == "held" or (share and concept == "location"):
                    head = [Path(name).name, images, split, places, concept, verdict]
                    for row in write_concept(bench, library[concept].concept):
                        yield [*head, *row]


@dataclass(frozen=True)
class Bench:
    """A scanned model, and the images that its edits are measured on."""

    known: HeldConcepts
    library: Mapping[str, Measured]
    final: torch.Tensor
    measure: Callable[[torch.Tensor], Mapping[str, float]]

    def figures(self, concept: Concept, heads: Sequence[HeadId], strength: float) -> list[float]:
        probe = self.known.probe
        taken = [probe.subsets.heads.index(head) for head in heads]
        row = self.measure(embed(probe, self.final, taken, self.known.span_of(concept), strength))
        return [row[key] for key in FIGURES]


def write_concept(bench: Bench, concept: Concept) -> Iterator[list[str]]:
    known, span = bench.known, bench.known.span_of(concept)
    leans = [known.build_margins(*given).rank(span, len(concept.texts)) for given in CLASSES.values()]
    told = [cell for lean in leans for cell in (show(lean.share), f"{lean.percentile:.1f}")]
    before = bench.figures(concept, [], 0.0)
    for way, stays in ways_to_stay(known).items():
        chosen = choose(known, concept, bench.library, stays)
        best, strength = chosen.chosen, chosen.output_strength
        edit = [str(len(chosen.heads)), show(strength), show(best.removed), show(best.elsewhere), best.of]
        generator = np.random.default_rng(0)
        draws = [draw_random_heads(known.probe.subsets.heads, chosen.heads, generator) for _ in range(DRAWS)]
        random = np.mean([bench.figures(concept, heads, strength) for heads in draws], axis=0)
        rows = (before, bench.figures(concept, chosen.heads, strength), random)
        yield [way, *edit, *told, *(show(value) for row in rows for value in row)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="`demo`, or folders of trained models")
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--one-place", type=float, nargs="?", const=0.05, help="so many of the images lie elsewhere")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print_rows(COLUMNS, (row for name in options.models for row in write_model(name, options.split, options.one_place)))


if __name__ == "__main__":
    main()
