"""Is the audit right where the truth is known? CSV on stdout: one row for each concept of the library and model.

    python benchmarks/audits.py demo MODEL_FOLDER...                       # worlds with reporting bias
    python benchmarks/audits.py CONTROL_FOLDER --usual-rate 0.125          # a world without: nothing may be leant on
    python benchmarks/audits.py PEOPLE_FOLDER --people DATA_FOLDER         # roles, and pictures of people_world.py
    python benchmarks/audits.py PEOPLE_FOLDER --people DATA_FOLDER --two-genders    # without the third value
    python benchmarks/audits.py TYPOGRAPHIC_FOLDER --typographic                    # half of the images have a word
    python benchmarks/audits.py CONTROL_FOLDER --usual-rate 0.125 --remove location    # what the edit does there

Calibration images are like those that the model learned from: in the demo's world the usual place is shown with
`--usual-rate`. No label is read but by `--remove`, which measures on the demo's test images.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import typographic
from people_texts import concept_documents
from people_world import FORMS, GENDERS, ROLES
from rows import print_rows

import clipedit
from clipedit.demo import world
from clipedit.editor.concepts.concepts import Concept
from clipedit.editor.images.demo import SHAPES, render_source
from clipedit.editor.images.listing import list_images
from clipedit.editor.images.source import ImageSource
from clipedit.editor.measure.demo_measure import SHAPE_TEMPLATES
from clipedit.editor.select.options import HeadChoice
from clipedit.export.choose import plan_repair

IMAGES, SEED = 4_096, 5_501
FIGURES = ("overall", "worst_group_listed", "worst_group_held_out", "place_accuracy", "retention")
COLUMNS = [
    "model",
    "images",
    "concept",
    "verdict",
    "selectivity",
    "low",
    "high",
    "lean",
    "lean percentile",
    "heads",
]
REMOVAL_COLUMNS = ["model", "images", "removed", "row", *FIGURES, "verdict", "refused"]


def calibration_source(usual_rate: float) -> ImageSource:
    """Scenes of the demo's world, their places usual at this rate where a caption would not name them."""
    generator = np.random.default_rng(SEED)
    scenes = (world.draw_captioned_scene(generator, usual_rate=usual_rate)[0] for _ in range(IMAGES))
    return render_source(list(scenes))


def audit_model(
    name: str, source: ImageSource, rate: str, *, people: bool, own: Sequence[Concept]
) -> Iterator[list[object]]:
    model = clipedit.load_model(name)
    scan = clipedit.scan(model, source, batch_size=128)
    classes = [world.with_article(role) for role in ROLES] if people else list(SHAPES)
    templates = FORMS if people else SHAPE_TEMPLATES
    for row in clipedit.audit(scan, model, classes=classes, templates=templates, own=own):
        lean = ("-", "-") if row.lean is None else (f"{row.lean.share:.3f}", f"{row.lean.percentile:.1f}")
        numbers = [f"{value:.2f}" for value in (row.selectivity, *row.interval)]
        yield [Path(name).name, rate, row.concept, row.verdict, *numbers, *lean, " ".join(row.heads) or "none"]


def remove(name: str, source: ImageSource, rate: str, concept: str) -> Iterator[list[object]]:
    """What the tool's own edit changes on the demo's test images, and whether it would be refused without `force`."""
    model = clipedit.load_model(name)
    shared = {"scan": clipedit.scan(model, source, batch_size=128), "concept": concept, "dataset": "demo"}
    refused = plan_repair(model, **shared).refused
    made = clipedit.repair(model, **shared, choice=HeadChoice(force=True))
    for kind, row in made.rows.items():
        figures = (f"{row[key]:.3f}" for key in FIGURES)
        yield [Path(name).name, rate, concept, kind, *figures, made.verdict.word, "yes" if refused else "no"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="`demo`, or folders of trained models")
    parser.add_argument("--usual-rate", type=float, default=0.9, help="of the calibration images, in the demo's world")
    parser.add_argument("--people", type=Path, help="folder of the people world's calibration pictures")
    parser.add_argument("--two-genders", action="store_true", help="`gender` lists men and women only")
    parser.add_argument("--typographic", action="store_true", help="words over half of the images, and their concept")
    parser.add_argument("--remove", help="a concept: measure its removal instead")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    people = options.people
    source = list_images(people / "calibration") if people else calibration_source(options.usual_rate)
    rate = "people" if people else f"{options.usual_rate:g}"
    if options.typographic:
        source, rate = typographic.calibration_source(), "half with words"
    own = [Concept.model_validate(concept_documents(GENDERS[:2])["gender"])] if options.two_genders else []
    own += [typographic.WORDS] if options.typographic else []
    rate += ", two genders" if options.two_genders else ""
    if options.remove:
        print_rows(
            REMOVAL_COLUMNS, (row for name in options.models for row in remove(name, source, rate, options.remove))
        )
    else:
        found = (audit_model(name, source, rate, people=bool(people), own=own) for name in options.models)
        print_rows(COLUMNS, (row for rows in found for row in rows))


if __name__ == "__main__":
    main()
