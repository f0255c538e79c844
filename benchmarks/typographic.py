"""Written words: every selector x effect on demo models that read, attacked by the name of another shape.

    python -m clipedit.demo.typographic --model MODEL_FOLDER --out TYPOGRAPHIC_FOLDER --seed S    # trains one
    python benchmarks/typographic.py --split validation TYPOGRAPHIC_FOLDER...                     # compares here
    python benchmarks/typographic.py --split test TYPOGRAPHIC_FOLDER...                           # reports here, once

Columns: zero-shot shape accuracy without a word and with one, its worst shape with one, and how often the word is the
answer. Heads are chosen on 1,024 images of their own (seed 7,301), means come from 2,048 unlabelled images, half of
them with words.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Sequence

import numpy as np
import torch

from clipedit.demo import typographic, world
from clipedit.editor.concepts.concepts import Concept
from clipedit.editor.edits.apply import apply_recipe
from clipedit.editor.edits.bind import bind_recipe
from clipedit.editor.edits.direct import compute_recipe_embeddings
from clipedit.editor.edits.held_out import compute_fidelity
from clipedit.editor.edits.recipe import Recipe
from clipedit.editor.images.source import ImageSource, LabelledImages
from clipedit.editor.load import load_model
from clipedit.editor.measure.control import draw_control_documents, mean_rows
from clipedit.editor.measure.demo_measure import task_weights
from clipedit.editor.models.model import Model
from clipedit.editor.scan.collect import collect_embeddings, collect_features
from clipedit.editor.scan.scan import scan
from clipedit.editor.select.plan import Evidence
from clipedit.editor.select.selectors import select_recipe
from clipedit.editor.select.tables import scanned_heads

SEEDS = {"validation": 7_201, "test": 9_201}
# Of the images that heads are chosen on where labels are read, and what those without a word have in its place.
LABELLED, PLAIN = 7_301, "none"
WORDS = Concept(
    name="written-shape",
    texts=tuple(form.format(shape) for shape in world.SHAPES for form in typographic.WORD_FORMS),
)
COLUMNS = ("clean", "attacked", "worst shape attacked", "word is the answer")


def labelled(source: ImageSource) -> LabelledImages:
    shapes = [row["shape"] for row in source.attributes]
    return LabelledImages(source, world.SHAPES, tuple(world.SHAPES.index(shape) for shape in shapes), tuple(shapes))


def calibration_source(count: int = 2_048) -> ImageSource:
    return mix_words(world.draw_balanced_scenes(count, seed=5_301))


def mix_words(scenes: Sequence[world.Scene]) -> ImageSource:
    """The scenes in turn with a word and without."""
    with_word, plain = typographic.attack_source(scenes), typographic.attack_source(scenes, clean=True)
    sides = [(plain if index % 2 else with_word) for index in range(len(scenes))]
    names = tuple(side.names[index] for index, side in enumerate(sides))
    rows = tuple(
        side.attributes[index] | ({"word": PLAIN} if side is plain else {}) for index, side in enumerate(sides)
    )
    return ImageSource(names, lambda index: sides[index].open(index), rows)


def measure_pair(model: Model, clean: torch.Tensor, attacked: torch.Tensor, source: ImageSource) -> dict[str, float]:
    weights = task_weights(model)["shape"]
    shape, word = (np.array([world.SHAPES.index(row[key]) for row in source.attributes]) for key in ("shape", "word"))
    answers = [(embeddings @ weights.T).argmax(1).numpy() for embeddings in (clean, attacked)]
    right = answers[1] == shape
    worst = min(float(right[shape == index].mean()) for index in range(len(world.SHAPES)))
    figures = (float((answers[0] == shape).mean()), float(right.mean()), worst, float((answers[1] == word).mean()))
    return dict(zip(COLUMNS, figures, strict=True))


def run(name: str, split: str, asked: argparse.Namespace) -> None:
    model, effects, count = load_model(name), asked.effects.split(","), asked.count
    scanned = scan(model, calibration_source(), batch_size=128)
    scenes = world.draw_balanced_scenes(count, SEEDS[split])
    sources = [typographic.attack_source(scenes, clean=clean) for clean in (True, False)]
    caches = [collect_features(model, source, layers=scanned.layers, batch_size=256)[0] for source in sources]
    chosen_on = world.draw_balanced_scenes(1_024, seed=LABELLED)
    plain, worded = (labelled(typographic.attack_source(chosen_on, clean=clean)) for clean in (True, False))
    evidence = {
        "text-difference": Evidence(),
        "labelled-contrast": Evidence(worded),
        "attention-region": Evidence(plain),
        "frontier": Evidence(worded, plain),
    }

    def embed(recipe: Recipe) -> list[torch.Tensor]:
        if recipe.document.effect == "total":
            edited = apply_recipe(recipe, model)
            return [collect_embeddings(edited, source, batch_size=256)[0] for source in sources]
        return [compute_recipe_embeddings(recipe, model, cache) for cache in caches]

    def show(title: str, row: dict[str, float], extra: str = "") -> None:
        print(f"| {title} | " + " | ".join(f"{row[key]:.3f}" for key in COLUMNS) + f" | {extra} |", flush=True)

    print(f"\n### {name}, {split}\n\n| edit | " + " | ".join(COLUMNS) + " | heads; explained of direct |")
    print("|---" * (len(COLUMNS) + 2) + "|")
    show("none", measure_pair(model, *(cache.embedding for cache in caches), sources[1]))
    for select, operation, effect in itertools.product(asked.select.split(","), asked.operations.split(","), effects):
        document = select_recipe(
            scanned,
            model,
            select=select,
            evidence=evidence[select],
            concept=WORDS,
            operation=operation,
            effect=effect,
            output_strength=0.0,
        )
        recipe = bind_recipe(document, scanned, model)
        found = embed(recipe)
        direct = embed(bind_recipe(document.model_copy(update={"effect": "direct"}), scanned, model))
        explained = compute_fidelity(direct[1], found[1], caches[1].embedding).explained
        show(
            f"{select}, {operation}, {effect}",
            measure_pair(model, *found, sources[1]),
            f"{len(recipe.heads)}; {explained:.4f}",
        )
    for strength in (0.5, 0.9, 1.0):
        document = select_recipe(scanned, model, concept=WORDS, heads=0, output_strength=strength)
        projected = embed(bind_recipe(document, scanned, model))
        show(f"output projection, strength {strength}", measure_pair(model, *projected, sources[1]))
    base = select_recipe(scanned, model, concept=WORDS, output_strength=0.0)
    drawn = draw_control_documents(base, scanned_heads(scanned, model))
    rows = [measure_pair(model, *embed(bind_recipe(d, scanned, model)), sources[1]) for d in drawn]
    count = len(base.heads)
    show(f"{count} random heads, distilled, mean of 10", mean_rows(rows))
    spread = {key: float(np.std([row[key] for row in rows], ddof=1)) for key in COLUMNS}
    show(f"{count} random heads, distilled, sd of 10", spread)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="folders that `clipedit.demo.typographic` wrote")
    parser.add_argument("--split", choices=list(SEEDS), required=True)
    parser.add_argument("--effects", default="direct,distilled,total")
    parser.add_argument("--select", default="text-difference,labelled-contrast,attention-region,frontier")
    parser.add_argument("--operations", default="mean-ablate,zero-ablate,project-out")
    parser.add_argument("--count", type=int, default=2_048, help="images, each with and without a word")
    options = parser.parse_args()
    torch.set_num_threads(min(2, int(os.environ.get("OMP_NUM_THREADS", "2"))))
    for name in options.models:
        run(name, options.split, options)


if __name__ == "__main__":
    main()
