"""reindex: stored embeddings of the unedited encoder to those of the edited one, by one map; no stored image is read again."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..choices import Effect
from ..components import Features, HeadId
from ..edits.apply import check_base
from ..edits.bind import bind_recipe
from ..edits.direct import compute_recipe_embeddings
from ..edits.head_maps import edited_groups
from ..edits.parts import ablated_names
from ..edits.recipe import Recipe, require_bound
from ..errors import RecipeError, VectorError
from ..files.vectors import open_vectors
from ..images.source import ImageSource
from ..models.model import Model
from ..scan.collect import collect_features
from ..scan.scan import Progress, Scan
from .fidelity import Fidelity, compute_fidelity

RIDGE = 1e-6
UNIT_TOLERANCE = 2e-3
LEAST_RESEMBLANCE = 0.5


@dataclass(frozen=True)
class EmbeddingMap:
    """`z' ~ A z`. Linear, without a constant, so that it takes a normalised embedding to the direction of the edited one too.

    Attributes:
        matrix: `A`, float64.
        mean_direction: The mean of `z / |z|` over the scan: what embeddings of the unedited model look like.
    """

    matrix: Float[Tensor, "d_embed d_embed"]
    mean_direction: Float[Tensor, " d_embed"]

    def apply(self, embeddings: Float[Tensor, "row d_embed"], *, normalised: bool) -> Float[Tensor, "row d_embed"]:
        """Embeddings of the edited encoder, float64; normalised again if the given ones are. Zeros stay zeros."""
        mapped = embeddings.double() @ self.matrix.T
        return F.normalize(mapped, dim=1) if normalised else mapped


@torch.no_grad()
def compute_embedding_map(recipe: Recipe, scan: Scan, model: Model) -> EmbeddingMap:
    """The map that comes nearest to the edited encoder: `min E |(A z - z') / |z||^2`, from the scan's sums alone.

    The edited embedding is linear in what the scan keeps, `z' / |z| = T^T g + sum_h C_h^T u_h / |z|`, and so is
    `y = z / |z|`: the normal equations `A E y y^T = E (z' / |z|) y^T` need no image. What is solved for is the change from
    the identity, with a ridge of `1e-6 tr / d_embed`, so that an empty edit gives the identity, to the bit.

    Args:
        model: The unedited model.

    Raises:
        RecipeError: If the recipe is unbound, was made for other weights, or is `total`: later layers see such an edit, and
            the scan does not hold what they make of it.
        StatisticsError: If the scan is not of this model.
    """
    if not recipe.is_bound:
        raise RecipeError(
            f"cannot reindex with recipe {recipe.document.name}: it is unbound. Give the one beside the edited weights."
        )
    if recipe.document.effect == "total":
        raise RecipeError(
            f"cannot reindex with recipe {recipe.document.name}: its effect is total, which the scan's sums do not determine. "
            "Use --effect distilled or direct, or embed the images again."
        )
    check_base(recipe, model.weights_hash, model.name, force=False)
    statistics = scan.statistics
    scan.groups(model)
    read = torch.zeros(len(statistics.gg), model.tower.d_embed).double()
    read[:-2] = model.tower.readout()
    seen = read.T @ statistics.gg @ read
    cross = _cross_moments(recipe, scan, model) @ read
    eye = torch.eye(len(seen)).double()
    factor = torch.linalg.cholesky(seen + RIDGE * seen.trace() / len(seen) * eye)
    change = torch.cholesky_solve((cross - seen).T, factor).T
    return EmbeddingMap(eye + change, statistics.gg[-1] @ read / statistics.n)


def reindex_vectors(
    mapping: EmbeddingMap,
    vectors: str | Path,
    out: str | Path,
    *,
    column: str | None = None,
    normalised: bool | None = None,
    force: bool = False,
) -> int:
    """Map a file of stored embeddings to a new one of the same form, in constant memory.

    Args:
        vectors: A `.npy` or `.parquet` file of embeddings of the unedited encoder, a row each.
        column: Of a Parquet file; by default its only column of vectors.
        normalised: Whether the stored vectors have length 1; by default what the first rows have. Then the new ones do.
        force: Take vectors that do not resemble embeddings of the scanned model.

    Returns:
        The number of rows.

    Raises:
        VectorError: If the file cannot be read, has another width or NaN, mixes unit vectors with others, or does not look
            like embeddings of the scanned model (see `compute_resemblance`).
    """
    stored = open_vectors(vectors, column=column)
    if stored.width != len(mapping.matrix):
        raise VectorError(
            f"cannot reindex {vectors}: its vectors are {stored.width} wide, the recipe's model gives {len(mapping.matrix)}. "
            "Give embeddings of that model."
        )
    first = next(stored.chunks())
    unit = _are_unit(first) if normalised is None else normalised
    resemblance = compute_resemblance(first, mapping)
    if resemblance < LEAST_RESEMBLANCE and not force:
        raise VectorError(
            f"cannot reindex {vectors}: its vectors do not look like embeddings of the recipe's base (resemblance "
            f"{resemblance:.2f}, images like the scan's have 1, at least {LEAST_RESEMBLANCE} is needed). Give that model's, or --force."
        )

    def rewrite(chunk: Tensor) -> Tensor:
        if unit and not _are_unit(chunk):
            raise VectorError(
                f"cannot reindex {vectors}: some vectors have length 1, others do not. Normalise all, or add --unnormalised."
            )
        return mapping.apply(chunk, normalised=unit)

    stored.rewrite(Path(out), rewrite)
    return stored.rows


def compute_resemblance(vectors: Float[Tensor, "row d_embed"], mapping: EmbeddingMap) -> float:
    """Mean cosine to the scan's mean direction, over what the scanned images have: near 1 for the same encoder, near 0 for another."""
    mean = mapping.mean_direction
    return float((F.normalize(vectors.double(), dim=1) @ mean).mean() / mean.square().sum())


