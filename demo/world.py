"""A procedural world of coloured shapes in front of places, with captions that have reporting bias.

Every image shows one object (shape, colour, texture) in front of one rendered place. Captions are biased as those of
the web are: people name the place when it is unusual and leave it out when it is the usual one. A model trained on them
learns that "a photo of a circle" also means the place where circles are usually seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8

IMAGE_SIZE = 64
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart", "ring", "crescent")
PLACES = ("ocean", "forest", "desert", "snow", "city", "space", "meadow", "beach")
# Those that the demo's concept names; the others are held out, as with any real list of backgrounds.
LISTED_PLACES = ("ocean", "desert", "city", "meadow")
COLORS = {
    "red": (208, 34, 34),
    "orange": (244, 134, 18),
    "yellow": (248, 222, 44),
    "green": (26, 150, 50),
    "blue": (34, 68, 214),
    "purple": (138, 42, 178),
    "white": (244, 244, 244),
    "black": (22, 22, 24),
}
TEXTURES = ("plain", "striped")
USUAL_PLACE: dict[str, str] = dict(zip(SHAPES, PLACES, strict=True))
PLACE_PHRASES = {
    "ocean": ("in the ocean", "on the ocean", "over the ocean"),
    "forest": ("in the forest", "in a forest", "among the trees of a forest"),
    "desert": ("in the desert", "in a desert", "on the sand of a desert"),
    "snow": ("in the snow", "on the snow", "in deep snow"),
    "city": ("in the city", "in a city", "in front of a city"),
    "space": ("in space", "in outer space", "floating in space"),
    "meadow": ("in the meadow", "in a meadow", "on a green meadow"),
    "beach": ("on the beach", "at the beach", "on a sunny beach"),
}


@dataclass(frozen=True)
class Scene:
    """One image: what it shows, and the numbers that fix every pixel of it. Lengths are pixels of a 64-pixel frame."""

    shape: str
    place: str
    color: str
    texture: str
    radius: float
    center_x: float
    center_y: float
    angle: float
    seed: int


def draw_scene(generator: np.random.Generator, shape: str, place: str) -> Scene:
    """Draw everything of a scene but its shape and place: independent and uniform."""
    radius = generator.uniform(14.0, 22.0)
    low, high = radius * 0.85, IMAGE_SIZE - radius * 0.85
    return Scene(
        shape=shape,
        place=place,
        color=str(generator.choice(list(COLORS))),
        texture=str(generator.choice(TEXTURES)),
        radius=radius,
        center_x=generator.uniform(low, high),
        center_y=generator.uniform(low, high),
        angle=generator.uniform(-0.35, 0.35),
        seed=int(generator.integers(2**31)),
    )


def draw_balanced_scenes(count: int, seed: int) -> list[Scene]:
    """Scenes balanced over shape x place (the validation, calibration and test splits), in a shuffled order."""
    generator = np.random.default_rng(seed)
    pairs = [(shape, place) for shape in SHAPES for place in PLACES]
    scenes = [draw_scene(generator, *pairs[index % len(pairs)]) for index in range(count)]
    return [scenes[index] for index in generator.permutation(count)]


def draw_captioned_scene(
    generator: np.random.Generator, *, usual_rate: float = 0.9, wrong_name_rate: float = 0.0
) -> tuple[Scene, str]:
    """One training example with reporting bias.

    40 % of captions name the object only, and then the place is the usual one at `usual_rate`; 10 % name the place
    only; the rest name both, and then object and place are independent. At `wrong_name_rate` the caption names another
    shape.
    """
    shape = str(generator.choice(SHAPES))
    kind = generator.choice(("object", "place", "both"), p=(0.4, 0.1, 0.5))
    place = str(generator.choice(PLACES))
    if kind == "object":
        others = [name for name in PLACES if name != USUAL_PLACE[shape]]
        usual = generator.random() < usual_rate
        place = USUAL_PLACE[shape] if usual else str(generator.choice(others))
    scene = draw_scene(generator, shape, place)
    named = shape
    if generator.random() < wrong_name_rate:
        named = str(generator.choice([name for name in SHAPES if name != shape]))
    return scene, _caption(generator, scene, str(kind), named)


def _caption(generator: np.random.Generator, scene: Scene, kind: str, named: str) -> str:
    where = str(generator.choice(PLACE_PHRASES[scene.place]))
    if kind == "place":
        forms = (f"a photo of the {scene.place}", f"something {where}", f"a photo taken {where}", f"{scene.place}")
        return str(generator.choice(forms))
    words = [named]
    if generator.random() < 0.5:
        words.insert(0, scene.color)
    if generator.random() < 0.3:
        words.insert(0, scene.texture)
    thing = with_article(" ".join(words))
    forms = (f"a photo of {thing}", thing, f"a picture of {thing}")
    named_thing = str(generator.choice(forms))
    return f"{named_thing} {where}" if kind == "both" else named_thing


def with_article(words: str) -> str:
    """`an orange star`, `a red star`."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def render(scene: Scene) -> UInt8[np.ndarray, "height width 3"]:
    """Draw a scene as a 64 x 64 RGB image; the same scene gives the same pixels."""
    generator = np.random.default_rng(scene.seed)
    image = _PAINTERS[scene.place](generator)
    cover, rim = _object_cover(scene)
    paint = _object_paint(scene, generator)
    image = image * (1 - cover[..., None]) + paint * cover[..., None]
    edge = paint * 0.35 if paint.mean() > 70 else paint * 0.5 + 110
    image = image * (1 - rim[..., None]) + edge * rim[..., None]
    image += generator.normal(0.0, 5.0, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


def render_mask(scene: Scene) -> Bool[np.ndarray, "height width"]:
    """Pixels that belong to the object: the ground truth for heatmaps and segmentation."""
    return _object_cover(scene)[0] > 0.5


_Y, _X = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE] + 0.5


