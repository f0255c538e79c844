"""Class weights: the unit vectors that zero-shot classes are, from prompts."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..errors import ImageError
from ..models.model import Model

DEFAULT_TEMPLATES = ("a photo of a {}.", "a picture of a {}.", "a {}.")


def compute_class_weights(
    model: Model, classes: Sequence[str], templates: Sequence[str]
) -> Float[Tensor, "class d_embed"]:
    """Unit vectors: the mean over templates of the normalised text embeddings, normalised again.

    Raises:
        ImageError: If a template has no place for the class.
    """
    if not all("{}" in template for template in templates):
        raise ImageError("cannot use the templates: each needs `{}` where the class goes, as in `a photo of a {}`.")
    texts = [_fill(template, name) for name in classes for template in templates]
    unit = F.normalize(model.encode_text(texts).cpu(), dim=-1)
    return F.normalize(unit.unflatten(0, (len(classes), len(templates))).mean(1), dim=-1)


def _fill(template: str, name: str) -> str:
    text = template.replace("{}", name)
    return text.replace(" a " + name, " an " + name) if name[:1].lower() in "aeiou" else text
