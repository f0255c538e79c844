"""Which edit: how many heads, whether the output is projected too, and how strongly; without labels.

An edit is worth what it removes of instances that it was not chosen from, less what it removes of anything else. Both
are shares of variance in closed form. Where instances stay unnamed (places) only heads reach them; where the texts name
all there is (two genders) the projection alone does, and harms less.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..components import HeadId
from ..concepts.concepts import Concept
from ..concepts.directions import spare_directions
from ..concepts.queries import encode_unit
from .head_subsets import HeadSubsets, removed_by_both, removed_share
from .selectivity import Fold, Probe, cut_folds, rank_heads
from .whose_heads import Measured, are_related, judge

# Of the projection where no head is taken: its strength has no share of heads to follow.
PROJECTION_ALONE = 0.9
# An edit that removes less than this beyond what it removes elsewhere is not worth making.
LEAST_GAIN = 0.1
GENERAL = "general"
# The name and the directions of a concept that must stay.
Kept = tuple[str, Tensor]


@dataclass(frozen=True)
class Candidate:
    """An edit that was weighed: shares of variance, means over left-out instances.

    Attributes:
        removed: Along instances that it was not chosen from.
        elsewhere: The most that it removes of anything that must stay.
        of: What that is: `general`, or another selective concept.
    """

    heads: int
    output_strength: float
    removed: float
    elsewhere: float
    of: str

    @property
    def gain(self) -> float:
        """What candidates are compared by."""
        return self.removed - self.elsewhere

    def report(self) -> dict[str, Any]:
        """Plain data, as a recipe's `measured` keeps it."""
        return {key: round(value, 4) if isinstance(value, float) else value for key, value in vars(self).items()}


@dataclass(frozen=True)
class Choice:
    """The edit to make; no head and strength 0 where none is worth making."""

    heads: tuple[HeadId, ...]
    output_strength: float
    chosen: Candidate
    weighed: tuple[Candidate, ...]


@dataclass(frozen=True)
class Task:
    """What is to go, instance by instance, and what must stay; the heads of each fold come from its other instances."""

    subsets: HeadSubsets
    folds: Sequence[Fold]
    ranked: Sequence[Sequence[int]]
    # `_`: each is as wide as its own texts need.
    spans: Sequence[Float[Tensor, "d_embed _"]]
    kept: Mapping[str, Float[Tensor, "d_embed _"]]

    def weigh_heads(self, most: int) -> list[Candidate]:
        """Heads alone, from none to `most`; forms are computed once for all of them."""
        # [1, 1 + head, 1 + head] a fold
        left_out = torch.stack([fold.direction for fold in self.folds]).T
        along = self.subsets.quadratic_forms(left_out)[:, None]
        kept = {name: self.subsets.quadratic_forms(directions) for name, directions in self.kept.items()}

        def weigh(count: int) -> Candidate:
            taken = [ranked[:count] for ranked in self.ranked]
            removed = mean([removed_share(form, heads) for form, heads in zip(along, taken, strict=True)])
            costs = {name: mean([removed_share(form, heads) for heads in taken]) for name, form in kept.items()}
            return candidate(count, 0.0, removed, costs)

        return [weigh(count) for count in range(most + 1)]

    def weigh_both(self, count: int, strength: float) -> Candidate:
        """Some heads and a projection of the output, which each fold makes from its own texts."""
        removed: list[float] = []
        costs: dict[str, list[float]] = {name: [] for name in self.kept}
        for fold, ranked, span in zip(self.folds, self.ranked, self.spans, strict=True):
            taken = ranked[:count]
            removed.append(removed_by_both(self.subsets, fold.direction[:, None], taken, span, strength))
            for name, directions in self.kept.items():
                costs[name].append(removed_by_both(self.subsets, directions, taken, span, strength))
        return candidate(count, strength, mean(removed), {name: mean(found) for name, found in costs.items()})