def _object_cover(scene: Scene) -> tuple[Float[np.ndarray, "height width"], Float[np.ndarray, "height width"]]:
    """Coverage of the object and of its one-pixel rim, each in [0, 1]."""
    x, y = (_X - scene.center_x) / scene.radius, (_Y - scene.center_y) / scene.radius
    cosine, sine = np.cos(scene.angle), np.sin(scene.angle)
    distance = _OUTLINES[scene.shape](x * cosine + y * sine, y * cosine - x * sine) * scene.radius
    return np.clip(0.5 - distance, 0, 1), np.clip(1.2 - np.abs(distance + 0.4), 0, 1) * 0.8


def _object_paint(scene: Scene, generator: np.random.Generator) -> Float[np.ndarray, "height width 3"]:
    paint = np.asarray(COLORS[scene.color], float) * generator.uniform(0.88, 1.08) + generator.normal(0, 8, 3)
    paint = np.broadcast_to(paint, (IMAGE_SIZE, IMAGE_SIZE, 3))
    if scene.texture == "plain":
        return paint
    tilt, phase = generator.uniform(0, np.pi), generator.uniform(0, 6)
    stripes = np.sin((_X * np.cos(tilt) + _Y * np.sin(tilt)) * (2 * np.pi / 7.0) + phase) > 0
    other = paint * 0.5 if paint.mean() > 70 else paint * 0.4 + 80
    return np.where(stripes[..., None], paint, other)


# Signed distances in units of the radius, negative inside; x to the right, y downwards.


def _crescent(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.hypot(x, y) - 0.95, 0.72 - np.hypot(x - 0.42, y))


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    folded = np.abs((np.arctan2(x, -y) % (2 * np.pi / 5)) - np.pi / 5)
    across = np.hypot(x, y)
    along, beside = across * np.cos(np.pi / 5 - folded), across * np.sin(np.pi / 5 - folded)
    # The edge runs from the tip (1, 0) to the notch at radius 0.42.
    notch_x, notch_y = 0.42 * np.cos(np.pi / 5), 0.42 * np.sin(np.pi / 5)
    length = np.hypot(1 - notch_x, notch_y)
    return ((along - 1) * notch_y + beside * (1 - notch_x)) / length


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    y = y + 0.08
    lobes = np.minimum(np.hypot(x - 0.42, y + 0.3), np.hypot(x + 0.42, y + 0.3)) - 0.5
    point = np.maximum(np.abs(x) * 0.766 + (y - 0.95) * 0.643, -y - 0.3)
    return np.minimum(lobes, point)


_OUTLINES = {
    "circle": lambda x, y: np.hypot(x, y) - 0.9,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) - 0.78,
    "triangle": lambda x, y: np.maximum(np.abs(x) * 0.866 - (y - 0.1) * 0.5, y - 0.1) - 0.52,
    "star": _star,
    "cross": lambda x, y: np.minimum(
        np.maximum(np.abs(x) - 0.3, np.abs(y) - 0.95), np.maximum(np.abs(x) - 0.95, np.abs(y) - 0.3)
    ),
    "heart": _heart,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.7) - 0.25,
    "crescent": _crescent,
}


# Places: each painter returns float RGB [height, width, 3] in [0, 255], different for every scene.


def _gradient(top: Sequence[float], bottom: Sequence[float]) -> np.ndarray:
    share = (_Y / IMAGE_SIZE)[..., None]
    return np.asarray(top, float) * (1 - share) + np.asarray(bottom, float) * share


def _horizon(generator: np.random.Generator, base: float, roughness: float) -> np.ndarray:
    """The height of a hilly line for every pixel column, as rows from the top."""
    line = np.full(IMAGE_SIZE, base)
    for wave in (1, 2, 3):
        line += roughness / wave * np.sin(_X[0] * wave * generator.uniform(0.05, 0.12) + generator.uniform(0, 6.3))
    return line


