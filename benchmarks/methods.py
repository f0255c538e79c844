"""Every selector x operation x effect on the demo world, for any seeds of the model and two splits of the places.

    python benchmarks/methods.py --split validation --choose MODEL_FOLDER...            # choose defaults here
    python benchmarks/methods.py --split validation MODEL_FOLDER...                     # compare here
    python benchmarks/methods.py --split test MODEL_FOLDER... --plot methods.svg        # and report here, once
    python benchmarks/methods.py --split validation --fidelity MODEL_FOLDER...          # distilled against direct
    python benchmarks/typographic.py --split validation TYPOGRAPHIC_MODEL_FOLDER...     # written words

Prints Markdown. Random heads stand beside every table; distilled and total rows carry their fidelity to direct.
Selectors that look at labels see images of listed places of the validation split: on that split their listed column is
in-sample.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from clipedit.demo import texts, world
from clipedit.editor.choices import Effect
from clipedit.editor.components import Features
from clipedit.editor.concepts.concepts import Concept
from clipedit.editor.concepts.directions import concept_directions
from clipedit.editor.edits.apply import apply_recipe
from clipedit.editor.edits.bind import bind_recipe
from clipedit.editor.edits.direct import compute_recipe_embeddings
from clipedit.editor.edits.document import RecipeDocument
from clipedit.editor.edits.held_out import Fidelity, compute_fidelity
from clipedit.editor.edits.operations import project_output
from clipedit.editor.edits.recipe import Recipe
from clipedit.editor.errors import ClipeditError
from clipedit.editor.images.demo import LISTED_PLACES, labelled_by, labelled_tasks, test_source, validation_source
from clipedit.editor.images.source import ImageSource
from clipedit.editor.load import load_model
from clipedit.editor.measure.control import draw_control_documents, mean_rows
from clipedit.editor.measure.demo_measure import measure_embeddings, task_weights
from clipedit.editor.models.model import Model
from clipedit.editor.scan.collect import LabelledEmbeddings, collect_embeddings, collect_features, collect_labelled
from clipedit.editor.scan.features import load_features
from clipedit.editor.scan.scan import Scan, scan
from clipedit.editor.select.plan import Evidence
from clipedit.editor.select.selectors import select_recipe
from clipedit.editor.select.tables import scanned_heads

PLACE_SPLITS = {"A": LISTED_PLACES, "B": ("ocean", "forest", "desert", "snow")}
COLUMNS = ("overall", "worst_group_listed", "worst_group_held_out", "mean_of_groups", "place_accuracy", "retention")
WORST = ("worst_group_listed", "worst_group_held_out")
Row = dict[str, float]
# What a name holds, first match: the marker and the label of the plot.
KINDS = {
    "random": ("rx", "random heads (mean of 10 draws)"),
    "class-text": ("bs", "class texts projected, no model change"),
    "output projection, strength": ("bD", "output projection, no heads"),
    "LEACE": ("mv", "LEACE"),
    "frontier": ("gP", "frontier (labels)"),
    "labelled-contrast": ("c^", "labelled contrast (labels)"),
    "text-difference": ("ko", "text difference (no labels)"),
    "none": ("k*", "unedited"),
}
# The points that the plot names.
NAMED = {
    "none": "unedited",
    "text-difference, mean-ablate 8, output 0.9": "the default",
    "frontier, mean-ablate 8, output 0.9": "frontier, output 0.9",
    "output projection, strength 1.0": "output projection 1.0",
    "text-difference, mean-ablate 16, output 0.9": "16 heads, output 0.9",
}


@dataclass
class Bench:
    """A model, its scan and the cached features of the images that are measured."""

    model: Model
    scan: Scan
    source: ImageSource
    features: Features
    listed: Sequence[str]
    evidence: Evidence
    erased: LabelledEmbeddings
    rows: dict[str, Row] = field(default_factory=dict)
    chosen: dict[str, RecipeDocument] = field(default_factory=dict)

    @property
    def concept(self) -> Concept:
        return location_of(self.listed)

    def row(self, embeddings: torch.Tensor, weights: dict[str, torch.Tensor] | None = None) -> Row:
        chosen = weights or task_weights(self.model)
        return measure_embeddings(embeddings, self.source.attributes, chosen, listed=self.listed)

    def recipe(self, *, effect: Effect = "distilled", **options: Any) -> Recipe:
        """Selectors do not look at the effect: what they chose is kept."""
        key = repr(sorted(options.items()))
        if key not in self.chosen:
            self.chosen[key] = select_recipe(
                self.scan,
                self.model,
                concept=self.concept,
                evidence=self.evidence,
                **{"output_strength": 0.9, **options},
            )
        return self.bind(self.chosen[key].model_copy(update={"effect": effect}))

    def bind(self, document: RecipeDocument) -> Recipe:
        return bind_recipe(document, self.scan, self.model, labelled=self.erased)

    def embed(self, recipe: Recipe) -> torch.Tensor:
        if recipe.document.effect == "total":
            return collect_embeddings(apply_recipe(recipe, self.model), self.source, batch_size=256)[0]
        return compute_recipe_embeddings(recipe, self.model, self.features)

    def measure_recipe(self, recipe: Recipe) -> tuple[Row, Fidelity]:
        found = self.embed(recipe)
        direct = self.bind(recipe.document.model_copy(update={"effect": "direct"}))
        return self.row(found), compute_fidelity(self.embed(direct), found, self.features.embedding)

    def class_text_projection(self, strength: float) -> Row:
        """The baseline without any model change: the concept's directions projected out of the class texts."""
        away = project_output(concept_directions(self.concept, self.model), strength).float()
        weights = task_weights(self.model)
        weights["shape"] = F.normalize(weights["shape"] @ away, dim=1)
        return self.row(self.features.embedding, weights)

    def control(self, recipe: Recipe, draws: int = 10, keep_output: bool = False) -> Row:
        documents = list(draw_control_documents(recipe.document, scanned_heads(self.scan, self.model), draws=draws))
        if keep_output:
            extra = tuple(step for step in recipe.document.steps if step.target == "output")
            documents = [d.model_copy(update={"steps": (*d.steps, *extra)}) for d in documents]
        return mean_rows([self.row(self.embed(self.bind(document))) for document in documents])


