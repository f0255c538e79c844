"""What a discovery finds: candidates, and the concept files that a person edits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from ...concepts.concepts import Concept
from ...concepts.textspan import HeadLabel
from ...files.whole import require_free_file, write_text
from ..choice import Choice
from ..selectivity import Selectivity

Source = Literal["heads", "low-margin images"]
# Texts that a sentence names of each side.
_SHOWN = 2


@dataclass(frozen=True)
class CandidateConcept:
    """A concept that a few heads hold and nobody wrote down.

    Attributes:
        source: Whether it began with a head that nothing explains, or with images of low margin.
        from_heads: The heads whose texts these are.
        share: Of the variance of what these heads write, along the candidate's directions.
        spans: TextSpan of the first of these heads.
        selectivity: Judged on images that the texts were not chosen on, where the scan has such.
        edit: What `remove-heads` would do.
    """

    concept: Concept
    source: Source
    from_heads: tuple[str, ...]
    share: float
    spans: tuple[HeadLabel, ...]
    selectivity: Selectivity
    edit: Choice

    def report(self) -> dict[str, Any]:
        """Plain data."""
        best = self.edit.chosen
        return {
            "name": self.concept.name,
            "source": self.source,
            "from_heads": list(self.from_heads),
            "share": self.share,
            "text_span": [vars(label) for label in self.spans],
            "instances": {name: list(texts) for name, texts in self.concept.parts().items()},
            "related": list(self.concept.related),
            "selectivity": self.selectivity.value,
            "interval": [self.selectivity.low, self.selectivity.high],
            "heads": list(map(str, self.edit.heads)),
            "output_strength": self.edit.output_strength,
            "removed": best.removed,
            "elsewhere": best.elsewhere,
        }

    def advise(self) -> str:
        """Of a candidate with two instances: what a person should do, since it may be one thing against all else."""
        sides = " from ".join(" / ".join(texts[:_SHOWN]) for texts in self.concept.parts().values())
        return (
            f"{', '.join(self.from_heads)} tell {sides}, which may be one concept of two values (selectivity "
            f"{self.selectivity.value:.1f} over wordings): if it is, write a file with both as instances, several "
            "wordings of each, and give it with --concept"
        )


@dataclass(frozen=True)
class Discovery:
    """What was found.

    Attributes:
        candidates: Those most worth removing first.
        pairs: Those with two instances only, which no file is written for.
        images, judged_images: How many the scan saw, and how many of them judged the candidates.
        strong: How many heads write enough to be asked what.
        unexplained: Those of them that neither a known concept nor a candidate explains.
        explained_by: The known concepts that a few heads hold.
    """

    candidates: tuple[CandidateConcept, ...]
    images: int
    judged_images: int
    strong: int
    unexplained: tuple[str, ...]
    explained_by: tuple[str, ...]
    pairs: tuple[CandidateConcept, ...] = ()

    @property
    def because(self) -> str:
        """What was found, in one sentence."""
        known = ", ".join(self.explained_by) or "no known concept"
        if self.candidates:
            names = ", ".join(one.concept.name for one in self.candidates)
            return f"discovered {len(self.candidates)}: {names}; known are {known}"
        explained = self.strong - len(self.unexplained)
        said = f"discovered nothing: {known} explains {explained} of the {self.strong} heads that write much"
        return f"{said}; what the others speak of is known too, or held by no few heads" if self.unexplained else said

    def report(self) -> dict[str, Any]:
        """Plain data: what `clipedit audit --discover --json` prints."""
        return {
            "candidates": [one.report() for one in self.candidates],
            "pairs": [one.report() | {"advice": one.advise()} for one in self.pairs],
            "because": self.because,
            "images": self.images,
            "judged_images": self.judged_images,
            "strong_heads": self.strong,
            "unexplained": list(self.unexplained),
            "explained_by": list(self.explained_by),
        }


def write_candidates(found: Discovery, folder: Path, *, overwrite: bool = False) -> dict[str, Path]:
    """Write a concept file for each candidate, ready for `--concept`; other files of the folder stay.

    Returns:
        The files, by the candidates' names.

    Raises:
        ExportError: If a file of that name exists and `overwrite` is not set, or the folder cannot be written.
    """
    paths = {one.concept.name: folder / f"{one.concept.name}.yaml" for one in found.candidates}
    # All of them first: no half of a discovery is written.
    for path in paths.values():
        require_free_file(path, overwrite=overwrite)
    for one in found.candidates:
        write_text(paths[one.concept.name], format_candidate(one, found))
    return paths


def format_candidate(one: CandidateConcept, found: Discovery) -> str:
    """The concept file of a candidate: what it was found by as comments, then what `load_concept` reads."""
    low, high = one.selectivity.low, one.selectivity.high
    spread = f" ({low:.1f} to {high:.1f})" if math.isfinite(high) else ""
    spans = ", ".join(f"{label.text} ({label.variance_share:.0%})" for label in one.spans)
    apart = "others" if found.judged_images < found.images else "the images that the texts were chosen on"
    lines = [
        "A candidate that `clipedit audit --discover` wrote: correct its name, texts and instances before you use it.",
        f"From {one.source}: {one.share:.0%} of what {', '.join(one.from_heads)} write varies along these texts.",
        f"Selectivity {one.selectivity.value:.1f}{spread} on {found.judged_images} of {found.images} scanned images, "
        f"{apart}; about 1 where heads hold nothing of it.",
        f"TextSpan of {one.from_heads[0]}: {spans}.",
    ]
    document = one.concept.model_dump(mode="json", exclude={"texts", "keep"})
    # Characters that a reader of YAML takes for the end of a line would end the comment.
    comments = ["# " + "".join(char if char.isprintable() else " " for char in line) for line in lines]
    return "\n".join([*comments, yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=110)])
