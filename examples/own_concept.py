"""A concept of your own: a YAML file of texts, and the heads that carry it.

python examples/own_concept.py [FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path

from draw import draw_images

import clipedit

CONCEPT = Path(__file__).with_name("place.yaml")


def main(folder: Path) -> None:
    model = clipedit.load_model("demo")
    scan = clipedit.scan(model, draw_images(folder / "images", 512))
    concept = clipedit.load_concept(CONCEPT)
    for score in clipedit.score_heads(scan, model, concept=concept)[:5]:
        print(f"{score.component} says {score.concept:.0%} of it")

    # Four heads, mean-ablated; the texts are projected out of the output as well unless output_strength is 0.
    recipe = clipedit.make_recipe(scan, model, concept=concept, heads=4)
    recipe.save(folder / "without-place.yaml")
    print("removed", ", ".join(recipe.document.steps[0].heads))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "example-own-concept"))
