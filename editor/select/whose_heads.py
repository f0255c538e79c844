"""Whose heads are these? An absent concept still points at some heads: those of another one its words resemble."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..concepts.concepts import Concept, list_concepts, load_concept
from ..concepts.margins import Margins, build_margins
from ..concepts.queries import encode_unit
from ..errors import ConceptError
from ..models.model import Model
from ..scan.scan import Scan
from .selectivity import Probe, Selectivity, build_probe, compute_selectivity, find_as_selective

Verdict = Literal["held", "other", "absent"]
# Set on models of known truth (benchmarks/selectivity.py).
ABSENT_BELOW = 1.2
NOTHING = 1.0
# Ratios say nothing of what is nearly gone, as after an edit: of the variance along a general text.
LEAST_VARIANCE = 0.1
MORE_SELECTIVE = 1.3
# Of fewer instances an interval is wide however well they agree: of three more than twice as wide as of five.
ENOUGH_INSTANCES = 5
SAME_HEADS = 0.8


@dataclass(frozen=True)
class Measured:
    """A concept's selectivity, and its profile: the positive scores of all heads, at unit length."""

    concept: Concept
    selectivity: Selectivity
    profile: Float[Tensor, " head"]


@dataclass(frozen=True)
class Judgement:
    """Whether a few heads hold a concept.

    Attributes:
        verdict: `held`; `other` where the heads are another concept's; `absent` where no few heads hold it.
        because: One sentence, with the figures.
        other: The concept whose heads they are, and the cosine of both profiles; also where the verdict is `held` and
            the nearest more selective concept is not near enough.
    """

    concept: str
    verdict: Verdict
    selectivity: Selectivity
    because: str
    other: str | None = None
    cosine: float = 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Of the selectivity, 95 %."""
        return self.selectivity.low, self.selectivity.high


@dataclass(frozen=True)
class HeldConcepts:
    """What the heads of a model hold: prepared once, when it is first asked for, for every question about it."""

    scan: Scan
    model: Model

    @cached_property
    def probe(self) -> Probe:
        """The heads."""
        return build_probe(self.scan, self.model)

    @cached_property
    def library(self) -> dict[str, Measured]:
        """Every concept that the model's folder and the library know."""
        return measure_library(self.probe)

    def measure(self, concept: Concept) -> Measured:
        """A concept's selectivity and profile: the library's own, where it holds this very concept; else made once."""
        kept = (self.library.get(concept.name), self._own.get(concept.name))
        # A file of the user's may have the name of a concept of the library.
        found = next((one for one in kept if one is not None and one.concept == concept), None)
        if found is None:
            found = self._own[concept.name] = measure(self.probe, concept)
        return found

    @cached_property
    def _own(self) -> dict[str, Measured]:
        """What was measured beside the library: the refusal, the leans and the choice ask for the same."""
        return {}

    def measure_own(self, own: Sequence[str | Concept]) -> dict[str, Measured]:
        """Concepts of the user's, or their files, measured as the library's are; by name."""
        found = [one if isinstance(one, Concept) else load_concept(one, self.model.folder) for one in own]
        return {concept.name: self.measure(concept) for concept in found}

    def judge(self, concept: Concept, library: Mapping[str, Measured] | None = None) -> Judgement:
        """The verdict on one concept: whose heads they are, and whether random texts are held as well.

        Args:
            library: All concepts that the heads may be of; by default the library's.
        """
        own = self.measure(concept)
        found = judge(own, self.library if library is None else library)
        return found if found.verdict != "held" else self._compare_with_chance(found, own)

    def _compare_with_chance(self, found: Judgement, own: Measured) -> Judgement:
        name, value = own.concept.name, own.selectivity.value
        if name not in self._chance or self._chance[name][0] != own.concept:
            # By the concept too: a file of the user's may have a name of the library.
            self._chance[name] = own.concept, find_as_selective(self.probe, own.concept, value)
        reached = self._chance[name][1]
        if reached is None:
            return found
        draw, random = reached
        because = (
            f"heads hold {name} no more than random texts: {say_selectivity(own.selectivity)}, and of {draw} groups of "
            f"as many random texts one has {random:.1f}"
        )
        return replace(found, verdict="absent", because=because)

    @cached_property
    def _chance(self) -> dict[str, tuple[Concept, tuple[int, float] | None]]:
        """What was asked once: the refusal, the audit and the desk ask for the same."""
        return {}

    def span_of(self, concept: Concept) -> Float[Tensor, "d_embed concept"]:
        """A concept's directions."""
        return self.probe.directions(encode_unit(self.model, concept.texts))

    def build_margins(self, classes: Sequence[str], templates: Sequence[str]) -> Margins:
        """The margins of some classes over the scanned images, seen by the unedited model."""
        probe, subsets = self.probe, self.probe.subsets
        covariance = subsets.readout.T @ subsets.covariance @ subsets.readout
        pool = {"pool": probe.pool, "pool_texts": probe.pool_texts}
        return build_margins(self.model, classes, templates, covariance=covariance, **pool)


