"""A model made ready to scan: which parts it collects, and the sums of one run of batches.

One pass and scans in units share this loop, so that a unit's numbers are those of a small scan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..choices import Decode, Exif, PassPrecision
from ..components import ComponentGroup, Features, take_rows
from ..images.batches import Batch
from ..images.source import ImageSource
from ..models.devices import BatchLimit, lower_precision, start_size, sums_device
from ..models.model import Model
from ..towers.vit.open_clip_attention import require_self_attention, self_attention_groups, with_self_attention
from ..towers.vit.open_clip_vit import OpenClipViT
from .sample import FOLDS, Sample, SampleKeeper, choose_folds, unit_sample_size
from .statistics import Statistics, add_features, empty_statistics

KeepFeatures = Callable[[Features, Sequence[int]], None]


@dataclass(frozen=True)
class Scanner:
    """How a model is scanned.

    Attributes:
        layers: The layers whose heads are scanned.
        mlps: Whether MLPs and the embedding are scanned too.
        self_attention: Whether what CLS takes from itself is.
        batch_size: Images a forward pass; None for as many as fit in memory.
        precision: Of matrix products in the forward pass; the readout and all sums are never lower than they were.
        compiled: Whether `torch.compile` makes the forward pass.
        exif: Whether photos are turned upright as they are read.
        decode: Whether large JPEGs are decoded in full.
    """

    model: Model
    layers: tuple[int, ...]
    mlps: bool = False
    self_attention: bool = False
    batch_size: int | None = 32
    precision: PassPrecision = "fp32"
    compiled: bool = False
    exif: Exif = "upright"
    decode: Decode = "scaled"

    @cached_property
    def groups(self) -> list[ComponentGroup]:
        """The components that a tower collects."""
        return self.model.tower.groups(self.layers, mlps=self.mlps)

    @property
    def read_size(self) -> int:
        """Images a batch as they are read; where memory is short, it is computed in parts."""
        return self.batch_size or start_size(self.model.device)

    @cached_property
    def _limit(self) -> BatchLimit:
        # Kept over all batches: a size for which memory ran out is not tried again.
        return BatchLimit(self.read_size, may_shrink=self.batch_size is None)

    @cached_property
    def _looks_inside(self) -> OpenClipViT | None:
        return require_self_attention(self.model.tower, self.model.name) if self.self_attention else None

    @cached_property
    def _forward(self) -> Callable[[Tensor, list[ComponentGroup]], Features]:
        forward = self.model.tower.collect_features
        return torch.compile(forward) if self.compiled else forward

    @cached_property
    def _readout(self) -> Tensor:
        return self.model.tower.readout().to(self.model.device, torch.float32)

    def describe(self) -> dict[str, Any]:
        """What the numbers depend on besides the images, the model and the parts that are scanned."""
        found: dict[str, Any] = {"batch_size": self.batch_size or "auto", "precision": self.precision}
        return {
            **found,
            "compiled": self.compiled,
            "device": self.model.device.type,
            "threads": torch.get_num_threads(),
        }

    def empty(self) -> Statistics:
        """Sums over no image, on the device where they are kept.

        Raises:
            ModelError: If self-attention is wanted and the tower does not tell it apart.
        """
        inside = self._looks_inside
        selves = self_attention_groups(inside, self.layers) if inside else []
        device = sums_device(self.model.device)
        return empty_statistics([*self.groups, *selves], self.model.tower.d_model, device)

    def collect(self, pixels: Tensor) -> Features:
        """The features of one batch."""
        # From pinned memory the copy runs while the processor goes on.
        pixels = pixels.to(self.model.device, non_blocking=True)
        with lower_precision(self.model.device, self.precision):
            features = self._forward(pixels, self.groups)
            inside = self._looks_inside
            features = with_self_attention(inside, pixels, self.layers, features) if inside else features
        if self.precision == "fp32":
            return features
        # Everything is divided by the embedding's norm: it is read out of `f` in full precision.
        final = features.final.float()
        return replace(features, final=final, embedding=final @ self._readout)

    def collect_parts(self, pixels: Tensor) -> Iterator[tuple[slice, Features]]:
        """The features of a batch, in as few parts as memory allows.

        Raises:
            ModelError: If memory runs out and the batch size is fixed.
        """
        return self._limit.run(len(pixels), lambda part: self.collect(pixels[part]))

    def sum_batches(
        self, batches: Iterable[Batch], after: Callable[[Batch], None], keep: KeepFeatures | None = None
    ) -> Statistics:
        """The sums over batches, on the CPU.

        Args:
            after: Called with each batch when it is done.
            keep: Called with features as they come, and their positions in the source.
        """
        statistics = self.empty()
        for features, indices in self._features_of(batches, after):
            statistics = add_features(statistics, features)
            if keep is not None:
                keep(features, indices)
        return statistics.to("cpu")

    def sum_folds(
        self,
        source: ImageSource,
        batches: Iterable[Batch],
        after: Callable[[Batch], None],
        keep: KeepFeatures | None = None,
        *,
        units: int = 1,
    ) -> tuple[tuple[Statistics, ...], Sample | None]:
        """The sums over the batches of a source, fold by fold, and the sample that is kept of it; on the CPU.

        Args:
            after, keep: As for `sum_batches`.
            units: How many such sources make up the whole: a part keeps a smaller sample.
        """
        sample = SampleKeeper(source, unit_sample_size(units))
        chosen = choose_folds(sample.marks)
        folds = [self.empty() for _ in range(FOLDS)]
        for features, indices in self._features_of(batches, after):
            # [image]: the fold of each row.
            of = torch.tensor([chosen[index] for index in indices], device=features.final.device)
            for number in set(of.tolist()):
                folds[number] = add_features(folds[number], take_rows(features, of == number))
            sample.add(features, indices)
            if keep is not None:
                keep(features, indices)
        return tuple(fold.to("cpu") for fold in folds), sample.finish()

    def _features_of(
        self, batches: Iterable[Batch], after: Callable[[Batch], None]
    ) -> Iterator[tuple[Features, Sequence[int]]]:
        for batch in batches:
            # A batch in which nothing could be read is not computed, but it is counted.
            for part, features in self.collect_parts(batch.pixels) if batch.indices else ():
                yield features, batch.indices[part]
            after(batch)
