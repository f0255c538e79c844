"""What a Hugging Face folder holds: a CLIP or SigLIP, or one tower of it alone; and the tower alone as a module.

A tower alone is what other programs read: LLaVA's eye (`CLIPVisionModel`), the text encoder of Stable Diffusion and
FLUX (`CLIPTextModel`). Its `config.json` is the section that a whole model's would have for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn

from ...choices import Side
from ...errors import ModelError
from .names import SameTensors, clip_names, siglip_names

PROJECTIONS = ("visual_projection.weight", "text_projection.weight")
Family = Literal["clip", "siglip"]
_BOTH: tuple[Side, ...] = ("image", "text")
_KINDS: dict[str, tuple[Family, tuple[Side, ...]]] = {
    "clip": ("clip", _BOTH),
    "clip_vision_model": ("clip", ("image",)),
    "clip_text_model": ("clip", ("text",)),
    # CLIP's own modules under another name; only the end of a text is found by its number in every case.
    "metaclip_2": ("clip", _BOTH),
    "metaclip_2_vision_model": ("clip", ("image",)),
    "metaclip_2_text_model": ("clip", ("text",)),
    "siglip": ("siglip", _BOTH),
    "siglip_vision_model": ("siglip", ("image",)),
    "siglip_text_model": ("siglip", ("text",)),
}
_NAFLEX = (
    "its images are any number of patches with a mask of padding (NaFlex), which open_clip and timm do not hold. Give "
    "a SigLIP 2 of one image size: its `model_type` is `siglip`"
)
_REFUSED = {
    "siglip2": _NAFLEX,
    "siglip2_vision_model": _NAFLEX,
    **dict.fromkeys(
        ("llava", "llava_next", "llava_onevision"),
        "the image tower lies inside it. Save that alone: `model.vision_tower.save_pretrained(DIR)`",
    ),
}


@dataclass(frozen=True)
class FolderKind:
    """Whose modules they are, and which towers there are."""

    family: Family
    towers: tuple[Side, ...]

    @property
    def is_alone(self) -> bool:
        """Whether one tower stands alone."""
        return len(self.towers) == 1


class ImageTowerAlone(nn.Module):
    """The image tower of a CLIP, as the towers' adapters ask for it: `visual`, and `encode_image`."""

    def __init__(self, visual: nn.Module):
        super().__init__()
        self.visual = visual

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        """As open_clip's: the pooled output after the projection, if there is one."""
        found = self.visual(image)
        return nn.functional.normalize(found, dim=-1) if normalize else found


class TextTowerAlone(nn.Module):
    """The text tower of a CLIP, as the towers' adapters ask for it: `text`, and `encode_text`."""

    def __init__(self, text: nn.Module):
        super().__init__()
        self.text = text

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """As open_clip's: the pooled output after the projection, if there is one."""
        found = self.text(text)
        return nn.functional.normalize(found, dim=-1) if normalize else found


def read_kind(config: Mapping[str, Any]) -> FolderKind:
    """What a `config.json` is of.

    Raises:
        ModelError: If it is of another kind of model.
    """
    name = config.get("model_type")
    if name in _KINDS:
        return FolderKind(*_KINDS[name])
    if name in _REFUSED:
        raise ModelError(f"cannot convert a model of type {name!r}: {_REFUSED[name]}.")
    raise ModelError(
        f"cannot convert a model of type {name!r}: `clip` and `siglip` are known, and their towers alone. Give a "
        "`CLIPModel`, a `SiglipModel`, or a `CLIPVisionModel`, `CLIPTextModel` or `SiglipVisionModel`."
    )


def is_known_kind(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is one of transformers that can be read, or is refused with a reason of its own."""
    return config.get("model_type") in _KINDS or config.get("model_type") in _REFUSED


def whole_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration of a whole model of which this is, or has, a tower.

    What the other tower would need has transformers' own values, and the activation of this one: both share it.
    """
    kind = read_kind(config)
    if not kind.is_alone:
        return config
    name, other = ("vision", "text") if kind.towers == ("image",) else ("text", "vision")
    shared = {"hidden_act": config["hidden_act"]} if "hidden_act" in config else {}
    return {
        "model_type": config["model_type"].removesuffix(f"_{name}_model"),
        f"{name}_config": dict(config),
        f"{other}_config": shared,
        "projection_dim": config.get("projection_dim") or 512,
    }


def folder_names(kind: FolderKind, layers: tuple[int, int], stored: Iterable[str]) -> list[SameTensors]:
    """The names of a folder's tensors, beside open_clip's.

    Args:
        layers: Of the image tower and of the text tower.
        stored: The names that there are. Newer versions of transformers leave `vision_model.` and `text_model.` out
            where nothing follows the tower, and a tower may have no projection.
    """
    if not kind.is_alone:
        return clip_names(*layers) if kind.family == "clip" else siglip_names(*layers)
    every = clip_names(*layers, text_prefix="text.") if kind.family == "clip" else siglip_names(*layers)
    own, prefix = ("visual.", "vision_model.") if kind.towers == ("image",) else ("text.", "text_model.")
    stored = set(stored)
    bare = not any(name.startswith(prefix) for name in stored)
    found = [entry for entry in every if entry.own[0].startswith(own)]
    if bare:
        found = [replace(entry, theirs=tuple(name.removeprefix(prefix) for name in entry.theirs)) for entry in found]
    return [entry for entry in found if entry.theirs[0] not in PROJECTIONS or entry.theirs[0] in stored]
