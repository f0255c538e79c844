"""audit: which concepts do a few heads of a model hold, and on which of them do its classes lean?

From a scan and texts alone: no label, no image. Such data cannot tell a fair correlation from a spurious one, so an
audit says "leans on", never "biased". Lean alone misleads, since the words of an absent concept may fall near those of
the classes: what no few heads hold is never said to be leant on.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..concepts.class_weights import compute_class_weights
from ..concepts.concepts import Concept, list_concepts, plain_words
from ..concepts.directions import differences
from ..concepts.queries import encode_unit
from ..edits.bind import default_effect
from ..errors import ConceptError, nearest_names
from ..images.labelled_options import DEFAULT_TEMPLATES
from ..models.model import Model
from ..scan.scan import Scan
from .amounts import choose_for
from .choice import Choice
from .head_subsets import HeadSubsets, removed_share
from .selectivity import Probe
from .whose_heads import HeldConcepts, Judgement, Measured, judge

AuditVerdict = Literal["leans", "held", "other", "absent"]
NULL_DRAWS, NULL_SEED = 200, 0
# A concept is leant on if margins lie along it more than along so many percent of random texts.
LEANS_FROM = 95.0
# Of more classes the pairs are too many: each class is then compared with the mean of all.
MOST_PAIRED = 16
# A concept whose texts say so many of the classes is the task itself.
NAMES_CLASSES = 0.5
LEAST_POOL = 64
_ORDER: dict[AuditVerdict, int] = {"leans": 0, "held": 1, "other": 2, "absent": 3}


@dataclass(frozen=True)
class Lean:
    """How much of class margins lies along a concept.

    Attributes:
        share: Of the variance of a margin over the scanned images, mean over the margins.
        percentile: In percent, the share of random texts along which margins lie less.
        in_heads: How much of that goes with the heads that would be removed.
    """

    share: float
    percentile: float
    in_heads: float = 0.0


@dataclass(frozen=True)
class AuditRow:
    """What was found of one concept.

    Attributes:
        verdict: `leans` where a few heads hold it and the classes lean on it, `held` where only the former is so or
            there are no classes; `other` where the heads are another concept's; `absent` where no few heads hold it.
        because: One sentence, with the figures.
        heads, output_strength: The edit that `remove-heads` would make; no heads where it would refuse.
        removed, elsewhere: Shares of variance that it would remove along left-out instances of the concept, and at most
            of anything else.
    """

    concept: str
    verdict: AuditVerdict
    because: str
    selectivity: float
    interval: tuple[float, float]
    lean: Lean | None = None
    heads: tuple[str, ...] = ()
    output_strength: float = 0.0
    removed: float | None = None
    elsewhere: float | None = None

    def report(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "concept": self.concept,
            "verdict": self.verdict,
            "because": self.because,
            "selectivity": self.selectivity,
            "interval": [value if math.isfinite(value) else None for value in self.interval],
            "lean": self.lean and self.lean.share,
            "lean_percentile": self.lean and self.lean.percentile,
            "lean_in_heads": self.lean and self.lean.in_heads,
            "heads": list(self.heads),
            "output_strength": self.output_strength,
            "removed": self.removed,
            "elsewhere": self.elsewhere,
        }


@dataclass(frozen=True)
class Audit:
    """What was found of every concept, those most worth removing first.

    Attributes:
        images: How many the scan saw.
        classes: Whose margins were looked at; none where only heads were.
    """

    rows: tuple[AuditRow, ...]
    images: int
    classes: tuple[str, ...] = ()

    def __iter__(self) -> Any:
        return iter(self.rows)

    @property
    def found(self) -> list[AuditRow]:
        """The concepts that a few heads hold."""
        return [row for row in self.rows if row.verdict in ("leans", "held")]

    def report(self) -> dict[str, Any]:
        """Plain data: what `clipedit audit --json` prints."""
        return {
            "concepts": [row.report() for row in self.rows],
            "images": self.images,
            "classes": list(self.classes),
        }


@dataclass(frozen=True)
class Margins:
    """Class margins over the images of a scan.

    Attributes:
        covariance: Of unit embeddings.
        directions: Differences of class weights.
        pool: General texts that name no class, centred: what random concepts are drawn from.
    """

    covariance: Float[Tensor, "d_embed d_embed"]
    directions: Float[Tensor, "d_embed margin"]
    pool: Float[Tensor, "text d_embed"]

    @cached_property
    def moved(self) -> Float[Tensor, "d_embed margin"]:
        """`C m`, which every share and all draws of the null ask for."""
        return self.covariance @ self.directions

    def share(self, span: Float[Tensor, "d_embed concept"]) -> float:
        """`m^T C U (U^T C U)^-1 U^T C m / (m^T C m)`, mean over margins m: how much of their variance lies along U."""
        total = (self.directions * self.moved).sum(0).clamp_min(torch.finfo(self.moved.dtype).tiny)
        return float(((self.along(span) * self.moved).sum(0) / total).mean())

    def rank(self, span: Float[Tensor, "d_embed concept"], texts: int) -> Lean:
        """The share, beside that of random texts of the pool: as many texts, as many directions."""
        generator, own = torch.Generator().manual_seed(NULL_SEED), self.share(span)
        below = 0
        for _ in range(NULL_DRAWS):
            drawn = self.pool[torch.randperm(len(self.pool), generator=generator)[:texts]]
            right = torch.linalg.svd(drawn - drawn.mean(0), full_matrices=False)[2]
            below += self.share(right[: span.shape[1]].T) < own
        return Lean(own, 100 * below / NULL_DRAWS)

    def along(self, span: Float[Tensor, "d_embed concept"]) -> Float[Tensor, "d_embed margin"]:
        """What of each margin is read along a concept: `U (U^T C U)^-1 U^T C m`."""
        return span @ torch.linalg.pinv(span.T @ self.covariance @ span, hermitian=True) @ (span.T @ self.moved)


def audit(
    scan: Scan,
    model: Model,
    *,
    classes: Sequence[str] = (),
    templates: Sequence[str] = DEFAULT_TEMPLATES,
    concepts: Sequence[str | Concept] | None = None,
    own: Sequence[str | Concept] = (),
    known: HeldConcepts | None = None,
) -> Audit:
    """Ask of every concept whether a few heads hold it, whether the classes lean on it, and what removing it would do.

    Args:
        scan: Of unlabelled images like those that the model will see.
        classes: Names of classes, as prompts say them; without any, only heads are looked at.
        templates: Prompts of the classes.
        concepts: Names of the library's or the model's own concepts; all of them by default. All are looked at, since
            one concept's heads may be another's; these are told of.
        own: More concepts, or their files.
        known: What the heads of this model hold, where it was looked at already.

    Raises:
        ConceptError: If a concept is unknown or cannot be read, or the model has no texts.
        StatisticsError: If the scan is not of this model.
        ImageError: If to the model two classes are one.
    """
    require_margins(classes)
    known, wanted = known or HeldConcepts(scan, model), _choose(model, concepts)
    added = known.measure_own(own)
    library = known.library | added
    margins = _build_margins(known, classes, templates) if classes else None
    auditor = _Auditor(known, library, margins, classes)
    rows = [auditor.ask(measured) for name, measured in library.items() if name in wanted | added.keys()]
    return Audit(tuple(sorted(rows, key=_worth)), scan.statistics.n, tuple(classes))


def require_margins(classes: Sequence[str]) -> None:
    """Refuse a single class.

    Raises:
        ConceptError: If there is one class only.
    """
    if len(classes) == 1:
        raise ConceptError("cannot look at the margins of one class. Give two or more, or none.")


@dataclass(frozen=True)
class _Auditor:
    known: HeldConcepts
    library: Mapping[str, Measured]
    margins: Margins | None
    classes: Sequence[str]

    def ask(self, measured: Measured) -> AuditRow:
        found = judge(measured, self.library)
        if found.verdict != "held":
            return _row(found, found.verdict, found.because)
        chosen = self._choose(measured.concept)
        lean = self._find_lean(measured.concept, chosen)
        verdict, because = self._say(found, measured.concept, lean)
        return _row(found, verdict, because, lean=lean, chosen=chosen)

    def _choose(self, concept: Concept) -> Choice:
        # As `remove-heads` would.
        return choose_for(self.known, concept, default_effect(self.known.model), library=self.library)

    def _find_lean(self, concept: Concept, chosen: Choice) -> Lean | None:
        if self.margins is None:
            return None
        probe = self.known.probe
        span = probe.directions(encode_unit(probe.model, concept.texts))
        found = self.margins.rank(span, len(concept.texts))
        taken = [probe.subsets.heads.index(head) for head in chosen.heads]
        held = removed_share(probe.subsets.quadratic_forms(self.margins.along(span)), taken)
        return replace(found, in_heads=held)

    def _say(self, found: Judgement, concept: Concept, lean: Lean | None) -> tuple[AuditVerdict, str]:
        if lean is None:
            return "held", found.because
        if _name_classes(concept, self.classes):
            return "held", f"{found.because}; its texts name the classes, so that it is the task itself"
        lies = f"{100 * lean.share:.0f} % of the variance of their margins lies along it"
        beside = f"{lies}, more than along {lean.percentile:.0f} % of random texts"
        if lean.percentile >= LEANS_FROM:
            return "leans", f"the classes lean on {concept.name}: {beside}; {found.because}"
        return "held", f"{found.because}; the classes do not lean on it: {beside}"


def _row(
    found: Judgement,
    verdict: AuditVerdict,
    because: str,
    *,
    lean: Lean | None = None,
    chosen: Choice | None = None,
) -> AuditRow:
    selectivity = found.selectivity
    row = AuditRow(found.concept, verdict, because, selectivity.value, (selectivity.low, selectivity.high), lean)
    if chosen is None:
        return row
    best, heads = chosen.chosen, tuple(map(str, chosen.heads))
    return replace(
        row, heads=heads, output_strength=best.output_strength, removed=best.removed, elsewhere=best.elsewhere
    )


def _worth(row: AuditRow) -> tuple[float, ...]:
    """What is leant on first, by how much of the margins it is; then what can be removed best."""
    gain = (row.removed or 0.0) - (row.elsewhere or 0.0)
    leant = row.lean.share if row.lean is not None and row.verdict == "leans" else 0.0
    return (float(_ORDER[row.verdict]), -leant, -gain, -row.selectivity)


def _choose(model: Model, concepts: Sequence[str | Concept] | None) -> set[str]:
    known = list_concepts(model.folder)
    if concepts is None:
        return set(known)
    names = [one.name if isinstance(one, Concept) else one for one in concepts]
    for name in names:
        if name not in known:
            raise ConceptError(
                f"unknown concept {name!r}. {nearest_names(name, known)} Files are added with --concept."
            )
    return set(names)


def _build_margins(known: HeldConcepts, classes: Sequence[str], templates: Sequence[str]) -> Margins:
    weights = compute_class_weights(known.model, classes, templates).double()
    # [margin, d_embed]; a single class has no other.
    rows = differences(weights) if 1 < len(classes) <= MOST_PAIRED else weights - weights.mean(0)
    return Margins(_embedding_covariance(known.probe.subsets), rows.T, _build_null_pool(known.probe, classes))


def _build_null_pool(probe: Probe, classes: Sequence[str]) -> Float[Tensor, "text d_embed"]:
    """The pool without the texts that say a class: margins lie along those by what they are, whatever a model learned.

    All of it where hardly any other text is left.
    """
    words = _class_words(classes)
    apart = [index for index, text in enumerate(probe.pool_texts) if not _says(text, words)]
    return probe.pool[apart] if len(apart) >= LEAST_POOL else probe.pool


def _embedding_covariance(subsets: HeadSubsets) -> Float[Tensor, "d_embed d_embed"]:
    """Of unit embeddings of the unedited model."""
    return subsets.readout.T @ subsets.covariance @ subsets.readout


def _name_classes(concept: Concept, classes: Sequence[str]) -> bool:
    """Whether a concept's texts say most of the classes by their words."""
    words = _class_words(classes)
    named = [word for word in words if any(_says(text, [word]) for text in concept.texts)]
    return bool(words) and len(named) >= NAMES_CLASSES * len(words)


def _class_words(classes: Sequence[str]) -> list[str]:
    return [word for word in map(plain_words, classes) if word]


def _says(text: str, words: Sequence[str]) -> bool:
    """Whether a text has one of these words, as such or in the plural."""
    plain = plain_words(text)
    return any(re.search(rf"\b{re.escape(word)}(e?s)?\b", plain) for word in words)


def spell_selectivity(row: AuditRow) -> str:
    """`3.7 (2.9 to 4.5)`."""
    low, high = row.interval
    return f"{row.selectivity:.1f} ({low:.1f} to {high:.1f})" if math.isfinite(high) else f"{row.selectivity:.1f}"


def spell_lean(row: AuditRow) -> str:
    """`24 % (above 99 % of random texts)`; empty where it was not looked at."""
    return (
        "" if row.lean is None else f"{100 * row.lean.share:.0f} % (above {row.lean.percentile:.0f} % of random texts)"
    )
