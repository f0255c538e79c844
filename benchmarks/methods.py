"""Every operation x effect on the demo world, for several seeds of the model and two splits of the places.

    python benchmarks/methods.py --split validation --choose MODEL_FOLDER...     # choose defaults here
    python benchmarks/methods.py --split test MODEL_FOLDER...           # and report here

Prints Markdown. Random heads stand beside every table; distilled rows carry their fidelity to direct.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from clipedit.demo import measure, texts, world
from clipedit.editor.apply import apply_recipe
from clipedit.editor.bind import bind_recipe, make_recipe
from clipedit.editor.components import Features, HeadId
from clipedit.editor.concepts import Concept, concept_directions
from clipedit.editor.control import draw_control_documents, mean_rows
from clipedit.editor.evaluate import collect_embeddings, collect_features, compute_recipe_embeddings
from clipedit.editor.images import ImageSource
from clipedit.editor.model import Model, load_model
from clipedit.editor.operations import project_output
from clipedit.editor.recipe import Recipe
from clipedit.editor.scan import Scan, scan

PLACE_SPLITS = {"A": measure.LISTED_PLACES, "B": ("ocean", "forest", "desert", "snow")}
COLUMNS = ("overall", "worst_group_listed", "worst_group_held_out", "mean_of_groups", "place_accuracy", "retention")


@dataclass
class Bench:
    """A model, its scan and the cached features of the images that are measured."""

    model: Model
    scan: Scan
    source: ImageSource
    features: Features
    listed: Sequence[str]

    @property
    def concept(self) -> Concept:
        return Concept.model_validate(texts.concept_documents(self.listed)["location"])

    def row(self, embeddings: torch.Tensor, weights: dict[str, torch.Tensor] | None = None) -> dict[str, float]:
        chosen = weights or measure.task_weights(self.model)
        return measure.measure_embeddings(embeddings, self.source.attributes, chosen, listed=self.listed)

    def recipe(self, **options: Any) -> Recipe:
        return make_recipe(self.scan, self.model, concept=self.concept, **options)

    def measure_recipe(self, recipe: Recipe) -> dict[str, float]:
        if recipe.document.effect == "total":
            return self.row(collect_embeddings(apply_recipe(recipe, self.model), self.source, batch_size=256)[0])
        return self.row(compute_recipe_embeddings(recipe, self.model, self.features))

    def fidelity(self, recipe: Recipe) -> dict[str, float]:
        """Distilled against direct: worst and mean cosine, share of the variance of `z' - z` explained."""
        direct = recipe.document.model_copy(update={"effect": "direct"})
        wanted = compute_recipe_embeddings(bind_recipe(direct, self.scan, self.model), self.model, self.features)
        found = compute_recipe_embeddings(recipe, self.model, self.features)
        cosine = F.cosine_similarity(wanted, found)
        moved = wanted - self.features.embedding
        left = (wanted - found).var(0).sum() / moved.var(0).sum()
        return {"worst cosine": float(cosine.min()), "mean cosine": float(cosine.mean()), "explained": 1 - float(left)}

    def class_text_projection(self, strength: float) -> dict[str, float]:
        """The baseline without any model change: the concept's directions projected out of the class texts."""
        away = project_output(concept_directions(self.concept, self.model), strength).float()
        weights = measure.task_weights(self.model)
        weights["shape"] = F.normalize(weights["shape"] @ away, dim=1)
        return self.row(self.features.embedding, weights)

    def control(self, recipe: Recipe, draws: int = 10, keep_output: bool = False) -> dict[str, float]:
        per_layer = self.model.tower.heads_per_layer
        heads = [HeadId(layer, head) for layer in self.scan.layers for head in range(per_layer[layer])]
        documents = list(draw_control_documents(recipe.document, heads, draws=draws))
        if keep_output:
            extra = tuple(step for step in recipe.document.steps if step.target == "output")
            documents = [d.model_copy(update={"steps": (*d.steps, *extra)}) for d in documents]
        return mean_rows([self.measure_recipe(bind_recipe(d, self.scan, self.model)) for d in documents])


