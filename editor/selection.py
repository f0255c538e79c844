"""Selection: from scores to the heads that a recipe names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .components import HeadId
from .errors import RecipeError
from .scores import HeadScore


def select_top_heads(scores: Sequence[HeadScore], count: int) -> list[HeadId]:
    """The `count` heads of highest score, in order of layer and head.

    Raises:
        RecipeError: If fewer heads were scored.
    """
    heads = [HeadId.parse(row.component) for row in scores if "H" in row.component]
    if not 0 <= count <= len(heads):
        raise RecipeError(f"cannot select {count} heads: the scan has {len(heads)}. Lower --heads or scan more layers.")
    return sorted(heads[:count])


def draw_random_heads(
    scanned: Sequence[HeadId], like: Sequence[HeadId], generator: np.random.Generator
) -> list[HeadId]:
    """A control: as many random heads as `like` names, from the same layers, as many in each layer.

    Layers in which every head is named cannot give other heads; the draw then repeats them.
    """
    drawn: list[HeadId] = []
    for layer in sorted({head.layer for head in like}):
        pool = [head for head in scanned if head.layer == layer]
        wanted = sum(head.layer == layer for head in like)
        drawn += [pool[index] for index in generator.choice(len(pool), wanted, replace=False)]
    return sorted(drawn)
