"""discover: concepts that nobody wrote down, as candidates for a person to edit.

Heads that no known concept explains, and those that write what images of low margin differ in, are named by the texts
of a pool whose variance they hold. Texts are chosen on one half of the scanned images; whether a few heads hold the
candidate is judged on the other, by the rule for every concept (`whose_heads.py`). No label is read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from jaxtyping import Float
from torch import Tensor

from ...concepts.class_weights import compute_class_weights
from ...concepts.concepts import Concept, plain_words
from ...concepts.queries import encode_unit
from ...concepts.textspan import HeadLabel
from ...edits.bind import default_effect
from ...errors import ConceptError
from ...images.labelled_options import DEFAULT_TEMPLATES
from ...images.texts import load_texts
from ...models.model import Model
from ...scan.scan import Scan
from ..amounts import choose_for
from ..audit import require_margins
from ..head_subsets import build_head_subsets
from ..selectivity import JUDGED_AT, Probe, rank_heads
from ..whose_heads import SAME_HEADS, HeldConcepts, Measured, judge, measure
from .candidates import CandidateConcept, Discovery, Source
from .instances import LEAST_INSTANCES, LEAST_WORDINGS, VALUES, Pool, cut_instances, find_spoken
from .low_margin import find_low_margin_directions
from .writings import EXPLAINED, Writings, build_writings, explain_heads

# From heads to texts and back so often: the texts of one head name its fellows.
ROUNDS = 2
# Instances in a candidate's name, and texts that say what its heads write.
_NAMED, _SPANS = 3, 5


def discover(
    scan: Scan,
    model: Model,
    *,
    classes: Sequence[str] = (),
    templates: Sequence[str] = DEFAULT_TEMPLATES,
    texts: Sequence[str] | None = None,
    own: Sequence[str | Concept] = (),
    known: HeldConcepts | None = None,
) -> Discovery:
    """Look for concepts that a few heads hold and that no concept of the library names.

    Args:
        scan: Of unlabelled images like those that the model will see.
        classes: Names of classes: images between which the model hardly decides are looked at too.
        templates: Prompts of the classes.
        texts: What heads may be named by; by default the model's own pool, else the general one.
        own: More concepts, or their files, that need not be found again.
        known: What the heads of this model hold, where it was looked at already.

    Raises:
        ConceptError: If a concept or the pool cannot be read, or there is one class only.
        StatisticsError: If the scan is not of this model.
    """
    require_margins(classes)
    known = known or HeldConcepts(scan, model)
    library = known.library | known.measure_own(own)
    pool = tuple(load_texts(model_folder=model.folder) if texts is None else texts)
    weights = compute_class_weights(model, classes, templates).double() if classes else None
    return search_concepts(known, library, Pool(pool, encode_unit(model, pool)), classes=weights)


def search_concepts(
    known: HeldConcepts,
    library: Mapping[str, Measured],
    pool: Pool,
    *,
    classes: Float[Tensor, "class d_embed"] | None = None,
) -> Discovery:
    """`discover` beside a library that was measured already.

    Args:
        classes: Unit class weights.
    """
    search = _Search(known, library, pool, *_split(known))
    search.start_from_heads()
    if classes is not None:
        search.start_from_images(classes)
    ordered = sorted(search.found.values(), key=lambda one: -one.edit.chosen.gain)
    left = search.find_unexplained()
    return Discovery(
        tuple(ordered),
        known.scan.statistics.n,
        search.judged.n,
        int(search.writings.is_strong.sum()),
        tuple(str(search.writings.heads[index]) for index in left),
        tuple(search.held),
        tuple(search.pairs.values()),
    )


@dataclass(frozen=True)
class Half:
    """Some of the scanned images: their heads, and how many they are."""

    probe: Probe
    scan: Scan

    @property
    def n(self) -> int:
        return self.scan.statistics.n


def _split(known: HeldConcepts) -> tuple[Half, Half]:
    """Images that texts are chosen on, and images that judge; all of them twice where the scan has one fold."""
    scan = known.scan
    halves = [replace(scan, folds=(fold,)) for fold in scan.folds] if scan.is_folded else [scan, scan]
    first, second = halves[:2]
    # The pool is encoded once.
    probes = [replace(known.probe, subsets=build_head_subsets(half, known.model)) for half in (first, second)]
    return Half(probes[0], first), Half(probes[1], second)


@dataclass
class _Search:
    known: HeldConcepts
    library: Mapping[str, Measured]
    pool: Pool
    chooser: Half
    judged: Half
    found: dict[str, CandidateConcept] = field(default_factory=dict)
    # By what they are named for; none of them explains a head, since a person has to say what they are.
    pairs: dict[str, CandidateConcept] = field(default_factory=dict)
    # Measured beside the library: a candidate must not be found twice either.
    added: dict[str, Measured] = field(default_factory=dict)

    @cached_property
    def held(self) -> dict[str, Measured]:
        """The known concepts that a few heads hold."""
        return {name: one for name, one in self.library.items() if judge(one, self.library).verdict == "held"}

    @cached_property
    def writings(self) -> Writings:
        return build_writings(self.chooser.scan, self.known.model)

    @cached_property
    def labels(self) -> tuple[Tensor, Tensor]:
        """TextSpan of every head: texts, and the shares that they explain."""
        return self.writings.label(self.pool.unit, max(self.chooser.probe.most, _SPANS))

    def span_of(self, concept: Concept) -> Float[Tensor, "d_embed concept"]:
        return self.chooser.probe.directions(encode_unit(self.known.model, concept.texts))

    def find_unexplained(self) -> list[int]:
        """The strong heads that no concept explains, those that write most first."""
        concepts = {name: self.span_of(one.concept) for name, one in (self.held | self.added).items()}
        best = explain_heads(self.writings, concepts, self.labels[1].cumsum(1))
        open_ones = self.writings.is_strong & (best < EXPLAINED)
        order = self.writings.variance.argsort(descending=True, stable=True).tolist()
        return [index for index in order if open_ones[index]]

    def start_from_heads(self) -> None:
        """Each head that nothing explains, until every one is explained or was asked."""
        asked: set[int] = set()
        while left := [index for index in self.find_unexplained() if index not in asked]:
            asked.add(left[0])
            self.try_heads([left[0]], "heads")

    def start_from_images(self, classes: Float[Tensor, "class d_embed"]) -> None:
        """The heads that write most of each direction in which images of low margin differ."""
        probe, scan = self.chooser.probe, self.known.scan
        fold = 0 if scan.is_folded else None
        span = probe.directions(classes)
        for direction in find_low_margin_directions(scan.sample, classes, span, fold=fold).T:
            shares = probe.subsets.shares(direction[:, None])
            best = shares.argsort(descending=True, stable=True)[:JUDGED_AT].tolist()
            self.try_heads([index for index in best if shares[index] > 0], "low-margin images")

    def try_heads(self, heads: Sequence[int], source: Source) -> None:
        """Keep what some heads speak of, if a few heads hold it and it has no name yet."""
        # Texts that are one to the model are no concept.
        with contextlib.suppress(ConceptError):
            named, heads = self._name(heads)
            if named is None:
                return
            measured = measure(self.judged.probe, named)
            nearest = self._find_same_heads(measured)
            known = {**self.library, **self.added}
            real = [other for other in nearest if not self._stands_in(other, measured)]
            told = any(self._is_told_by(other, named, heads) for other in real)
            if told or judge(measured, known).verdict != "held":
                return
            related = tuple(other.concept.name for other in nearest)
            concept = named.model_copy(update={"related": related})
            measured = replace(measured, concept=concept)
            described = self._describe(measured, heads, source)
            # Texts that name both values name all there is: a projection alone may be best, whoever holds them.
            if len(concept.parts()) == VALUES:
                self.pairs[concept.name] = described
            # What is best removed by its texts alone, or not at all, was no discovery of heads.
            elif described.edit.heads:
                self.added[concept.name] = measured
                self.found[concept.name] = described

    def _name(self, heads: Sequence[int]) -> tuple[Concept | None, Sequence[int]]:
        """What some heads and their fellows speak of; None where that is hardly more than one thing."""
        subsets, spoken = self.chooser.probe.subsets, []
        for _ in range(ROUNDS):
            spoken = find_spoken(self.pool, subsets, heads) if heads else []
            if len(spoken) < LEAST_INSTANCES:
                return None, heads
            heads = rank_heads(self.chooser.probe, self.pool.unit[spoken])[:JUDGED_AT]
        instances = cut_instances(self.pool, spoken, self.writings.factors[heads])
        is_pair = len(instances) == VALUES and min(map(len, instances.values())) >= LEAST_WORDINGS
        if len(instances) < LEAST_INSTANCES and not is_pair:
            return None, heads
        return Concept.model_validate({"name": self._make_name(instances), "instances": instances}), heads

    def _make_name(self, instances: Mapping[str, object]) -> str:
        name = "-".join(plain_words(one).replace(" ", "-") for one in list(instances)[:_NAMED])
        return name if name not in self.library and name not in self.added else f"{name}-{len(self.added) + 1}"

    def _find_same_heads(self, measured: Measured) -> list[Measured]:
        """Known concepts and candidates that these heads are held by, too."""
        known = self.held | self.added
        return [other for other in known.values() if float(other.profile @ measured.profile) >= SAME_HEADS]

    def _is_told_by(self, known: Measured, candidate: Concept, heads: Sequence[int]) -> bool:
        """Whether a known concept says half of what a candidate says of these heads: then it says nothing new."""
        return self._share(known.concept, heads) >= EXPLAINED * self._share(candidate, heads)

    def _stands_in(self, known: Measured, candidate: Measured) -> bool:
        """Whether a known concept is held only as long as a candidate has no name, and names little of it.

        Where places are in no list, food may be what explains their heads best: that is no reason to leave places out.
        """
        named, words = candidate.concept.parts(), plain_words(" ".join(known.concept.texts)).split()
        if sum(name in words for name in named) >= EXPLAINED * len(named):
            return False
        return judge(known, {**self.library, **self.added, candidate.concept.name: candidate}).verdict != "held"

    def _share(self, concept: Concept, heads: Sequence[int]) -> float:
        """Of all that some heads write together, what lies along a concept: not the mean of their shares."""
        along, weight = self.writings.shares_along(self.span_of(concept))[heads], self.writings.variance[heads]
        return float((along * weight).sum() / weight.sum())

    def _describe(self, measured: Measured, heads: Sequence[int], source: Source) -> CandidateConcept:
        concept, (chosen, shares) = measured.concept, self.labels
        best = heads[0]
        texts = zip(chosen[best].tolist(), shares[best].tolist(), strict=True)
        return CandidateConcept(
            concept,
            source,
            tuple(str(self.writings.heads[index]) for index in heads),
            self._share(concept, heads),
            tuple(HeadLabel(self.pool.texts[text], share) for text, share in list(texts)[:_SPANS]),
            measured.selectivity,
            choose_for(self.known, concept, default_effect(self.known.model), library=self.library),
        )
