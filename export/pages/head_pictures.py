"""The images of head cards: those that excite each head most, and where on them it looked, before and after an edit."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ...editor.components import Features, HeadId, take_rows
from ...editor.concepts.textspan import HeadLabel
from ...editor.edits.direct import compute_recipe_embeddings
from ...editor.edits.recipe import Recipe
from ...editor.images.source import ImageSource, OpenPath
from ...editor.look.pictures import encode_image_file, tint_png
from ...editor.look.spatial import compute_seen
from ...editor.look.view import View, find_view
from ...editor.models.model import Model
from ...editor.scan.collect import collect_features
from ...editor.scan.sample import mark_keys
from ...editor.scan.scan import Scan
from ...editor.scan.tally import Progress
from ...editor.towers.tower import SpatialTower
from .exciting import IMAGES_PER_BATCH, encode_first_texts, find_exciting, project_texts, see_heads

SEARCHED, THUMBNAIL = 256, 144


@dataclass(frozen=True)
class Edit:
    """An edit and what it was made from; all that a report is drawn from. `scan` and `source` may be missing."""

    recipe: Recipe
    base: Model
    edited: Model
    scan: Scan | None = None
    source: ImageSource | None = None


@dataclass(frozen=True)
class Looked:
    """Images that are looked at: their features by the base, and where each lies in the source."""

    features: Features
    positions: Sequence[int]

    def take(self, rows: Sequence[int]) -> Looked:
        """Some of them."""
        return Looked(take_rows(self.features, torch.tensor(rows)), [self.positions[row] for row in rows])


@dataclass(frozen=True)
class Thumbnail:
    """A small JPEG of an image, and where on it the model looked, as a `View`."""

    name: str
    jpeg: bytes
    view: View


@dataclass(frozen=True)
class Exciting:
    """One image that excites a head: `strength` is the head's part of the cosine to its first text.

    `before` and `after` are transparent PNGs to stretch over the model's view, on one scale a card.
    """

    thumbnail: int
    strength: float
    before: bytes
    after: bytes


@dataclass(frozen=True)
class Pictures:
    """The images of all cards: thumbnails once, and which of them belong to which head."""

    thumbnails: Sequence[Thumbnail] = ()
    images: Mapping[HeadId, Sequence[Exciting]] = field(default_factory=dict)


def collect_pictures(
    edit: Edit,
    labels: Mapping[str, Sequence[HeadLabel]],
    heads: Sequence[HeadId],
    *,
    progress: Progress | None = None,
) -> Pictures:
    """The images that excite some heads most, with the heads' heatmaps towards their first texts, before and after.

    The scan's own sample is looked at where its images are in the source, else at most `SEARCHED` images, spread over
    it; none without a source, or where texts were scanned.
    """
    base, source = edit.base, edit.source
    texts = encode_first_texts(base, labels, heads)
    if not isinstance(base.tower, SpatialTower) or source is None or edit.scan is None or not texts:
        return Pictures()
    looked = _find_sample(edit.scan, source) or _search(base, source, edit.scan.layers, progress)
    before = project_texts(base, texts)
    chosen = {head: find_exciting(looked.features, head, seen[0]) for head, seen in before.items()}
    wanted = sorted({row for found in chosen.values() for row, _ in found})
    thumbnails, grids = _look(edit, looked.take(wanted), before, _project_edited(edit, texts), progress)
    images = {
        head: _draw([(wanted.index(row), strength) for row, strength in found], grids[:, at])
        for at, (head, found) in enumerate(chosen.items())
    }
    return Pictures(thumbnails, images)


def _find_sample(scan: Scan, source: ImageSource) -> Looked | None:
    """The scan's sample, whose images need not be run through the model again; None if the source is another one."""
    if scan.sample is None:
        return None
    positions = {mark: index for index, mark in enumerate(mark_keys(source))}
    if not all(mark in positions for mark in scan.sample.marks):
        return None
    return Looked(scan.sample.features, [positions[mark] for mark in scan.sample.marks])


