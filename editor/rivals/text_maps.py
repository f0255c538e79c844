"""Rivals that need texts only and are one matrix: on the image embedding, or on the texts that are asked."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ..concepts.concepts import load_concept
from ..concepts.directions import concept_directions, count_leading, differences
from ..concepts.queries import encode_means
from ..edits.operations import project_output
from .setting import Rival, Setting, ship_map, ship_text_map, span_of

# Of the calibration of Orth-Cali, as its authors set it for zero-shot classes.
CALIBRATION = 1000.0


def project_images(setting: Setting) -> Rival:
    """The concept's texts projected out of the image embedding, whole: `I - U U^T`."""
    return ship_map(project_output(concept_directions(setting.concept, setting.model), 1.0), setting.model)


def project_class_texts(setting: Setting) -> Rival:
    """The concept's texts projected out of all texts; images stay as they are (Orth-Proj of Chuang et al. 2023)."""
    return ship_text_map(project_output(concept_directions(setting.concept, setting.model), 1.0), setting.model)


def project_differences(setting: Setting) -> Rival:
    """What prompts that differ in the concept only differ in, projected out of the image embedding.

    Lian et al., CVPR 2026: differences within one context hold the concept and nothing of the context, so that they are
    better conditioned than raw texts.
    """
    centred = centre_contexts(setting.pairs).flatten(0, 1)
    _, singular, right = torch.linalg.svd(centred, full_matrices=False)
    return ship_map(project_output(right[: count_leading(singular)].T, 1.0), setting.model)


def calibrate_texts(setting: Setting) -> Rival:
    """Orth-Cali (Chuang et al. 2023, "Debiasing vision-language models via biased prompts"), on all texts."""
    start = project_output(concept_directions(setting.concept, setting.model), 1.0)
    return ship_text_map(calibrate(start, scatter_of_pairs(setting.pairs), CALIBRATION), setting.model)


def calibrate(
    start: Float[Tensor, "d_embed d_embed"], scatter: Float[Tensor, "d_embed d_embed"], weight: float
) -> Float[Tensor, "d_embed d_embed"]:
    """`P_0 (I + lambda M)^-1`: it minimises `|P - P_0|^2 + lambda E|P d|^2`, with `d = z_i - z_j`, `M = E d d^T`."""
    # The second factor is symmetric: `X A = B` is solved as `A X^T = B^T`.
    return torch.linalg.solve(torch.eye(len(scatter)).double() + weight * scatter, start.T).T


def scatter_of_pairs(prompts: Float[Tensor, "context instance d_embed"]) -> Float[Tensor, "d_embed d_embed"]:
    """`E (z_i - z_j)(z_i - z_j)^T` over every two instances in one context.

    Over all pairs of m vectors the sum is m times that of the centred vectors: pairs are never formed.
    """
    contexts, count, _ = prompts.shape
    centred = centre_contexts(prompts).flatten(0, 1)
    return 2 / (contexts * (count - 1)) * centred.T @ centred


def centre_contexts(
    prompts: Float[Tensor, "context instance d_embed"],
) -> Float[Tensor, "context instance d_embed"]:
    """Prompts less the mean of their context: what is left differs by instance only."""
    return prompts - prompts.mean(1, keepdim=True)


def correct_by_insights(setting: Setting) -> Rival:
    """RoboShot (Adila et al., ICLR 2024): harmful text differences are projected out, helpful ones are doubled.

    Its authors take both from a language model. Here the harmful ones come from the concept's file, the helpful ones
    from the concept that it keeps, else from the classes.
    """
    harmful = differences(encode_means(setting.model, setting.instances))
    keep = setting.concept.keep
    if keep is None:
        helpful = differences(setting.class_weights)
    else:
        kept = load_concept(keep, setting.model.folder)
        helpful = differences(encode_means(setting.model, kept.parts().values()))
    return ship_map(insight_map(harmful, helpful), setting.model)


def insight_map(
    harmful: Float[Tensor, "pair d_embed"], helpful: Float[Tensor, "other d_embed"]
) -> Float[Tensor, "d_embed d_embed"]:
    """`(I + H H^T)(I - Q Q^T)`: what RoboShot does image by image is one matrix, so that a checkpoint holds it."""
    # A strength below zero adds what a projection takes away: `I + H H^T`.
    return project_output(span_of(helpful.T), -1.0) @ project_output(span_of(harmful.T), 1.0)
