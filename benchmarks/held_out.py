"""What an edit claims of images left out, beside new images: `OMP_NUM_THREADS=1 python benchmarks/held_out.py`.

The demo model, location, 8 heads and the projection of the output, at growing numbers of calibration images. Claimed:
from the calibration images alone, each left out. Measured: on 2,048 others, biased in the same way. Two draws where
images are few.
"""

from __future__ import annotations

import csv
import sys
import warnings

import numpy as np

import clipedit
from clipedit.demo import world
from clipedit.editor.edits.held_out import estimate_fidelity
from clipedit.editor.images.demo import demo_calibration_source, render_source
from clipedit.editor.measure.fidelity import measure_fidelity

COUNTS, NEW_IMAGES, SEED, STEP = (64, 96, 128, 160, 256, 512, 1024), 2_048, 77, 1_500


def main() -> None:
    warnings.simplefilter("ignore")  # Few images are the point here.
    model = clipedit.load_model("demo")
    generator = np.random.default_rng(SEED)
    new = render_source([world.draw_captioned_scene(generator)[0] for _ in range(NEW_IMAGES)])
    pool = demo_calibration_source()
    table = csv.writer(sys.stdout)
    table.writerow(["calibration images", "draw", "ridge", "claimed share of the change", "share on new images"])
    for count in COUNTS:
        for draw in range(2 if count <= 256 else 1):
            scan = clipedit.scan(model, pool.subset(range(draw * STEP, draw * STEP + count)))
            recipe = clipedit.make_recipe(scan, model, concept="location", heads=8)
            claimed, found = estimate_fidelity(recipe, scan, model), measure_fidelity(recipe, scan, model, new)
            assert claimed is not None and recipe.document.fold is not None
            shares = [f"{one.explained_change:.3f}" for one in (claimed, found)]
            table.writerow([count, draw, f"{recipe.document.fold.ridge:.0e}", *shares])


if __name__ == "__main__":
    main()
