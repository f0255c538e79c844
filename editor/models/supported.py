"""Which models there are towers for, asked of the towers: each answer is of a module built without memory."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby

import open_clip
import timm
import torch
from torch import nn

from ..choices import EFFECTS
from ..errors import ModelError, nearest_names
from ..towers.build import list_towers
from ..towers.refusals import explain_refusals
from .fitting import quiet
from .hub.reach import reaching_hub

# Family, library, an example.
FAMILIES = (
    ("OpenAI, LAION, DataComp, DFN, MetaCLIP", "open_clip", "ViT-B-16"),
    ("MetaCLIP 2", "open_clip", "ViT-H-14-worldwide-quickgelu"),
    ("CLIPA", "open_clip", "ViT-L-14-CLIPA"),
    ("SigLIP", "open_clip", "ViT-B-16-SigLIP"),
    ("SigLIP 2", "open_clip", "ViT-B-16-SigLIP2"),
    ("CoCa", "open_clip", "coca_ViT-B-32"),
    ("EVA02-CLIP", "open_clip", "EVA02-B-16"),
    ("MobileCLIP-B", "open_clip", "MobileCLIP-B"),
    ("MobileCLIP2-B", "open_clip", "MobileCLIP2-B"),
    ("MobileCLIP2-L-14", "open_clip", "MobileCLIP2-L-14"),
    ("PE-Core", "open_clip", "PE-Core-B-16"),
    ("PE-Core T, S", "open_clip", "PE-Core-S-16-384"),
    ("CLIP over Swin", "open_clip", "swin_base_patch4_window7_224"),
    ("DeiT", "timm", "deit_base_patch16_224"),
    ("DeiT-3", "timm", "deit3_base_patch16_224"),
    ("AugReg, DINO", "timm", "vit_base_patch16_224"),
    ("DINOv2", "timm", "vit_base_patch14_reg4_dinov2"),
    ("DINOv3", "timm", "vit_base_patch16_dinov3"),
    ("Swin", "timm", "swin_base_patch4_window7_224"),
    ("MaxViT", "timm", "maxvit_small_tf_224"),
    ("MaxxViT", "timm", "maxxvit_rmlp_small_rw_256"),
    ("CoAtNet", "timm", "coatnet_0_rw_224"),
    ("Swin-V2", "timm", "swinv2_base_window8_256"),
    ("ResPost", "timm", "vit_relpos_base_patch16_rpn_224"),
    ("MaxViT, parallel", "timm", "maxvit_tiny_pm_256"),
    ("NaFlex SigLIP 2", "timm", "naflexvit_base_patch16_siglip"),
    ("ResNet CLIP", "open_clip", "RN50"),
    ("ConvNeXt CLIP", "open_clip", "convnext_base"),
    ("MobileCLIP-S", "open_clip", "MobileCLIP-S1"),
    ("ResNet", "timm", "resnet50"),
    ("CaiT", "timm", "cait_xxs24_224"),
)
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Support:
    """What the towers say of a model.

    Attributes:
        tower: Title of the tower that knows it, or None.
        heads_per_layer: Empty if there is no tower.
        effects: Those that the model can hold as an ordinary checkpoint or with extra operations.
        reason: Why it cannot be decomposed, or None.
    """

    family: str
    library: str
    model: str
    tower: str | None
    heads_per_layer: tuple[int, ...]
    effects: tuple[str, ...]
    reason: str | None

    @property
    def heads(self) -> str:
        """Layers and heads, as `2 x 4, 2 x 8`."""
        return ", ".join(f"{len(list(run))} x {heads}" for heads, run in groupby(self.heads_per_layer))


def describe_models(names: Sequence[str] = (), *, progress: Progress | None = None) -> list[Support]:
    """What is known of some models, names or patterns of open_clip and timm; by default one of every family.

    Raises:
        ModelError: If nothing has such a name.
    """
    chosen = [found for name in names for found in _find_models(name)] if names else list(FAMILIES)
    rows: list[Support] = []
    for number, (family, library, model) in enumerate(chosen, 1):
        rows.append(describe_model(model, library=library, family=family))
        if progress is not None:
            progress(number, len(chosen))
    return rows


def describe_model(name: str, *, library: str, family: str = "") -> Support:
    """Build a model of a library without memory, and ask the towers."""
    try:
        with torch.device("meta"), quiet():
            module = _build(name, library)
            reasons = list_towers(module)
            # A tower that gives no reason takes the module.
            kind = next((tower for tower, reason in reasons.items() if reason is None), None)
            if kind is None:
                why = explain_refusals(module, [str(reason) for reason in reasons.values()])
                return Support(family, library, name, None, (), (), why)
            tower = kind(module)
            effects = tuple(effect for effect in EFFECTS if tower.why_not(effect) is None)
    except (
        OSError,
        ModelError,
    ) as error:  # Some of open_clip's text towers are built from files of the Hugging Face hub.
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        return Support(
            family, library, name, None, (), (), f"its text tower needs files that are not here: {first_line}"
        )
    return Support(family, library, name, tower.title, tower.heads_per_layer, effects, None)


def render_markdown(rows: Sequence[Support]) -> str:
    """Two tables: what is supported, and what is not, with the reason."""
    known = [f"| {row.family} | `{row.model}` | {row.heads} | {', '.join(row.effects)} |" for row in rows if row.tower]
    unknown = [f"| {row.family} | `{row.model}` | {row.reason} |" for row in rows if not row.tower]
    lines = ["| family | for example | layers x heads | effects |", "|---|---|---|---|", *known]
    if unknown:
        lines += ["", "| not supported | for example | because |", "|---|---|---|", *unknown]
    return "\n".join(lines) + "\n"


def _build(name: str, library: str) -> nn.Module:
    if library == "timm":
        return timm.create_model(name)
    fetched = "hf_model_name" in (open_clip.get_model_config(name) or {}).get("text_cfg", {})
    with reaching_hub(f"the text tower of {name}", "Fetch it where there is a network.") if fetched else nullcontext():
        return open_clip.create_model(name, load_weights=False, device="meta")


def _find_models(pattern: str) -> list[tuple[str, str, str]]:
    """A tag of timm's may follow its name."""
    plain = pattern.partition(".")[0]
    found = [("", "open_clip", name) for name in fnmatch.filter(open_clip.list_models(), pattern)]
    found += [("", "timm", name) for name in fnmatch.filter(timm.list_models(), plain)]
    if not found:
        known = [*open_clip.list_models(), *timm.list_models()]
        raise ModelError(f"cannot find a model named {pattern!r} in open_clip or timm. {nearest_names(pattern, known)}")
    return found
