"""Images that are larger than the model takes and not square: on others a wrong resize or crop does not show."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

# Width and height over the longer side that the model takes: landscape, portrait, and twice its size.
SHAPES = ((2.1, 1.3), (1.3, 2.3), (2.0, 2.0))
# Large enough that resizing shrinks, and no filter passes for another.
LARGER = 1.2


def compose_odd_images(images: Sequence[Image.Image], size: tuple[int, int]) -> list[Image.Image]:
    """Mosaics of some images in shapes that the model does not take.

    Args:
        size: Height and width that the model takes.
    """
    side = max(size)
    sizes = [(round(width * side), round(height * side)) for width, height in SHAPES]
    # Rotated, so that no two mosaics are the same picture in another shape.
    return [_tile([*images[index:], *images[:index]], shape) for index, shape in enumerate(sizes)]


def has_odd_images(images: Sequence[Image.Image], size: tuple[int, int]) -> bool:
    """Whether some image is larger than the model takes, and one of them is not square."""
    # The shorter side counts: it is what is resized.
    larger = [image for image in images if min(image.size) > LARGER * max(size)]
    return any(image.width != image.height for image in larger)


def _tile(images: Sequence[Image.Image], size: tuple[int, int]) -> Image.Image:
    """Two rows of three images each, stretched to fill the canvas."""
    canvas = Image.new("RGB", size)
    across = [round(size[0] * part / 3) for part in range(4)]
    down = [round(size[1] * part / 2) for part in range(3)]
    for place in range(6):
        left, top = across[place % 3], down[place // 3]
        shape = across[place % 3 + 1] - left, down[place // 3 + 1] - top
        canvas.paste(images[place % len(images)].convert("RGB").resize(shape, Image.Resampling.BICUBIC), (left, top))
    return canvas
