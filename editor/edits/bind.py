"""bind: a recipe's steps and a scan to the numbers of an edit; `distilled` refits the readout in closed form."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from ..choices import DEFAULT_EFFECT, EFFECTS, Effect
from ..components import HeadId
from ..errors import RecipeError, require_kinds
from ..models.identity import describe_function
from ..models.model import Model
from ..scan.collect import LabelledEmbeddings
from ..scan.scan import Scan
from .document import Base, Calibration, Fold, RecipeDocument, Step, describe_plugins
from .erasure import fit_leace
from .head_maps import HeadMaps, compose_head_maps, warn_of_plain_ablation
from .operations import project_jointly
from .parts import compute_ablated_parts
from .recipe import Recipe
from .refit import compute_distilled_readout
from .step_directions import require_labels, step_directions


def bind_recipe(
    document: RecipeDocument, scan: Scan, model: Model, *, labelled: LabelledEmbeddings | None = None
) -> Recipe:
    """Compute maps, offsets and, for `distilled`, the refitted weights.

    An aligned model gives the directions of projections; the edit is of the model that was aligned.

    Args:
        labelled: Needed by steps that erase labels (`leace`) or work along their means (`along: labels`).

    Raises:
        RecipeError: If a step names heads that the model does not have or the scan did not see, or lacks what it needs.
        StatisticsError: If the scan is not of this model.
    """
    wanted = {"document": (document, RecipeDocument), "scan": (scan, Scan), "model": (model, Model)}
    require_kinds("bind a recipe", **wanted)
    scan.statistics.require(2)
    check_effect(document.effect, model)
    check_heads(document, model)
    heads = compose_head_maps(document.steps, scan, model, labelled)
    # The joint space lends directions only: weights are those of the model that was aligned.
    own = model.editable
    parts = compute_ablated_parts(document, scan, own)
    tensors = _head_tensors(heads) | {f"ablated.{part}": offset for part, (_, offset) in parts.items()}
    if document.effect == "total":
        warn_of_plain_ablation(heads, model)
    fold = None
    if document.effect == "distilled":
        edits = {head: maps for head, (maps, _) in heads.items()}
        refit = compute_distilled_readout(scan, model, edits, parts)
        readout, bias = refit.readout, refit.bias
        if labelled is not None:
            # What is erased is what ships: the labelled images as the refitted readout embeds them.
            labelled = replace(labelled, embedding=labelled.final.double() @ readout + bias)
        tensors |= _compose_projections(document, model, labelled)
        output = tensors.get("output.map", torch.eye(own.tower.d_embed).double())
        # `A (P'^T f + c) = (P' A^T)^T f + A c`
        readout, bias = readout @ output.T, output @ bias + tensors.pop("output.offset", torch.zeros(len(output)))
        folded = own.tower.fold_readout(readout, bias)
        tensors |= {f"folded.{name}": tensor for name, tensor in folded.items()}
        fold = _describe_fold(own, folded, readout, bias, refit.ridge)
    else:
        tensors |= _compose_projections(document, model, labelled)
    update = {
        "fold": fold,
        "tower": model.side,
        "base": Base(
            model=model.name,
            pretrained=model.pretrained,
            weights_hash=model.weights_hash,
            function=describe_function(model.config),
        ),
        "calibration": Calibration(fingerprint=scan.fingerprint, images=scan.statistics.n),
        "plugins": describe_plugins(document.steps),
    }
    # Everything up to here is float64; a recipe stores float32.
    rounded = {name: tensor.float() for name, tensor in tensors.items()}
    return Recipe(document.model_copy(update=update), rounded, _used_names(tensors, own))


def check_document(document: RecipeDocument, model: Model) -> None:
    """Refuse a recipe that does not fit an architecture.

    Raises:
        RecipeError: As `check_heads` and `check_effect`.
    """
    check_heads(document, model)
    check_effect(document.effect, model)


def default_effect(model: Model) -> Effect:
    """`DEFAULT_EFFECT`; of a tower alone `total`: programs that read one see its layers, not its last projection."""
    return "total" if model.is_alone else DEFAULT_EFFECT


def check_effect(effect: str, model: Model, *, output_strength: float | None = None) -> None:
    """Refuse an effect that the architecture cannot hold, or a projection of the output that the effect cannot.

    Raises:
        RecipeError: Naming the effects that it can.
    """
    reason = model.why_not(effect)
    if reason is not None:
        others = " or ".join(f"--effect {other}" for other in EFFECTS if model.why_not(other) is None)
        raise RecipeError(f"cannot make a {effect} edit of {model.name}: {reason}. Use {others}.")
    if output_strength and not holds_output(effect, model):
        raise _output_error("output", model)


def check_heads(document: RecipeDocument, model: Model) -> None:
    """Refuse heads that the model does not have, and a text recipe where images are looked at.

    Raises:
        RecipeError: Naming the step.
    """
    if document.tower == "text" and model.side != "text":
        raise RecipeError(
            f"cannot use recipe {document.name}: it edits the text tower. Give model.with_tower('text') and its scan."
        )
    heads = model.tower.heads_per_layer
    for number, step in enumerate(document.steps, 1):
        if step.target == "heads" and not step.heads:
            raise RecipeError(f"cannot use recipe {document.name}: step {number} names no heads. Add `heads`.")
        for head in step.head_ids():
            missing_layer = head.layer >= len(heads)
            if missing_layer or head.head >= heads[head.layer]:
                there = (
                    f"layers 0-{len(heads) - 1}" if missing_layer else f"heads 0-{heads[head.layer] - 1} in that layer"
                )
                raise RecipeError(
                    f"cannot apply recipe {document.name}: step {number} names head {head}, {model.name} has {there}. "
                    f"Correct `heads` in step {number}."
                )


def _head_tensors(heads: HeadMaps) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for head, (features, values) in heads.items():
        found[f"heads.{head}.map"] = features.map[0]
        found[f"heads.{head}.offset"] = features.offset[0]
        found[f"heads.{head}.value_offset"] = values.offset[0]
        # With one copy the map on values is the map on features: only the means differ.
        if values.map.shape != features.map.shape:
            found[f"heads.{head}.value_map"] = values.map[0]
    return found


def _compose_projections(
    document: RecipeDocument, model: Model, labelled: LabelledEmbeddings | None
) -> dict[str, Tensor]:
    """`output.map` and `texts.map`, where a step has that target, and the output's offset where the effect keeps it."""
    found: dict[str, Tensor] = {}
    for target in ("output", "texts"):
        steps = [step for step in document.steps if step.target == target]
        if steps:
            if not (holds_output(document.effect, model) if target == "output" else _has_projection(target, model)):
                raise _output_error(target, model)
            found[f"{target}.map"], offset = _compose_output_map(steps, model, labelled)
            # A classifier's bias holds the offset, and its logits need it; a CLIP is read by linear maps and cosines.
            if (document.effect == "direct" or _has_classifier(model)) and offset.any():
                found[f"{target}.offset"] = offset
    return found


