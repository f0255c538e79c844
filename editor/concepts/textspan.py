"""TextSpan (Gandelsman et al., ICLR 2024): the texts that span what a head writes, found from covariances alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import ConceptError, require_kinds
from ..models.model import Model
from ..notebook import html_table
from ..scan.scan import Scan
from .queries import encode_unit

SHOWN = 3


@dataclass(frozen=True)
class HeadLabel:
    """One text of a head's list, and the share of the head's variance that its direction explains, in [0, 1]."""

    text: str
    variance_share: float


class HeadLabels(dict[str, tuple[HeadLabel, ...]]):
    """Labels by head, `L3H5`; a dictionary that notebooks show as a table."""

    def _repr_html_(self) -> str:
        rows = [(head, label.text, label.variance_share) for head, found in self.items() for label in found[:SHOWN]]
        return html_table(f"the first {SHOWN} texts of each head", ("head", "text", "share of variance"), rows)


def text_span(scan: Scan, model: Model, *, texts: Sequence[str], texts_per_head: int = 20) -> HeadLabels:
    """Label every scanned head with texts, most explaining first.

    Args:
        texts: The pool that labels are chosen from.
        texts_per_head: Length of each list; at most `d_head`, after which nothing is left to explain.

    Returns:
        Labels by head, `L3H5`. A head that never varies has an empty list.

    Raises:
        StatisticsError: If the scan is not of this model.
        ConceptError: If there are fewer texts than `texts_per_head`.
    """
    require_kinds("label heads", scan=(scan, Scan), model=(model, Model))
    scan.statistics.require(2)
    if len(texts) < texts_per_head:
        raise ConceptError(f"cannot label with {len(texts)} texts: {texts_per_head} a head are asked for. Add texts.")
    groups = [group for group in scan.groups(model) if group.ids[0].kind == "head"]
    readouts = model.tower.compute_readouts(groups)
    pool = list(texts)
    directions = encode_unit(model, pool)
    labels = HeadLabels()
    for group in groups:
        covariance = scan.statistics.feature_covariance(group.name)
        chosen, shares = compute_text_span(readouts[group.name], covariance, directions, steps=texts_per_head)
        for identity, indices, explained in zip(group.ids, chosen.tolist(), shares.tolist(), strict=True):
            pairs = zip(indices, explained, strict=True)
            labels[str(identity)] = tuple(HeadLabel(pool[i], share) for i, share in pairs if share > 1e-9)
    return labels


def compute_text_span(
    readouts: Float[Tensor, "head d_embed d_head"],
    covariance: Float[Tensor, "head d_head d_head"],
    texts: Float[Tensor, "text d_embed"],
    *,
    steps: int,
) -> tuple[Int[Tensor, "head step"], Float[Tensor, "head step"]]:
    """TextSpan of a batch of heads.

    The paper's algorithm 1 works on the matrix of contributions `[image, d_embed]`. Its choices depend on that matrix's
    covariance only, which lives in the `d_head` dimensions spanned by the readout: with `Q, _ = qr(R)`,
    `S = (Q^T R) cov(u) (Q^T R)^T` and `t' = Q^T t`, each step takes `argmax t'^T S t'` and projects that text's
    direction out of `S` and of all texts.

    Returns:
        Indices of texts and the shares of variance they explain, one row a head.
    """
    # [head, d_embed, d_head] -> Q of that shape and `Q^T R`, which is the triangle [head, d_head, d_head].
    basis, triangle = torch.linalg.qr(readouts)
    spread = triangle @ covariance @ triangle.transpose(1, 2)
    rows = torch.einsum("te,hek->htk", texts, basis)
    # A head that never varies has shares of 0 and not 0 / 0.
    total = spread.diagonal(dim1=1, dim2=2).sum(1).clamp_min(torch.finfo(spread.dtype).tiny)
    # Squared lengths below are what rounding left of texts that were projected out.
    tiny = rows.square().sum(2).amax() * 1e-18
    chosen, shares = [], []
    heads = torch.arange(len(readouts))
    # After `d_head` steps all that is left is rounding.
    for _ in range(min(steps, readouts.shape[2])):
        # [head, text]: `t'^T S t'`
        best = (rows @ spread).mul_(rows).sum(2).argmax(1)
        text = rows[heads, best]
        unit = text / text.square().sum(1, keepdim=True).clamp_min(tiny).sqrt()
        shares.append(torch.einsum("hk,hkl,hl->h", unit, spread, unit) / total)
        chosen.append(best)
        rows = rows - (rows @ unit[:, :, None]) * unit[:, None, :]
        away = torch.eye(unit.shape[1]).to(unit) - unit[:, :, None] * unit[:, None, :]
        spread = away @ spread @ away
    return torch.stack(chosen, 1), torch.stack(shares, 1)