def judge_concept(scan: Scan, model: Model, concept: str | Concept) -> Judgement:
    """Whether a few heads hold a concept in these images, or another concept of the library explains them better.

    Raises:
        ConceptError, StatisticsError: As `measure_selectivity`.
    """
    found = concept if isinstance(concept, Concept) else load_concept(concept, model.folder)
    return HeldConcepts(scan, model).judge(found)


def measure_library(probe: Probe) -> dict[str, Measured]:
    """Every concept that the model's folder and the library know, and whose texts the model can tell apart."""
    folder, found = probe.model.folder, {}
    for name in list_concepts(folder):
        # To a small text tower the texts of some concept may be one: no head of it holds that concept.
        with contextlib.suppress(ConceptError):
            found[name] = measure(probe, load_concept(name, folder))
    return found


def measure(probe: Probe, concept: Concept) -> Measured:
    """A concept's selectivity and profile."""
    directions = probe.directions(encode_unit(probe.model, concept.texts))
    # Positive scores only: a negative share says nothing of where the concept is held.
    profile = F.normalize(probe.subsets.shares(directions).clamp_min(0), dim=0)
    return Measured(concept, compute_selectivity(probe, concept), profile)


def judge(own: Measured, library: Mapping[str, Measured]) -> Judgement:
    """The verdict on one concept beside all the others."""
    name, found = own.concept.name, own.selectivity
    said = say_selectivity(found)
    if found.variance < LEAST_VARIANCE:
        because = (
            f"hardly anything in these images differs in {name}: the variance along its instances is "
            f"{100 * found.variance:.0f} % of that along a general text; {said}"
        )
        return Judgement(name, "absent", found, because)
    nearest = find_nearest(own, library)
    other, cosine = (nearest.concept.name, float(nearest.profile @ own.profile)) if nearest else (None, 0.0)
    # Asked before absence: that the heads are another concept's says more than that they are not this one's.
    if found.high >= ABSENT_BELOW and nearest is not None and cosine >= SAME_HEADS:
        because = (
            f"the heads that {name} points at are those of {other}: {said}, {other} has "
            f"{nearest.selectivity.value:.1f}, and the cosine of both head profiles is {cosine:.2f}"
        )
        return Judgement(name, "other", found, because, other, cosine)
    # An interval that holds 1 says that instances do not agree: heads chosen from some say nothing of the rest.
    if found.value < ABSENT_BELOW or found.low < NOTHING:
        because = f"no few heads hold {name} in these images: {said}{_say_too_few(found)}"
        return Judgement(name, "absent", found, because, other, cosine)
    return Judgement(name, "held", found, f"a few heads hold {name}: {said}", other, cosine)


def say_selectivity(found: Selectivity) -> str:
    """`selectivity 3.7 (2.9 to 4.5; about 1 where heads hold nothing of it)`."""
    # Of a single instance there is no spread, and so no interval.
    spread = f"{found.low:.1f} to {found.high:.1f}" if math.isfinite(found.high) else "one instance, no interval"
    return f"selectivity {found.value:.1f} ({spread}; about 1 where heads hold nothing of it)"


def _say_too_few(found: Selectivity) -> str:
    """Where the mean would do and only its interval does not, since instances are few: what more of them would give."""
    count = len(found.instances)
    if found.value < ABSENT_BELOW or not 1 < count < ENOUGH_INSTANCES:
        return ""
    low, high = found.expect(ENOUGH_INSTANCES)
    return (
        f"; {count} instances are too few to say more: {ENOUGH_INSTANCES} that differ as much would give {low:.1f} to "
        f"{high:.1f}, and each that its file names more makes the interval narrower"
    )


def find_nearest(own: Measured, library: Mapping[str, Measured]) -> Measured | None:
    """Of the clearly more selective, unrelated concepts: the most selective with the same heads, else the nearest."""
    rivals = [
        other
        for name, other in library.items()
        if name != own.concept.name
        and not are_related(own.concept, other.concept)
        and other.selectivity.value >= MORE_SELECTIVE * own.selectivity.value
        and other.selectivity.value >= ABSENT_BELOW
    ]
    same = [other for other in rivals if float(other.profile @ own.profile) >= SAME_HEADS]
    if same:
        return max(same, key=lambda other: other.selectivity.value)
    return max(rivals, key=lambda other: float(other.profile @ own.profile), default=None)


def are_related(first: Concept, second: Concept) -> bool:
    """Whether one of two concepts names the other: they may share heads by meaning."""
    return second.name in first.related or first.name in second.related
