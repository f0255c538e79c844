"""The operation `amplify`: more of a concept in place of less, or less of it than all."""

from __future__ import annotations

import torch
from torch import Tensor

from clipedit.editor.edits.operations import OperationInput, keep_only
from clipedit.editor.errors import RecipeError


def amplify(given: OperationInput) -> tuple[Tensor, bool]:
    """`B = I + (factor - 1) N^+ N`, mean kept: what a head says along the step's directions, times `factor`.

    At 0 it is `project-out`, at 1 nothing, at 2 twice as much, at -1 the opposite.

    Raises:
        RecipeError: If the step has no factor, or no directions.
    """
    if given.factor is None:
        raise RecipeError("cannot amplify: the step has no `factor`. Add one, for example `factor: 2`.")
    kept, keep_mean = keep_only(given)
    return torch.eye(kept.shape[1]).to(kept) + (given.factor - 1) * kept, keep_mean
