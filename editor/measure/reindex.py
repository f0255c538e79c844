"""reindex: stored embeddings of the unedited encoder to those of the edited one, by one map."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping
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
from ..edits.held_out import (
    ENOUGH_SHARE,
    LEAST_SHARE,
    Fidelity,
    compute_fidelity,
    count_needed,
    leave_out,
    measure_leverages,
)
from ..edits.parts import ablated_names
from ..edits.recipe import Recipe, require_bound
from ..edits.refit import UNJUDGED_RIDGE, NormalEquations, choose_ridge, factor_gram, solve_ridge, sum_equations
from ..errors import RecipeError, VectorError
from ..files.vectors import open_vectors
from ..images.source import ImageSource
from ..models.model import Model
from ..scan.collect import collect_features
from ..scan.scan import Scan
from ..scan.statistics import Statistics
from ..scan.tally import Progress

UNIT_TOLERANCE = 2e-3
LEAST_RESEMBLANCE = 0.5
# Fewer vectors, or directions of which more is left, do not tell whether they were carried over.
LEAST_ROWS, MOST_LEFT = 16, 0.1


@dataclass(frozen=True)
class EmbeddingMap:
    """`z' ~ A z`. Linear, without a constant: a normalised embedding goes to the direction of the edited one too.

    Attributes:
        matrix: `A`, float64.
        mean_direction: The mean of `z / |z|` over the scan: what embeddings of the unedited model look like.
        held_out: How well it does on images that it was not fitted to; None for scans of format 1.
        ridge: Relative to the mean of the Gram matrix's diagonal.
        images: How many it was fitted to.
        recipe: The name of the recipe, which marks what was carried over.
        second_moment: The mean of `y y^T`, `y = z / |z|`, over the scan; tells vectors that were carried over already.
    """

    matrix: Float[Tensor, "d_embed d_embed"]
    mean_direction: Float[Tensor, " d_embed"]
    held_out: Fidelity | None = None
    ridge: float = UNJUDGED_RIDGE
    images: int = 0
    recipe: str = ""
    second_moment: Float[Tensor, "d_embed d_embed"] | None = None

    def apply(self, embeddings: Float[Tensor, "row d_embed"], *, normalised: bool) -> Float[Tensor, "row d_embed"]:
        """Embeddings of the edited encoder, float64; normalised again if the given ones are. Zeros stay zeros."""
        mapped = embeddings.double() @ self.matrix.T
        return F.normalize(mapped, dim=1) if normalised else mapped


@torch.no_grad()
def compute_embedding_map(recipe: Recipe, scan: Scan, model: Model) -> EmbeddingMap:
    """The map that comes nearest to the edited encoder: `min E |(A z - z') / |z||^2`, from the scan's sums alone.

    The edited embedding is linear in what the scan keeps, `z' / |z| = T^T g + sum_h C_h^T u_h / |z|`, and so is
    `y = z / |z|`: the normal equations `A E y y^T = E (z' / |z|) y^T` need no image. What is solved for is the change
    from the identity, with a ridge that is chosen on the fold left out, so that an empty edit gives the identity, to
    the bit.

    Args:
        model: The unedited model.

    Raises:
        RecipeError: If the recipe is unbound, was made for other weights, or is `total`: later layers see such an edit,
            and the scan does not hold what they make of it.
        StatisticsError: If the scan is not of this model.
    """
    if not recipe.is_bound:
        raise RecipeError(
            f"cannot reindex with recipe {recipe.document.name}: it is unbound. Give the one beside the edited weights."
        )
    if recipe.document.effect == "total":
        raise RecipeError(
            f"cannot reindex with recipe {recipe.document.name}: its effect is total, which the scan's sums do not "
            "determine. Use --effect distilled or direct, or embed the images again."
        )
    check_base(recipe, model.weights_hash, model.name, force=False, config=model.config)
    scan.groups(model)
    read = torch.zeros(len(scan.statistics.gg), model.tower.d_embed).double()
    # y = z / |z| = read^T g: the two last entries of g take no part.
    read[:-2] = model.tower.readout()
    edited = _linearise(recipe, scan, model)
    folds = []
    for fold in scan.folds:
        seen = read.T @ fold.gg @ read
        folds.append(NormalEquations(seen, (seen - edited.cross_moments(fold) @ read).T))
    ridge = choose_ridge(folds) if scan.is_folded else UNJUDGED_RIDGE
    equations = sum_equations(folds)
    change = solve_ridge(equations, ridge).T
    matrix = torch.eye(len(change)).double() + change
    mean = scan.statistics.gg[-1] @ read / scan.statistics.n
    held_out = _judge_held_out(recipe, scan, model, matrix, factor_gram(equations.gram, ridge))
    n = scan.statistics.n
    return EmbeddingMap(matrix, mean, held_out, ridge, n, recipe.document.name, equations.gram / n)


def _judge_held_out(
    recipe: Recipe, scan: Scan, model: Model, matrix: Float[Tensor, "d_embed d_embed"], factor: Tensor
) -> Fidelity | None:
    """The map on the scan's sample, each image left out (`editor/edits/held_out.py`); None without a sample."""
    if scan.sample is None or not scan.is_folded:
        return None
    features = scan.sample.features
    stored = features.embedding.double()
    wanted = compute_recipe_embeddings(recipe, model, features).double()
    # [image, d_embed]: y = z / |z|
    rows = F.normalize(stored, dim=1)
    missed = leave_out(stored @ matrix.T - wanted, measure_leverages(rows, factor))
    return compute_fidelity(wanted, wanted + missed, stored)


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
        force: Take vectors that do not resemble embeddings of the scanned model, or were carried over already, and a
            map that does not hold on images left out.

    Returns:
        The number of rows.

    Raises:
        VectorError: If the file cannot be read, has another width or NaN, mixes unit vectors with others, or does not
            look like embeddings of the scanned model (see `compute_resemblance`).
    """
    stored = open_vectors(vectors, column=column)
    if stored.width != len(mapping.matrix):
        raise VectorError(
            f"cannot reindex {vectors}: its vectors are {stored.width} wide, the recipe's model gives "
            f"{len(mapping.matrix)}. Give embeddings of that model."
        )
    first = next(stored.chunks())
    if not force:
        require_enough_images(mapping)
        _require_not_carried(stored.mark(), first, mapping, Path(vectors))
    unit = _are_unit(first) if normalised is None else normalised
    resemblance = compute_resemblance(first, mapping)
    if resemblance < LEAST_RESEMBLANCE and not force:
        raise VectorError(
            f"cannot reindex {vectors}: its vectors do not look like embeddings of the recipe's base (resemblance "
            f"{resemblance:.2f}, images like the scan's have 1, at least {LEAST_RESEMBLANCE} is needed). Give that "
            "model's, or --force."
        )

    def rewrite(chunk: Tensor) -> Tensor:
        if unit and not _are_unit(chunk):
            raise VectorError(
                f"cannot reindex {vectors}: some vectors have length 1, others do not. Normalise all, or add "
                "--unnormalised."
            )
        return mapping.apply(chunk, normalised=unit)

    stored.rewrite(Path(out), rewrite, {"recipe": mapping.recipe})
    return stored.rows


def require_enough_images(mapping: EmbeddingMap) -> None:
    """Refuse a map that does not hold on images it was not fitted to; warn of one that loses some of the change.

    Raises:
        VectorError: With the figure, and about how many images would do.
    """
    if mapping.held_out is None:
        return
    share, n = mapping.held_out.explained_change, mapping.images
    said = f"on images left out it reproduces {share:.2f} of what the edit changes"
    if share < LEAST_SHARE:
        raise VectorError(
            f"cannot reindex from a scan of {n} images: {said}, at least {LEAST_SHARE} is needed. About "
            f"{count_needed(share, n)} images would do: scan more, embed the stored images again, or --force."
        )
    if share < ENOUGH_SHARE:
        warnings.warn(f"{n} images are few for a map of stored vectors: {said}; more would do better.", stacklevel=3)


def _require_not_carried(
    mark: Mapping[str, str] | None, rows: Float[Tensor, "row d_embed"], mapping: EmbeddingMap, path: Path
) -> None:
    """Refuse vectors that were carried over before: twice mapped, they are of no encoder.

    Raises:
        VectorError: Saying how that is known.
    """
    if mark is not None:
        how = f"it is marked as carried over by recipe {mark.get('recipe')}"
    elif _looks_carried(rows, mapping):
        how = "along the directions that the edit removes its vectors have what the edited encoder leaves there"
    else:
        return
    raise VectorError(
        f"cannot reindex {path}: {how}. Give the vectors of the unedited model, or --force to carry them over again."
    )


def _looks_carried(rows: Float[Tensor, "row d_embed"], mapping: EmbeddingMap) -> bool:
    """Whether vectors have, along the directions that the map removes most, what it leaves there.

    Both second moments are compared in the directions where they differ most (a generalised eigenproblem). Where an
    edit removes too little, or there are few vectors, nothing can be told.
    """
    moment = mapping.second_moment
    if moment is None or len(rows) < LEAST_ROWS:
        return False
    after = mapping.matrix @ moment @ mapping.matrix.T
    before, after = moment / moment.trace(), after / after.trace()
    eye = torch.eye(len(before)).double()
    # [d_embed, d_embed]: columns w with w^T before w = 1, once directions that the images hardly have are damped
    root = torch.linalg.cholesky(before + 1e-3 / len(before) * eye)
    inner = torch.linalg.solve_triangular(root, torch.linalg.solve_triangular(root, after, upper=False).T, upper=False)
    left, vectors = torch.linalg.eigh(inner)
    removed = left < MOST_LEFT
    if not removed.any():
        return False
    directions = torch.linalg.solve_triangular(root.T, vectors[:, removed], upper=True)
    unit = F.normalize(rows.double(), dim=1)
    found = (unit @ directions).square().mean()
    # Half-way between nothing removed and all of it, in ratios.
    return bool(found < left[removed].clamp_min(1e-6).mean().sqrt())


def compute_resemblance(vectors: Float[Tensor, "row d_embed"], mapping: EmbeddingMap) -> float:
    """Mean cosine to the scan's mean direction, over that of the scanned images: near 1 for the same encoder."""
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

    The yardstick beside it is the refitted readout against the direct edit: it sees the last layer, not the embedding.
    It is left out where the recipe cannot be bound again without labels.

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


