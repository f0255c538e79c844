"""Who is found first: edits of a people model, for gender, for skin tone and for both, CSV on stdout.

    python benchmarks/people.py MODEL_FOLDER... --data DATA_FOLDER > people.csv     # test images, reported
    python benchmarks/people.py MODEL_FOLDER --data DATA_FOLDER --split validation
    python benchmarks/people.py MODEL_FOLDER... --data DATA_FOLDER --text-tower     # queries are edited, no image is

The models are of `people_train.py`, the pictures of `people_world.py splits`. The edit is the tool's own, from
unlabelled calibration images and texts; the concept `gender` lists half of its wordings, `man or woman` is the same
without the third value. Beside it stand its heads
alone, its projection of the output alone, such a projection at strength .9, and as many random heads with the same
projection. MaxSkew@100 is of all queries for roles: 0 is unbiased; all other figures are accuracies.

Edits of the text tower are scanned on the model's own pool of texts, and their rows say so.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from people_texts import LISTED_WORDINGS, concept_documents, skin_nouns
from people_world import FORMS, GENDERS, NOUNS, ROLES, SKINS
from rows import print_rows
from torch import Tensor

import clipedit
from clipedit.demo.world import with_article
from clipedit.editor.concepts.concepts import Concept
from clipedit.editor.edits.bind import bind_recipe
from clipedit.editor.errors import ConceptError
from clipedit.editor.images.labelled import load_labelled_images
from clipedit.editor.images.skew import RetrievalSet
from clipedit.editor.images.source import ImageSource
from clipedit.editor.measure.control import measure_controls
from clipedit.editor.measure.evaluate import Measure, Yardstick, build_yardstick
from clipedit.editor.measure.fidelity import embed_edit
from clipedit.editor.scan.collect import collect_embeddings

TOP, DRAWS, TEXT_DRAWS = 100, 100, 20
PROJECTION_ALONE = 0.9
UNEDITED, NONE = "unedited", "none"
MAN_OR_WOMAN = Concept.model_validate(concept_documents(GENDERS[:2])["gender"])
REMOVALS: Mapping[str, Sequence[str | Concept]] = {
    "gender": ("gender",),
    "man or woman": (MAN_OR_WOMAN,),
    "skin tone": ("skin-tone",),
    "gender and skin tone": ("gender", "skin-tone"),
    "man or woman and skin tone": (MAN_OR_WOMAN, "skin-tone"),
}
# A text tower shows no images, so that nothing is refused for what these lack.
TEXT_REMOVALS = ("gender", "man or woman")
WORDINGS = range(len(NOUNS[GENDERS[0]]))
FIGURES = ("max skew, gender", "max skew, skin tone", "role", "worst group", "gender", "gender, held out", "skin tone")
COLUMNS = ["model", "split", "removed", "edit", *FIGURES, "heads", "strength of the projection", "refused"]


def ask(model: clipedit.Model, folder: Path, column: str, words: Mapping[str, str], *groups: str) -> Yardstick:
    """A column of the pictures, told by texts."""
    named = {value: with_article(word) for value, word in words.items()}
    task = load_labelled_images(folder, label=column, classes=named, group_by=groups)
    return build_yardstick(model, task, templates=FORMS)


def build_figures(model: clipedit.Model, folder: Path) -> tuple[ImageSource, Measure]:
    """The pictures, and from their embeddings all of `FIGURES`."""
    roles = ask(model, folder, "role", {role: role for role in ROLES}, "gender")
    genders = [ask(model, folder, "gender", {gender: NOUNS[gender][at] for gender in GENDERS}) for at in WORDINGS]
    skins = ask(model, folder, "skin", {skin: skin_nouns(skin)[-1] for skin in SKINS})
    columns = {name: tuple(row[name] for row in roles.source.attributes) for name in ("gender", "skin")}
    queries = RetrievalSet(roles.source, tuple(map(with_article, ROLES)), columns, top=TOP)
    found = build_yardstick(model, queries, templates=FORMS)

    def measure(embeddings: Tensor, kept: Sequence[int]) -> dict[str, float]:
        skew, role = found.figures(embeddings, kept), roles.figures(embeddings, kept)
        gender = [one.figures(embeddings, kept)["overall"] for one in genders]
        listed, held_out = np.mean(gender[:LISTED_WORDINGS]), np.mean(gender[LISTED_WORDINGS:])
        skin = skins.figures(embeddings, kept)["overall"]
        figures = (skew["max_skew_gender"], skew["max_skew_skin"], role["overall"], role["worst_group"])
        return dict(zip(FIGURES, map(float, (*figures, listed, held_out, skin)), strict=True))

    return roles.source, measure


def choose(scan: clipedit.Scan, model: clipedit.Model, removed: Sequence[str | Concept]) -> tuple[clipedit.Recipe, str]:
    """The tool's own edit, and whether it had to be forced."""
    try:
        return clipedit.repair(model, scan=scan, concept=removed, measure=False).recipe, "no"
    except ConceptError as error:
        print(f"{model.name}: {error}", file=sys.stderr)
        forced = clipedit.HeadChoice(force=True)
        return clipedit.repair(model, scan=scan, concept=removed, choice=forced, measure=False).recipe, "yes"


