"""What an edit claims of images left out, beside new images: `OMP_NUM_THREADS=1 python benchmarks/held_out.py`.

Location, heads alone and heads with the projection of the output, at growing numbers of calibration images. Claimed:
from the calibration images alone, each left out. Measured: on others, biased in the same way. Two draws where images
are few. `--model ViT-B-32` takes an architecture at real size with random weights, the blocks' matrices scaled so that
attention and MLPs do something: nothing that a head means is measured there, only how far a refit of 768 dimensions
can be trusted.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from rows import print_rows

import clipedit
from clipedit.demo import world
from clipedit.editor.edits.held_out import estimate_fidelity
from clipedit.editor.images.demo import demo_calibration_source, render_source
from clipedit.editor.measure.fidelity import measure_fidelity
from clipedit.editor.models.model import Model

SEED, STEP, HEADS = 77, 1_500, 8
# Calibration images, and new ones: at real size both pass through 86 million weights.
COUNTS = {"demo": (64, 96, 128, 160, 256, 512, 1024)}
REAL_COUNTS, NEW_IMAGES, NEW_REAL = (64, 256, 512, 768, 1024), 2_048, 512
# Random matrices at their usual scale leave the residual stream nearly as it was.
SCALE = 3.0
EDITS = {"8 heads": 0.0, "8 heads, projection .9": 0.9}


def load(name: str) -> Model:
    """The demo, or random weights at real size, the blocks' matrices `SCALE` times as large."""
    if name == "demo":
        return clipedit.load_model(name)
    torch.manual_seed(0)
    model = clipedit.load_model(name)
    with torch.no_grad():
        for key, tensor in model.module.visual.transformer.named_parameters():
            if tensor.ndim == 2 and "ln" not in key:
                tensor.mul_(SCALE)
    return model


def rows(name: str) -> Iterator[list[object]]:
    """One row per number of calibration images, draw and edit."""
    model, pool, real = load(name), demo_calibration_source(), name not in COUNTS
    generator = np.random.default_rng(SEED)
    scenes = [world.draw_captioned_scene(generator)[0] for _ in range(NEW_REAL if real else NEW_IMAGES)]
    new = render_source(scenes)
    for count in REAL_COUNTS if real else COUNTS[name]:
        for draw in range(2 if count <= 256 and not real else 1):
            scan = clipedit.scan(model, pool.subset(range(draw * STEP, draw * STEP + count)))
            for edit, strength in EDITS.items():
                recipe = make_recipe(scan, model, strength)
                claimed, found = estimate_fidelity(recipe, scan, model), measure_fidelity(recipe, scan, model, new)
                assert claimed is not None and recipe.document.fold is not None
                shares = [f"{one.explained_change:.3f}" for one in (claimed, found)]
                yield [name, edit, count, draw, f"{recipe.document.fold.ridge:.0e}", *shares]


def make_recipe(scan: clipedit.Scan, model: Model, strength: float) -> clipedit.Recipe:
    """As `clipedit.make_recipe`, which would refuse what few images cannot hold: that is what is measured here."""
    document = clipedit.select_recipe(scan, model, concept="location", heads=HEADS, output_strength=strength)
    return clipedit.bind_recipe(document, scan, model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", nargs="+", default=["demo"])
    warnings.simplefilter("ignore")  # Few images are the point here.
    columns = ["model", "edit", "calibration images", "draw", "ridge", "claimed share of the change"]
    print_rows([*columns, "share on new images"], (row for name in parser.parse_args().model for row in rows(name)))


if __name__ == "__main__":
    main()
