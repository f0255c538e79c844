"""Pictures for the examples: scenes of the embedded world in a folder, so that every example has images to read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from clipedit.demo import world


def draw_images(folder: str | Path, count: int, seed: int = 0) -> Path:
    """Write `count` unlabelled pictures, biased as users' images are: each shape is mostly in its usual place."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    for index in range(count):
        scene, _ = world.draw_captioned_scene(generator)
        Image.fromarray(world.render(scene)).save(folder / f"{index:04}-{scene.shape}-{scene.place}.png")
    return folder
