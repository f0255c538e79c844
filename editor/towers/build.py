"""Which towers there are, and the one that knows a module.

To add one, write a class with the members of `Tower` (`editor/towers/tower.py`) and list it in `TOWERS`; or in a
package of your own, as a plugin.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import ModelError
from ..plugins import PluginKind, ask_plugin, load_usable
from .refusals import explain_refusals
from .staged.maxvit import MaxViT
from .staged.swin import Swin
from .tower import Tower
from .vit.open_clip_text import OpenClipText
from .vit.open_clip_vit import OpenClipViT
from .vit.timm_eva import TimmEva
from .vit.timm_vit import TimmViT

TOWERS: tuple[type[Tower], ...] = (OpenClipViT, TimmViT, TimmEva, Swin, MaxViT)

TOWER = PluginKind("tower")
# What is asked of every tower, whatever it is used for.
_MEMBERS = (
    *("title", "supports", "refusal", "groups", "embed", "collect_features", "compute_readouts", "constant"),
    *("readout", "why_not", "fold_readout", "embed_final", "tensor_names"),
)


def list_towers(module: nn.Module) -> dict[type[Any], str | None]:
    """Every tower, and why it cannot read a module, or None; plugins are asked where none of clipedit's own can."""
    reasons: dict[type[Any], str | None] = {tower: tower.refusal(module) for tower in TOWERS}
    if None in reasons.values():
        return reasons
    for plugin, tower in load_usable(TOWER, why_no_tower):
        # A tower that fails is left out, with a warning: it must not take models away from others.
        reason = ask_plugin(plugin, lambda module, tower=tower: tower.refusal(module) or "", module)
        if reason is not None:
            reasons[tower] = reason or None
    return reasons


def why_no_tower(loaded: Any) -> str | None:
    """What a plugin's tower lacks, or None."""
    if not isinstance(loaded, type):
        return f"it is of type {type(loaded).__name__}, a class is needed"
    lacking = [name for name in _MEMBERS if not hasattr(loaded, name)]
    if lacking:
        return f"it has no {', '.join(lacking)}"
    taken = any(loaded.title == tower.title for tower in TOWERS)
    return f"clipedit has a tower with the title {loaded.title}" if taken else None


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
    reasons = list_towers(module)
    for tower, reason in reasons.items():
        if reason is None:
            return tower(module)
    why = explain_refusals(module, [str(reason) for reason in reasons.values()])
    found = "; ".join(f"{tower.title}: {reason}" for tower, reason in reasons.items())
    raise ModelError(
        f"cannot decompose {type(module).__name__}: {why} ({found}). Supported: "
        f"{', '.join(tower.supports for tower in reasons)}. "
        "`clipedit models` lists families and examples."
    )
