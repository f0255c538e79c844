"""TIE*: the concept is guessed for every image, and taken off along its own text."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..concepts.queries import encode_means
from ..errors import StatisticsError
from .setting import Rival, Setting


def translate_images(setting: Setting) -> Rival:
    """TIE* (Lu et al., ICLR 2025): `z <- z - lambda_a v_a / |v_a|`, `a` the instance that zero-shot finds.

    `lambda_a` is the mean projection of the images that look like `a`, here of the scan's sample. Which text is taken
    off depends on the image: no checkpoint holds it.

    Raises:
        StatisticsError: If the scan kept no sample.
    """
    if setting.scan.sample is None:
        raise StatisticsError("the scan kept no sample of images. Scan again.")
    texts = F.normalize(encode_means(setting.model, setting.instances), dim=1)
    return Rival(inference=fit_translation(setting.scan.sample.features.embedding, texts))


def fit_translation(
    embeddings: Float[Tensor, "image d_embed"], texts: Float[Tensor, "instance d_embed"]
) -> Callable[[Tensor], Tensor]:
    """What is done to embeddings, fitted to some; `texts` are of unit length."""
    lengths = mean_projections(F.normalize(embeddings.double(), dim=1), texts)

    def translate(found: Tensor) -> Tensor:
        unit = F.normalize(found.double(), dim=1)
        guessed = (unit @ texts.T).argmax(1)
        return (unit - lengths[guessed, None] * texts[guessed]).to(found)

    return translate


def mean_projections(
    unit: Float[Tensor, "image d_embed"], texts: Float[Tensor, "instance d_embed"]
) -> Float[Tensor, " instance"]:
    """Of every text, the mean projection of the images that are nearest to it; 0 where there are none."""
    along = unit @ texts.T
    guessed = F.one_hot(along.argmax(1), len(texts)).double()
    return (along * guessed).sum(0) / guessed.sum(0).clamp_min(1)
