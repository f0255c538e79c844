"""ResiDual: a weight for every principal component of every head, learnt from class labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..components import Features, HeadId
from ..edits.operations import AffineMap
from ..edits.refit import compute_distilled_readout
from ..edits.step_directions import principal_directions
from ..select.head_subsets import HeadSubsets
from .selectors import head_covariances
from .setting import Rival, Setting

STEPS, RATE, SCALE = 200, 0.03, 100.0


@dataclass(frozen=True)
class PrincipalHead:
    """One head's contribution in its principal components.

    Attributes:
        directions: Orthonormal, of the joint space.
        reading: From the head's features to a coordinate on each of them.
        mean: Of the features.
    """

    head: HeadId
    directions: Float[Tensor, "d_embed component"]
    reading: Float[Tensor, "component k"]
    mean: Float[Tensor, " k"]

    def coordinates(self, features: Features) -> Float[Tensor, "image component"]:
        """Deviations from the mean along every component."""
        return (features.groups[f"L{self.head.layer}.heads"][:, self.head.head].double() - self.mean) @ self.reading.T

    def rescale(self, readout: Float[Tensor, "d_embed k"], weights: Float[Tensor, " component"]) -> AffineMap:
        """`B` with `R B = (I + V diag(w - 1) V^T) R`; weights of one give the identity, to the bit."""
        change = torch.linalg.pinv(readout) @ (self.directions * (weights - 1)) @ self.reading
        return AffineMap(torch.eye(len(self.mean)).double()[None] + change, -(change @ self.mean)[None])


def reweight_components(setting: Setting) -> Rival:
    """ResiDual (Basile et al., TMLR 2025), distilled: residual units are aligned to a task along their spectra.

    Its authors weigh MLPs as well; here the heads of the scan are weighed, and the readout refitted to them.
    """
    (features, _), subsets = setting.labelled, setting.known.probe.subsets
    heads = find_components(setting, subsets)
    weights = fit_weights(heads, features, setting.class_labels, setting.class_weights)
    edits = {
        one.head: one.rescale(readout, found)
        for one, readout, found in zip(heads, subsets.readouts, weights, strict=True)
    }
    refit = compute_distilled_readout(setting.scan, setting.model, edits)
    return Rival(setting.model.tower.fold_readout(refit.readout, refit.bias))


def find_components(setting: Setting, subsets: HeadSubsets) -> list[PrincipalHead]:
    """Every scanned head in its principal components, from the scan's sums."""
    found = []
    for head, readout, covariance in zip(subsets.heads, subsets.readouts, head_covariances(setting), strict=True):
        directions = principal_directions(readout, covariance)
        mean = setting.scan.statistics.mean_features(f"L{head.layer}.heads")[head.head]
        found.append(PrincipalHead(head, directions, directions.T @ readout, mean))
    return found


def fit_weights(
    heads: list[PrincipalHead],
    features: Features,
    classes: Int[Tensor, " image"],
    texts: Float[Tensor, "class d_embed"],
) -> list[Float[Tensor, " component"]]:
    """A weight for every component, by cross-entropy of the zero-shot classes; all one at the start."""
    # [image, all components] and [all components, d_embed]: the embedding is linear in the weights.
    along = torch.cat([one.coordinates(features) for one in heads], 1)
    directions = torch.cat([one.directions.T for one in heads])
    embedding = features.embedding.double()
    change = torch.zeros(len(directions), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([change], lr=RATE)
    with torch.enable_grad():
        for _ in range(STEPS):
            unit = F.normalize(embedding + (along * change) @ directions, dim=1)
            optimiser.zero_grad()
            F.cross_entropy(SCALE * unit @ texts.T, classes).backward()
            optimiser.step()
    return list((1 + change.detach()).split([one.directions.shape[1] for one in heads]))