def location_of(listed: Sequence[str]) -> Concept:
    """The demo's concept `location` with some of its places."""
    return Concept.model_validate(texts.concept_documents(listed)["location"])


def hold(source: ImageSource) -> ImageSource:
    """Rendered once: every `total` edit reads all images again."""
    images = [source.open(index) for index in range(len(source))]
    return replace(source, open=images.__getitem__)


def build_evidence(model: Model, layers: Sequence[int], listed: Sequence[str], folder: Path) -> Evidence:
    """Labelled images of listed places, their features cached."""
    task, second = labelled_tasks(listed)
    path = folder / "features.safetensors"
    scan(model, task.source, layers=layers, batch_size=256, keep_features=path)
    return Evidence(task, second, cached=load_features(path))


def variants() -> dict[str, dict[str, Any]]:
    """Edits by name: heads by every selector, every operation on eight heads, and combinations with the output."""
    found: dict[str, dict[str, Any]] = {}
    for strength in (0.5, 0.9, 1.0):
        found[f"output projection, strength {strength}"] = {"heads": 0, "output_strength": strength}
    found["LEACE of listed places, no heads"] = {"heads": 0, "output_strength": 0.0, "leace": True}
    for heads, output in itertools.product((4, 8, 12, 16), (0.0, 0.9)):
        found[f"text-difference, mean-ablate {heads}, output {output}"] = {"heads": heads, "output_strength": output}
    for select, output in itertools.product(("labelled-contrast", "frontier"), (0.0, 0.9)):
        found[f"{select}, mean-ablate 8, output {output}"] = {"select": select, "output_strength": output}
    operations: dict[str, dict[str, Any]] = {
        "zero-ablate": {"operation": "zero-ablate"},
        "scale 0.5": {"operation": "scale", "factor": 0.5},
        "project-out texts": {"operation": "project-out"},
        "project-out text-span": {"operation": "project-out", "along": "text-span"},
        "project-out pca": {"operation": "project-out", "along": "pca"},
        "project-out labels": {"operation": "project-out", "along": "labels"},
        "reweight": {"operation": "reweight"},
    }
    for (name, options), select in itertools.product(operations.items(), ("text-difference", "labelled-contrast")):
        for output in (0.0, 0.9):
            found[f"{select}, {name} 8, output {output}"] = {**options, "select": select, "output_strength": output}
    found["text-difference, mean-ablate 8, LEACE"] = {"output_strength": 0.0, "leace": True}
    return found


