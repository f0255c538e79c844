"""Collecting: what a model gives for every image of a source, where means are not enough."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..components import ComponentGroup, Features, HeadId
from ..images.batches import load_batches
from ..images.source import ImageSource, LabelledImages
from ..models.model import Model
from ..towers.tower import Tower
from ..towers.vit.open_clip_attention import require_self_attention, with_self_attention
from .features import CachedFeatures
from .tally import MAX_BAD, Progress, Tally

# Images that are run at once, where nobody says otherwise.
BATCH_SIZE = 64


def place(name: str) -> tuple[str, int]:
    """The group of features that a part is in, and where."""
    head = name.removesuffix(".self")
    # `L3H5.self` is row 5 of the group `L3.self`; any other part is a group with a single row.
    return (f"L{HeadId.parse(head).layer}.self", HeadId.parse(head).head) if head != name else (name, 0)


def collect_with_parts(tower: Tower, pixels: Tensor, groups: list[ComponentGroup], names: list[str]) -> Features:
    """One batch's features, with those of the named parts."""
    layers = sorted({HeadId.parse(name.removesuffix(".self")).layer for name in names if name.endswith(".self")})
    features = tower.collect_features(pixels, groups)
    if not layers:
        return features
    return with_self_attention(require_self_attention(tower, "this model"), pixels, layers, features)


@dataclass(frozen=True)
class LabelledEmbeddings:
    """Images with the label that is to be erased: what the last norm gave, the embedding, and the label of each."""

    final: Float[Tensor, "image d_model"]
    embedding: Float[Tensor, "image d_embed"]
    labels: Int[Tensor, " image"]


def collect_embeddings(
    model: Model,
    source: ImageSource,
    *,
    batch_size: int = BATCH_SIZE,
    max_bad: float = MAX_BAD,
    progress: Progress | None = None,
) -> tuple[Float[Tensor, "image d_embed"], list[int]]:
    """Unnormalised embeddings of a source, and the positions of the images that could be read.

    Raises:
        ImageError: If more than `max_bad` of the images cannot be read.
    """
    parts, kept = [], []
    for pixels, indices in iterate_pixels(model, source, batch_size, max_bad, progress):
        parts.append(model.encode_tokens(pixels).cpu() if source.holds_texts else model.encode_image(pixels).cpu())
        kept += indices
    return torch.cat(parts), kept


def collect_features(
    model: Model,
    source: ImageSource,
    *,
    layers: Sequence[int],
    batch_size: int = BATCH_SIZE,
    parts: Sequence[str] = (),
    cached: CachedFeatures | None = None,
    progress: Progress | None = None,
) -> tuple[Features, list[int]]:
    """The features of a whole source, for trying many edits without running the model again; and as
    `collect_embeddings`.

    Args:
        parts: Whole parts that an edit ablates (`L3.mlp`, `L3.bias`, `L3H5.self`), whose features are wanted too.

    Memory: `len(source) * len(layers) * d_model` floats; nearly none when all of it comes from `cached`.

    Raises:
        StatisticsError, ImageError: If `cached` is of another model, other layers or other images.
    """
    if cached is not None:
        cached.require(model, layers)
        return cached.select(source)
    wanted = {place(name)[0] for name in parts}
    # 1 / sigma, which the self-attention of a head is divided by, is what a bias component gives.
    wanted |= {name.replace(".self", ".bias") for name in wanted}
    every = model.tower.groups(layers, mlps=bool(parts))
    groups = [group for group in every if group.ids[0].kind == "head" or group.name in wanted]
    found, kept = [], []
    for pixels, indices in iterate_pixels(model, source, batch_size, MAX_BAD, progress):
        found.append(collect_with_parts(model.tower, pixels.to(model.device), groups, list(parts)))
        kept += indices
    features = Features(
        {name: torch.cat([part.groups[name] for part in found]).cpu() for name in (found[0].groups if found else ())},
        {},
        torch.cat([part.final for part in found]).cpu(),
        torch.cat([part.embedding for part in found]).cpu(),
    )
    return features, kept


def collect_labelled(model: Model, labelled: LabelledImages, *, progress: Progress | None = None) -> LabelledEmbeddings:
    """Labelled images as `bind_recipe` takes them, for steps that erase their labels.

    Raises:
        ImageError: If images cannot be read.
    """
    features, kept = collect_features(model, labelled.source, layers=(), progress=progress)
    labels = torch.tensor([labelled.labels[index] for index in kept])
    return LabelledEmbeddings(features.final, features.embedding, labels)


def iterate_pixels(
    model: Model, source: ImageSource, batch_size: int, max_bad: float, progress: Progress | None
) -> Iterator[tuple[Tensor, list[int]]]:
    """Preprocessed batches of the images that can be read, with their positions; fails as `collect_embeddings`."""
    tally = Tally(len(source), max_bad, progress)
    for batch in load_batches(source, model.prepare(source), batch_size=batch_size):
        # A batch in which nothing could be read has no pixels that a model could take.
        if batch.indices:
            yield batch.pixels, list(batch.indices)
        tally.add(batch)
