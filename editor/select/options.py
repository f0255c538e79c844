"""What can be asked of an edit, each default in this one place. No torch here: the command line reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..choices import Along, Effect, Exif, HeadOperation, Layout, Selection


@dataclass(frozen=True)
class EditOptions:
    """What is to happen to the heads that are chosen.

    Attributes:
        operation: What happens to the heads.
        effect: How the edit enters the model; `distilled` by default, and `total` for a tower alone, whose readers see
            its layers and not its last projection.
        heads: How many heads, for selectors that search at most so many; chosen for the concept by default.
        strength: Of the operation on heads, in [0, 1].
        output_strength: Of the projection of the concept's texts out of the output, in [0, 1]; 0 leaves that step out.
            Chosen for the concept by default; 0 where the effect cannot hold it or `attention-region` chooses.
        directions: Number of directions of the concept; by default what holds 90 % of it.
        along: Where the directions of projections come from, as in a recipe's step.
        weights: Of `reweight`, by head, or a file of them; else they come from the concept.
        factor: Of `scale`.
        leace: Also erase labels from the output, last.
    """

    operation: HeadOperation | str = "mean-ablate"
    effect: Effect | None = None
    heads: int | None = None
    strength: float = 1.0
    output_strength: float | None = None
    directions: int | None = None
    along: Along = "texts"
    weights: Mapping[str, tuple[float, ...]] | Path | None = None
    factor: float | None = None
    leace: bool = False


@dataclass(frozen=True)
class HeadChoice:
    """How heads are chosen, and the labelled images that this may look at; never those that a result is reported on.

    Attributes:
        select: `text-difference` needs texts only, the other selectors labelled images.
        labelled: A folder with a folder for each class, a CSV or metadata.csv, or `demo`.
        layout, label, group_by, split, classes, exif: How these images are read, as in `LabelledOptions`.
        retention: A column with a second task, on which nothing should change.
        regions: For `attention-region`, a folder of masks or a column of boxes.
        budget: Points of accuracy that may be lost, for `frontier` and `attention-region`.
        features: Features of these images that a scan kept.
        erase: A column whose values are erased, or whose means directions come from.
        force: Go on although no few heads hold the concept, those that it points at are another concept's, classes do
            not lean on it, or images are few.
    """

    select: Selection | str = "text-difference"
    labelled: str | None = None
    layout: Layout | str | None = None
    label: str | None = None
    group_by: tuple[str, ...] = ()
    split: str | None = None
    classes: Mapping[str, str] | None = None
    exif: Exif = "upright"
    retention: str | None = None
    regions: str | None = None
    budget: float = 1.0
    features: Path | None = None
    erase: str | None = None
    force: bool = False
