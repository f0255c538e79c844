"""Target `open-clip`: a folder that `open_clip.create_model_and_transforms("local-dir:PATH")` reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..editor.errors import ExportError
from ..editor.files import save_tensors
from ..editor.model import CONFIG_NAME, WEIGHTS_NAME, Model


def write_open_clip_folder(model: Model, folder: Path) -> None:
    """Write weights in their dtype on disk, the configuration with preprocessing, and a Hugging Face tokenizer if it has one.

    Raises:
        ExportError: If the model carries a direct edit, which a plain checkpoint cannot hold.
    """
    if model.readout_edit is not None:
        raise ExportError(
            "cannot export to open-clip: the model carries a direct edit, which needs extra operations. "
            "Use --effect distilled or total, or --target onnx."
        )
    save_tensors(folder / WEIGHTS_NAME, model.stored_state(), "format", "pt")
    (folder / CONFIG_NAME).write_text(json.dumps(model.config, indent=2, default=list) + "\n", encoding="utf-8")
    wrapped: Any = getattr(model.tokenizer, "tokenizer", None)
    if hasattr(wrapped, "save_pretrained"):
        wrapped.save_pretrained(folder)
