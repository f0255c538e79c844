"""The concepts on the desk: what heads hold of them, what can be projected out, and what is watched meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ....editor.components import Features
from ....editor.concepts.concepts import Concept
from ....editor.concepts.queries import encode_unit
from ....editor.edits.bind import holds_output
from ....editor.edits.document import Step
from ....editor.edits.step_directions import step_directions
from ....editor.errors import ConceptError
from ....editor.models.model import Model
from ....editor.select.selectivity import Probe, cut_folds
from ....editor.select.whose_heads import HeldConcepts, Judgement, Measured, judge

# Beside the one that is removed: those of most selectivity.
WATCHED, PROJECTED = 5, 2
# Directions of all projections together, and of one watched concept: the page grows with them.
SPAN, DIRECTIONS = 24, 8
GENERAL = "anything else"


@dataclass(frozen=True)
class Held:
    """What the heads hold of one concept.

    Attributes:
        scores: A head's share of the concept's variance, as `score` gives it.
        gains: Share of the variance along its instances that the head alone removes, less what it removes in general.
    """

    name: str
    judgement: Judgement
    scores: tuple[float, ...]
    gains: tuple[float, ...]


@dataclass(frozen=True)
class Projection:
    """A step on the output that the desk offers, with its directions."""

    step: Step
    basis: Float[Tensor, "d_embed concept"]

    @property
    def name(self) -> str:
        """The concept's."""
        return self.step.concept or "texts"


@dataclass(frozen=True)
class Watched:
    """Directions whose variance is watched: scaled, so that unedited it is 1 in sum."""

    name: str
    directions: Float[Tensor, "direction d_embed"]


def choose_concept(known: HeldConcepts) -> Concept:
    """The concept that a few heads hold most selectively.

    Raises:
        ConceptError: If they hold none.
    """
    held = find_held(known)
    if not held:
        raise ConceptError(
            f"cannot choose a concept for the desk: no few heads of {known.model.name} hold any of "
            f"{len(known.library)} in these images. Add --concept."
        )
    return held[0].concept


def find_held(known: HeldConcepts) -> list[Measured]:
    """The concepts that a few heads hold, most selective first."""
    held = [one for one in known.library.values() if judge(one, known.library).verdict == "held"]
    return sorted(held, key=lambda one: -one.selectivity.value)


def choose_watched(known: HeldConcepts, concept: Concept) -> list[Concept]:
    """The concept itself, then the others that must not be lost."""
    others = [one.concept for one in find_held(known) if one.concept.name != concept.name]
    return [concept, *others[:WATCHED]]


def describe_held(known: HeldConcepts, concepts: Sequence[Concept]) -> list[Held]:
    """Scores, and what each head alone removes."""
    found = []
    for concept in concepts:
        texts = encode_unit(known.model, concept.texts)
        with contextlib.suppress(ConceptError):
            directions = known.probe.directions(texts)
            found.append(
                Held(
                    concept.name,
                    known.judge(concept),
                    tuple(known.probe.subsets.shares(directions).tolist()),
                    tuple(_remove_each(known.probe, concept, texts, directions).tolist()),
                )
            )
    return found


def _remove_each(probe: Probe, concept: Concept, texts: Tensor, directions: Tensor) -> Float[Tensor, " head"]:
    """Of each head alone, in closed form: removed along instances (their mean), less removed in general."""
    along = torch.stack([fold.direction for fold in cut_folds(concept, texts)]).T
    removed = _removed_alone(probe.subsets.quadratic_forms(along)).mean(0)
    general = probe.subsets.quadratic_forms(probe.general(directions)).sum(0, keepdim=True)
    return removed - _removed_alone(general)[0]


def _removed_alone(forms: Float[Tensor, "direction form form"]) -> Float[Tensor, "direction head"]:
    # [1 e_h]^T Q [1 e_h] = Q_00 + 2 Q_0h + Q_hh
    change = 2 * forms[:, 0, 1:] + forms.diagonal(dim1=1, dim2=2)[:, 1:]
    return -change / forms[:, :1, 0]


def find_projections(
    model: Model, effect: str, concepts: Sequence[Concept], steps: Mapping[str, Step]
) -> list[Projection]:
    """What the output can be cleared of: the first concept, then others while there is room; none where it cannot be.

    Args:
        steps: Steps of recipes, by concept: they may spare something.
    """
    found: list[Projection] = []
    if not holds_output(effect, model):
        return found
    for concept in concepts[: 1 + PROJECTED]:
        plain = Step(operation="project-out", target="output", concept=concept.name, texts=concept.texts)
        step = steps.get(concept.name, plain).model_copy(update={"strength": 1.0})
        basis = step_directions(step, model)
        width = sum(one.basis.shape[1] for one in found)
        # What is removed always has its place.
        if basis is not None and basis.shape[1] and (not found or width + basis.shape[1] <= SPAN):
            found.append(Projection(step, basis.double()))
    return found


def join_span(projections: Sequence[Projection], d_embed: int) -> Float[Tensor, "d_embed span"]:
    """An orthonormal basis of everything that can be projected out."""
    if not projections:
        return torch.zeros(d_embed, 0).double()
    left, singular, _ = torch.linalg.svd(torch.cat([one.basis for one in projections], 1), full_matrices=False)
    return left[:, singular > 1e-9]


def watch(known: HeldConcepts, concepts: Sequence[Concept], features: Features) -> list[Watched]:
    """Every concept along its instances, and the leading directions of the general pool.

    Of a concept it is the mean over instances of the variance that is left, relative to before.
    """
    unit = F.normalize(features.embedding.double(), dim=1)
    centred = unit - unit.mean(0)
    found = []
    for concept in concepts:
        folds = cut_folds(concept, encode_unit(known.model, concept.texts))
        rows = torch.stack([fold.direction for fold in folds])
        each = (centred @ rows.T).square().mean(0)
        rows = rows / (each * len(rows)).clamp_min(1e-12).sqrt()[:, None]
        found.append(Watched(concept.name, _compress(rows)))
    general = known.probe.general(known.probe.directions(encode_unit(known.model, concepts[0].texts))).T
    scale = (centred @ general.T).square().mean(0).sum().clamp_min(1e-12).sqrt()
    return [*found, Watched(GENERAL, general / scale)]


def _compress(rows: Float[Tensor, "direction d_embed"]) -> Float[Tensor, "fewer d_embed"]:
    """Fewer directions with the same sum of variances: `sum_t t t^T` by its leading eigenvectors."""
    _, singular, right = torch.linalg.svd(rows, full_matrices=False)
    kept = singular[:DIRECTIONS] > 1e-6 * singular[0]
    return (singular[:, None] * right)[:DIRECTIONS][kept]