def choose(bench: Bench) -> None:
    """Gains of the default edit over the unedited model for several numbers of heads, and those of random heads."""
    before = bench.row(bench.features.embedding)
    print("\n| heads | kept concept | listed | held out | random, listed | random, held out | overall |")
    print("|---|---|---|---|---|---|---|")
    for heads, keep in itertools.product((4, 6, 8, 10, 12, 16), (None, "shape")):
        recipe = bench.recipe(heads=heads, keep=keep)
        row, random = bench.row(bench.embed(recipe)), bench.control(recipe)
        gains = [which[key] - before[key] for which in (row, random) for key in WORST]
        cells = " | ".join(f"{gain:+.3f}" for gain in [*gains, row["overall"] - before["overall"]])
        print(f"| {heads} | {keep or 'none'} | {cells} |", flush=True)


def compare_fidelity(bench: Bench) -> None:
    """From how many heads, and from which layer on, distilled explains less than 0.98 of the direct edit."""
    print("\n| heads ablated | worst cosine | mean cosine | explained | explained of the change |")
    print("|---|---|---|---|---|")
    every = list(map(str, scanned_heads(bench.scan, bench.model)))
    cases = {
        f"{count} of highest score": bench.recipe(heads=count, output_strength=0.0).heads
        for count in (4, 8, 12, 16, 24)
    }
    cases |= {f"all of layer {layer}": [h for h in every if h.startswith(f"L{layer}H")] for layer in bench.scan.layers}
    cases |= {"all": every}
    for name, heads in cases.items():
        base = bench.recipe(heads=1, output_strength=0.0).document
        step = base.steps[0].model_copy(update={"heads": tuple(heads)})
        found = bench.measure_recipe(bench.bind(base.model_copy(update={"steps": (step,), "effect": "distilled"})))[1]
        figures = (found.worst_cosine, found.mean_cosine, found.explained, found.explained_change)
        print(f"| {name} | " + " | ".join(f"{figure:.4f}" for figure in figures) + " |", flush=True)


def report(bench: Bench, name: str, row: Row, fidelity: Fidelity | None = None) -> None:
    bench.rows[name] = row
    extra = f"{fidelity.worst_cosine:.4f} / {fidelity.mean_cosine:.4f} / {fidelity.explained:.4f}" if fidelity else ""
    cells = [*(row[key] for key in COLUMNS), (row[WORST[0]] + row[WORST[1]]) / 2]
    print(f"| {name} | " + " | ".join(f"{cell:.3f}" for cell in cells) + f" | {extra} |", flush=True)


