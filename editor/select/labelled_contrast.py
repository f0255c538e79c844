"""The labelled-contrast selector (Locate-Then-Correct, 2025): heads that decide wrong answers oftener than right."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from ..edits.document import RecipeDocument
from ..errors import RecipeError
from ..models.model import Model
from ..scan.scan import Scan
from .plan import EditPlan, Evidence, require_labelled, write_document
from .tables import TaskTable, load_task, tabulate


def select_by_labelled_contrast(scan: Scan, model: Model, plan: EditPlan, evidence: Evidence) -> RecipeDocument:
    """The `plan.heads` heads that are most over-represented as the strongest head of wrongly classified images.

    Raises:
        ImageError: If there are no labelled images, or a group has fewer than five.
        RecipeError: If every image, or none, is classified rightly, or no head is over-represented.
    """
    labelled = require_labelled(evidence, "labelled-contrast")
    # Whatever will be done to the heads: a push is measured against a head's mean.
    ablation = replace(plan, operation="mean-ablate", strength=1.0, output_strength=0.0)
    table = tabulate(scan, model, ablation, load_task(scan, model, labelled, evidence))
    excess = compute_excess(table)
    order = [index for index in excess.argsort(descending=True).tolist() if excess[index] > 0]
    if not order:
        raise RecipeError(
            "cannot select heads by labelled-contrast: no head decides wrong answers more often than right."
        )
    return write_document(plan, [table.heads[index] for index in order[: plan.heads]], model)


def compute_excess(table: TaskTable) -> Float[Tensor, " head"]:
    """How much more often each head is the strongest among wrong answers than among right ones, in [-1, 1].

    A head's push is what its deviation from its mean adds to `similarity(answer) - similarity(other)`; the other is the
    true class of a wrong answer, and the runner-up of a right one. Groups weigh equally, so that the usual ones do not
    decide.

    Raises:
        RecipeError: If every image, or none, is classified rightly.
    """
    images = torch.arange(len(table.labels))
    answers = table.similarity.argmax(1)
    wrong = answers != table.labels
    if not wrong.any() or wrong.all():
        share = 1 - float(wrong.float().mean())
        raise RecipeError(
            f"cannot select heads by labelled-contrast: {share:.0%} of the labelled images are classified rightly, "
            "some right and some wrong ones are needed. Give images on which the model errs."
        )
    # The answer at minus infinity, so that argmax gives the runner-up.
    second = table.similarity.scatter(1, answers[:, None], -torch.inf).argmax(1)
    # A wrong answer is held against the truth, a right one against what came next.
    other = torch.where(wrong, table.labels, second)
    # [head, image, class] -> [head, image]
    push = table.removed[:, images, answers] - table.removed[:, images, other]
    strongest = torch.nn.functional.one_hot(push.argmax(0), len(table.heads)).float()
    return _mean_over_groups(strongest, table.groups, wrong) - _mean_over_groups(strongest, table.groups, ~wrong)


def _mean_over_groups(values: Tensor, groups: Tensor, chosen: Tensor) -> Tensor:
    # A group may have no wrong answer, or no right one.
    present = groups[chosen].unique()
    return torch.stack([values[chosen & (groups == group)].mean(0) for group in present]).mean(0)
