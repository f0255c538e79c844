"""An aligned model: a model without texts, read through an aligner in the joint space of a CLIP."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..errors import AlignmentError
from ..towers.aligned import AlignedTower
from .aligner import Aligner, check_aligner, load_aligner
from .model import Alignment, Model, load_model


def apply_aligner(model: Model, aligner: str | Path | Aligner, *, clip: Model | None = None) -> Model:
    """The model with the CLIP's texts: what labels, scores and recipes ask of a model works on it as on a CLIP.

    `encode_image` gives `z^a`, `encode_text` the CLIP's texts. Edits are made to the model itself: `apply_recipe` on the
    result gives an ordinary edited model.

    Args:
        clip: The CLIP that the aligner leads to; by default it is loaded by the name in the aligner.

    Raises:
        AlignmentError: If the aligner cannot be read or is of other weights.
        ModelError: If the CLIP cannot be loaded.
    """
    if model.alignment is not None or model.readout_edit is not None:
        raise AlignmentError(f"cannot align {model.name}: it is aligned or directly edited already. Give its base.")
    path = "memory" if isinstance(aligner, Aligner) else str(aligner)
    aligner = aligner if isinstance(aligner, Aligner) else load_aligner(aligner)
    clip = clip or load_model(aligner.clip["name"], aligner.clip["pretrained"])
    components = sum(len(group.ids) for group in model.tower.groups(range(model.tower.n_layers), mlps=True))
    check_aligner(aligner, model, clip, components)
    tower = AlignedTower(model.tower, aligner.maps, aligner.bias)
    # Concepts and texts of the CLIP's own folder belong to its texts.
    alignment = Alignment(model, clip, path, aligner.digest)
    return replace(model, tower=tower, folder=clip.folder, alignment=alignment)