def measure_removal(
    scan: clipedit.Scan, model: clipedit.Model, removed: Sequence[str | Concept], source: ImageSource, measure: Measure
) -> Iterator[tuple[str, Mapping[str, float], clipedit.Recipe | None, str]]:
    """A row for each edit that removes some concepts: its name, figures, recipe and whether it was refused."""
    recipe, refused = choose(scan, model, removed)
    embedded = embed_edit(recipe, scan, model, clipedit.apply_recipe(recipe, model), source)
    yield UNEDITED, measure(*embedded.before), None, "no"
    yield "clipedit", measure(*embedded.after), recipe, refused

    def figures(bound: clipedit.Recipe) -> dict[str, float]:
        return measure(*embedded.embed(bound))

    heads = tuple(step for step in recipe.document.steps if step.target == "heads")
    if heads:
        alone = bind_recipe(recipe.document.model_copy(update={"steps": heads}), scan, model)
        yield "heads alone", figures(alone), alone, refused
    control = measure_controls(recipe, scan, model, figures, draws=DRAWS)
    if "output_projection" in control.rows:
        yield "its projection alone", control.rows["output_projection"], None, refused
    options = {"concept": removed, "heads": 0, "output_strength": PROJECTION_ALONE}
    projection = clipedit.make_recipe(scan, model, **options)
    yield "projection .9 alone", figures(projection), projection, "no"
    if control.drawn:
        yield f"random heads, mean of {DRAWS} draws", control.rows["control"], None, refused
        yield f"random heads, sd of {DRAWS} draws", control.spread, None, refused


def measure_model(folder: Path, data: Path, split: str) -> Iterator[list[object]]:
    model = clipedit.load_model(str(folder))
    scan = clipedit.scan(model, data / "calibration", batch_size=128)
    source, measure = build_figures(model, data / split)
    for what, removed in REMOVALS.items():
        for name, figures, recipe, refused in measure_removal(scan, model, removed, source, measure):
            yield show([folder.name, split, what, name], figures, recipe, refused)


def measure_texts(folder: Path, data: Path, split: str) -> Iterator[list[object]]:
    """Edits of the text tower, as the tool makes them: images are embedded once, texts by every edited model."""
    model = clipedit.load_model(str(folder)).with_tower("text")
    scan = clipedit.scan(model, folder / "texts.txt", batch_size=128)
    embedded = collect_embeddings(model, build_figures(model, data / split)[0])

    def figures(bound: clipedit.Recipe) -> dict[str, float]:
        return build_figures(clipedit.apply_recipe(bound, model), data / split)[1](*embedded)

    for what in TEXT_REMOVALS:
        recipe = clipedit.make_recipe(scan, model, concept=REMOVALS[what])
        options = {"concept": REMOVALS[what], "heads": 0, "output_strength": PROJECTION_ALONE}
        projection = clipedit.make_recipe(scan, model, **options)
        control = measure_controls(recipe, scan, model, figures, draws=TEXT_DRAWS)
        rows = {
            "clipedit": (figures(recipe), recipe),
            "projection .9 alone": (figures(projection), projection),
            f"random heads, mean of {TEXT_DRAWS} draws": (control.rows["control"], None),
            f"random heads, sd of {TEXT_DRAWS} draws": (control.spread, None),
        }
        for name, (found, made) in rows.items():
            yield show([folder.name, split, what, f"text tower: {name}"], found, made, "no")


def show(
    head: list[object], figures: Mapping[str, float], recipe: clipedit.Recipe | None, refused: str
) -> list[object]:
    return [*head, *(f"{figures[figure]:.3f}" for figure in FIGURES), *describe(recipe), refused]


def describe(recipe: clipedit.Recipe | None) -> tuple[str, str]:
    """The heads and the strengths of a recipe; `-` where the row is of none, or of many."""
    if recipe is None:
        return "-", "-"
    strengths = [f"{step.strength:.2f}" for step in recipe.document.steps if step.target == "output"]
    return " ".join(recipe.heads) or NONE, " ".join(strengths) or "0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder of calibration, validation and test pictures")
    parser.add_argument("--split", choices=["validation", "test"], default="test")
    parser.add_argument("--text-tower", action="store_true", help="edits of the text tower alone")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    run = measure_texts if options.text_tower else measure_model
    found = (run(folder, options.data, options.split) for folder in options.models)
    print_rows(COLUMNS, (row for rows in found for row in rows))


if __name__ == "__main__":
    main()
