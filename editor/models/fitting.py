"""Which architecture a checkpoint is of, by the names and shapes of its tensors; how it differs from another one."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import open_clip
import timm
import torch
from torch import nn

Shapes = Mapping[str, tuple[int, ...]]
# Of many differences these say enough.
_SHOWN, _TRIED = 3, 3
# Depend on the image size or the length of texts, which a loader can change.
POSITIONS = ("positional_embedding", "pos_embed")
_TIMM_SIZES = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge"}


@dataclass(frozen=True)
class Guess:
    """Architectures by name: those that all tensors fit, or the nearest one."""

    names: tuple[str, ...]
    exact: bool
    library: str = "open_clip"


def shapes_of(tensors: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor, in memory or in a header."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def describe_mismatch(found: Shapes, wanted: Shapes) -> str | None:
    """How a checkpoint's tensors differ from a module's, by name; None if they do not."""
    parts = [
        f"{name} is {found[name]}, not {wanted[name]}"
        for name in wanted
        if name in found and found[name] != wanted[name]
    ][:1]
    parts += _count("missing", [name for name in wanted if name not in found])
    parts += _count("unexpected", [name for name in found if name not in wanted])
    return "; ".join(parts) or None


def name_architecture(found: Shapes) -> str:
    """A sentence that says what a checkpoint is of, and how to name it."""
    if any(name.startswith(("vision_model.", "text_model.")) for name in found):
        return "Its names are those of Hugging Face: give the folder with its config.json, `--model hf:FOLDER`."
    guess = guess_architecture(found)
    if guess is None:
        return "No architecture of open_clip or timm is near it."
    asked = " or ".join(f"`--model {name}`" for name in guess.names)
    if guess.exact:
        return f"All its tensors fit {' and '.join(guess.names)} of {guess.library}: {asked}."
    return f"The nearest architecture is {guess.names[0]} of {guess.library}, which does not fit all of them."


def guess_architecture(found: Shapes) -> Guess | None:
    """The architectures that a checkpoint fits, or the nearest one; None where nothing is near."""
    return _guess_open_clip(found) if any(name.startswith("visual.") for name in found) else _guess_timm(found)


def _guess_open_clip(found: Shapes) -> Guess | None:
    wanted = _describe_state(found)
    scores: dict[str, int] = {}
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name) or {}
        # Text towers of the Hugging Face hub cannot be built without it.
        if "hf_model_name" not in config["text_cfg"]:
            known = _describe_config(config)
            scores[name] = sum(known.get(key) == value for key, value in wanted.items())
    # Names of one score in alphabetical order: the plain one comes before its variants.
    ranked = sorted(scores, key=lambda name: (-scores[name], name))
    near = [name for name in ranked if scores[name] == scores[ranked[0]]]
    fits = tuple(name for name in near[:_TRIED] if _fits(found, _shapes_open_clip(name)))
    if fits:
        return Guess(fits, True)
    return Guess((ranked[0],), False) if 2 * scores[ranked[0]] > len(wanted) else None


def _guess_timm(found: Shapes) -> Guess | None:
    patches = found.get("patch_embed.proj.weight", ())
    if len(patches) != 4 or patches[0] not in _TIMM_SIZES:
        return None
    names = timm.list_models(f"*_{_TIMM_SIZES[patches[0]]}_patch{patches[-1]}_*")
    cells = [shape[1] for name, shape in found.items() if name == "pos_embed" and len(shape) == 3]
    # A class token and registers may stand beside the patches.
    sides = {patches[-1] * math.isqrt(count) for count in cells}
    near = [name for name in names if any(name.endswith(f"_{side}") for side in sides)] or names
    bodies = {name: shape for name, shape in found.items() if not name.startswith("head.")}
    fits = tuple(name for name in near[: 4 * _TRIED] if _fits(bodies, _shapes_timm(name)))
    if fits:
        return Guess(fits[:_TRIED], True, "timm")
    return Guess((near[0],), False, "timm") if near else None


def _fits(found: Shapes, wanted: Shapes) -> bool:
    """Whether all tensors have their place; position embeddings can be resized."""
    return found.keys() == wanted.keys() and all(
        found[name] == wanted[name] for name in wanted if not name.endswith(POSITIONS)
    )


def _shapes_open_clip(name: str) -> Shapes:
    with quiet(), torch.device("meta"):
        return shapes_of(open_clip.create_model(name, load_weights=False, device="meta").state_dict())


def _shapes_timm(name: str) -> Shapes:
    with quiet(), torch.device("meta"):
        module: nn.Module = timm.create_model(name, num_classes=0)
    return shapes_of(module.state_dict())


def _describe_state(found: Shapes) -> dict[str, Any]:
    """What a configuration would say of the tensors, as far as they show it."""
    text = next((name.removesuffix("token_embedding.weight") for name in found if "token_embedding.w" in name), "")
    described: dict[str, Any] = {
        "vocabulary": found.get(f"{text}token_embedding.weight", (None,))[0],
        "context": found.get(f"{text}positional_embedding", (None,))[0],
        "text width": found.get(f"{text}token_embedding.weight", (None,))[-1],
        "text layers": _count_blocks(found, f"{text}transformer.resblocks."),
        "kind": _kind_of_state(found),
    }
    if described["kind"] == "vit":
        patches = found["visual.conv1.weight"]
        positions = found.get("visual.positional_embedding", (1,))[0]
        described |= {"width": patches[0], "patch": patches[-1], "image": patches[-1] * math.isqrt(positions - 1)}
        described |= {"layers": _count_blocks(found, "visual.transformer.resblocks.")}
        described |= {"embedding": found.get("visual.proj", (None,))[-1]}
    return described


def _describe_config(config: Mapping[str, Any]) -> dict[str, Any]:
    vision, text = config["vision_cfg"], config["text_cfg"]
    listed = isinstance(vision.get("layers"), list)
    return {
        "vocabulary": text.get("vocab_size", 49408),
        "context": text.get("context_length", 77),
        "text width": text.get("width", 512),
        "text layers": text.get("layers", 12),
        "kind": "timm" if vision.get("timm_model_name") else "resnet" if listed else "vit",
        "width": vision.get("width", 768),
        "patch": vision.get("patch_size", 16),
        "image": vision.get("image_size", 224),
        "layers": vision.get("layers", 12),
        "embedding": config["embed_dim"],
    }


def _kind_of_state(found: Shapes) -> str:
    if any(name.startswith("visual.trunk.") for name in found):
        return "timm"
    return "vit" if any(name.startswith("visual.transformer.") for name in found) else "resnet"


def _count_blocks(found: Shapes, prefix: str) -> int:
    numbers = [re.match(r"\d+", name.removeprefix(prefix)) for name in found if name.startswith(prefix)]
    return 1 + max((int(number[0]) for number in numbers if number), default=-1)


def _count(what: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    more = ", ..." if len(names) > _SHOWN else ""
    return [f"{len(names)} {what} ({', '.join(names[:_SHOWN])}{more})"]


@contextmanager
def quiet(level: int = logging.WARNING) -> Iterator[None]:
    """No word of libraries up to a level: open_clip warns that nothing was loaded, where that is the intent."""
    before = logging.root.manager.disable
    logging.disable(level)
    try:
        yield
    finally:
        logging.disable(before)
