"""The name of a model where a title or a folder needs one."""

from __future__ import annotations

import re
from pathlib import Path

from ...editor.models.model import Model


def spell_model_name(model: Model) -> str:
    """`ViT-B-32__openai`, as Immich spells it: of the base, if a recipe names it. Safe as the name of a folder."""
    recipe = model.recipe
    # Of the base, since Immich looks for a model by a name that it knows.
    base = recipe.document.base if recipe else model
    name = Path(base.model if recipe else model.name).name  # type: ignore[union-attr]
    parts = [name, *([Path(base.pretrained).stem] if base.pretrained else [])]
    return re.sub(r"[^A-Za-z0-9_.-]", "_", "__".join(parts))
