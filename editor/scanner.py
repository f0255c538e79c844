"""A model made ready to scan: which parts it collects, and the sums of one run of batches.

One pass and scans in units share this loop, so that a unit's numbers are those of a small scan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from .components import ComponentGroup, Features
from .images import Batch
from .model import Model
from .statistics import Statistics, add_features, empty_statistics
from .towers.open_clip_attention import require_self_attention, self_attention_groups, with_self_attention
from .towers.open_clip_vit import OpenClipViT

AfterBatch = Callable[[Batch, Features | None], None]


@dataclass(frozen=True)
class Scanner:
    """How a model is scanned; `settings` are what its numbers depend on besides the images.

    Attributes:
        layers: The layers whose heads are scanned.
        mlps: Whether MLPs and the embedding are scanned too.
        self_attention: Whether what CLS takes from itself is.
        batch_size: Images a forward pass.
    """

    model: Model
    layers: tuple[int, ...]
    mlps: bool = False
    self_attention: bool = False
    batch_size: int = 32

    @cached_property
    def groups(self) -> list[ComponentGroup]:
        """The components that a tower collects."""
        return self.model.tower.groups(self.layers, mlps=self.mlps)

    @cached_property
    def _looks_inside(self) -> OpenClipViT | None:
        return require_self_attention(self.model.tower, self.model.name) if self.self_attention else None

    def empty(self) -> Statistics:
        """Sums over no image.

        Raises:
            ModelError: If self-attention is wanted and the tower does not tell it apart.
        """
        inside = self._looks_inside
        selves = self_attention_groups(inside, self.layers) if inside else []
        return empty_statistics([*self.groups, *selves], self.model.tower.d_model)

    def collect(self, pixels: Tensor) -> Features:
        """The features of one batch."""
        pixels = pixels.to(self.model.device)
        features = self.model.tower.collect_features(pixels, self.groups)
        inside = self._looks_inside
        return with_self_attention(inside, pixels, self.layers, features) if inside else features

    def sum_batches(self, batches: Iterable[Batch], after: AfterBatch) -> Statistics:
        """The sums over batches; `after` sees each batch and its features, None where no image could be read."""
        statistics = self.empty()
        for batch in batches:
            features = None
            if batch.indices:
                features = self.collect(batch.pixels)
                statistics = add_features(statistics, features)
            after(batch, features)
        return statistics
