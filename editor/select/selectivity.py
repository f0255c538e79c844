"""Selectivity: do a few heads carry a concept at all? From a scan's sums and texts alone; no label, no image.

Some heads score highest for any words, whether the images show what the words say or not. What tells a concept that a
few heads hold from an absent one is generalisation: the heads are chosen from some instances of the concept, and what
their removal takes along an instance that was left out is compared with what it takes of anything else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..concepts.concepts import Concept, cut_evenly, load_concept
from ..concepts.directions import compute_concept_directions
from ..concepts.queries import encode_unit
from ..errors import ConceptError
from ..images.texts import load_texts
from ..models.model import Model
from ..scan.scan import Scan
from .head_subsets import HeadSubsets, build_head_subsets, removed_share

COUNTS = (1, 2, 4, 8)
JUDGED_AT = 4
GENERAL_DIRECTIONS = 20
# The leading directions of a pool settle with a few hundred texts; encoding thousands would take longer than a scan.
POOL_TEXTS = 512
# A concept that does no better than one of so many groups of random texts is so by chance in a case of twenty.
CHANCE_DRAWS = 19
# Below this share nothing was removed in general, and a ratio would say nothing.
LEAST_REMOVED = 0.01
# Normal quantile of 95 % intervals, and Student's of so few free values that an expansion about it is too small.
NORMAL = 1.959964
STUDENT = {1: 12.7062, 2: 4.3027}


@dataclass(frozen=True)
class Selectivity:
    """How much more of a concept than of anything else its few best heads hold; about 1 where they hold it no more.

    Attributes:
        value: At `JUDGED_AT` heads: variance removed along a left-out instance over that removed in general, mean over
            instances.
        low, high: 95 % interval over instances.
        by_count: The value at every number of heads.
        instances: The value of every left-out instance.
        variance: Of unit embeddings along an instance, mean over instances, relative to that along a general text
            (median of the pool).
    """

    concept: str
    value: float
    low: float
    high: float
    by_count: Mapping[int, float]
    instances: Mapping[str, float]
    variance: float = 1.0

    def expect(self, count: int) -> tuple[float, float]:
        """The interval that so many instances would give, if they differed as much as these."""
        values = torch.tensor(list(self.instances.values())).double()
        half = _students_quantile(count - 1) * float(values.std()) / count**0.5
        return self.value - half, self.value + half


@dataclass(frozen=True)
class Fold:
    """One part of a concept: the heads come from the texts of `chosen_from`, and are judged along `direction`."""

    name: str
    chosen_from: Float[Tensor, "text d_embed"]
    direction: Float[Tensor, " d_embed"]


@dataclass(frozen=True)
class Probe:
    """A model's heads and its pool of texts, embedded at unit length, prepared once for many concepts."""

    model: Model
    subsets: HeadSubsets
    unit: Float[Tensor, "text d_embed"]
    pool_texts: tuple[str, ...] = ()

    @cached_property
    def pool(self) -> Float[Tensor, "text d_embed"]:
        """The texts of the pool, centred."""
        return self.unit - self.unit.mean(0)

    @cached_property
    def most(self) -> int:
        """Directions of a concept, as in scores."""
        return max(1, self.model.tower.d_head // 4)

    @cached_property
    def usual_variance(self) -> float:
        """Of unit embeddings along a text of the pool: the median."""
        return self.subsets.usual_variance(self.pool)

    def general(self, concept: Float[Tensor, "d_embed concept"]) -> Float[Tensor, "d_embed direction"]:
        """The leading directions of the pool with a concept's span taken out."""
        # Otherwise what is removed of the concept would count as removed in general.
        rest = self.pool - self.pool @ concept @ concept.T
        return torch.linalg.svd(rest, full_matrices=False)[2][:GENERAL_DIRECTIONS].T

    def directions(self, texts: Float[Tensor, "text d_embed"]) -> Float[Tensor, "d_embed concept"]:
        """A concept's directions from embeddings of its texts."""
        return compute_concept_directions(texts, most=self.most)


def build_probe(scan: Scan, model: Model) -> Probe:
    """Prepare a model's heads; see `Probe`.

    Raises:
        StatisticsError: As `build_head_subsets`.
    """
    texts = load_texts(model_folder=model.folder)
    # Every so many, since a pool is a list in some order.
    every = -(-len(texts) // POOL_TEXTS)
    taken = tuple(texts[::every])
    return Probe(model, build_head_subsets(scan, model), encode_unit(model, taken), taken)


def measure_selectivity(scan: Scan, model: Model, concept: str | Concept) -> Selectivity:
    """How selective a few heads are for a concept.

    Raises:
        ConceptError: If the concept is unknown, or its texts do not differ.
        StatisticsError: If the scan is not of this model, or saw fewer than two images.
    """
    found = concept if isinstance(concept, Concept) else load_concept(concept, model.folder)
    return compute_selectivity(build_probe(scan, model), found)


def compute_selectivity(probe: Probe, concept: Concept) -> Selectivity:
    """`measure_selectivity` where the heads are prepared already."""
    texts = encode_unit(probe.model, concept.texts)
    return _compute(probe, concept.name, texts, cut_folds(concept, texts))


def _compute(probe: Probe, name: str, texts: Float[Tensor, "text d_embed"], folds: Sequence[Fold]) -> Selectivity:
    forms = probe.subsets.quadratic_forms(probe.general(probe.directions(texts)))
    along = torch.stack([fold.direction for fold in folds]).T
    scores = probe.subsets.shares_each([probe.directions(fold.chosen_from) for fold in folds])
    rows = {
        fold.name: _ratios(order_positive(own), form[None], forms)
        for fold, own, form in zip(folds, scores, probe.subsets.quadratic_forms(along), strict=True)
    }
    table = torch.tensor(list(rows.values())).double()
    means: dict[int, float] = dict(zip(COUNTS, table.mean(0).tolist(), strict=True))
    at = COUNTS.index(JUDGED_AT)
    low, high = mean_interval(table[:, at])
    named = {name: row[at] for name, row in rows.items()}
    relative = float(probe.subsets.variances(along).mean()) / max(probe.usual_variance, torch.finfo(torch.float64).tiny)
    return Selectivity(name, means[JUDGED_AT], low, high, means, named, relative)


def find_as_selective(probe: Probe, concept: Concept, value: float, *, seed: int = 0) -> tuple[int, float] | None:
    """Of `CHANCE_DRAWS` groups of random texts of the pool the first that is as selective as a concept.

    A group is cut as the concept is: as many instances, each of as many texts. That none of them comes near is a Monte
    Carlo test at 5 % (Besag and Clifford, Sequential Monte Carlo p-values, Biometrika 1991).

    Returns:
        Which draw it was, from 1, and its selectivity; None if there was none, or the pool is too small to draw from.
    """
    sizes = [len(part) for part in concept.parts().values()]
    # Groups that share most of their texts would be one group.
    if 2 * sum(sizes) > len(probe.unit):
        return None
    generator = np.random.default_rng(seed)
    for draw in range(1, CHANCE_DRAWS + 1):
        texts = probe.unit[generator.choice(len(probe.unit), sum(sizes), replace=False)]
        parts = {str(part): rows for part, rows in enumerate(texts.split(sizes))}
        # A pool may hold one text often: a group of nothing else differs in nothing.
        with contextlib.suppress(ConceptError):
            found = _compute(probe, "random texts", texts, _cut_parts(parts, texts.mean(0))).value
            if found >= value:
                return draw, found
    return None


def cut_folds(concept: Concept, texts: Float[Tensor, "text d_embed"]) -> list[Fold]:
    """Leave one instance out; of two instances leave one wording out, since none of them says anything alone."""
    rows = {text: row for text, row in zip(concept.texts, texts, strict=True)}
    parts = {name: torch.stack([rows[text] for text in part]) for name, part in concept.parts().items()}
    return _cut_parts(parts, texts.mean(0))


def _cut_parts(parts: Mapping[str, Float[Tensor, "_ d_embed"]], mean: Float[Tensor, " d_embed"]) -> list[Fold]:
    # Each of two instances lies along the same line through their mean, in opposite directions.
    if len(parts) == 2:
        return _cut_wordings(*parts.values())
    found = []
    for name, part in parts.items():
        others = torch.cat([other for key, other in parts.items() if key != name])
        found.append(Fold(name, others, F.normalize(part.mean(0) - mean, dim=0)))
    return found


def _cut_wordings(first: Float[Tensor, "text d_embed"], second: Float[Tensor, "other d_embed"]) -> list[Fold]:
    wordings = min(len(first), len(second))
    pairs = list(zip(cut_evenly(list(first), wordings), cut_evenly(list(second), wordings), strict=True))
    found = []
    for index, (a, b) in enumerate(pairs):
        others = [row for other, pair in enumerate(pairs) if other != index for part in pair for row in part]
        # With a single wording there is nothing else to choose from.
        chosen_from = torch.stack(others or [*a, *b])
        difference = torch.stack(list(a)).mean(0) - torch.stack(list(b)).mean(0)
        found.append(Fold(f"wording {index + 1}", chosen_from, F.normalize(difference, dim=0)))
    return found


def rank_heads(
    probe: Probe, texts: Float[Tensor, "text d_embed"], kept: Float[Tensor, "d_embed kept"] | None = None
) -> list[int]:
    """Heads of positive score for some texts, best first; the share along `kept` directions counts against a head."""
    scores = probe.subsets.shares(probe.directions(texts))
    scores = scores if kept is None else scores - probe.subsets.shares(kept)
    return order_positive(scores)


def order_positive(scores: Float[Tensor, " head"]) -> list[int]:
    """Heads of positive score, best first: at or below zero one holds less than nothing, or less than of the kept."""
    order = scores.argsort(descending=True, stable=True).tolist()
    return [index for index in order if scores[index] > 0]


def _ratios(
    ranked: Sequence[int], along: Float[Tensor, "1 form form"], general: Float[Tensor, "direction form form"]
) -> list[float]:
    """By number of heads: the share that is removed along a left-out instance over that removed in general."""
    found = []
    for count in COUNTS:
        taken = ranked[:count]
        # The floor keeps a ratio of two small shares from looking selective.
        found.append(removed_share(along, taken) / max(LEAST_REMOVED, removed_share(general, taken)))
    return found


def mean_interval(values: Float[Tensor, " value"]) -> tuple[float, float]:
    """95 % interval of a mean over instances (jackknife, for a mean Student's); a single value says nothing."""
    count = len(values)
    if count < 2:
        return float("-inf"), float("inf")
    free = count - 1
    spread = _students_quantile(free) * float(values.std()) / count**0.5
    return float(values.mean()) - spread, float(values.mean()) + spread


def _students_quantile(free: int) -> float:
    """The quantile of 95 % intervals of so many free values, by the Cornish-Fisher expansion."""
    first, second = (NORMAL**3 + NORMAL) / 4, (5 * NORMAL**5 + 16 * NORMAL**3 + 3 * NORMAL) / 96
    return STUDENT.get(free, NORMAL + first / free + second / free**2)
