"""Head cards: what a head says (TextSpan), how much of a concept it carries, and the images that excite it most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ...editor.components import Features, HeadId
from ...editor.concepts.queries import encode_queries
from ...editor.concepts.scores import HeadScore
from ...editor.concepts.textspan import HeadLabel
from ...editor.edits.recipe import Recipe
from ...editor.images.source import ImageSource
from ...editor.look.pictures import encode_image_file, tint_png
from ...editor.look.spatial import compute_seen, compute_token_shares
from ...editor.look.view import View, find_view
from ...editor.models.model import Model
from ...editor.scan.collect import collect_features
from ...editor.scan.scan import Scan
from ...editor.scan.tally import Progress
from ...editor.towers.tower import SpatialTower

SEARCHED, SHOWN, PICTURED = 256, 4, 32
THUMBNAIL = 144


@dataclass(frozen=True)
class Edit:
    """An edit and what it was made from; all that a report is drawn from. `scan` and `source` may be missing."""

    recipe: Recipe
    base: Model
    edited: Model
    scan: Scan | None = None
    source: ImageSource | None = None


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
class HeadCard:
    """What the report tells of one head."""

    head: HeadId
    edited: bool
    score: float
    texts: Sequence[HeadLabel]
    images: Sequence[Exciting] = ()


@dataclass(frozen=True)
class Pictures:
    """The images of all cards: thumbnails once, and which of them belong to which head."""

    thumbnails: Sequence[Thumbnail] = ()
    images: Mapping[HeadId, Sequence[Exciting]] = field(default_factory=dict)


def build_cards(
    recipe: Recipe, labels: Mapping[str, Sequence[HeadLabel]], scores: Sequence[HeadScore], pictures: Pictures
) -> list[HeadCard]:
    """A card a scanned head, by layer and head."""
    edited, scored = set(recipe.heads), {row.component: row.score for row in scores}
    heads = sorted(HeadId.parse(name) for name in labels)
    return [
        HeadCard(
            head, str(head) in edited, scored.get(str(head), 0.0), labels[str(head)], pictures.images.get(head, ())
        )
        for head in heads
    ]


def collect_pictures(
    edit: Edit,
    labels: Mapping[str, Sequence[HeadLabel]],
    heads: Sequence[HeadId],
    *,
    progress: Progress | None = None,
) -> Pictures:
    """The images that excite some heads most, with the heads' heatmaps towards their first texts, before and after.

    At most `SEARCHED` images, spread over the source, are looked at; none without a source, or where texts were
    scanned.
    """
    base, source = edit.base, edit.source
    if not isinstance(base.tower, SpatialTower):
        return Pictures()
    texts = {head: encode_queries(base, [labels[str(head)][0].text]) for head in heads if labels[str(head)]}
    if source is None or edit.scan is None or not texts:
        return Pictures()
    # Rounded up, so that there are never more than SEARCHED.
    spread = source.subset(range(0, len(source), max(1, -(-len(source) // SEARCHED))))
    features, kept = collect_features(base, spread, layers=edit.scan.layers, progress=progress)
    before = {head: compute_seen(base, text, [head])[head.layer][head.head] for head, text in texts.items()}
    chosen = {head: _most_exciting(features, head, seen[0]) for head, seen in before.items()}
    after = _edited_queries(edit, texts)
    wanted = sorted({index for found in chosen.values() for index, _ in found})
    opened = {index: spread.open(kept[index]) for index in wanted}
    shown = base if _keeps_base(edit) else edit.edited
    grids = {i: (_heatmaps(base, image, before), _heatmaps(shown, image, after)) for i, image in opened.items()}
    thumbnails = [_thumbnail(base, spread.names[kept[index]], opened[index]) for index in wanted]
    return Pictures(thumbnails, {head: _draw(head, found, grids, wanted) for head, found in chosen.items()})


def _most_exciting(features: Features, head: HeadId, seen: Float[Tensor, " k"]) -> list[tuple[int, float]]:
    """Positions of the images with the largest part of the cosine, and that part."""
    u = features.groups[f"L{head.layer}.heads"][:, head.head].double()
    # [image, k] @ [k] over |z|: the head's part of the cosine to its text.
    strength = u @ seen / features.embedding.double().norm(dim=1)
    best = strength.topk(min(SHOWN, len(strength)))
    return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))


def _edited_queries(edit: Edit, texts: Mapping[HeadId, Tensor]) -> dict[HeadId, Float[Tensor, "text k"]]:
    """`R'^T t` of the edited model. Where the base is looked into, the edit's maps are put into the readouts here."""
    base, recipe = edit.base, edit.recipe
    if not _keeps_base(edit):
        return {head: compute_seen(edit.edited, text, [head])[head.layer][head.head] for head, text in texts.items()}
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


def _heatmaps(model: Model, image: Image.Image, queries: Mapping[HeadId, Tensor]) -> dict[HeadId, np.ndarray]:
    """Every head towards its own text, in one forward pass: `[row, column]`."""
    heads = list(queries)
    seen = {}
    for layer in sorted({head.layer for head in heads}):
        k = next(query.shape[1] for head, query in queries.items() if head.layer == layer)
        # Zeros for the layer's other heads, which are not looked at.
        seen[layer] = torch.zeros(model.tower.heads_per_layer[layer], 1, k, dtype=torch.float64)
    for head, query in queries.items():
        seen[head.layer][head.head] = query
    nothing = torch.zeros(1, model.tower.d_embed)  # The queries say what to look for.
    found = compute_token_shares(model, model.preprocess(image)[None], nothing, heads=heads, seen=seen).on_image()[0]
    return {head: grid[..., 0].numpy().astype(np.float64) for head, grid in zip(heads, found, strict=True)}


def _draw(
    head: HeadId,
    found: Sequence[tuple[int, float]],
    grids: Mapping[int, tuple[Mapping[HeadId, np.ndarray], Mapping[HeadId, np.ndarray]]],
    wanted: Sequence[int],
) -> list[Exciting]:
    # One scale a card: before and after, and images, can be compared by eye.
    scale = max(float(np.abs(grids[index][0][head]).max()) for index, _ in found)
    return [
        Exciting(wanted.index(index), strength, *(tint_png(grid[head], scale) for grid in grids[index]))
        for index, strength in found
    ]


def _thumbnail(model: Model, name: str, image: Image.Image) -> Thumbnail:
    # Pillow's `thumbnail` works in place.
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return Thumbnail(name, encode_image_file(np.asarray(small), "JPEG"), find_view(model.preprocess, image.size))
