"""Other ways to say which heads hold a concept; what happens to them is the same mean-ablation, distilled."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..components import HeadId
from ..concepts.queries import encode_unit
from ..edits.document import Step
from .setting import Rival, Setting, ship_recipe


def remove_best(setting: Setting, scores: Float[Tensor, " head"]) -> Rival:
    """Mean-ablate as many heads as the tool itself would take, those of highest score."""
    heads = setting.known.probe.subsets.heads
    count = max(1, len(setting.default.heads))
    chosen = sorted(heads[index] for index in scores.argsort(descending=True, stable=True)[:count].tolist())
    return ablate(setting, chosen)


def ablate(setting: Setting, heads: Sequence[HeadId]) -> Rival:
    """Mean-ablation of some heads and nothing else."""
    step = Step(operation="mean-ablate", heads=tuple(map(str, heads)))
    return ship_recipe(setting.default.model_copy(update={"steps": (step,)}), setting)


def pursue_heads(setting: Setting) -> Rival:
    """Head Pursuit (Basile et al., NeurIPS 2025): heads whose variance the concept's texts explain best."""
    probe = setting.known.probe
    atoms = encode_unit(setting.model, setting.concept.texts)
    # Centred as for scores: all texts share "a photo of", which would explain a part of any head.
    centred = torch.nn.functional.normalize(atoms - atoms.mean(0), dim=1)
    scores = [
        pursue(readout @ covariance @ readout.T, centred, steps=probe.most)
        for readout, covariance in zip(probe.subsets.readouts, head_covariances(setting), strict=True)
    ]
    return remove_best(setting, torch.tensor(scores).double())


def head_covariances(setting: Setting) -> list[Float[Tensor, "k k"]]:
    """Of `u / |z|`, every scanned head in order."""
    # The heads of a layer follow each other, all of them: a layer's covariances are computed once.
    layers = dict.fromkeys(head.layer for head in setting.known.probe.subsets.heads)
    statistics = setting.scan.statistics
    return [covariance for layer in layers for covariance in statistics.feature_covariance(f"L{layer}.heads")]


def pursue(covariance: Float[Tensor, "d_embed d_embed"], atoms: Float[Tensor, "text d_embed"], *, steps: int) -> float:
    """Simultaneous orthogonal matching pursuit: the share of a covariance that a few unit atoms explain, in [0, 1].

    Each step takes the atom with most of what is left, `t^T (I - Q) S (I - Q) t`, where `Q` projects onto the span of
    the atoms taken. The data matrix enters through its covariance alone.
    """
    total, left = float(covariance.trace()), covariance
    away = torch.eye(len(covariance)).double()
    if total <= 0:
        return 0.0
    for _ in range(min(steps, len(atoms))):
        best = atoms[int(((atoms @ left) * atoms).sum(1).argmax())] @ away
        # An atom that those before it span explains nothing more.
        if float(best.norm()) < 1e-9:
            break
        unit = best / best.norm()
        away = away - torch.outer(unit, unit)
        left = away @ covariance @ away
    return 1 - float(left.trace()) / total