@dataclass(frozen=True)
class _LinearEdit:
    """The edited embedding as a linear function of what a scan keeps: `final f + sum_h groups[h] u_h + constant`."""

    final: Float[Tensor, "d_embed d_model"]
    constant: Float[Tensor, " d_embed"]
    groups: Mapping[str, Float[Tensor, "d_embed feature"]]

    def cross_moments(self, statistics: Statistics) -> Float[Tensor, "d_embed g"]:
        """`sum (z' / |z|) g^T` over the images of some sums."""
        cross = self.final @ statistics.gg[:-2] + self.constant[:, None] * statistics.gg[-2]
        for name, coefficients in self.groups.items():
            # [component, k, g] -> [component * k, g]
            cross = cross + coefficients @ statistics.groups[name].ug.flatten(0, 1)
        return cross


def _linearise(recipe: Recipe, scan: Scan, model: Model) -> _LinearEdit:
    """The coefficients of the edited embedding, found by editing unit vectors."""
    tower = model.tower
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
    found = {}
    for group in groups:
        axes = torch.eye(len(group.ids) * group.k).double().unflatten(1, (len(group.ids), group.k))
        found[group.name] = (edit(nothing.expand(len(axes), -1), group.name, axes) - constant).T
    return _LinearEdit((edit(units) - constant).T, constant, found)