def choose_edit(
    probe: Probe,
    concept: Concept,
    library: Mapping[str, Measured],
    *,
    most: int,
    keep: Concept | None = None,
    heads: int | None = None,
    output_strength: float | None = None,
    project: bool = True,
) -> Choice:
    """The number of heads, and the strength of the projection of a concept's texts out of the output.

    The number of heads is the one of most gain. The projection follows them: its strength is the square of the share
    that the heads hold of the concept, so that it finishes what they began. It replaces them where it does better
    alone.

    Args:
        library: What else this model may hold, from `measure_library`: every selective, unrelated concept must stay.
        most: The most heads that may be taken; heads at or below a score of zero never are.
        keep: A concept that must stay too; its share counts against a head, and the projection leaves it as it is.
        heads, output_strength: What was chosen already; the other is chosen beside it.
        project: Whether the output may be projected.
    """
    texts = encode_unit(probe.model, concept.texts)
    kept = None if keep is None else (keep.name, probe.directions(encode_unit(probe.model, keep.texts)))
    span, ranked = plan_removal(probe, texts, kept and kept[1])
    task = pose_task(probe, concept, texts, library, kept)
    # Taken as given, many heads are not weighed against fewer.
    weighed = task.weigh_heads(min(most if heads is None else heads, len(ranked)))
    # `max` gives the first of equals, which is the one of fewest heads.
    best = max(weighed, key=lambda one: one.gain) if heads is None else weighed[-1]
    if output_strength is not None:
        best = task.weigh_both(best.heads, output_strength)
    elif project:
        # Squared below: the projection keeps the gain and costs less where the heads hold little of the concept.
        held = removed_share(probe.subsets.quadratic_forms(span), ranked[: best.heads]) if span.shape[1] else 0.0
        both = task.weigh_both(best.heads, max(0.0, held) ** 2)
        # Where the number of heads was asked for, the projection cannot take their place.
        alone = [task.weigh_both(0, PROJECTION_ALONE)] if heads is None else []
        weighed = [*weighed, *alone, both]
        best = max(both, *alone, key=lambda one: one.gain) if alone else both
    # No heads and no projection: the caller decides what to do with somebody who asked.
    if best.gain < LEAST_GAIN and heads is None:
        best = weighed[0]
    chosen = tuple(sorted(probe.subsets.heads[index] for index in ranked[: best.heads]))
    return Choice(chosen, best.output_strength, best, tuple(weighed))


def pose_task(
    probe: Probe,
    concept: Concept,
    texts: Float[Tensor, "text d_embed"],
    library: Mapping[str, Measured],
    kept: Kept | None = None,
) -> Task:
    """The folds of a concept, and every direction that must stay: the general pool's, other selective concepts', and
    those that are kept.
    """
    # The concept's own span is taken out of the pool: removing it there is what was asked for.
    stays = {GENERAL: probe.general(probe.directions(texts))}
    for name, other in library.items():
        if name != concept.name and not are_related(concept, other.concept) and judge(other, library).verdict == "held":
            stays[name] = probe.directions(encode_unit(probe.model, other.concept.texts))
    folds = cut_folds(concept, texts)
    planned = [plan_removal(probe, fold.chosen_from, kept and kept[1]) for fold in folds]
    spans, ranked = [span for span, _ in planned], [heads for _, heads in planned]
    return Task(probe.subsets, folds, ranked, spans, stays | (dict([kept]) if kept else {}))


def plan_removal(
    probe: Probe, texts: Float[Tensor, "text d_embed"], spared: Float[Tensor, "d_embed spared"] | None = None
) -> tuple[Float[Tensor, "d_embed span"], list[int]]:
    """What is projected out for some texts, and the heads to take, best first; both spare some directions."""
    span = probe.directions(texts)
    return span if spared is None else spare_directions(span, spared), rank_heads(probe, texts, spared)


def candidate(heads: int, strength: float, removed: float, costs: Mapping[str, float]) -> Candidate:
    """A candidate, judged by what it costs most."""
    of = max(costs, key=lambda name: costs[name])
    return Candidate(heads, strength, removed, costs[of], of)


def mean(values: Sequence[float]) -> float:
    """The plain mean."""
    return sum(values) / len(values)
