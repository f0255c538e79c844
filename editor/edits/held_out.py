"""How near a refitted edit comes to the direct one, on images that it was not fitted to; no image is read again."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..errors import StatisticsError
from ..models.model import Model
from ..scan.collect import LabelledEmbeddings
from ..scan.scan import Scan
from .bind import bind_recipe
from .direct import compute_recipe_embeddings
from .recipe import Recipe
from .refit import factor_gram, fitted_columns

# Of what the direct edit changes, on images left out: below the first an edit is refused, below the second it is said.
LEAST_SHARE, ENOUGH_SHARE = 0.8, 0.95


@dataclass(frozen=True)
class Fidelity:
    """An edit against the same edit under `direct`.

    Attributes:
        worst_cosine, mean_cosine: Between the embeddings of an image.
        explained: Share of the variance of the directly edited embeddings that the edit reproduces; at most 1.
        explained_change: The same share of what the direct edit changed; stricter. 1 where it changed nothing.
        images: How many images.
        held_out: Whether none of them took part in making the edit; left out one by one, where they belong to its scan.
    """

    worst_cosine: float
    mean_cosine: float
    explained: float
    explained_change: float
    images: int
    held_out: bool = True

    def __str__(self) -> str:
        return (
            f"worst cosine {self.worst_cosine:.3f}, mean {self.mean_cosine:.3f}, explains {self.explained:.3f} of the "
            f"variance of the directly edited embedding ({self.explained_change:.3f} of the change)"
        )


@dataclass(frozen=True)
class HeldOut:
    """The sample of a scan under an edit that none of its images took part in; embeddings, float64.

    Attributes:
        before: Unedited.
        direct: Under the same edit at the readout only, which is not fitted to any image.
        after: Under the edit as it ships; of a `distilled` one each image is left out of the fit.
        left_out: Whether that could be done; else `after` is what the edit gives of images that it may be fitted to.
    """

    before: Float[Tensor, "image d_embed"]
    direct: Float[Tensor, "image d_embed"]
    after: Float[Tensor, "image d_embed"]
    left_out: bool = True

    @property
    def fidelity(self) -> Fidelity:
        """How near `after` comes to `direct`."""
        return compute_fidelity(self.direct, self.after, self.before)


def hold_out(recipe: Recipe, scan: Scan, model: Model, *, labelled: LabelledEmbeddings | None = None) -> HeldOut | None:
    """The sample of a scan under a bound `distilled` or `direct` recipe that was made from it; no image is read.

    Least squares without image i misses it by `e_i / (1 - h_i)`, where `e_i` is what the fit on all images misses and
    `h_i = g_i^T (G + lambda I)^-1 g_i` (the leave-one-out formula, exact for a fixed ridge: Allen 1974).

    Returns:
        None for scans of format 1, which hold no sample; for `total` recipes, whose features later layers change; and
        for aligned models, whose sample is of the joint space while the edit is of the model itself.
    """
    if scan.sample is None or recipe.document.effect == "total" or model.alignment is not None:
        return None
    features = scan.sample.features
    found, before = compute_recipe_embeddings(recipe, model.editable, features).double(), features.embedding.double()
    if recipe.document.effect == "direct":
        return HeldOut(before, found, found)
    # Bound anew: a `distilled` recipe does not hold the output's offset, which `direct` keeps.
    as_direct = recipe.document.model_copy(update={"effect": "direct"})
    direct = compute_recipe_embeddings(bind_recipe(as_direct, scan, model, labelled=labelled), model.editable, features)
    fold = recipe.document.fold
    # Older recipes do not say their ridge, and leverages depend on it.
    if fold is None or fold.ridge is None:
        return HeldOut(before, direct.double(), found, left_out=False)
    missed = leave_out(found - direct.double(), compute_leverages(scan, model, fold.ridge))
    return HeldOut(before, direct.double(), direct.double() + missed)


def estimate_fidelity(
    recipe: Recipe, scan: Scan, model: Model, *, labelled: LabelledEmbeddings | None = None
) -> Fidelity | None:
    """Fidelity of a bound `distilled` recipe on the sample of its own scan, each image left out; else None."""
    if recipe.document.effect != "distilled":
        return None
    held = hold_out(recipe, scan, model, labelled=labelled)
    return held.fidelity if held is not None and held.left_out else None


def compute_leverages(scan: Scan, model: Model, ridge: float) -> Float[Tensor, " image"]:
    """How much of each sample image's own fit is its own doing: `g^T (G + lambda I)^-1 g`, in [0, 1]."""
    assert scan.sample is not None
    columns = fitted_columns(scan.statistics, model.editable.tower.d_model)
    factor = factor_gram(scan.statistics.gg[columns][:, columns], ridge)
    # `f` alone: `final` may be wider than what the readout is fitted to.
    final = scan.sample.features.final[:, : model.editable.tower.d_model].double()
    norm = scan.sample.features.embedding.double().norm(dim=1, keepdim=True)
    # [image, d + 1]: g = [f, 1] / |z|
    return measure_leverages(torch.cat([final, torch.ones(len(final), 1).double()], dim=1) / norm, factor)