def run(bench: Bench, effects: Sequence[str]) -> None:
    names = [*(name.replace("_", " ") for name in COLUMNS), "mean of both worst groups"]
    print("\n| edit | " + " | ".join(names) + " | fidelity: worst, mean cosine, explained |")
    print("|---" * (len(names) + 2) + "|")
    report(bench, "none", bench.row(bench.features.embedding))
    for strength in (0.5, 0.9, 1.0):
        report(bench, f"class-text projection, strength {strength}", bench.class_text_projection(strength))
    for effect, (name, options) in itertools.product(effects, variants().items()):
        try:
            row, fidelity = bench.measure_recipe(bench.recipe(effect=effect, **options))
            report(bench, f"{name}, {effect}", row, None if effect == "direct" else fidelity)
        except ClipeditError as error:
            print(f"| {name}, {effect} | {error} |" + " |" * (len(names)), flush=True)
    for heads, keep_output in itertools.product((8, 12, 16), (False, True)):
        control = bench.control(bench.recipe(heads=heads), keep_output=keep_output)
        report(
            bench,
            f"{heads} random heads{' + output projection 0.9' if keep_output else ''}, distilled, mean of 10",
            control,
        )


def draw_rows(rows: Mapping[str, Sequence[Row]], path: Path) -> None:
    """Mean over models and place splits of every edit: listed to the right, held out upwards."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    axis = figure.subplots()
    means = {name.removesuffix(", distilled"): mean_rows(found) for name, found in rows.items()}
    for kind, (marker, label) in KINDS.items():
        of_kind = {name: row for name, row in means.items() if next(k for k in KINDS if k in name) == kind}
        points = [(row[WORST[0]], row[WORST[1]]) for row in of_kind.values()]
        axis.plot(*zip(*points, strict=True), marker, alpha=0.7, label=label) if points else None
        for name, row in of_kind.items():
            if name in NAMED:
                # Labels of points on the right stand to their left, or below where others lie.
                low = row[WORST[1]] < 0.64
                left = {"xytext": (4, -14) if low else (-6, -3), "ha": "right"}
                side = left if row[WORST[0]] > 0.9 else {"xytext": (6, -3), "ha": "left"}
                point = (row[WORST[0]], row[WORST[1]])
                axis.annotate(NAMED[name], point, textcoords="offset points", fontsize=8, **side)
    axis.margins(x=0.15)
    axis.legend(fontsize=8, loc="upper left")
    axis.set(xlabel="worst group, listed places", ylabel="worst group, places nobody listed")
    axis.grid(alpha=0.3)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="`demo`, or folders of models trained with other seeds")
    parser.add_argument("--split", choices=["validation", "test"], required=True)
    parser.add_argument("--effects", default="direct,distilled,total")
    parser.add_argument("--choose", action="store_true", help="only compare numbers of heads, for the defaults")
    parser.add_argument("--fidelity", action="store_true", help="only compare distilled with direct")
    parser.add_argument("--plot", type=Path, help="draw the distilled rows to this file")
    options = parser.parse_args()
    torch.set_num_threads(2)
    source = hold(test_source() if options.split == "test" else validation_source())
    drawn: dict[str, list[Row]] = {}
    for name in options.models:
        model = load_model(name)
        scanned = scan(model, "demo", batch_size=128)
        features, _ = collect_features(model, source, layers=scanned.layers, batch_size=256)
        for split, listed in PLACE_SPLITS.items():
            held_out = [place for place in world.PLACES if place not in listed]
            print(f"\n### {name}, split {split}: listed {', '.join(listed)}; held out {', '.join(held_out)}")
            erased = collect_labelled(model, labelled_by("place", listed))
            with tempfile.TemporaryDirectory() as folder:
                evidence = build_evidence(model, scanned.layers, listed, Path(folder))
                bench = Bench(model, scanned, source, features, listed, evidence, erased)
                if options.choose or options.fidelity:
                    choose(bench) if options.choose else compare_fidelity(bench)
                else:
                    run(bench, options.effects.split(","))
            for key, row in bench.rows.items():
                if not key.endswith((", direct", ", total")):
                    drawn.setdefault(key, []).append(row)
    if options.plot and drawn:
        draw_rows(drawn, options.plot)


if __name__ == "__main__":
    main()