def _compose_output_map(
    steps: Sequence[Step], model: Model, labelled: LabelledEmbeddings | None
) -> tuple[Float[Tensor, "d_embed d_embed"], Float[Tensor, " d_embed"]]:
    """Map and offset of the steps on the output, in order; LEACE is fitted on what the earlier ones leave.

    Projections that follow one another are one, in no order.
    """
    total = torch.eye(model.tower.d_embed).double()
    offset = torch.zeros(model.tower.d_embed).double()
    for operation, run in itertools.groupby(steps, key=lambda step: step.operation):
        # Neighbours are projected out together, so that their order does not matter; a label is erased after another.
        for group in [list(run)] if operation == "project-out" else [[step] for step in run]:
            maps, shift = _output_map(group, model, labelled, total, offset)
            # A later step acts on the offset of the earlier ones too.
            total, offset = maps @ total, maps @ offset + shift
    return total, offset


def _output_map(
    steps: Sequence[Step], model: Model, labelled: LabelledEmbeddings | None, total: Tensor, offset: Tensor
) -> tuple[Float[Tensor, "d_embed d_embed"], Float[Tensor, " d_embed"]]:
    """Map and offset of some projections, or of one other step; `total` and `offset` are those of the steps before."""
    step = steps[0]
    if step.operation == "leace":
        given = require_labels(labelled, step)
        return fit_leace(given.embedding.double() @ total.T + offset, given.labels, step.strength)
    found = [directions for step in steps if (directions := step_directions(step, model, labelled)) is not None]
    if step.operation != "project-out" or len(found) < len(steps):
        raise RecipeError(
            f"cannot {step.operation} the {step.target}: only leace, and project-out with a concept, texts or "
            "labels, act there."
        )
    return project_jointly(found, [step.strength for step in steps]), torch.zeros(len(offset)).double()


def _describe_fold(model: Model, folded: Mapping[str, Tensor], readout: Tensor, bias: Tensor, ridge: float) -> Fold:
    """What folding lost: the embedding of `f = 1` under the folded tensors should be `P'^T 1` and the constant."""
    ones = torch.ones(1, model.tower.d_model).double()
    found = (model.tower.embed_final(ones, folded) - ones @ readout)[0]
    # The readout may be close to rank-deficient: `gelsd` gives the solution of least norm.
    shift = torch.linalg.lstsq(readout.T, found[:, None], driver="gelsd").solution
    scale = bias.norm().clamp_min(1e-12)
    return Fold(residual=float((found - bias).norm() / scale), bias_norm=float(shift.norm()), ridge=ridge)


def _used_names(tensors: Mapping[str, Tensor], model: Model) -> dict[str, str]:
    layers = {f"L{HeadId.parse(key.split('.')[1]).layer}" for key in tensors if key.startswith("heads.")}
    outputs = {target for target in ("output", "texts") if f"{target}.map" in tensors}
    outputs |= {"classifier"} if "output" in outputs else set()
    names = model.tower.tensor_names()
    return {key: name for key, name in names.items() if key.split(".")[0] in layers | outputs}


def _output_error(target: str, model: Model) -> RecipeError:
    return RecipeError(
        f"cannot edit the {target} of {model.name}: it has no final linear map there. Leave the step out, or set "
        "--output-strength 0."
    )


def _has_classifier(model: Model) -> bool:
    return "classifier.weight" in model.tower.tensor_names()


def _has_projection(target: str, model: Model) -> bool:
    names = model.tower.tensor_names()
    found = names.get(target) or names.get(f"{target}.weight")
    # What a CLIP lends is in no file of the model.
    return found is not None and not (model.lent is not None and found in model.lent.names)


def holds_output(effect: str, model: Model) -> bool:
    """Whether a projection of the output can enter: `total` needs a last linear map or a classifier, `distilled` has
    checked for one.

    The joint space that an aligned model is read in is no output of its own.
    """
    return model.alignment is None and (effect != "total" or _has_projection("output", model) or _has_classifier(model))