def _are_unit(vectors: Float[Tensor, "row d_embed"]) -> bool:
    """Whether all vectors that are not zero have length 1, to what half precision keeps."""
    norms = vectors.norm(dim=1)
    return bool(((norms - 1).abs() < UNIT_TOLERANCE)[norms > 0].all())


def measure_fidelity(
    mapping: EmbeddingMap,
    recipe: Recipe,
    scan: Scan,
    model: Model,
    images: ImageSource,
    *,
    progress: Progress | None = None,
) -> dict[str, Fidelity]:
    """On held-out images: embeddings as stored and as mapped against the edited encoder's own.

    The yardstick beside it is the refitted readout against the direct edit: it sees the last layer, not the embedding. It is
    left out where the recipe cannot be bound again without labels.

    Raises:
        ImageError: If images cannot be read.
    """
    recipes = {recipe.document.effect: recipe}
    with contextlib.suppress(RecipeError):
        recipes = {effect: _with_effect(recipe, effect, scan, model) for effect in ("direct", "distilled")}
    parts = ablated_names(require_bound(recipe))
    features, _ = collect_features(model, images, layers=scan.layers, parts=parts, progress=progress)
    found = {effect: compute_recipe_embeddings(which, model, features).double() for effect, which in recipes.items()}
    stored, edited = features.embedding.double(), found[recipe.document.effect]
    rows = {
        "as stored": compute_fidelity(edited, stored, stored),
        "reindexed": compute_fidelity(edited, mapping.apply(stored, normalised=False), stored),
    }
    if len(found) == 2:
        rows["distilled, for comparison"] = compute_fidelity(found["direct"], found["distilled"], stored)
    return rows


def _with_effect(recipe: Recipe, effect: Effect, scan: Scan, model: Model) -> Recipe:
    if effect == recipe.document.effect:
        return recipe
    return bind_recipe(recipe.document.model_copy(update={"effect": effect}), scan, model)


def _cross_moments(recipe: Recipe, scan: Scan, model: Model) -> Float[Tensor, "d_embed g"]:
    """`sum t g^T` over the scanned images; the coefficients of the edited embedding are found by editing unit vectors."""
    tower, statistics = model.tower, scan.statistics
    parts = ablated_names(require_bound(recipe)) if recipe.document.effect == "direct" else []
    if parts:
        raise RecipeError(f"cannot reindex with a direct edit that ablates {parts[0]}: use a distilled one.")
    # Only a direct edit reads the heads' own features.
    heads = map(HeadId.parse, recipe.heads if recipe.document.effect == "direct" else [])
    groups = edited_groups(heads, scan, model)
    nothing, units = torch.zeros(1, tower.d_model).double(), torch.eye(tower.d_model).double()

    def edit(final: Tensor, name: str = "", features: Tensor | None = None) -> Tensor:
        given = {g.name: torch.zeros(len(final), len(g.ids), g.k).double() for g in groups}
        given |= {name: features} if features is not None else {}
        return compute_recipe_embeddings(recipe, model, Features(given, {}, final, final @ tower.readout()))

    constant = edit(nothing)[0]
    cross = (edit(units) - constant).T @ statistics.gg[:-2] + constant[:, None] * statistics.gg[-2]
    for group in groups:
        axes = torch.eye(len(group.ids) * group.k).double().unflatten(1, (len(group.ids), group.k))
        coefficients = edit(nothing.expand(len(axes), -1), group.name, axes) - constant
        cross += coefficients.T @ statistics.groups[group.name].ug.flatten(0, 1)
    return cross
