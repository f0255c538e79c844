"""What is left of any direction after any subset of heads is mean-ablated and the readout refitted: a quadratic form.

The refit is linear in the heads: with `D_h` the change for head h alone, a subset `s` gives `P' = P + sum_h s_h D_h`.
The variance along a direction t is then `[1 s]^T Q_t [1 s]`, from a scan's sums alone: no image is read, no label
needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..components import HeadId
from ..models.model import Model
from ..scan.scan import Scan

# A subset's change is a sum of many small ones: a ridge well above rounding keeps it stable from 64 images on.
RIDGE = 1e-3
# Directions whose forms are made in one step: every head's refit is read once for them, and moves this many columns.
AT_ONCE = 32


@dataclass(frozen=True)
class HeadSubsets:
    """The heads of a scan as a closed form; all moments are of vectors divided by `|z|`, float64.

    Attributes:
        readout: Of the model, a row of zeros for the constant below it.
        covariance: Of `[f, 1]`.
        changes, readouts: A head's refit is `changes[h] @ readouts[h].T`: never formed, it is wide.
        cross: Covariance of a head's features with `f`.
    """

    heads: tuple[HeadId, ...]
    readout: Float[Tensor, "fitted d_embed"]
    covariance: Float[Tensor, "fitted fitted"]
    changes: Float[Tensor, "head fitted k"]
    readouts: Float[Tensor, "head d_embed k"]
    cross: Float[Tensor, "head k d_model"]

    def quadratic_forms(self, directions: Float[Tensor, "d_embed direction"]) -> Float[Tensor, "direction form form"]:
        """`Q_t` of every direction: `[1 s]^T Q_t [1 s]` is the variance along it that a subset `s` leaves."""
        return torch.cat([self._forms(part) for part in directions.split(AT_ONCE, 1)])

    def _forms(self, directions: Float[Tensor, "d_embed direction"]) -> Float[Tensor, "direction form form"]:
        # [fitted, t]: what the unedited readout reads along t
        own = self.readout @ directions
        # [head, d_embed, k], [d_embed, t] -> [head, k, t]
        seen = torch.einsum("hek,et->hkt", self.readouts, directions)
        # Twice [1 + head, fitted, t]: M_t, and C M_t without a product as wide as the model for every head.
        moved = torch.cat([own[None], self.changes @ seen])
        spread = torch.cat([(self.covariance @ own)[None], self._spread_changes @ seen])
        # Q_t = M_t^T C M_t: [t, 1 + head, 1 + head]
        return torch.einsum("adt,bdt->tab", moved, spread)

    @cached_property
    def _spread_changes(self) -> Float[Tensor, "head fitted k"]:
        return self.covariance @ self.changes

    def variances(self, directions: Float[Tensor, "d_embed direction"]) -> Float[Tensor, " direction"]:
        """The unedited variance along every direction: `Q_t[0, 0]`, without the rest of the form."""
        own = self.readout @ directions
        return (own * (self.covariance @ own)).sum(0)

    def usual_variance(self, texts: Float[Tensor, "text d_embed"]) -> float:
        """The unedited variance along a general text: the median over centred texts, each at unit length."""
        return float(self.variances(F.normalize(texts, dim=1).T).median())

    def shares(self, directions: Float[Tensor, "d_embed direction"]) -> Float[Tensor, " head"]:
        """Covariance shares, as `compute_covariance_shares`."""
        return self.shares_each([directions])[0]

    def shares_each(self, spans: Sequence[Float[Tensor, "d_embed _"]]) -> list[Float[Tensor, " head"]]:
        """`shares` of every span: its heads are read once for all."""
        basis = torch.cat(list(spans), 1)
        # [head, d_embed, k], [d_embed, basis] -> [head, k, basis]
        seen = self.readouts.transpose(1, 2) @ basis
        # Without the constant's row, which is zero.
        read = (self.readout @ basis)[:-1]
        width = len(read)
        whole = (read * (self.covariance[:width, :width] @ read)).sum(0)
        # Each head's covariance with the embedding along every direction: [head, basis].
        parts = (seen * (self.cross @ read)).sum(1)
        sizes = [span.shape[1] for span in spans]
        least = torch.finfo(whole.dtype).tiny
        pairs = zip(parts.split(sizes, 1), whole.split(sizes), strict=True)
        return [part.sum(1) / own.sum().clamp_min(least) for part, own in pairs]


def build_head_subsets(scan: Scan, model: Model, *, ridge: float = RIDGE) -> HeadSubsets:
    """The closed form of every scanned head, one factorisation for all.

    Args:
        ridge: Of the refit, times `tr G / (d + 1)`.

    Raises:
        StatisticsError: If the scan is not of this model, or saw fewer than two images.
    """
    statistics = scan.statistics
    statistics.require(2)
    groups = [group for group in scan.groups(model) if group.ids[0].kind == "head"]
    read = model.tower.compute_readouts(groups)
    # f / |z| and 1 / |z|: an aligned model's scan holds more columns between them.
    fitted = [*range(model.tower.d_model), len(statistics.gg) - 2]
    gram = statistics.gg[fitted][:, fitted]
    eye = torch.eye(len(gram)).double()
    # The Gram matrix is singular, since LayerNorm fixes one direction: it needs the ridge.
    factor = torch.linalg.cholesky(gram + ridge * gram.trace() / len(gram) * eye)
    changes: list[Tensor] = []
    for group in groups:
        # [head, k, fitted] -> [head, fitted, k]
        moments = statistics.groups[group.name].ug[:, :, fitted].transpose(1, 2)
        # As the refit's target, for a head that keeps its mean only.
        target = moments - gram[:, -1:] * statistics.mean_features(group.name)[:, None, :]
        changes += [-torch.cholesky_solve(one, factor) for one in target]
    mean = statistics.gg[-1, fitted] / statistics.n
    return HeadSubsets(
        tuple(HeadId.parse(str(identity)) for group in groups for identity in group.ids),
        # The unedited readout has no constant: a row of zeros for it.
        torch.cat([model.tower.readout(), torch.zeros(1, model.tower.d_embed).double()]),
        # Centred: variances, not second moments.
        gram / statistics.n - mean[:, None] * mean,
        torch.stack(changes),
        torch.cat([read[group.name] for group in groups]),
        torch.cat([statistics.feature_final_covariance(group.name) for group in groups]),
    )


def removed_share(forms: Float[Tensor, "direction form form"], taken: Sequence[int]) -> float:
    """Share of the variance along some directions, summed, that removing these heads removes."""
    summed = forms.sum(0)
    # Entry [0, 0] is the subset without heads: the unedited variance.
    return _share_gone(float(summed[0, 0]), summed, taken)


def removed_by_both(
    subsets: HeadSubsets,
    directions: Float[Tensor, "d_embed direction"],
    taken: Sequence[int],
    span: Float[Tensor, "d_embed concept"],
    strength: float,
) -> float:
    """Share of the variance along some directions that heads and then a projection of the output remove."""
    # The projection is symmetric: what it leaves along t is what the heads leave along its image of t.
    seen = directions - strength * span @ (span.T @ directions)
    return _share_gone(float(subsets.variances(directions).sum()), subsets.quadratic_forms(seen).sum(0), taken)


def _share_gone(before: float, summed: Float[Tensor, "form form"], taken: Sequence[int]) -> float:
    """How much less variance a subset of heads leaves than there was before; 0 where there was none."""
    kept = torch.zeros(len(summed)).double()
    # [1 s], with the model itself at 0 and head h at h + 1
    kept[[0, *(index + 1 for index in taken)]] = 1
    return 1 - float(kept @ summed @ kept) / before if before > 0 else 0.0
