"""Where: what each head took from each token of an image towards a text. Shares sum to the head's contribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ..components import ComponentId, HeadId
from ..concepts.queries import encode_contrast
from ..errors import ModelError, require_kinds
from ..models.model import Model
from ..towers.tower import SpatialTower
from .view import View, find_view


@dataclass(frozen=True)
class TokenShares:
    """Shares of heads' contributions: `shares.sum(2)` is `contribution . t` of each head, unnormalised.

    Attributes:
        grid: Rows and columns of the tokens that lie on the image: the last ones, row by row.
        embedding: `z` of each image: divided by its length, shares are parts of a cosine similarity (for unit `t`).
    """

    heads: tuple[HeadId, ...]
    shares: Float[Tensor, "image head token text"]
    grid: tuple[int, int]
    embedding: Float[Tensor, "image d_embed"]

    @property
    def norm(self) -> Float[Tensor, " image"]:
        """`|z|` of each image."""
        return self.embedding.norm(dim=1)

    def on_image(self) -> Float[Tensor, "image head row column text"]:
        """The shares of tokens that have a place, divided by `|z|`."""
        rows, columns = self.grid
        placed = self.shares[:, :, self.shares.shape[2] - rows * columns :] / self.norm[:, None, None, None]
        return placed.unflatten(2, self.grid)


@dataclass(frozen=True)
class Heatmap:
    """One image towards one text, on the original's pixels.

    Attributes:
        cells: On the model's own grid of tokens: parts of a cosine similarity.
        total: The sum over all tokens; `total - cells.sum()` is what tokens without a place (class token, registers)
            gave.
    """

    text: str
    heads: tuple[HeadId, ...]
    cells: Float[np.ndarray, "row column"]
    total: float
    view: View

    @cached_property
    def values(self) -> Float[np.ndarray, "height width"]:
        """`cells` at every pixel of the original; NaN where the model's crop saw nothing."""
        return self.view.project(self.cells)


@torch.no_grad()
def compute_token_shares(
    model: Model,
    pixels: Float[Tensor, "image 3 height width"],
    directions: Float[Tensor, "text d_embed"],
    *,
    heads: Sequence[HeadId] | None = None,
    seen: Mapping[int, Float[Tensor, "head text k"]] | None = None,
) -> TokenShares:
    """How much each head took from each token towards each direction, for one batch.

    No array of tokens x heads x d_embed is made: the directions are taken to each head's own space first.

    Args:
        directions: Of the joint space; any length.
        heads: By default all heads of the last four layers.
        seen: `compute_seen(...)` of the same arguments, for many batches.

    Raises:
        ModelError: If the model has no such head, carries a `direct` edit, or is seen from its text tower.
    """
    tower = _spatial_tower(model)
    wanted = tuple(heads) if heads is not None else last_heads(model)
    found = compute_seen(model, directions, wanted) if seen is None else seen
    reading = tower.collect_token_shares(pixels.to(model.device), found)
    # [image, head, token, text]
    chosen = torch.stack([reading.shares[head.layer][:, head.head] for head in wanted], 1)
    return TokenShares(wanted, chosen.float().cpu(), reading.grid, reading.embedding.float().cpu())


def compute_seen(
    model: Model, directions: Float[Tensor, "text d_embed"], heads: Sequence[HeadId]
) -> dict[int, Float[Tensor, "head text k"]]:
    """`R^T t` of every head of the layers that some heads are in, by layer.

    Raises:
        ModelError: As `compute_token_shares`.
    """
    if model.readout_edit is not None:
        raise ModelError(
            f"cannot look into {model.name}: it carries a direct edit. Look into its base, {model.name}/base."
        )
    layers = sorted({head.layer for head in heads})
    known = set(head_ids(model, range(model.tower.n_layers)))
    for head in heads:
        if head not in known:
            raise ModelError(
                f"cannot look into {head}: {model.name} has {min(known)} to {max(known)}. Choose another head."
            )
    return _spatial_tower(model).project_directions(directions, layers)


def heatmap(
    model: Model,
    image: Image.Image,
    *,
    text: str,
    heads: Sequence[HeadId | str] | None = None,
    against: Sequence[str] | None = None,
) -> Heatmap:
    """Where some heads see a text in an image, mapped back through the model's real resize and crop.

    Args:
        heads: Their shares are summed; by default all heads of the last four layers.
        against: The mean of these texts is taken off; by default of a sample of the general pool, see
            `encode_contrast`. An empty list takes off nothing.

    Raises:
        ConceptError: If a text is empty or too long.
        ModelError: As `compute_token_shares`.
    """
    require_kinds("draw a heatmap", model=(model, Model))
    chosen = [HeadId.parse(head) if isinstance(head, str) else head for head in heads] if heads is not None else None
    return draw_heatmaps(model, image, [text], encode_contrast(model, [text], against), heads=chosen)[0]


def draw_heatmaps(
    model: Model,
    image: Image.Image,
    texts: Sequence[str],
    directions: Float[Tensor, "text d_embed"],
    *,
    heads: Sequence[HeadId] | None = None,
    each_head: bool = False,
) -> list[Heatmap]:
    """Heatmaps of one image: one a text, or with `each_head` one a head and text (the joint head x position view)."""
    found = compute_token_shares(model, model.preprocess(image)[None], directions, heads=heads)
    view = find_view(model.preprocess, image.size)
    # [head, row, column, text], and [head, text] over all tokens, those without a place included
    cells, totals = found.on_image()[0].numpy(), (found.shares[0] / found.norm[0]).sum(1).numpy()
    parts = (
        [((head,), slice(i, i + 1)) for i, head in enumerate(found.heads)]
        if each_head
        else [(found.heads, slice(None))]
    )
    return [
        Heatmap(text, which, grid, float(totals[at, t].sum()), view)
        for which, at in parts
        for t, text in enumerate(texts)
        for grid in [cells[at, :, :, t].sum(0).astype(np.float64)]
    ]


def head_ids(model: Model, layers: Sequence[int]) -> tuple[HeadId, ...]:
    """All heads of some layers, in order."""
    found: list[ComponentId] = [i for group in model.tower.groups(list(layers), mlps=False) for i in group.ids]
    return tuple(HeadId(i.layer, i.head) for i in found if i.kind == "head")


def last_heads(model: Model) -> tuple[HeadId, ...]:
    """All heads of the last four layers: those that a scan covers by default."""
    return head_ids(model, range(max(0, model.tower.n_layers - 4), model.tower.n_layers))


def _spatial_tower(model: Model) -> SpatialTower:
    if not isinstance(model.tower, SpatialTower):
        raise ModelError(
            f"cannot look into {model.name}: the tokens of its {model.tower.title} have no place on an image. Use the "
            "image "
            'tower: model.with_tower("image").'
        )
    return model.tower
