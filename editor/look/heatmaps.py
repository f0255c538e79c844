"""What `clipedit heatmap` writes: one overlay, or a sheet of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..choices import Exif
from ..components import HeadId
from ..concepts.queries import encode_contrast
from ..concepts.textspan import text_span
from ..errors import ConceptError, ModelError
from ..files.whole import staged_file
from ..images.decode import Decoding, open_image
from ..images.texts import load_texts
from ..models.model import Model
from ..scan.scan import load_scan
from .pictures import draw_overlay, draw_sheet
from .spatial import Heatmap, draw_heatmaps

TEXTS_OF_A_HEAD = 6
# Pixels of a picture's side: many small ones, or a few that can be looked into.
_SMALL, _MIDDLE, _LARGE = 192, 384, 512


@dataclass(frozen=True)
class DrawnHeatmap:
    """One picture of the file. `share`: what the heads add to the similarity; `on_image`: the part that has a place."""

    heads: str
    text: str
    share: float
    on_image: float
    cells: list[list[float]]


def draw_heatmap_file(
    model: Model,
    image: Path,
    out: Path,
    *,
    texts: Sequence[str],
    heads: Sequence[str] | None = None,
    against: Sequence[str] | None = None,
    each_head: bool = False,
    exif: Exif = "upright",
) -> list[DrawnHeatmap]:
    """Write a PNG: the image, and one overlay per text, with `each_head` one per text and head, all on one scale.

    Args:
        exif: Draw a photo upright, as its EXIF says, or as it is stored.

    Raises:
        ImageError: If the image cannot be read.
        ConceptError: If a text is empty or too long.
        ModelError: If a head is misspelt or the model has no such head.
        ExportError: If the file cannot be written.
    """
    chosen, original = parse_heads(heads) if heads else None, open_image(image, Decoding(exif))
    # Several texts without `against` are not measured against each other: each picture stands for itself.
    directions = encode_contrast(model, texts, against, among_themselves=False)
    found = draw_heatmaps(model, original, texts, directions, heads=chosen, each_head=each_head)
    # `initial` covers maps without a single pixel that was seen, where `nanmax` alone gives NaN.
    scale = max(float(np.nanmax(np.abs(one.values), initial=0.0)) for one in found)
    pictures = [draw_overlay(original, one, scale=scale) for one in found]
    with staged_file(out) as temporary:
        _arrange(original, pictures, found, scale=scale).save(temporary, "PNG")
    return [
        DrawnHeatmap(_name_heads(one), one.text, one.total, float(one.cells.sum()), one.cells.tolist()) for one in found
    ]


def head_texts(model: Model, heads: Sequence[str], scan: Path | None) -> list[str]:
    """The first texts of one head's TextSpan: what to look for when nobody says it.

    Raises:
        ConceptError: If there is not exactly one head, or no scan.
        StatisticsError: If the scan is not of this model or lacks the head's layer.
    """
    if scan is None or len(heads) != 1:
        raise ConceptError(
            "cannot draw a heatmap without a text. Add --text, or --scan and one --head for what it says."
        )
    labels = text_span(
        load_scan(scan), model, texts=load_texts(model_folder=model.folder), texts_per_head=TEXTS_OF_A_HEAD
    )
    head = str(parse_heads(heads)[0])
    if not labels.get(head):
        raise ConceptError(
            f"cannot tell what {head} says: the scan covers {', '.join(labels)[:80]}.... Scan its layer."
        )
    return [label.text for label in labels[head]]


def parse_heads(heads: Sequence[str]) -> list[HeadId]:
    """Heads by name.

    Raises:
        ModelError: If one is misspelt.
    """
    try:
        return [HeadId.parse(head) for head in heads]
    except ValueError as error:
        raise ModelError(f"cannot use the head: {error}.") from None


def _arrange(
    original: Image.Image, pictures: Sequence[Image.Image], found: Sequence[Heatmap], *, scale: float
) -> Image.Image:
    """The original first; where every head has its picture, in a row of its own, and every layer is a row too."""
    captions = [f"{one.text}: {one.total:+.3f} by {_name_heads(one)}" for one in found]
    first, columns = found[0], min(3, len(found) + 1)
    if by_head := len(first.heads) == 1 and len(found) > 1:
        columns = min(16, sum(one.heads[0].layer == first.heads[0].layer for one in found))
    beside = [Image.new("RGB", (1, 1), "white")] * (columns - 1 if by_head else 0)
    side = _SMALL if columns > 4 else _LARGE if len(found) < 3 else _MIDDLE
    words = ["the image", *("" for _ in beside), *captions]
    return draw_sheet([original, *beside, *pictures], words, columns=columns, side=side, scale=scale)


def _name_heads(one: Heatmap) -> str:
    return str(one.heads[0]) if len(one.heads) == 1 else f"{len(one.heads)} heads"
