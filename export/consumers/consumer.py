"""A consumer: an export loaded as its users load it. The child process of `verify` runs one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ... import __version__
from ...editor.models.model import Model
from ..verify.reference import Reference, answer_images, read_scales

Preprocess = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class Consumer:
    """An export, loaded.

    Attributes:
        runtime: What ran, with its version, and what it stood in for.
        encode_images: Embeddings of preprocessed pixels.
        embed_images, embed_texts: Embeddings by the consumer's own preprocessing and tokenizer.
            A classifier gives logits, and reads no texts; a text tower alone is shown no images.
        normalised: Whether `encode_images` and `embed_texts` give unit vectors.
        scales: `logit_scale` and `logit_bias`, where the export holds them; graphs do not.
        adapters: The same export switched to each of its edits.
    """

    runtime: str
    encode_images: Callable[[Tensor], Tensor] | None
    embed_images: Callable[[list[Image.Image]], Tensor] | None
    embed_texts: Callable[[list[str]], Tensor] | None
    normalised: bool = False
    scales: Mapping[str, float] = field(default_factory=dict)
    adapters: Mapping[str, Consumer] = field(default_factory=dict)


def build_own_consumer(model: Model) -> Consumer:
    """A model as clipedit itself runs it."""
    # A classifier's consumer reads logits, so that is what is compared.
    encode = functools.partial(answer_images, model)
    return Consumer(
        f"clipedit {__version__}",
        encode if model.has_images else None,
        after_preprocessing(encode, model.preprocess) if model.has_images else None,
        model.encode_text if model.has_texts else None,
        scales=read_scales(model.module),
    )


def build_torch_consumer(runtime: str, module: Any, preprocess: Preprocess, tokenizer: Any) -> Consumer:
    """A module with open_clip's methods, its preprocessing and tokenizer."""
    module.eval()
    # Named, since CoCa normalises unless it is told not to.
    encode = functools.partial(module.encode_image, normalize=False)
    return Consumer(
        runtime,
        encode,
        after_preprocessing(encode, preprocess),
        lambda texts: module.encode_text(tokenizer(texts), normalize=False),
        scales=read_scales(module),
    )


def after_preprocessing(
    encode: Callable[[Tensor], Tensor], preprocess: Preprocess
) -> Callable[[list[Image.Image]], Tensor]:
    """An encoder of pixels as one of images."""
    return lambda images: encode(torch.stack([preprocess(image) for image in images]))


def known_tokens(reference: Reference) -> Callable[[list[str]], Tensor]:
    """The model's own tokens of the reference's texts: for targets without a tokenizer."""
    tokens = dict(zip(reference.texts, reference.tensors["tokens"], strict=True))
    return lambda texts: torch.stack([tokens[text] for text in texts])
