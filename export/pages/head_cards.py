"""Head cards: what a head says (TextSpan), how much of a concept it carries, and the images that excite it most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...editor.components import HeadId
from ...editor.concepts.scores import HeadScore
from ...editor.concepts.textspan import HeadLabel
from ...editor.edits.recipe import Recipe
from .head_pictures import Exciting, Pictures

PICTURED = 32


@dataclass(frozen=True)
class HeadCard:
    """What the report tells of one head."""

    head: HeadId
    edited: bool
    score: float
    texts: Sequence[HeadLabel]
    images: Sequence[Exciting] = ()


def build_cards(
    recipe: Recipe, labels: Mapping[str, Sequence[HeadLabel]], scores: Sequence[HeadScore], pictures: Pictures
) -> list[HeadCard]:
    """A card a scanned head, by layer and head."""
    edited, scored = set(recipe.heads), {row.component: row.score for row in scores}
    heads = sorted(HeadId.parse(name) for name in labels)
    return [
        HeadCard(
            head, str(head) in edited, scored.get(str(head), 0.0), labels[str(head)], pictures.images.get(head, ())
        )
        for head in heads
    ]
