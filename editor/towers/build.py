"""Which towers there are, and the one that knows a module.

To add one, write a class with the members of `Tower` (`editor/towers/tower.py`) and list it in `TOWERS`.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ..errors import ModelError
from .refusals import explain_refusals
from .staged.maxvit import MaxViT
from .staged.swin import Swin
from .tower import Tower
from .vit.open_clip_text import OpenClipText
from .vit.open_clip_vit import OpenClipViT
from .vit.timm_eva import TimmEva
from .vit.timm_vit import TimmViT

TOWERS: tuple[type[Tower], ...] = (OpenClipViT, TimmViT, TimmEva, Swin, MaxViT)


def has_images(module: nn.Module) -> bool:
    """Whether there is an image tower; a bare trunk of timm is one."""
    return hasattr(module, "visual") or not hasattr(module, "encode_text")


def build_text_tower(module: nn.Module, name: str) -> Tower:
    """The tower of a module's texts.

    Raises:
        ModelError: If they cannot be decomposed, with the reason.
    """
    reason = OpenClipText.refusal(module)
    if reason is not None:
        raise ModelError(f"cannot decompose the texts of {name}: {reason}. Supported: {OpenClipText.supports}.")
    return OpenClipText(module)


def build_tower(module: nn.Module) -> Tower:
    """The first tower that knows this module: of its images, or of its texts where there is nothing else.

    Raises:
        ModelError: If none does, with each tower's reason.
    """
    if not has_images(module):
        return build_text_tower(module, type(module).__name__)
    # Every tower is asked before one is built: an error names all of their reasons.
    reasons: Mapping[str, str | None] = {tower.title: tower.refusal(module) for tower in TOWERS}
    for tower in TOWERS:
        if reasons[tower.title] is None:
            return tower(module)
    why = explain_refusals(module, [str(reason) for reason in reasons.values()])
    found = "; ".join(f"{title}: {reason}" for title, reason in reasons.items())
    raise ModelError(
        f"cannot decompose {type(module).__name__}: {why} ({found}). Supported: "
        f"{', '.join(t.supports for t in TOWERS)}. "
        "`clipedit models` lists families and examples."
    )
