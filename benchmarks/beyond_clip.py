"""Align a shape classifier of the embedded world to the demo CLIP, and remove its location heads.

    python -m clipedit.demo.train_classifier --seed 0 --out classifier
    python benchmarks/beyond_clip.py classifier [--images 1024] [--seed 0]

The number of heads is chosen on the validation split, by the places that the concept lists; what is printed is of the
test split. The control is ten draws of as many random heads from the same layers.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from clipedit.demo.texts import pool_texts
from clipedit.editor.concepts.textspan import text_span
from clipedit.editor.edits.apply import apply_recipe
from clipedit.editor.edits.direct import compute_recipe_embeddings
from clipedit.editor.images.demo import demo_calibration_source, test_source, validation_source
from clipedit.editor.load import apply_aligner, load_model
from clipedit.editor.measure.control import draw_controls
from clipedit.editor.measure.demo_measure import build_demo_measure
from clipedit.editor.measure.score_agreement import evaluate_scores
from clipedit.editor.models.aligner import Aligner
from clipedit.editor.models.model import Model
from clipedit.editor.scan.align import align
from clipedit.editor.scan.align_options import AlignOptions
from clipedit.editor.scan.collect import collect_embeddings, collect_features
from clipedit.editor.scan.scan import Scan, scan
from clipedit.editor.select.make_recipe import make_recipe

HEADS = (1, 2, 3, 4, 6, 8, 12, 16)
ABLATIONS = {
    "per component, lambda 1": {},
    "per component, lambda 0": {"penalty": 0.0},
    "one shared map": {"shared_map": True},
}
COLUMNS = {"location": "place", "shape": "shape", "color": "color"}


def show(row: object) -> None:
    print(json.dumps(row), flush=True)


def learn(model: Model, clip: Model, options: argparse.Namespace) -> dict[str, Aligner]:
    images = demo_calibration_source(options.images)
    found = {}
    for name, changes in ABLATIONS.items():
        chosen = AlignOptions(seed=options.seed, epochs=options.epochs, **changes)
        found[name] = align(model, clip, images, options=chosen)
        described = found[name].described
        show({"aligner": name, **found[name].report, "batches": described["log"][-1]["step"], **described["images"]})
    return found


def choose_heads(model: Model, aligned: Model, scanned: Scan) -> int:
    """By the worst group of listed places on the validation split; ties go to fewer heads."""
    source = validation_source().subset(range(2048))
    measure = build_demo_measure(model, source)
    features, kept = collect_features(model, source, layers=scanned.layers)
    reached = {}
    for heads in HEADS:
        recipe = make_recipe(scanned, aligned, concept="location", heads=heads)
        row = measure(compute_recipe_embeddings(recipe, model, features), kept)
        reached[heads] = row["worst_group_listed"]
        show({"validation": heads, **{key: round(value, 4) for key, value in row.items()}})
    return max(HEADS, key=lambda heads: reached[heads])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("classifier", type=Path)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    model, clip = load_model(str(options.classifier)), load_model("demo")
    aligners = learn(model, clip, options)
    source = test_source()
    for name, aligner in aligners.items():
        aligned = apply_aligner(model, aligner, clip=clip)
        scanned = scan(aligned, demo_calibration_source(options.images), layers=range(model.tower.n_layers))
        tested = evaluate_scores(scanned, aligned, validation_source().subset(range(1024)), columns=COLUMNS)
        show({"scores of": name, "between": tested.between, "within": tested.within})
        if name != next(iter(aligners)):
            continue
        labels = text_span(scanned, aligned, texts=pool_texts(), texts_per_head=3)
        heads = choose_heads(model, aligned, scanned)
        recipe = make_recipe(scanned, aligned, concept="location", heads=heads)
        for head in recipe.heads:
            show({"head": head, "texts": {item.text: round(item.variance_share, 3) for item in labels[head]}})
        edited = apply_recipe(recipe, model)
        measured = {
            "before": build_demo_measure(model, source)(*collect_embeddings(model, source)),
            "after": build_demo_measure(edited, source)(*collect_embeddings(edited, source)),
        }
        measured |= draw_controls(recipe, scanned, aligned, source, build_demo_measure(model, source)).rows
        for row_name, row in measured.items():
            show({"test": row_name, "heads": heads, **{key: round(value, 4) for key, value in row.items()}})


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
