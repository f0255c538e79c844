"""A CLIP lends its own image tower, which lies alone, its texts and the projection into their space.

A `CLIPVisionModel` without its CLIP is a space without words. Nothing is learnt, unlike with an aligner: the spaces are
the same.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ModelError
from ...files.tensors import hash_state
from ...towers.build import build_tower
from ..loaders import lasting_name
from ..model import Lent, Model
from .kinds import ImageTowerAlone

PROJECTION = "visual.proj"
# Half precision rounds by a thousandth; a fine-tuned tower is further away in nearly every tensor.
ROUNDED = 1e-2


def lend_texts(model: Model, clip: Model) -> Model:
    """The image tower with the texts of the CLIP that it came from.

    Edited towers are known by the tensors that no edit touches.

    Raises:
        ModelError: If it is no image tower, or not that CLIP's.
    """
    path = ":".join(lasting_name(part) for part in (clip.name, clip.pretrained) if part)
    if not model.has_images or model.lent is not None:
        raise ModelError(f"cannot lend {model.name} the texts of {path}: it has texts of its own. Leave out --aligner.")
    if not (clip.has_texts and clip.has_images) or clip.texts_from is not None:
        raise ModelError(f"cannot lend {model.name} the texts of {path}: it is no CLIP with both towers. Give one.")
    own, theirs = model.module.state_dict(), clip.module.state_dict()
    same = sum(name in theirs and _is_same(tensor, theirs[name]) for name, tensor in own.items())
    if 2 * same <= len(own):
        raise ModelError(
            f"cannot lend {model.name} the texts of {path}: {same} of {len(own)} tensors of the image tower are that "
            "CLIP's. Give the CLIP that it came from, or align it: `clipedit align`."
        )
    lacks = PROJECTION in theirs and PROJECTION not in own
    lent = {PROJECTION: theirs[PROJECTION].to(model.device)} if lacks else {}
    module = _with_projection(model.module, lent[PROJECTION]) if lent else model.module
    known = Lent(model, clip, path, hash_state({"clip": _mark(clip), **lent}), frozenset(lent))
    return replace(model, module=module, tower=build_tower(module), lent=known)


def _with_projection(module: Any, projection: Tensor) -> nn.Module:
    # A shallow copy shares everything but the dictionary that gains an entry.
    visual = copy.copy(module.visual)
    visual._parameters = {**visual._parameters, "proj": nn.Parameter(projection, requires_grad=False)}
    return ImageTowerAlone(visual).eval()


def _mark(clip: Model) -> Tensor:
    """The CLIP's weight hash as a tensor, since texts depend on all of it."""
    return torch.tensor(list(bytes.fromhex(clip.weights_hash)), dtype=torch.uint8)


def _is_same(own: Tensor, theirs: Tensor) -> bool:
    """Whether two tensors are one, as far as half precision tells."""
    if own.shape != theirs.shape:
        return False
    distance = (own.float() - theirs.float().to(own.device)).norm()
    return bool(distance <= ROUNDED * theirs.float().norm())
