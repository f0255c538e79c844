"""Carry stored embeddings over to the edited encoder by one matrix, without reading an image again.

python examples/reindex.py [FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from draw import draw_images
from PIL import Image

import clipedit


def embed(model: clipedit.Model, images: Path) -> torch.Tensor:
    pixels = torch.stack([model.preprocess(Image.open(path)) for path in sorted(images.glob("*.png"))])
    with torch.inference_mode():
        return F.normalize(model.encode_image(pixels), dim=1)


def main(folder: Path) -> None:
    model = clipedit.load_model("demo")
    scan = clipedit.scan(model, draw_images(folder / "images", 1024))
    recipe = clipedit.make_recipe(scan, model, concept="location")
    edited = clipedit.apply_recipe(recipe, model)

    # The old index: unit vectors of the unedited model, as a vector database holds them.
    shown = draw_images(folder / "index", 64, seed=1)
    old = embed(model, shown)
    np.save(folder / "old.npy", old.numpy())
    mapping = clipedit.compute_embedding_map(recipe, scan, model)
    clipedit.reindex_vectors(mapping, folder / "old.npy", folder / "new.npy")

    new, true = torch.from_numpy(np.load(folder / "new.npy")), embed(edited, shown)
    print(f"cosine to the edited encoder: left as they are {float((old * true).sum(1).mean()):.3f}, ", end="")
    print(f"carried over {float((new * true).sum(1).mean()):.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "example-reindex"))
