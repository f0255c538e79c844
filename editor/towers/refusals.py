"""Why no tower knows a module, in one clause."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

_POST_NORM = ("SwinTransformerV2Block", "SwinTransformerV2CrBlock", "ResPostBlock", "ResPostRelPosBlock")


def blocks_refusal(
    blocks: Iterable[nn.Module], kind: type[nn.Module], width: int, known: Mapping[type[nn.Module], str]
) -> str | None:
    """Why blocks that are not exactly of a class cannot be read, or None: a subclass, or a `forward` that was put in
    the place of the class's own, may compute something else from the same weights.

    Args:
        width: Of the residual stream. known: The reasons for other classes of the library.
    """
    foreign = next((block for block in blocks if type(block) is not kind or "forward" in vars(block)), None)
    if foreign is None:
        return None
    return known.get(type(foreign)) or _probe_block(foreign, width)


def _probe_block(block: nn.Module, width: int) -> str:
    """What a block of a foreign class does to the residual stream, seen by running it with silent branches."""
    name = type(block).__name__
    own = vars(block).get("forward")
    # A copy of a function still speaks of the block itself, whose branches are not silent; a copy of a method does not.
    if own is not None and not isinstance(own, MethodType):
        return f"the `forward` of its blocks ({name}) was replaced"
    try:
        found = _find_stream(block, width)
    except Exception:  # Whatever a foreign block needs, or parameters without numbers.
        found = None
    return f"its blocks are of class {name}" if found is None else f"its blocks ({name}) {found}"


@torch.no_grad()
def _find_stream(block: nn.Module, width: int) -> str | None:
    """The reason in words, or None where the stream passes through such a block unchanged."""
    silent = copy.deepcopy(block).float().cpu().eval()
    generator = torch.Generator().manual_seed(0)
    for child in silent.children():
        is_norm = "Norm" in type(child).__name__
        for name, parameter in child.named_parameters():
            # Attention and MLP are silenced; a bias shows where a norm follows them.
            if is_norm and name == "bias":
                parameter.normal_(generator=generator)
            elif not is_norm and "Scale" not in type(child).__name__:
                parameter.zero_()
    stream, other = torch.randn(2, 1, 4, width, generator=generator)
    passed = _first(silent(stream)) - stream
    if torch.allclose(passed, passed[:, :1].expand_as(passed), atol=1e-4):
        # What a norm makes of nothing is its bias.
        return (
            None if passed.abs().max() < 1e-4 else "are post-norm: what a head writes is normalised before it is added"
        )
    if torch.allclose(_first(silent(other)), passed + stream, atol=1e-4):
        return "have no residual around attention: what a block reads is not passed on"
    if torch.allclose(_first(silent(2 * stream)), passed + stream, atol=1e-2):
        return "are post-norm: the residual stream itself is normalised after attention"
    return None


def _first(answer: Any) -> Tensor:
    return answer[0] if isinstance(answer, tuple) else answer


def explain_refusals(module: nn.Module, reasons: Sequence[str]) -> str:
    """The most specific of the towers' reasons; where none knows the class, what the class lacks."""
    visual = getattr(module, "visual", module)
    trunk = getattr(visual, "trunk", visual)
    name, parts = type(trunk).__name__, {type(part).__name__ for part in trunk.modules()}
    if parts & set(_POST_NORM):
        return f"a {name} normalises after attention: its residual stream is not a sum of what the heads write"
    if name == "NaFlexVit":
        return f"a {name} takes images of any number of patches with a mask of padding (NaFlex)"
    # A tower that knows the class has found something in it, which says more than "of another class".
    known = [reason for reason in reasons if "the image tower is a" not in reason]
    if known:
        return known[0]
    # CLIP's ResNets pool by attention, and their blocks are convolutional all the same.
    blocks = parts - {"AttentionPool2d"}
    if not any("attention" in part.lower() or "attn" in part.lower() for part in blocks):
        return f"a {name} is convolutional: it has no attention heads"
    return f"no tower knows the blocks of a {name}"
