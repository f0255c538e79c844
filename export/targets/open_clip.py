"""Target `open-clip`: a folder that `open_clip.create_model_and_transforms("local-dir:PATH")` reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...editor.files.whole import save_tensors
from ...editor.models.model import CONFIG_NAME, WEIGHTS_NAME, Model
from ..graphs.profile import Profile, require_plain


def write_open_clip_folder(model: Model, folder: Path) -> None:
    """Write weights in their dtype on disk, the configuration with preprocessing, and a Hugging Face tokenizer if it has one.

    Raises:
        ExportError: If the model carries a direct edit, which a plain checkpoint cannot hold.
    """
    require_plain(model, "open-clip")
    save_tensors(folder / WEIGHTS_NAME, model.stored_state(), "format", "pt")
    (folder / CONFIG_NAME).write_text(json.dumps(model.config, indent=2, default=list) + "\n", encoding="utf-8")
    wrapped: Any = getattr(model.tokenizer, "tokenizer", None)
    if hasattr(wrapped, "save_pretrained"):
        wrapped.save_pretrained(folder)


PROFILE = Profile(
    target="open-clip",
    write=lambda model, folder, profile: write_open_clip_folder(model, folder),
    sidecars=(CONFIG_NAME,),
)
