"""The sample of a scan: the features of a few images, from the same pass, for what sums cannot tell.

Which images are kept depends on their keys only: those whose hashes are smallest. So a sample is spread over the
source, and the sample of merged scans is the merge of their samples, in whatever order and from whatever shards they
come.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..choices import Decode
from ..components import Features, take_rows
from ..images.source import ImageSource
from .features import image_keys

SAMPLE_IMAGES, FOLDS = 512, 2
# A partial scan keeps more than its share, so that the merged sample is nearly always that of one pass.
SPARE, LEAST_OF_UNIT = 4, 16
# Distance of unit embeddings: the same image in another batch is nearer, the next image is not; nor is it where one of
# the two was decoded smaller (measured: .011 at most, the nearest others .09).
_SAME: dict[Decode, float] = {"exact": 1e-3, "scaled": 2e-2}


@dataclass(frozen=True)
class Sample:
    """Features of at most 512 images.

    Attributes:
        features: As a tower collects them, without `values`, float32, on the CPU; one row per image, in the order of
            `marks`.
        marks: The hash of each image's key, ascending.
        names: What each image is called in its source.
    """

    features: Features
    marks: tuple[str, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.marks)

    def merge(self, other: Sample, most: int = SAMPLE_IMAGES) -> Sample:
        """The images of smallest hash of both."""
        marks, names = self.marks + other.marks, self.names + other.names
        order = sorted(range(len(marks)), key=lambda i: marks[i])[:most]
        joined = _join([self.features, other.features])
        return Sample(
            # With its type: an empty list would become floats, which cannot index.
            take_rows(joined, torch.tensor(order, dtype=torch.long)),
            tuple(marks[i] for i in order),
            tuple(names[i] for i in order),
        )


@dataclass
class SampleKeeper:
    """Keeps the rows of a pass that belong to the sample."""

    source: ImageSource
    most: int = SAMPLE_IMAGES
    parts: list[Features] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.marks = mark_keys(self.source)
        # Chosen before anything is read: if one of these turns out unreadable, no other takes its place.
        self.wanted = set(sorted(range(len(self.marks)), key=lambda i: self.marks[i])[: self.most])

    def add(self, features: Features, indices: Sequence[int]) -> None:
        """Take what is wanted of a batch; `indices` are positions in the source."""
        rows = [row for row, index in enumerate(indices) if index in self.wanted]
        if rows:
            self.parts.append(_to_rest(take_rows(features, torch.tensor(rows, device=features.final.device))))
            self.kept += [indices[row] for row in rows]

    def finish(self) -> Sample | None:
        """The sample; None where no image of it could be read."""
        if not self.parts:
            return None
        order = sorted(range(len(self.kept)), key=lambda i: self.marks[self.kept[i]])
        return Sample(
            take_rows(_join(self.parts), torch.tensor(order)),
            tuple(self.marks[self.kept[i]] for i in order),
            tuple(self.source.names[self.kept[i]] for i in order),
        )


def merge_samples(one: Sample | None, other: Sample | None) -> Sample | None:
    """The sample of both; that of one where the other has none."""
    return one.merge(other) if one is not None and other is not None else one or other


def mark_keys(source: ImageSource) -> list[str]:
    """A short hash per image, of its name and what is known of its content: what folds and samples go by."""
    # File names may hold bytes that are no UTF-8, on which `encode` fails.
    return [hashlib.sha256(os.fsencode(key)).hexdigest()[:16] for key in image_keys(source)]


def count_seen(
    sample: Sample, source: ImageSource, embeddings: Float[Tensor, "image d_embed"], *, decode: Decode = "exact"
) -> int:
    """How many images of a sample are among others that are measured, by their names and sizes, or by their embeddings.

    Args:
        embeddings: Of the images of `source`, in any order, by the model that was scanned, unedited; decoded in full.
        decode: How the images of the sample were decoded.
    """
    marks = set(mark_keys(source))
    seen = [mark in marks for mark in sample.marks]
    kept = sample.features.embedding
    if kept.shape[1] == embeddings.shape[1] and len(embeddings):
        # float64: `|a - b|^2 = 2 - 2 cos` is compared with 1e-6 at the least, which is near the rounding of float32.
        ours, theirs = (F.normalize(part.double().cpu(), dim=1) for part in (kept, embeddings))
        nearest = (ours @ theirs.T).amax(1)
        same = _SAME[decode]
        seen = [known or bool(2 - 2 * cosine < same**2) for known, cosine in zip(seen, nearest.tolist(), strict=True)]
    return sum(seen)


def choose_folds(marks: Sequence[str]) -> list[int]:
    """The fold that each image falls into: stable under sharding, merging and order.

    It looks at the end of a hash, the sample at its beginning, so that a sample is spread over the folds.
    """
    return [int(mark[-8:], 16) % FOLDS for mark in marks]


def unit_sample_size(units: int) -> int:
    """How many images one of so many units keeps."""
    return SAMPLE_IMAGES if units <= 1 else min(SAMPLE_IMAGES, max(LEAST_OF_UNIT, -(-SPARE * SAMPLE_IMAGES // units)))


def _to_rest(features: Features) -> Features:
    groups = {name: tensor.float().cpu() for name, tensor in features.groups.items()}
    return Features(groups, {}, features.final.float().cpu(), features.embedding.float().cpu())


def _join(parts: Sequence[Features]) -> Features:
    groups = {name: torch.cat([part.groups[name] for part in parts]) for name in parts[0].groups}
    return Features(
        groups, {}, torch.cat([part.final for part in parts]), torch.cat([part.embedding for part in parts])
    )
