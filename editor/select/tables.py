"""Tables of a zero-shot task: what each head adds to every image's similarities. Edits are then sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..components import Features, HeadId
from ..concepts.class_heads import read_head
from ..concepts.class_weights import DEFAULT_TEMPLATES, compute_class_weights
from ..edits.bind import bind_recipe
from ..edits.direct import compute_edited_readouts
from ..edits.recipe import require_bound
from ..images.source import LabelledImages
from ..models.model import Model
from ..scan.collect import collect_features
from ..scan.scan import Scan
from .plan import EditPlan, Evidence, write_document

_CHUNK_NUMBERS = 2**24


@dataclass(frozen=True)
class TaskTable:
    """A labelled task under a plan's operation, `direct` effect.

    Attributes:
        similarity: With class vectors, of the embeddings without any head edited (the plan's output projection
            applied).
        removed: What editing a head takes away from `similarity`; edits of several heads add.
        groups: The group of each image, as an index.
    """

    heads: tuple[HeadId, ...]
    similarity: Float[Tensor, "image class"]
    removed: Float[Tensor, "head image class"]
    labels: Int[Tensor, " image"]
    groups: Int[Tensor, " image"]


def scanned_heads(scan: Scan, model: Model) -> tuple[HeadId, ...]:
    """Every head of the scanned layers."""
    return tuple(
        HeadId(identity.layer, identity.head)
        for group in scan.groups(model)
        for identity in group.ids
        if identity.kind == "head"
    )


@dataclass(frozen=True)
class TaskImages:
    """What a table is made of: the features of a task's images, its class vectors (where a model has no texts its own
    classifier's rows, and their bias), and each image's class and group.
    """

    features: Features
    weights: Float[Tensor, "class d_embed"]
    bias: Float[Tensor, " class"]
    labels: Int[Tensor, " image"]
    groups: Int[Tensor, " image"]


def load_task(scan: Scan, model: Model, task: LabelledImages, evidence: Evidence) -> TaskImages:
    """Read a task's images once, or not at all with cached features.

    Raises:
        ImageError, StatisticsError: As `collect_features`.
    """
    features, kept = collect_features(
        model, task.source, layers=scan.layers, cached=evidence.cached, progress=evidence.progress
    )
    groups = np.unique([task.groups[index] for index in kept], return_inverse=True)[1]
    weights, bias = _read_classes(model, task.classes)
    return TaskImages(
        features,
        weights,
        bias,
        torch.tensor([task.labels[index] for index in kept]),
        torch.from_numpy(groups),
    )


def _read_classes(
    model: Model, classes: Sequence[str]
) -> tuple[Float[Tensor, "class d_embed"], Float[Tensor, " class"]]:
    if not model.has_texts:
        return read_head(model, classes)
    weights = compute_class_weights(model, classes, DEFAULT_TEMPLATES)
    return weights, weights.new_zeros(len(weights))


def tabulate(scan: Scan, model: Model, plan: EditPlan, images: TaskImages) -> TaskTable:
    """`z A^T w` without an edit, and `(u_h - u_h') R_h^T A^T w` a head, from the plan's recipe for all heads at once.

    Memory: `heads * images * classes` floats.

    Raises:
        RecipeError, ConceptError: If the plan's operation lacks what it needs.
    """
    heads, features = scanned_heads(scan, model), images.features
    # LEACE is fitted to what the heads leave: it has no table of its own. `direct`, since only then edits add up.
    document = write_document(replace(plan, leace=False), heads, model).model_copy(update={"effect": "direct"})
    recipe = bind_recipe(document, scan, model)
    tensors, readouts = require_bound(recipe), compute_edited_readouts(recipe, model.tower)
    weights = images.weights
    # (A z) . w = z . (A^T w): the map goes to the class vectors once, not to every image.
    seen = weights @ tensors["output.map"].to(weights) if "output.map" in tensors else weights
    removed = []
    for head in heads:
        # [image, component, k] -> [image, k]
        u = features.groups[f"L{head.layer}.heads"][:, head.head].float()
        edited = u @ tensors[f"heads.{head}.map"].T + tensors[f"heads.{head}.offset"]
        # [image, k] @ [k, class] -> [image, class]
        removed.append((u - edited) @ (seen @ readouts[head].float()).T)
    return TaskTable(
        heads, features.embedding @ seen.T + images.bias, torch.stack(removed), images.labels, images.groups
    )


def measure_subsets(
    table: TaskTable, subsets: Bool[Tensor, "subset head"]
) -> tuple[Float[Tensor, " subset"], Float[Tensor, " subset"], Float[Tensor, " subset"]]:
    """Worst-group accuracy, overall accuracy and the mean of groups of editing each subset of the heads, in [0, 1]."""
    images, classes = table.similarity.shape
    count = torch.nn.functional.one_hot(table.groups).float()
    # [image, group]: a product with it is the mean over each group's images.
    count = count / count.sum(0)
    worst, overall, mean = [], [], []
    # In chunks: [subset, image, class] of all subsets at once would not fit.
    for chunk in subsets.split(max(1, _CHUNK_NUMBERS // (images * classes))):
        # [subset, head] @ [head, image * class] -> [subset, image, class]
        taken = (chunk.float() @ table.removed.flatten(1)).unflatten(1, (images, classes))
        right = ((table.similarity - taken).argmax(2) == table.labels).float()
        by_group = right @ count  # [subset, image] @ [image, group] -> [subset, group]
        worst.append(by_group.amin(1))
        overall.append(right.mean(1))
        mean.append(by_group.mean(1))
    return torch.cat(worst), torch.cat(overall), torch.cat(mean)


def subset_rows(table: TaskTable, subsets: Sequence[frozenset[int]]) -> Bool[Tensor, "subset head"]:
    """Sets of positions in `table.heads` as rows of a mask."""
    rows = torch.zeros(len(subsets), len(table.heads), dtype=torch.bool)
    for row, chosen in enumerate(subsets):
        rows[row, sorted(chosen)] = True
    return rows
