"""The demo's data: what `demo` stands for as images, labels, masks and texts (`demo_name.py` knows the name itself).

The world itself, its renderer and how its model was trained are in `demo/`; nothing else of the editor imports them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from ...demo import world
from ..errors import ImageError
from .source import ImageSource, LabelledImages, MaskedImages

DEMO_CALIBRATION_SEED, DEMO_CALIBRATION_COUNT = 5_001, 4_096
# Other scenes than any split of the calibration, so that nothing is chosen on what is reported.
VALIDATION_SEED, TEST_SEED, MASK_SEED, EXAMPLE_SEED = 7_001, 9_002, 9_005, 1
SPLIT_COUNT = 4_096
SHAPES, PLACES, COLORS = world.SHAPES, world.PLACES, tuple(world.COLORS)
COLOR_WORDS = tuple(world.with_article(color) for color in COLORS)
LISTED_PLACES = world.LISTED_PLACES
# What the shapes and places of the test split can judge; of any other concept its figures say nothing.
JUDGED_CONCEPT = "location"


def render_source(scenes: Sequence[world.Scene]) -> ImageSource:
    """Images of the embedded world, rendered when they are opened."""
    names = tuple(f"{i:05d}_{scene.color}_{scene.shape}_{scene.place}.png" for i, scene in enumerate(scenes))
    attributes = tuple(
        {"filename": name, "shape": scene.shape, "place": scene.place, "color": scene.color, "texture": scene.texture}
        for name, scene in zip(names, scenes, strict=True)
    )
    # In place of a file's size: the scene is all that an image is rendered from.
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


def validation_source() -> ImageSource:
    """The split on which defaults are chosen; balanced over shape x place."""
    return render_source(world.draw_balanced_scenes(SPLIT_COUNT, VALIDATION_SEED))


def test_source() -> ImageSource:
    """The split that is reported; balanced over shape x place."""
    return render_source(world.draw_balanced_scenes(SPLIT_COUNT, TEST_SEED))


def labelled_tasks(listed: Sequence[str] = LISTED_PLACES) -> tuple[LabelledImages, LabelledImages]:
    """For selectors that need labels: shapes, grouped by place, and colours, which should stay.

    Images of the validation split in listed places only: nobody has labels of the others.
    """
    source = validation_source()
    source = source.subset([i for i, row in enumerate(source.attributes) if row["place"] in listed])
    colors = [f"{color} object" for color in COLORS]
    shapes = [world.SHAPES.index(row["shape"]) for row in source.attributes]
    found = [COLORS.index(row["color"]) for row in source.attributes]
    groups = tuple(f"{row['shape']} / place {row['place']}" for row in source.attributes)
    return (
        LabelledImages(source, world.SHAPES, tuple(shapes), groups),
        LabelledImages(source, tuple(colors), tuple(found), tuple(colors[index] for index in found)),
    )


def labelled_by(column: str, listed: Sequence[str] = LISTED_PLACES) -> LabelledImages:
    """The images of `labelled_tasks` with another attribute as their class: shape, place or color.

    Raises:
        ImageError: If there is no such attribute.
    """
    source = labelled_tasks(listed)[0].source
    if column not in source.attributes[0]:
        raise ImageError(
            f"cannot erase {column} of the demo: it has {', '.join(source.attributes[0])}. Correct --erase."
        )
    values = [row[column] for row in source.attributes]
    classes = sorted(set(values))
    return LabelledImages(source, tuple(classes), tuple(classes.index(value) for value in values), tuple(values))


def demo_masked_images(count: int = 512, seed: int = MASK_SEED) -> MaskedImages:
    """Balanced scenes of the embedded world with its renderer's true masks; others than any split has by default."""
    scenes = world.draw_balanced_scenes(count, seed)
    return MaskedImages(render_source(scenes), lambda index: world.render_mask(scenes[index]).astype(np.int8))


def example_source(count: int) -> ImageSource:
    """A few scenes for pictures and for checks of what was exported."""
    return render_source(world.draw_balanced_scenes(count, EXAMPLE_SEED))