def variants() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for heads in (4, 8, 12, 16):
        found[f"mean-ablate {heads} heads"] = {"heads": heads, "output_strength": 0.0}
    found["mean-ablate 12 heads, shape kept"] = {"heads": 12, "keep": "shape", "output_strength": 0.0}
    found["zero-ablate 12 heads"] = {"heads": 12, "operation": "zero-ablate", "output_strength": 0.0}
    found["mean-ablate 12 heads, strength .5"] = {"heads": 12, "strength": 0.5, "output_strength": 0.0}
    found["project-out of 12 heads"] = {"heads": 12, "operation": "project-out", "output_strength": 0.0}
    found["project-out of 16 heads"] = {"heads": 16, "operation": "project-out", "output_strength": 0.0}
    for strength in (0.5, 0.9, 1.0):
        found[f"output projection, strength {strength}"] = {"heads": 0, "output_strength": strength}
    for heads, strength in itertools.product((8, 12, 16), (0.5, 0.9)):
        name = f"mean-ablate {heads} heads + output projection {strength}"
        found[name] = {"heads": heads, "output_strength": strength}
    return found


def choose(bench: Bench) -> None:
    """Gains of the default edit over the unedited model for several numbers of heads, and those of random heads."""
    before = bench.row(bench.features.embedding)
    print("\n| heads | kept concept | listed | held out | random, listed | random, held out | overall |")
    print("|---|---|---|---|---|---|---|")
    keys = ("worst_group_listed", "worst_group_held_out")
    for heads, keep in itertools.product((4, 6, 8, 10, 12, 16), (None, "shape")):
        recipe = bench.recipe(heads=heads, keep=keep)
        row, random = bench.measure_recipe(recipe), bench.control(recipe)
        gains = [which[key] - before[key] for which in (row, random) for key in keys]
        cells = " | ".join(f"{gain:+.3f}" for gain in [*gains, row["overall"] - before["overall"]])
        print(f"| {heads} | {keep or 'none'} | {cells} |", flush=True)


def format_row(name: str, row: dict[str, float], extra: str = "") -> str:
    return f"| {name} | " + " | ".join(f"{row[key]:.3f}" for key in COLUMNS) + f" | {extra} |"


def run(bench: Bench, effects: Sequence[str]) -> None:
    print("\n| edit | " + " | ".join(name.replace("_", " ") for name in COLUMNS) + " | fidelity to direct |")
    print("|---" * (len(COLUMNS) + 2) + "|")
    print(format_row("none", bench.row(bench.features.embedding)))
    for strength in (0.5, 0.9, 1.0):
        print(format_row(f"class-text projection, strength {strength}", bench.class_text_projection(strength)))
    for effect in effects:
        for name, options in variants().items():
            recipe = bench.recipe(effect=effect, **options)
            extra = ""
            if effect == "distilled" and options["heads"]:
                extra = " / ".join(f"{value:.4f}" for value in bench.fidelity(recipe).values())
            print(format_row(f"{name}, {effect}", bench.measure_recipe(recipe), extra), flush=True)
    for heads in (8, 12, 16):
        plain = bench.recipe(heads=heads)
        print(format_row(f"{heads} random heads, distilled, mean of 10 draws", bench.control(plain)))
        combined = bench.control(plain, keep_output=True)
        print(format_row(f"{heads} random heads + output projection 0.9, distilled, mean of 10", combined), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", help="`demo`, or folders of models trained with other seeds")
    parser.add_argument("--split", choices=["validation", "test"], required=True)
    parser.add_argument("--effects", default="direct,distilled,total")
    parser.add_argument("--choose", action="store_true", help="only compare numbers of heads, for the defaults")
    options = parser.parse_args()
    torch.set_num_threads(2)
    source = measure.test_source() if options.split == "test" else measure.validation_source()
    for name in options.models:
        model = load_model(name)
        scanned = scan(model, "demo", batch_size=128)
        features, _ = collect_features(model, source, layers=scanned.layers, batch_size=256)
        for split, listed in PLACE_SPLITS.items():
            held_out = [place for place in world.PLACES if place not in listed]
            print(f"\n### {name}, split {split}: listed {', '.join(listed)}; held out {', '.join(held_out)}")
            bench = Bench(model, scanned, source, features, listed)
            choose(bench) if options.choose else run(bench, options.effects.split(","))


if __name__ == "__main__":
    main()
