"""Why no tower knows a module, in one clause."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

_POST_NORM = ("SwinTransformerV2Block", "SwinTransformerV2CrBlock", "ResPostBlock", "ResPostRelPosBlock")


def explain_refusals(module: nn.Module, reasons: Sequence[str]) -> str:
    """The most specific of the towers' reasons; where none knows the class, what the class lacks."""
    visual = getattr(module, "visual", module)
    trunk = getattr(visual, "trunk", visual)
    name, parts = type(trunk).__name__, {type(part).__name__ for part in trunk.modules()}
    if parts & set(_POST_NORM):
        return f"a {name} normalises after attention: its residual stream is not a sum of what the heads write"
    # A tower that knows the class has found something in it, which says more than "of another class".
    known = [reason for reason in reasons if "the image tower is a" not in reason]
    if known:
        return known[0]
    # CLIP's ResNets pool by attention, and their blocks are convolutional all the same.
    blocks = parts - {"AttentionPool2d"}
    if not any("attention" in part.lower() or "attn" in part.lower() for part in blocks):
        return f"a {name} is convolutional: it has no attention heads"
    return f"no tower knows the blocks of a {name}"
