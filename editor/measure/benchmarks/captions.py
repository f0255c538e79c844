"""Retrieval with captions: how often the first K of what a text finds hold its image, and the other way round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ...errors import ImageError
from ...images.published.captions import CaptionSet
from ...models.model import Model
from ..intervals import Cell, Outcomes
from ..table import Details, spread_of_outcomes
from .result import Benchmark

RECALL_AT = (1, 5, 10)
# Rows of the matrix of similarities that are in memory at a time.
_CHUNK = 512


def encode_captions(model: Model, task: CaptionSet) -> Float[Tensor, "caption d_embed"]:
    """Unit vectors of all captions, those of the first image first."""
    texts = [caption for captions in task.captions for caption in captions]
    return F.normalize(model.encode_text(texts).cpu(), dim=-1)


@dataclass(frozen=True)
class CaptionRanks:
    """A model on images with captions; `weights` are those of all captions."""

    task: CaptionSet
    weights: Float[Tensor, "caption d_embed"]

    @property
    def measure(self) -> str:
        """In words, what is measured."""
        kept = f", split {self.task.split}" if self.task.split is not None else ""
        return f"{len(self.task.source)} images{kept} with {len(self.weights)} captions; recall among the first K"

    def figures(self, embeddings: Tensor, kept: Sequence[int]) -> dict[str, float]:
        """`image_retrieval_recall@K` and `text_retrieval_recall@K`, in [0, 1]."""
        found = self.outcomes(embeddings, kept)[0]
        return {name: float(tasks[0][0].right.mean()) for name, tasks in found.items()}

    def details(self, embeddings: Tensor, kept: Sequence[int]) -> Details:
        """Numbers of texts or images that were asked, and intervals."""
        return Details(spread_of_outcomes(self.outcomes(embeddings, kept)[0]))

    def outcomes(self, embeddings: Tensor, kept: Sequence[int]) -> tuple[Outcomes, list[str]]:
        """What was found, by figure. Captions count as their images do: those of one image come and go together."""
        of_texts, of_images, owners = self._rank(embeddings, kept)
        every, found = np.arange(len(kept)), {}
        for k in RECALL_AT:
            found[f"image_retrieval_recall@{k}"] = [[Cell(owners.numpy(), (of_texts < k).numpy())]]
            found[f"text_retrieval_recall@{k}"] = [[Cell(every, (of_images < k).numpy())]]
        return found, ["all"] * len(kept)

    def benchmark(self, embeddings: Tensor, kept: Sequence[int]) -> Benchmark:
        """The same, as CLIP_benchmark calls it."""
        return Benchmark("zeroshot_retrieval", self.figures(embeddings, kept))

    def _rank(
        self, embeddings: Tensor, kept: Sequence[int]
    ) -> tuple[Int[Tensor, " caption"], Int[Tensor, " image"], Int[Tensor, " caption"]]:
        """The rank of each caption's image, of each image's best caption, and whose each caption is: among those kept.

        Raises:
            ImageError: If no image is left.
        """
        if not len(kept):
            raise ImageError("cannot measure: no image with captions is left. Check the images.")
        counts = [len(captions) for captions in self.task.captions]
        starts = np.concatenate([[0], np.cumsum(counts)])
        chosen = torch.tensor([place for image in kept for place in range(starts[image], starts[image + 1])])
        owners = torch.repeat_interleave(torch.arange(len(kept)), torch.tensor([counts[image] for image in kept]))
        images, texts = F.normalize(embeddings, dim=1), self.weights[chosen]
        return rank_images(texts, images, owners), rank_texts(images, texts, owners), owners


def rank_images(
    texts: Float[Tensor, "caption d_embed"], images: Float[Tensor, "image d_embed"], owners: Int[Tensor, " caption"]
) -> Int[Tensor, " caption"]:
    """How many images are nearer to each caption than its own; of equal ones the first counts as nearer."""
    found = []
    for start in range(0, len(texts), _CHUNK):
        # [caption, image]
        similarity = texts[start : start + _CHUNK] @ images.T
        found.append(_count_before(similarity, owners[start : start + _CHUNK]))
    return torch.cat(found)


def rank_texts(
    images: Float[Tensor, "image d_embed"], texts: Float[Tensor, "caption d_embed"], owners: Int[Tensor, " caption"]
) -> Int[Tensor, " image"]:
    """How many captions are nearer to each image than the nearest of its own; of equal ones the first is nearer."""
    found = []
    for start in range(0, len(images), _CHUNK):
        # [image, caption]
        similarity = images[start : start + _CHUNK] @ texts.T
        own = owners[None] == torch.arange(start, start + len(similarity))[:, None]
        best = similarity.masked_fill(~own, -torch.inf).argmax(1)
        found.append(_count_before(similarity, best))
    return torch.cat(found)


def _count_before(similarity: Float[Tensor, "row column"], chosen: Int[Tensor, " row"]) -> Int[Tensor, " row"]:
    """How many columns come before the chosen one of each row."""
    value = similarity.gather(1, chosen[:, None])
    earlier = torch.arange(similarity.shape[1])[None] < chosen[:, None]
    return ((similarity > value) | ((similarity == value) & earlier)).sum(1)
