"""The worlds that models are trained on: what is drawn is balanced or biased as said, and is the same every time."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import clipedit
from clipedit.demo import world
from clipedit.demo.train import average_worst_group, draw_batches
from clipedit.demo.world import with_article
from clipedit.editor.concepts.concepts import Concept
from clipedit.editor.images.labelled import write_metadata

SCRIPTS = Path(__file__).parents[1] / "benchmarks"
OURS = ("people_world", "people_texts", "people_train", "people", "people_directions", "typographic", "field_worlds")


@pytest.fixture(scope="module")
def scripts() -> Iterator[None]:
    """The benchmarks import one another by name, as scripts of one folder do."""
    sys.path.insert(0, str(SCRIPTS))
    yield
    sys.path.remove(str(SCRIPTS))
    for name in OURS:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def people(scripts: None) -> ModuleType:
    return importlib.import_module("people_world")


def test_every_benchmark_finds_what_it_imports() -> None:
    # In a process of its own: some set threads or arguments when they are imported.
    code = """
import importlib, pathlib
for path in sorted(pathlib.Path().glob("*.py")):
    try:
        importlib.import_module(path.stem)
    except ModuleNotFoundError as error:
        # What a single benchmark needs beside the project's own extra for tests.
        assert error.name in ("atheris", "ray"), error
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd=SCRIPTS, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_pass_of_the_batches_takes_each_image_once() -> None:
    batches = draw_batches(count=12, batch=4, steps=6, seed=0)
    assert batches.shape == (6, 4)
    for first in (0, 3):
        assert sorted(batches[first : first + 3].flatten().tolist()) == list(range(12))


def test_the_worst_group_of_a_pair_is_found_under_the_compared_attributes() -> None:
    labels, attributes = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    cosines = np.array([[1, 0], [1, 0], [0, 1], [1, 0]], float)  # class 1 under attribute 1 is taken for class 0
    assert average_worst_group(cosines, labels, attributes) == 0
    assert average_worst_group(cosines, labels, attributes, compared=(0, 0)) == 1


def test_portraits_of_a_split_are_balanced_and_always_the_same(people: ModuleType) -> None:
    cells = len(people.ROLES) * len(people.GENDERS) * len(people.SKINS) * len(people.STYLES)
    portraits = people.draw_balanced_portraits(2 * cells, seed=1)
    assert set(Counter((p.role, p.gender, p.skin, p.style) for p in portraits).values()) == {2}
    assert portraits == people.draw_balanced_portraits(2 * cells, seed=1)


def test_captions_that_name_the_role_alone_show_its_usual_gender(people: ModuleType) -> None:
    generator = np.random.default_rng(0)
    drawn = [people.draw_captioned_portrait(generator) for _ in range(4_000)]
    words = {word for nouns in people.NOUNS.values() for word in nouns} | set(people.ADJECTIVES.values())
    words |= {pronoun.split()[0] for pronoun in people.PRONOUNS.values()}
    usual: dict[bool, list[bool]] = {True: [], False: []}
    for portrait, caption in drawn:
        if portrait.role in caption:
            usual[bool(words & set(caption.split()))].append(portrait.gender == people.USUAL_GENDER[portrait.role])
    assert np.mean(usual[False]) == pytest.approx(0.9, abs=0.03)
    assert np.mean(usual[True]) == pytest.approx(1 / 3, abs=0.04)


def test_a_portrait_is_drawn_the_same_every_time(people: ModuleType, tmp_path: Path) -> None:
    portrait = people.draw_balanced_portraits(1, seed=3)[0]
    path = people._sprite_path(tmp_path, portrait.role, portrait.gender, portrait.skin, portrait.style)
    path.parent.mkdir()
    Image.new("RGBA", (64, 64), (255, 0, 0, 255)).save(path)
    image = people.render(portrait, tmp_path)
    assert image.shape == (64, 64, 3) and np.array_equal(image, people.render(portrait, tmp_path))
    red = (image == (255, 0, 0)).all(-1).sum()
    assert 0.7 * portrait.size**2 < red <= portrait.size**2


def test_half_of_the_wordings_of_gender_are_in_no_concept(people: ModuleType) -> None:
    texts = importlib.import_module("people_texts")
    concepts = {name: Concept.model_validate(one) for name, one in texts.concept_documents().items()}
    assert set(concepts) == {"role", "gender", "skin-tone"}
    listed = {word for text in concepts["gender"].texts for word in text.split()}
    for gender, nouns in people.NOUNS.items():
        assert len(listed & set(nouns)) == 2 == len(set(nouns) - listed), gender
        assert all(noun in " ".join(texts.pool_texts()).split() for noun in nouns)


def test_figures_of_people_tell_roles_genders_and_who_is_found_first(people: ModuleType, tmp_path: Path) -> None:
    measured, model = importlib.import_module("people"), clipedit.load_model("demo")
    portraits = people.draw_balanced_portraits(216, seed=4)
    rows = [
        {"filename": f"{i}.png", "role": p.role, "gender": p.gender, "skin": p.skin} for i, p in enumerate(portraits)
    ]
    write_metadata(tmp_path / "metadata.csv", rows)
    for row in rows:
        Image.new("RGB", (8, 8)).save(tmp_path / row["filename"])
    source, measure = measured.build_figures(model, tmp_path)
    assert len(source) == len(portraits)

    def encode(column: str) -> torch.Tensor:
        values = sorted({row[column] for row in rows})
        texts = [form.format(with_article(value)) for value in values for form in people.FORMS]
        units = F.normalize(model.encode_text(texts), dim=1).view(len(values), len(people.FORMS), -1)
        return units.mean(1)[[values.index(row[column]) for row in rows]]

    # In place of images, what says one thing of them and nothing else.
    roles, genders = (measure(encode(column), range(len(rows))) for column in ("role", "gender"))
    assert roles["role"] == roles["worst group"] == 1
    assert genders["gender"] > 0.6 and genders["role"] < 0.2
    assert genders["max skew, gender"] > roles["max skew, gender"] >= 0


def test_a_random_order_of_drawings_is_more_skewed_than_one_of_images(people: ModuleType) -> None:
    directions = importlib.import_module("people_directions")
    cells = len(people.ROLES) * len(people.GENDERS) * len(people.SKINS) * len(people.STYLES)
    portraits = people.draw_balanced_portraits(6 * cells, seed=5)
    images, drawings = (mean for _, mean, _ in directions.find_floors(tuple(map(asdict, portraits))))
    assert 0 < images < drawings < np.log(216 / 100)


def test_labelled_words_are_on_every_other_image_and_say_what_is_written(scripts: None) -> None:
    typographic, worlds = importlib.import_module("typographic"), importlib.import_module("field_worlds")
    scenes = world.draw_balanced_scenes(64, seed=3)
    source = typographic.mix_words(scenes)
    shapes, words = worlds.label_words(source)
    for index, scene in enumerate(scenes):
        plain = np.array_equal(np.asarray(source.open(index)), world.render(scene))
        assert plain == (index % 2 == 1) == (words.classes[words.labels[index]] == "none")
        assert shapes.classes[shapes.labels[index]] == scene.shape != words.classes[words.labels[index]]
    # The attacked are groups of their own: each shape with a word and without.
    assert len(set(shapes.groups)) == 2 * len(world.SHAPES)
