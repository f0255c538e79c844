"""The whole path: find the heads that carry the location, remove them, measure, keep the recipe.

    python examples/repair.py [FOLDER]

With your own model and images, only the names change: `load_model("ViT-L-14", pretrained="laion2b_s32b_b82k")`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from draw import draw_images

import clipedit

IMAGES, TEST_IMAGES = 1024, 512


def main(folder: Path) -> None:
    model = clipedit.load_model("demo")
    scan = clipedit.scan(model, draw_images(folder / "images", IMAGES))
    for score in clipedit.score_heads(scan, model, concept="location")[:3]:
        print(f"{score.component} says {score.concept:.0%} of it")

    recipe = clipedit.make_recipe(scan, model, concept="location")
    edited = clipedit.apply_recipe(recipe, model)
    recipe.save(folder / "recipe.yaml")

    # Test images that took no part in the edit: in each picture the file's name says what it shows.
    rows = ["path,shape,place"]
    for path in sorted(draw_images(folder / "test", TEST_IMAGES, seed=1).glob("*.png")):
        _, shape, place = path.stem.split("-")
        rows.append(f"test/{path.name},{shape},{place}")
    (folder / "test.csv").write_text("\n".join(rows) + "\n")
    table = clipedit.evaluate({"before": model, "after": edited}, dataset=folder / "test.csv")
    for name, row in table.items():
        print(f"{name}: overall {row['overall']:.3f}, mean of groups {row['mean_of_groups']:.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "example-repair"))
