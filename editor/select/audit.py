"""audit: which concepts do a few heads of a model hold, and on which of them do its classes lean?

From a scan and texts alone: no label, no image. Such data cannot tell a fair correlation from a spurious one, so an
audit says "leans on", never "biased". Lean alone misleads, since the words of an absent concept may fall near those of
the classes: what no few heads hold is never said to be leant on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..concepts.concepts import Concept, list_concepts
from ..concepts.margins import Lean, Margins, name_classes
from ..edits.bind import default_effect
from ..errors import ConceptError, nearest_names
from ..images.labelled_options import DEFAULT_TEMPLATES
from ..models.model import Model
from ..scan.scan import Scan
from .amounts import choose_for
from .choice import Choice
from .head_subsets import removed_share
from .whose_heads import HeldConcepts, Judgement, Measured

AuditVerdict = Literal["leans", "held", "other", "absent"]
_ORDER: dict[AuditVerdict, int] = {"leans": 0, "held": 1, "other": 2, "absent": 3}


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
    margins = known.build_margins(classes, templates) if classes else None
    auditor = _Auditor(known, library, margins, classes)
    rows = [auditor.ask(measured) for name, measured in library.items() if name in wanted | added.keys()]
    return Audit(sort_rows(rows), scan.statistics.n, tuple(classes))


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
        found = self.known.judge(measured.concept, self.library)
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
        subsets, span = self.known.probe.subsets, self.known.span_of(concept)
        taken = [subsets.heads.index(head) for head in chosen.heads]
        held = removed_share(subsets.quadratic_forms(self.margins.along(span)), taken)
        return replace(self.margins.rank(span, len(concept.texts)), in_heads=held)

    def _say(self, found: Judgement, concept: Concept, lean: Lean | None) -> tuple[AuditVerdict, str]:
        if lean is None:
            return "held", found.because
        if name_classes(concept, self.classes):
            return "held", f"{found.because}; its texts name the classes, so that it is the task itself"
        if lean.is_leant_on:
            return "leans", f"{lean.describe(concept.name)}; {found.because}"
        return "held", f"{found.because}; {lean.describe('it')}"


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


def sort_rows(rows: Iterable[AuditRow]) -> tuple[AuditRow, ...]:
    """Those most worth removing first."""
    return tuple(sorted(rows, key=_worth))


def _worth(row: AuditRow) -> tuple[float, ...]:
    """What is leant on first, by how much of the margins it is; then what can be removed best."""
    gain = (row.removed or 0.0) - (row.elsewhere or 0.0)
    # Also of what is held only since it names the classes: written words may, and stand in their way.
    leant = row.lean.share if row.lean is not None and row.lean.is_leant_on else 0.0
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


def spell_selectivity(row: AuditRow) -> str:
    """`3.7 (2.9 to 4.5)`."""
    return spell_interval(row.selectivity, *row.interval)


def spell_interval(value: float, low: float, high: float) -> str:
    """`3.7 (2.9 to 4.5)`; the value alone where there is no interval."""
    return f"{value:.1f} ({low:.1f} to {high:.1f})" if math.isfinite(high) else f"{value:.1f}"


def spell_lean(row: AuditRow) -> str:
    """`24 % (above 99 % of random texts)`; empty where it was not looked at."""
    return (
        "" if row.lean is None else f"{100 * row.lean.share:.0f} % (above {row.lean.percentile:.0f} % of random texts)"
    )