def measure_leverages(rows: Float[Tensor, "image g"], factor: Float[Tensor, "g g"]) -> Float[Tensor, " image"]:
    """`g^T (G + lambda I)^-1 g` of every row, from the Cholesky factor."""
    # With `G + lambda I = L L^T` the form is `|L^-1 g|^2`: no inverse is built.
    return torch.linalg.solve_triangular(factor, rows.T, upper=False).square().sum(0)


def leave_out(
    missed: Float[Tensor, "image d_embed"], leverages: Float[Tensor, " image"]
) -> Float[Tensor, "image d_embed"]:
    """What least squares without an image misses of it, from what least squares with it does."""
    # A leverage of 1, an image that nothing else resembles, would divide by zero.
    return missed / (1 - leverages).clamp_min(1e-6)[:, None]


def compute_fidelity(
    wanted: Float[Tensor, "image d_embed"],
    found: Float[Tensor, "image d_embed"],
    before: Float[Tensor, "image d_embed"],
) -> Fidelity:
    """Compare embeddings `found` with the directly edited ones, `wanted`; `before` are the unedited ones."""
    cosine = F.cosine_similarity(wanted, found)
    # Variance, not mean square: a constant difference does not count here.
    left = (wanted - found).var(0).sum()
    change = (wanted - before).var(0).sum()
    return Fidelity(
        worst_cosine=float(cosine.min()),
        mean_cosine=float(cosine.mean()),
        explained=1 - float(left / wanted.var(0).sum()),
        explained_change=1 - float(left / change) if change > 0 else 1.0,
        images=len(wanted),
    )


def require_enough_images(found: Fidelity | None, n: int) -> None:
    """Refuse a distilled edit that does not hold on images it was not fitted to; warn of one that loses some of it.

    Args:
        found: As `estimate_fidelity` gives it; None says nothing.
        n: How many images it was fitted to.

    Raises:
        StatisticsError: With the figure, about how many images would do, and what works with these.
    """
    if found is None:
        return
    share = found.explained_change
    said = f"on images left out it reproduces {share:.2f} of what the direct edit changes"
    if share < LEAST_SHARE:
        raise StatisticsError(
            f"cannot distil this edit from {n} images: {said}, at least {LEAST_SHARE} is needed. About "
            f"{count_needed(share, n)} images would do; with these use --effect direct or total, or fewer --heads."
        )
    if share < ENOUGH_SHARE:
        warnings.warn(f"{n} images are few for a distilled edit: {said}; more would do better.", stacklevel=3)


def count_needed(share: float, n: int) -> int:
    """About how many images would hold `LEAST_SHARE` of a change, of which `n` hold `share`; a multiple of 32.

    What is missed falls about as one over the number of images.
    """
    return math.ceil(n * (1 - share) / (1 - LEAST_SHARE) / 32) * 32
