"""What a recipe makes of a base, computed again beside the edited weights: nothing else may differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ..errors import ClipeditError
from ..files.tensors import ReadTensor, StoredTensor, round_to_storage, stored_dtype
from .apply import compute_edited_tensors
from .recipe import Recipe, bound_heads, require_bound

# Steps of the type on disk: another processor may round a sum of products the other way.
ROUNDING_STEPS = 4
NAMED = 3


def compare_with_recipe(
    recipe: Recipe, base: ReadTensor, edited: ReadTensor, header: Mapping[str, StoredTensor], changed: Sequence[str]
) -> Iterator[str]:
    """A sentence for every tensor that is not what a bound recipe makes of the base.

    Args:
        header: Of the base: its types are those that the edit is rounded to.
        changed: The tensors that differ from the base.
    """
    try:
        expected = {} if recipe.document.effect == "direct" else compute_edited_tensors(recipe, base)
    except (ClipeditError, KeyError, RuntimeError, ValueError, IndexError) as error:
        yield f"recipe {recipe.document.name} does not fit the base ({error})"
        return
    for name in sorted(expected.keys() | set(changed)):
        if name not in header:
            yield f"recipe {recipe.document.name} writes {name}, which the base has not"
        elif name not in expected:
            yield f"{name} changed, which recipe {recipe.document.name} does not write"
        else:
            apart = _distance(name, expected[name], edited, header[name])
            if apart is not None:
                yield f"{name} is not what recipe {recipe.document.name} makes of the base: {apart}"


def describe_unexplained(changed: Sequence[str]) -> str:
    """The sentence where weights changed and no recipe says how."""
    more = f" and {len(changed) - NAMED} more" if len(changed) > NAMED else ""
    return (
        f"{', '.join(changed[:NAMED])}{more} changed, and no recipe beside the edited weights says how (--recipe names "
        "one that lies elsewhere)"
    )


def measure_refitted_heads(recipe: Recipe) -> dict[str, float | None]:
    """The heads that a `distilled` recipe refits the readout without: `|I - B| / |I|`, 1 where ablated."""
    tensors = require_bound(recipe)
    found: dict[str, float | None] = {}
    for head in bound_heads(recipe) if recipe.document.effect == "distilled" else []:
        maps = tensors[f"heads.{head}.map"].double()
        eye = torch.eye(len(maps)).double()
        found[str(head)] = float((eye - maps).norm() / eye.norm())
    return found


def _distance(name: str, expected: Tensor, edited: ReadTensor, entry: StoredTensor) -> str | None:
    """How far the edited tensor is from what it should be, in words; None where it is that, to rounding."""
    try:
        found = edited(name).double()
    except (ClipeditError, KeyError):
        return "it is missing"
    if found.shape != expected.shape:
        return f"it is {tuple(found.shape)}, {tuple(expected.shape)} is wanted"
    dtype = stored_dtype(entry)
    wanted = round_to_storage(name, expected, dtype).double()
    step = ROUNDING_STEPS * torch.finfo(dtype).eps
    # Small numbers may be sums of large ones that cancel: their rounding is that of the tensor's size.
    close = (found - wanted).abs() <= step * wanted.abs().clamp_min(float(wanted.abs().mean()))
    if bool(close.all()):
        return None
    return f"the difference is {float((found - wanted).norm() / wanted.norm().clamp_min(1e-30)):.2%} of it"