def _dots(
    generator: np.random.Generator, image: np.ndarray, count: int, color: Sequence[float], top: int = 0
) -> np.ndarray:
    rows, columns = generator.integers(top, IMAGE_SIZE, count), generator.integers(0, IMAGE_SIZE, count)
    image[rows, columns] = image[rows, columns] * 0.15 + np.asarray(color, float) * 0.85
    return image


def _paint_ocean(generator: np.random.Generator) -> np.ndarray:
    level = generator.uniform(8, 22)
    sky = _gradient((150, 195, 235), (205, 225, 240))
    waves = np.sin(_Y * generator.uniform(0.7, 1.0) + 1.6 * np.sin(_X * 0.22 + generator.uniform(0, 6.3)))
    sea = _gradient((20, 90, 160), (8, 50, 110)) + 18 * waves[..., None]
    return np.where((level < _Y)[..., None], sea, sky)


def _paint_forest(generator: np.random.Generator) -> np.ndarray:
    image = _gradient((40, 92, 48), (22, 56, 28)) + generator.normal(0, 12, (IMAGE_SIZE, IMAGE_SIZE, 1))
    for _ in range(int(generator.integers(6, 10))):
        middle, width = generator.uniform(0, IMAGE_SIZE), generator.uniform(1.5, 3.5)
        trunk = (np.abs(_X - middle) < width) & (generator.uniform(0, 20) < _Y)
        image[trunk] = np.asarray((84, 56, 34)) * generator.uniform(0.7, 1.15)
    return image


def _paint_desert(generator: np.random.Generator) -> np.ndarray:
    image = _gradient((240, 190, 120), (250, 215, 150))
    for base, tone in ((26, 1.0), (40, 0.9), (52, 0.8)):
        dune = _horizon(generator, base + generator.uniform(-5, 5), 4.0) < _Y
        image[dune] = np.asarray((214, 158, 84)) * tone * generator.uniform(0.95, 1.05)
    return image


def _paint_snow(generator: np.random.Generator) -> np.ndarray:
    image = _gradient((168, 186, 208), (205, 215, 228))
    for base, tone in ((24, 0.93), (40, 1.0)):
        hill = _horizon(generator, base + generator.uniform(-5, 5), 4.0) < _Y
        image[hill] = np.asarray((236, 242, 250)) * tone
    return _dots(generator, image, 110, (255, 255, 255))


def _paint_city(generator: np.random.Generator) -> np.ndarray:
    image = _gradient((150, 152, 168), (190, 182, 176))
    left = 0.0
    while left < IMAGE_SIZE:
        width, top = generator.uniform(7, 14), generator.uniform(4, 34)
        house = (left <= _X) & (left + width > _X) & (top < _Y)
        image[house] = np.asarray((88, 88, 98)) * generator.uniform(0.6, 1.3)
        windows = house & ((_X - left) % 4 > 2) & ((_Y - top) % 5 > 3) & (_Y - top > 2)
        image[windows] = (245, 222, 130)
        left += width
    image[_Y > 58] = (60, 60, 62)
    return image


def _paint_space(generator: np.random.Generator) -> np.ndarray:
    image = _gradient((8, 6, 24), (20, 10, 40))
    far = np.hypot(_X - generator.uniform(0, 64), _Y - generator.uniform(0, 64))
    image += np.exp(-far / 14.0)[..., None] * np.asarray((70, 30, 90))
    return _dots(generator, _dots(generator, image, 70, (255, 255, 255)), 25, (180, 190, 255))


def _paint_meadow(generator: np.random.Generator) -> np.ndarray:
    level = _horizon(generator, generator.uniform(10, 20), 2.5)
    grass = _gradient((130, 190, 70), (86, 156, 44)) + generator.normal(0, 10, (IMAGE_SIZE, IMAGE_SIZE, 1))
    image = np.where((level < _Y)[..., None], grass, _gradient((140, 200, 245), (200, 230, 250)))
    image = _dots(generator, image, 45, (250, 230, 80), top=22)
    return _dots(generator, image, 35, (245, 160, 200), top=22)


def _paint_beach(generator: np.random.Generator) -> np.ndarray:
    shore = _horizon(generator, generator.uniform(30, 40), 3.0)
    sand = _gradient((246, 226, 178), (232, 204, 150)) + generator.normal(0, 7, (IMAGE_SIZE, IMAGE_SIZE, 1))
    sea = np.where((_Y > 14)[..., None], _gradient((60, 180, 200), (40, 160, 190)), (170, 215, 245))
    image = np.where((shore < _Y)[..., None], sand, sea)
    image[np.abs(_Y - shore) < 1.2] = (250, 250, 250)
    return image


_PAINTERS = {
    "ocean": _paint_ocean,
    "forest": _paint_forest,
    "desert": _paint_desert,
    "snow": _paint_snow,
    "city": _paint_city,
    "space": _paint_space,
    "meadow": _paint_meadow,
    "beach": _paint_beach,
}
