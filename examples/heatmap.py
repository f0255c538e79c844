"""Where the model sees a text in an image: exact shares of every token, on the original picture.

python examples/heatmap.py [FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from draw import draw_images
from PIL import Image

import clipedit


def main(folder: Path) -> None:
    model = clipedit.load_model("demo")
    path = min(draw_images(folder / "images", 1).glob("*.png"))
    _, shape, place = path.stem.split("-")
    image = Image.open(path)
    for text in (f"a photo of a {shape}", f"a photo of the {place}"):
        heat = clipedit.heatmap(model, image, text=text)
        # `cells` and what tokens without a place gave sum to `total`.
        row, column = np.unravel_index(heat.cells.argmax(), heat.cells.shape)
        print(f"{text}: {heat.total:+.3f} in all, most at row {row}, column {column} of {heat.cells.shape}")
        # Red speaks for the text, blue against it; `values` has the size of the image.
        values = heat.values / np.abs(heat.values).max()
        red, blue = np.clip(values, 0, 1), np.clip(-values, 0, 1)
        picture = np.stack([1 - blue, 1 - red - blue, 1 - red], axis=-1)
        Image.fromarray((picture * 255).astype(np.uint8)).save(folder / f"{text.rsplit(maxsplit=1)[-1]}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "example-heatmap"))
