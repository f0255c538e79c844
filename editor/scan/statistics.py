"""Sufficient statistics: everything later stages need of the images, as plain sums.

Contributions are divided by the embedding's norm first, as in TextSpan. With `g = [f, 1, |z|] / |z|` the sums are
`g g^T` once, `(u/|z|) (u/|z|)^T`, `(u/|z|) g^T`, `u` and `v` a component; float64, so sums over parts of a data set add
up to the sums over the whole. Their size does not depend on the number of images.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..components import ComponentGroup, Features
from ..errors import StatisticsError
from ..notebook import html_table

PARTS = ("uu", "ug", "u", "v")


@dataclass(frozen=True)
class GroupSums:
    """Sums over images for one group of components. `g` is `d_model + 2` wide; its last column counts images."""

    uu: Float[Tensor, "component k k"]
    ug: Float[Tensor, "component k g"]
    u: Float[Tensor, "component k"]
    v: Float[Tensor, "component d_head"]

    def __add__(self, other: GroupSums) -> GroupSums:
        return GroupSums(self.uu + other.uu, self.ug + other.ug, self.u + other.u, self.v + other.v)


@dataclass(frozen=True)
class Statistics:
    """Sums over `n` images. Moments below are of vectors divided by `|z|` unless they say otherwise."""

    n: int
    gg: Float[Tensor, "g g"]
    groups: dict[str, GroupSums]

    def __add__(self, other: Statistics) -> Statistics:
        if self.groups.keys() != other.groups.keys():
            raise StatisticsError(
                f"cannot add statistics: one has {', '.join(self.groups)}, the other {', '.join(other.groups)}."
            )
        groups = {name: sums + other.groups[name] for name, sums in self.groups.items()}
        return Statistics(self.n + other.n, self.gg + other.gg, groups)

    def add(self, other: Statistics) -> Statistics:
        """The same sum in this one's own memory, which must not be used again: for sums of many parts."""
        if self.groups.keys() != other.groups.keys():
            return self + other
        self.gg.add_(other.gg)
        for name, sums in self.groups.items():
            for part in PARTS:
                getattr(sums, part).add_(getattr(other.groups[name], part))
        return Statistics(self.n + other.n, self.gg, self.groups)

    def _repr_html_(self) -> str:
        rows = [(name, len(sums.u), sums.u.shape[1]) for name, sums in self.groups.items()]
        return html_table(f"statistics of {self.n} images", ("group", "components", "features each"), rows)

    def to(self, device: torch.device | str) -> Statistics:
        """The same sums on another device; waits for what is still being computed."""
        groups = {
            name: GroupSums(*(getattr(sums, part).to(device) for part in PARTS)) for name, sums in self.groups.items()
        }
        return Statistics(self.n, self.gg.to(device), groups)

    def require(self, images: int) -> None:
        """Refuse statistics of too few images.

        Raises:
            StatisticsError: If fewer than `images` were seen.
        """
        if self.n < images:
            raise StatisticsError(
                f"cannot use the scan: it saw {self.n} images, at least {images} are needed. Scan more."
            )

    def mean_features(self, group: str) -> Float[Tensor, "component k"]:
        """Mean of `u`, not divided by `|z|`: what `direct` and `distilled` edits put in a feature's place."""
        return self.groups[group].u / self.n

    def mean_values(self, group: str) -> Float[Tensor, "component d_head"]:
        """Mean of `v` at the readout, not divided by anything: what `total` edits put in a value's place."""
        return self.groups[group].v / self.n

    def feature_covariance(self, group: str) -> Float[Tensor, "component k k"]:
        """Covariance of `u / |z|`."""
        sums = self.groups[group]
        # The last column of `g` is `|z| / |z|` = 1, so sums with it are sums of `u / |z|` alone.
        mean = sums.ug[..., -1] / self.n
        return sums.uu / self.n - mean[:, :, None] * mean[:, None, :]

    def feature_final_covariance(self, group: str) -> Float[Tensor, "component k d_model"]:
        """Covariance of `u / |z|` with `f / |z|`."""
        sums = self.groups[group]
        # `:-2` leaves out the columns `1 / |z|` and 1.
        mean, final_mean = sums.ug[..., -1] / self.n, self.gg[-1, :-2] / self.n
        return sums.ug[..., :-2] / self.n - mean[:, :, None] * final_mean

    def final_covariance(self) -> Float[Tensor, "d_model d_model"]:
        """Covariance of `f / |z|`."""
        mean = self.gg[-1, :-2] / self.n
        return self.gg[:-2, :-2] / self.n - mean[:, None] * mean

    def inverse_norm_final_covariance(self) -> Float[Tensor, " d_model"]:
        """Covariance of `1 / |z|`, which scales the constant, with `f / |z|`."""
        # Row -2 of `g g^T` is that of `1 / |z|`, row -1 that of 1.
        return self.gg[-2, :-2] / self.n - self.gg[-1, -2] / self.n * self.gg[-1, :-2] / self.n


def sum_statistics(parts: Sequence[Statistics]) -> Statistics:
    """The sums over all parts, added in their order."""
    return functools.reduce(operator.add, parts)


def empty_statistics(groups: Sequence[ComponentGroup], d_model: int, device: torch.device | str = "cpu") -> Statistics:
    """Sums over no image."""

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float64, device=device)

    wide = d_model + 2
    sums = {
        group.name: GroupSums(
            zeros(len(group.ids), group.k, group.k),
            zeros(len(group.ids), group.k, wide),
            zeros(len(group.ids), group.k),
            zeros(len(group.ids), group.d_head),
        )
        for group in groups
    }
    return Statistics(0, zeros(wide, wide), sums)


def add_features(statistics: Statistics, features: Features) -> Statistics:
    """Sums with one more batch, on the device of the sums: the host never waits for them.

    The sums given are updated in place and must not be used again.
    """
    device = statistics.gg.device
    norm = features.embedding.to(device).double().norm(dim=1)
    ones = torch.ones_like(norm)
    # [image, d_model + 2]: `f / |z|`, `1 / |z|`, 1.
    g = torch.cat([features.final.to(device).double(), ones[:, None], norm[:, None]], dim=1) / norm[:, None]
    statistics.gg.addmm_(g.T, g)
    for name, sums in statistics.groups.items():
        # [image, component, k] -> [component, k, image]
        u = features.groups[name].to(device).double()
        scaled = (u / norm[:, None, None]).permute(1, 2, 0).contiguous()
        sums.uu.baddbmm_(scaled, scaled.transpose(1, 2))
        # [image, g] -> [component, image, g] without a copy: all components share one `g`.
        sums.ug.baddbmm_(scaled, g.expand(len(scaled), -1, -1))
        # Not divided by `|z|`: edits put this mean in a feature's place.
        sums.u.add_(u.sum(0))
        if name in features.values:
            sums.v.add_(features.values[name].to(device).double().sum(0))
    return Statistics(statistics.n + len(norm), statistics.gg, statistics.groups)
