"""From a recipe's steps to one affine map a head: on its features `u`, and on its values `v` for `total`."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from ..components import ComponentGroup, HeadId
from ..concepts.directions import encode_pool
from ..errors import StatisticsError
from ..models.model import Model
from ..scan.collect import LabelledEmbeddings
from ..scan.scan import Scan
from .document import Step
from .operations import AffineMap, OperationInput, find_operation, identity_map, stack_copies, with_strength
from .singular import compute_singular_directions
from .step_directions import head_directions, require_room, step_directions

HeadMaps = dict[HeadId, tuple[AffineMap, AffineMap]]


def compose_head_maps(
    steps: Sequence[Step], scan: Scan, model: Model, labelled: LabelledEmbeddings | None = None
) -> HeadMaps:
    """For every edited head, the map on its features `u` and on its values `v`.

    Raises:
        RecipeError, ConceptError: If a step lacks what it needs, or asks for more directions than a head has
            dimensions.
        StatisticsError: If the scan lacks a layer.
    """
    steps = [expand_layers(step, model) for step in steps if step.target in ("heads", "layers")]
    found: HeadMaps = {}
    named = [head for step in steps for head in step.head_ids()]
    # Once a layer: a readout costs more than everything else that is done with it.
    groups = {group.name: group for group in edited_groups(named, scan, model)}
    readouts = model.tower.compute_readouts(list(groups.values()))
    # Encoded once: it can be thousands of texts.
    pool = encode_pool(model) if any(_needs_pool(step) for step in steps) else None
    for step in steps:
        shared = None if step.along in ("text-span", "pca") else step_directions(step, model, labelled)
        for head in step.head_ids():
            name = f"L{head.layer}.heads"
            # A slice keeps the head axis, which operations expect.
            one = slice(head.head, head.head + 1)
            given = OperationInput(readouts[name][one], shared, step.factor)
            given = _specialise(given, step, head, scan, model, pool=pool)
            # A head may stand in several steps: each acts on what the earlier ones leave.
            features, values = found.get(head, (identity_map(1, groups[name].k), identity_map(1, groups[name].d_head)))
            found[head] = (
                _then(features, step, given, scan.statistics.mean_features(name)[one]),
                _then(values, step, stack_copies(given, groups[name]), scan.statistics.mean_values(name)[one]),
            )
    return found


def expand_layers(step: Step, model: Model) -> Step:
    """A step on whole layers as the mean-ablation of their heads; other steps as they are."""
    if step.target != "layers":
        return step
    heads = (HeadId(layer, head) for layer in step.layers for head in range(model.tower.heads_per_layer[layer]))
    return Step(operation="mean-ablate", heads=tuple(map(str, heads)))


def edited_groups(heads: Iterable[HeadId], scan: Scan, model: Model) -> list[ComponentGroup]:
    """The scanned groups that hold these heads.

    Raises:
        StatisticsError: If the scan has no such layer.
    """
    wanted = {f"L{head.layer}.heads": head for head in heads}
    for name, head in wanted.items():
        if name not in scan.statistics.groups:
            raise StatisticsError(
                f"cannot bind the recipe: the scan has no layer {head.layer}, which {head} is in. Scan with --layers."
            )
    return [group for group in scan.groups(model) if group.name in wanted]


def warn_of_plain_ablation(heads: HeadMaps, model: Model) -> None:
    """Say so where a projection under `total` leaves nothing of a head, because it is read out in several copies."""
    # Plain ablation under both effects is what was asked for, and no reason to warn.
    gone = [head for head, (u, v) in heads.items() if float(v.map.norm()) < 1e-6 < float(u.map.norm())]
    if gone:
        warnings.warn(
            f"total edits of {model.name} read each head in several copies, and together they span all of "
            f"{', '.join(map(str, gone))}: project-out is plain ablation there. Use fewer --directions, or --effect "
            "direct.",
            stacklevel=3,
        )


def _needs_pool(step: Step) -> bool:
    scored = "reweight" in (step.operation, *step.then) and step.weights is None
    return step.along == "text-span" or (scored and (step.concept is not None or step.texts is not None))


def _specialise(
    given: OperationInput, step: Step, head: HeadId, scan: Scan, model: Model, *, pool: Tensor | None
) -> OperationInput:
    """The input with what belongs to one head: its own directions, its singular directions."""
    readout, directions = given.readouts[0], given.directions
    if step.along in ("text-span", "pca"):
        directions = head_directions(step, head, readout, scan, model, pool=pool)
    if "reweight" in (step.operation, *step.then):
        singular = compute_singular_directions(model, head, step.weights, directions, pool)
        return replace(given, directions=directions, singular=singular)
    if directions is not None:
        require_room(directions, step, head, readout.shape[1])
    return replace(given, directions=directions)


def _then(before: AffineMap, step: Step, given: OperationInput, mean: Float[Tensor, "head k"]) -> AffineMap:
    for operation in (step.operation, *step.then):
        maps, keep_mean = find_operation(operation)(given)
        before = before.then(with_strength(maps, step.strength), keep_mean, mean)
    return before
