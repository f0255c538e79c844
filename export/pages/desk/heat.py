"""Heatmaps of the desk's head cards: on the labelled images that excite each head most, where it looks."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from ....editor.components import HeadId
from ....editor.concepts.textspan import HeadLabel
from ....editor.look.pictures import tint_png
from ....editor.look.view import View, find_view
from ....editor.models.model import Model
from ....editor.scan.tally import Progress
from ....editor.towers.tower import SpatialTower
from ..exciting import IMAGES_PER_BATCH, encode_first_texts, find_exciting, project_texts, see_heads
from .labelled import Labelled

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Heat:
    """Where a head looks on one image, by its position among the labelled ones.

    Attributes:
        overlay: A transparent PNG with one pixel a token, on one scale for all images of the head.
        box: Where it lies on the square thumbnail: left, top, width and height in parts of its side.
    """

    image: int
    overlay: bytes
    box: Box


def draw_heat(
    model: Model,
    labelled: Labelled,
    labels: Mapping[str, Sequence[HeadLabel]],
    heads: Sequence[HeadId],
    *,
    progress: Progress | None = None,
) -> dict[str, list[Heat]]:
    """Of each head the images that excite it most, with its heatmap towards its first text.

    None where tokens have no place on an image. Each image goes through the model once, for all heads.
    """
    texts = encode_first_texts(model, labels, heads)
    if not isinstance(model.tower, SpatialTower) or not texts:
        return {}
    seen = project_texts(model, texts)
    chosen = {head: [row for row, _ in find_exciting(labelled.features, head, seen[head][0])] for head in seen}
    wanted = sorted({row for rows in chosen.values() for row in rows})
    grids, boxes = [], []
    for rows in torch.tensor(wanted).split(IMAGES_PER_BATCH):
        images = [labelled.source.open(row) for row in rows.tolist()]
        boxes += [_find_box(find_view(model.preprocess, image.size)) for image in images]
        pixels = torch.stack([model.preprocess(image) for image in images])
        grids.append(see_heads(model, pixels, seen)[..., 0].numpy().astype(np.float64))
        if progress is not None:
            progress(len(boxes), len(wanted))
    places = {row: at for at, row in enumerate(wanted)}
    return {
        str(head): _tint(
            rows, np.concatenate(grids)[[places[row] for row in rows], at], [boxes[places[r]] for r in rows]
        )
        for at, (head, rows) in enumerate(chosen.items())
    }


def _tint(rows: Sequence[int], grids: Float[np.ndarray, "image row column"], boxes: Sequence[Box]) -> list[Heat]:
    # One scale a head, so that its images can be compared by eye.
    scale = float(np.abs(grids).max())
    return [Heat(row, tint_png(grid, scale), box) for row, grid, box in zip(rows, grids, boxes, strict=True)]


def _find_box(view: View) -> Box:
    """The model's view on the square of the middle, which the thumbnails show."""
    side = min(view.width, view.height)
    left, top = (view.width - side) / 2, (view.height - side) / 2
    found = (view.left - left, view.top - top, view.right - view.left, view.bottom - view.top)
    return tuple(round(value / side, 3) for value in found)  # type: ignore[return-value]


def pack_heat(found: Mapping[str, Sequence[Heat]]) -> dict[str, list[dict[str, Any]]]:
    """As plain data."""
    return {
        head: [
            {"image": one.image, "box": one.box, "overlay": base64.b64encode(one.overlay).decode()} for one in images
        ]
        for head, images in found.items()
    }
