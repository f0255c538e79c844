"""Class weights: the unit vectors that zero-shot classes are, from prompts."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..errors import ImageError
from ..images.labelled_options import DEFAULT_TEMPLATES
from ..models.model import Model

# Distances of unit vectors. Prompts of equal tokens differ by rounding only.
_ROUNDING, _NEARLY_ONE = 1e-4, 0.1
_CHUNK = 1024


def compute_class_weights(
    model: Model, classes: Sequence[str], templates: Sequence[str] = DEFAULT_TEMPLATES, *, published: bool = False
) -> Float[Tensor, "class d_embed"]:
    """Unit vectors: the mean over templates of the normalised text embeddings, normalised again.

    Args:
        published: Names and prompts are those of a benchmark: taken word by word, and two that are one are a warning.

    Raises:
        ImageError: If a template has no place for the class, or to the model two classes are one.
    """
    if not all("{}" in template for template in templates):
        raise ImageError("cannot use the templates: each needs `{}` where the class goes, as in `a photo of a {}`.")
    fill = _fill_as_it_is if published else _fill
    texts = [fill(template, name) for name in classes for template in templates]
    unit = F.normalize(model.encode_text(texts).cpu(), dim=-1)
    # [class * template, d_embed] -> [class, template, d_embed]
    prompts = unit.unflatten(0, (len(classes), len(templates)))
    weights = F.normalize(prompts.mean(1), dim=-1)
    if len(classes) > 1:
        _require_told_apart(classes, weights, published=published)
        _warn_of_empty_templates(templates, prompts)
    return weights


def _require_told_apart(classes: Sequence[str], weights: Float[Tensor, "class d_embed"], *, published: bool) -> None:
    """Refuse two classes that are one to the model, and warn of two that nearly are: between them chance answers."""
    # float64: `cdist` may subtract squares, where float32 loses distances of 1e-4.
    distance, one, other = _find_nearest(weights.double())
    pair = f"{classes[one]!r} and {classes[other]!r}"
    if distance < _ROUNDING and not published:
        raise ImageError(
            f"cannot tell the classes {pair} apart: to the model their prompts are one, by case, spaces or a context "
            "that cuts them. Correct --classes or --templates."
        )
    # `|a - b|^2 = 2 - 2 cos` for unit vectors.
    if distance < _NEARLY_ONE:
        warnings.warn(
            f"the classes {pair} are nearly one to the model: cosine {1 - distance**2 / 2:.4f} between their prompts "
            "(1 is the same). Choose other words with --classes.",
            stacklevel=3,
        )


def _find_nearest(weights: Float[Tensor, "class d_embed"]) -> tuple[float, int, int]:
    """The smallest distance of two classes, and which they are."""
    best = (torch.inf, 0, 0)
    for start in range(0, len(weights), _CHUNK):
        distances = torch.cdist(weights[start : start + _CHUNK], weights)
        rows = torch.arange(len(distances))
        # [class of this chunk, class]: each is at no distance from itself.
        distances[rows, rows + start] = torch.inf
        row, column = divmod(int(distances.argmin()), len(weights))
        best = min(best, (float(distances[row, column]), start + row, column))
    return best


def _warn_of_empty_templates(templates: Sequence[str], prompts: Float[Tensor, "class template d_embed"]) -> None:
    """Warn of a template whose prompts are the same for all classes: the model's context cuts it before the class."""
    # [template]: the largest distance of a class's prompt from that of the first class.
    spread = (prompts - prompts[:1]).norm(dim=-1).amax(0)
    for template, widest in zip(templates, spread.tolist(), strict=True):
        if widest < _ROUNDING:
            warnings.warn(
                f"the template {template!r} says nothing of the classes: its prompts are one to the model, which reads "
                "only so much of a text. Shorten it.",
                stacklevel=4,
            )


def _fill_as_it_is(template: str, name: str) -> str:
    return template.replace("{}", name)


def _fill(template: str, name: str) -> str:
    text = _fill_as_it_is(template, name)
    return text.replace(" a " + name, " an " + name) if name[:1].lower() in "aeiou" else text
