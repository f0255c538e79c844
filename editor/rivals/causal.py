"""A causal score of heads: how much less a swapped background moves the answer once a head is gone."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..errors import ImageError
from ..look.readings import combine_shares, weights_of
from ..look.spatial import compute_token_shares, last_heads
from ..scan.collect import iterate_pixels
from ..scan.tally import MAX_BAD
from .selectors import remove_best
from .setting import Rival, Setting

IMAGES, BATCH, SCALE = 128, 32, 100.0


def remove_causes(setting: Setting) -> Rival:
    """Heads by their causal effect, as CIGMA scores them, at the readout: no forward pass is needed for each head.

    Its authors swap backgrounds with true masks; here a heatmap of the classes says what the object is.

    Raises:
        ImageError: If there are no images to look at.
    """
    return remove_best(setting, score_causes(setting))


@torch.no_grad()
def score_causes(setting: Setting) -> Float[Tensor, " head"]:
    """Mean fall of the divergence between the answers for an image and for its object on another background."""
    if setting.images is None:
        raise ImageError("it looks at pixels, which a scan does not hold. Add --images DIR.")
    weights, model, readouts = setting.class_weights, setting.model, setting.known.probe.subsets.readouts
    groups = [group for group in setting.scan.groups(model) if group.ids[0].kind == "head"]
    # [head, k], in the order of the readouts.
    means = torch.cat([setting.scan.statistics.mean_features(group.name) for group in groups])
    falls, seen = torch.zeros(len(readouts)).double(), 0
    for pixels in _iterate(setting):
        both = [model.tower.collect_features(one, groups) for one in (pixels, swap_backgrounds(setting, pixels))]
        whole = [one.embedding.double().cpu() for one in both]
        before = compute_divergence(*(answer(one, weights) for one in whole)).sum()
        # [image, head, k]
        moved = [torch.cat([one.groups[group.name] for group in groups], 1).double().cpu() - means for one in both]
        for head, readout in enumerate(readouts):
            without = [z - u[:, head] @ readout.T for z, u in zip(whole, moved, strict=True)]
            falls[head] += before - compute_divergence(*(answer(one, weights) for one in without)).sum()
        seen += len(pixels)
    return falls / max(seen, 1)


def _iterate(setting: Setting) -> Iterator[Tensor]:
    assert setting.images is not None
    # Every so many, since a folder is in some order.
    every = max(1, len(setting.images) // IMAGES)
    some = setting.images.subset(range(0, min(len(setting.images), every * IMAGES), every))
    for pixels, _ in iterate_pixels(setting.model, some, BATCH, MAX_BAD, None):
        # A background comes from the next image: alone in its batch, an image would keep its own.
        if len(pixels) > 1:
            yield pixels.to(setting.model.device)


def swap_backgrounds(setting: Setting, pixels: Float[Tensor, "image 3 height width"]) -> Tensor:
    """Every image's object on the background of the next image of the batch."""
    weights, heads = setting.class_weights, last_heads(setting.model)
    directions = weights - weights.mean(0)
    shares = compute_token_shares(setting.model, pixels, directions, heads=heads).on_image()
    # Where the classes are told apart: the same map for all of them.
    maps = torch.stack([combine_shares(one, "evidence", weights_of(heads, None))[..., 0] for one in shares])
    objects = (maps > maps.mean((1, 2), keepdim=True)).float()[:, None]
    mask = F.interpolate(objects, pixels.shape[2:], mode="nearest").to(pixels)
    return mask * pixels + (1 - mask) * pixels.roll(-1, 0)


def answer(
    embeddings: Float[Tensor, "image d_embed"], weights: Float[Tensor, "class d_embed"]
) -> Float[Tensor, "image class"]:
    """Log-probabilities of the classes."""
    return F.log_softmax(SCALE * F.normalize(embeddings, dim=1) @ weights.T, dim=1)


def compute_divergence(
    one: Float[Tensor, "image class"], other: Float[Tensor, "image class"]
) -> Float[Tensor, " image"]:
    """Kullback-Leibler divergence of each image's answers, from log-probabilities."""
    return (one.exp() * (one - other)).sum(1)