def _search(base: Model, source: ImageSource, layers: Sequence[int], progress: Progress | None) -> Looked:
    # Rounded up, so that there are never more than SEARCHED.
    spread = range(0, len(source), max(1, -(-len(source) // SEARCHED)))
    features, kept = collect_features(base, source.subset(spread), layers=layers, progress=progress)
    return Looked(features, [spread[index] for index in kept])


def _look(
    edit: Edit,
    wanted: Looked,
    before: Mapping[HeadId, Tensor],
    after: Mapping[HeadId, Tensor],
    progress: Progress | None,
) -> tuple[list[Thumbnail], Float[np.ndarray, "image head row column 2"]]:
    """Each image is opened once: its thumbnail, and what all heads see on it, in one pass per batch."""
    assert edit.source is not None
    ratios = _compare_norms(edit, wanted.features)
    thumbnails: list[Thumbnail] = []
    grids = []
    read = _read_ahead(edit.base, edit.source, wanted.positions)
    for rows in torch.arange(len(wanted.positions)).split(IMAGES_PER_BATCH):
        some, pixels = zip(*itertools.islice(read, len(rows)), strict=True)
        thumbnails += some
        grids.append(_see_both(edit, torch.stack(pixels), before, after, ratios[rows]).numpy().astype(np.float64))
        if progress is not None:
            progress(len(thumbnails), len(wanted.positions))
    return thumbnails, np.concatenate(grids)


def _read_ahead(model: Model, source: ImageSource, positions: Sequence[int]) -> Iterator[tuple[Thumbnail, Tensor]]:
    """Thumbnails and pixels, in order; files are read by a thread for each processor while the model runs."""

    def read(position: int) -> tuple[Thumbnail, Tensor]:
        image = source.open(position)
        return _thumbnail(model, source.names[position], image), model.preprocess(image)

    # What else opens images may share a file between them.
    if not isinstance(source.open, OpenPath):
        yield from map(read, positions)
        return
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(read, positions)


def _see_both(
    edit: Edit,
    pixels: Float[Tensor, "image 3 height width"],
    before: Mapping[HeadId, Tensor],
    after: Mapping[HeadId, Tensor],
    ratios: Float[Tensor, " image"],
) -> Float[Tensor, "image head row column 2"]:
    if edit.recipe.document.effect == "total" and not _keeps_base(edit):
        return torch.cat([see_heads(edit.base, pixels, before), see_heads(edit.edited, pixels, after)], -1)
    # The layers look where they looked before, and only the readout differs: one pass serves both.
    found = see_heads(edit.base, pixels, {head: torch.cat([before[head], after[head]]) for head in before})
    found[..., 1] *= ratios[:, None, None, None]
    return found


def _compare_norms(edit: Edit, features: Features) -> Float[Tensor, " image"]:
    """`|z| / |z'|`: what makes a part of the base's cosine one of the edited embedding's."""
    if edit.recipe.document.effect != "distilled" or _keeps_base(edit):
        return torch.ones(len(features.embedding))
    edited = compute_recipe_embeddings(edit.recipe, edit.base, features)
    return (features.embedding.norm(dim=1) / edited.norm(dim=1)).float()


def _project_edited(edit: Edit, texts: Mapping[HeadId, Tensor]) -> dict[HeadId, Float[Tensor, "text k"]]:
    """`R'^T t` of the edited model. Where the base is looked into, the edit's maps are put into the readouts here."""
    base, recipe = edit.base, edit.recipe
    if not _keeps_base(edit):
        return project_texts(edit.edited, texts)
    tensors = recipe.tensors or {}
    whole = torch.eye(base.tower.d_embed)
    # t . (A z) = (A^T t) . z: an edited output is read by the base through the mapped text.
    output = (whole if base.alignment else tensors.get("output.map", whole)).double()
    found = {}
    for head, text in texts.items():
        seen = compute_seen(base, text @ output, [head])[head.layer][head.head]
        edited = str(head) in recipe.heads
        found[head] = seen @ tensors[f"heads.{head}.map"].double() if edited else seen
    return found


def _keeps_base(edit: Edit) -> bool:
    """Whether the base's own layers show the edit: `direct` leaves them alone, and an aligner reads no others."""
    return edit.recipe.document.effect == "direct" or edit.base.alignment is not None


def _draw(found: Sequence[tuple[int, float]], grids: Float[np.ndarray, "image row column 2"]) -> list[Exciting]:
    """One head's images, by their rows in the grids of that head."""
    # One scale a card: before and after, and images, can be compared by eye.
    scale = max(float(np.abs(grids[row, ..., 0]).max()) for row, _ in found)
    return [
        Exciting(row, strength, *(tint_png(grids[row, ..., side], scale) for side in (0, 1))) for row, strength in found
    ]


def _thumbnail(model: Model, name: str, image: Image.Image) -> Thumbnail:
    # Pillow's `thumbnail` works in place.
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return Thumbnail(name, encode_image_file(np.asarray(small), "JPEG"), find_view(model.preprocess, image.size))
