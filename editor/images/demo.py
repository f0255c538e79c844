"""The embedded world as images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from ...demo import world
from .source import ImageSource

DEMO_CALIBRATION_SEED, DEMO_CALIBRATION_COUNT = 5_001, 4_096


def render_source(scenes: Sequence[world.Scene]) -> ImageSource:
    """Images of the embedded world, rendered when they are opened."""
    names = tuple(f"{i:05d}_{scene.color}_{scene.shape}_{scene.place}.png" for i, scene in enumerate(scenes))
    attributes = tuple(
        {"filename": name, "shape": scene.shape, "place": scene.place, "color": scene.color, "texture": scene.texture}
        for name, scene in zip(names, scenes, strict=True)
    )
    stamps = tuple(repr(scene) for scene in scenes)
    return ImageSource(names, lambda index: Image.fromarray(world.render(scenes[index])), attributes, stamps)


def demo_calibration_source(count: int = DEMO_CALIBRATION_COUNT) -> ImageSource:
    """Images of the embedded world as users have them: unlabelled, and biased as the training images are."""
    generator = np.random.default_rng(DEMO_CALIBRATION_SEED)
    return render_source([world.draw_captioned_scene(generator)[0] for _ in range(count)])


def demo_captions(count: int = DEMO_CALIBRATION_COUNT) -> tuple[str, ...]:
    """The different captions of the images of `demo_calibration_source`."""
    generator = np.random.default_rng(DEMO_CALIBRATION_SEED)
    return tuple(dict.fromkeys(world.draw_captioned_scene(generator)[1] for _ in range(count)))
