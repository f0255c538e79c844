"""The shapes of what `audit --json` prints, and what the shapes of other outputs share with them."""

from __future__ import annotations

from typing import Literal, NotRequired

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

CLOSED = ConfigDict(extra="forbid")
Figure = float | None


@with_config(CLOSED)
class LabelRow(TypedDict):
    """One text of a head in `label`."""

    text: str
    variance_share: Figure


@with_config(CLOSED)
class AuditRow(TypedDict):
    """A concept of `audit`; `command` removes it, where that is worth it."""

    concept: str
    verdict: Literal["leans", "held", "other", "absent"]
    because: str
    selectivity: Figure
    interval: list[Figure]
    lean: Figure
    lean_percentile: Figure
    lean_in_heads: Figure
    heads: list[str]
    output_strength: Figure
    removed: Figure
    elsewhere: Figure
    command: str | None


class FoundRow(TypedDict):
    """What `audit --discover` says of anything that it found."""

    name: str
    source: Literal["heads", "low-margin images"]
    from_heads: list[str]
    share: Figure
    text_span: list[LabelRow]
    instances: dict[str, list[str]]
    related: list[str]
    selectivity: Figure
    interval: list[Figure]
    heads: list[str]
    output_strength: Figure
    removed: Figure
    elsewhere: Figure


@with_config(CLOSED)
class CandidateRow(FoundRow):
    """A concept that `audit --discover` found: `file` where it was written, and the `command` that removes it then."""

    file: str | None
    command: str | None


@with_config(CLOSED)
class PairRow(FoundRow):
    """Two things that a few heads tell apart, which may be a concept of two values: no file is written for it."""

    advice: str


@with_config(CLOSED)
class DiscoveryOutput(TypedDict):
    """What `audit --discover` found beside known concepts."""

    candidates: list[CandidateRow]
    pairs: list[PairRow]
    because: str
    images: int
    judged_images: int
    strong_heads: int
    unexplained: list[str]
    explained_by: list[str]


@with_config(CLOSED)
class AuditOutput(TypedDict):
    """What `audit` prints; `discovered` with `--discover`."""

    concepts: list[AuditRow]
    images: int
    classes: list[str]
    discovered: NotRequired[DiscoveryOutput]
