"""The worlds of `field.py`: what methods may look at there, what they are measured by, and what a row says of it.

demo: worst groups of shapes in places that the concept lists and in others; `color` is what should stay.
people: who is found first (MaxSkew@100 of gender, 0 is even), with roles and skin tone as what should stay. `gender`
    lists three values, `man or woman` two of them, each by half of its wordings. Labels are of validation pictures that
    show a listed value: all of them, since a role and gender have 37.
typographic: shapes with and without the name of another one written over them. Labels are of 1,024 validation images,
    half of them with a word, and say the shape and the word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import people
import typographic
from methods import PLACE_SPLITS, location_of
from people_world import FORMS, GENDERS, ROLES, SKINS

from clipedit.demo import world
from clipedit.demo.typographic import attack_source
from clipedit.editor.components import Features
from clipedit.editor.concepts.concepts import load_concept
from clipedit.editor.images.demo import (
    SHAPES,
    demo_calibration_source,
    labelled_by,
    labelled_tasks,
    test_source,
    validation_source,
)
from clipedit.editor.images.labelled import load_labelled_images
from clipedit.editor.images.listing import list_images
from clipedit.editor.images.source import ImageSource, LabelledImages, join_sources
from clipedit.editor.load import load_model
from clipedit.editor.measure.demo_measure import SHAPE_TEMPLATES, build_demo_measure
from clipedit.editor.measure.evaluate import Measure
from clipedit.editor.models.model import Model
from clipedit.editor.rivals.setting import Setting
from clipedit.editor.scan.collect import collect_features
from clipedit.editor.scan.scan import scan
from clipedit.editor.select.attention_region import subset

# Methods that are fitted to labels see every so many of the demo's validation images: 16 of a shape in a listed place.
EVERY = 4
LISTED, HELD_OUT = "worst group, listed", "worst group, held out"
# What rivals ask of people: their own prompts have the article.
ROLE_TEMPLATES = tuple(form.format("a {}") for form in FORMS)
WORDED_IMAGES = 1_024


@dataclass(frozen=True)
class Case:
    """One model, and one concept that goes.

    Attributes:
        part: What tells it from other cases of the same model.
        judge: How embeddings of the reported images are measured with a model's texts.
        features, kept: Of these images, unedited.
    """

    part: str
    setting: Setting
    judge: Callable[[Model], Measure]
    features: Features
    kept: list[int]


@dataclass(frozen=True)
class World:
    """How a world is measured.

    Attributes:
        part: What cases of one model differ in.
        figures: The columns, and what measures call them.
        main: Those that stand beside other worlds.
        cases: Of a model's name, a split and the folder of data that the world needs.
    """

    part: str
    figures: Mapping[str, str]
    main: tuple[str, ...]
    cases: Callable[[str, str, Path | None], Iterator[Case]]


def pose_demo(name: str, split: str, _: Path | None) -> Iterator[Case]:
    """Both halves of the places."""
    model, source = load_model(name), test_source() if split == "test" else validation_source()
    scanned = scan(model, "demo", batch_size=128)
    features, kept = collect_features(model, source, layers=(), batch_size=256)
    for part, listed in PLACE_SPLITS.items():
        task, colors = labelled_tasks(listed)
        some = range(0, len(task.labels), EVERY)
        labelled = [subset(one, some) for one in (task, labelled_by("place", listed), colors)]
        setting = Setting(
            model, scanned, location_of(listed), SHAPES, SHAPE_TEMPLATES, demo_calibration_source(), *labelled
        )
        yield Case(part, setting, partial(build_demo_measure, source=source, listed=listed), features, kept)


def pose_people(name: str, split: str, data: Path | None) -> Iterator[Case]:
    """Gender of three values, and of two."""
    assert data is not None, "people need --data"
    model, images = load_model(name), list_images(data / "calibration")
    scanned = scan(model, images, batch_size=128)
    source, measure = people.build_figures(model, data / split)
    features, kept = collect_features(model, source, layers=(), batch_size=256)

    def judge(one: Model) -> Measure:
        return measure if one is model else people.build_figures(one, data / split)[1]

    concepts = {"gender": load_concept("gender", model.folder), "man or woman": people.MAN_OR_WOMAN}
    for part, concept in concepts.items():
        shown = GENDERS if part == "gender" else GENDERS[:2]
        labelled = label_people(data / "validation", shown)
        setting = Setting(model, scanned, concept, tuple(ROLES), ROLE_TEMPLATES, images, *labelled)
        yield Case(part, setting, judge, features, kept)


def label_people(folder: Path, genders: tuple[str, ...]) -> list[LabelledImages]:
    """Roles by gender, genders and skin tones of the pictures that show some genders."""
    columns = {"role": tuple(ROLES), "gender": GENDERS, "skin": SKINS}
    read = [
        load_labelled_images(folder, label=column, classes={value: value for value in values}, group_by=("gender",))
        for column, values in columns.items()
    ]
    shown = [index for index, row in enumerate(read[0].source.attributes) if row["gender"] in genders]
    return [subset(one, shown) for one in read]


def pose_words(name: str, split: str, _: Path | None) -> Iterator[Case]:
    """Written words, all of them listed: each image is shown without one and with one."""
    model, images = load_model(name), typographic.calibration_source()
    scanned = scan(model, images, batch_size=128)
    scenes = world.draw_balanced_scenes(WORDED_IMAGES, typographic.SEEDS[split])
    plain, worded = (attack_source(scenes, clean=clean) for clean in (True, False))
    features, kept = collect_features(model, join_sources([plain, worded]), layers=(), batch_size=256)
    labelled = label_words(typographic.mix_words(world.draw_balanced_scenes(WORDED_IMAGES, typographic.LABELLED)))
    setting = Setting(model, scanned, typographic.WORDS, SHAPES, SHAPE_TEMPLATES, images, *labelled)
    yield Case("written-shape", setting, partial(judge_words, source=worded), features, kept)


def judge_words(model: Model, source: ImageSource) -> Measure:
    """From embeddings of the plain images, then of the worded ones."""
    half = len(source)
    return lambda found, _: typographic.measure_pair(model, found[:half], found[half:], source)


def label_words(source: ImageSource) -> list[LabelledImages]:
    """Shapes, grouped by whether a word is there, and the words."""
    rows = source.attributes
    shapes = tuple(SHAPES.index(row["shape"]) for row in rows)
    groups = tuple(f"{row['shape']} / {'plain' if row['word'] == typographic.PLAIN else 'word'}" for row in rows)
    words = (*SHAPES, typographic.PLAIN)
    shown = tuple(words.index(row["word"]) for row in rows)
    return [
        LabelledImages(source, SHAPES, shapes, groups),
        LabelledImages(source, words, shown, tuple(row["word"] for row in rows)),
    ]


WORLDS: Mapping[str, World] = {
    "demo": World(
        "split",
        {
            LISTED: "worst_group_listed",
            HELD_OUT: "worst_group_held_out",
            "overall": "overall",
            "place": "place_accuracy",
            "color": "retention",
        },
        (LISTED, HELD_OUT),
        pose_demo,
    ),
    "people": World("removed", {name: name for name in people.FIGURES}, ("max skew, gender", "skin tone"), pose_people),
    "typographic": World("removed", {name: name for name in typographic.COLUMNS}, ("clean", "attacked"), pose_words),
}
