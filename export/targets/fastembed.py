"""Target `fastembed`: a folder for `ImageEmbedding` and one for `TextEmbedding`, each given as `specific_model_path`."""

from __future__ import annotations

import json
from pathlib import Path

from ...editor.models.model import Model
from ..consumers.preprocessor_config import NAME as PREPROCESSOR_NAME
from ..consumers.preprocessor_config import require_clip_preprocessing, write_preprocessor
from ..consumers.tokenizer_files import SIDECARS as TOKENIZER_FILES
from ..consumers.tokenizer_files import require_clip_text, write_tokenizer_files
from ..graphs.onnx_graphs import write_graphs
from ..graphs.profile import GraphSpec, Profile


def write_fastembed(model: Model, folder: Path, profile: Profile) -> None:
    """Write both graphs, preprocessing and tokenizer. fastembed normalises images itself, and texts not.

    Raises:
        ExportError: If the target cannot hold the preprocessing or the tokenizer.
    """
    require_clip_preprocessing(model, profile.target)
    require_clip_text(model, profile.target)
    write_graphs(model, folder, profile)
    write_preprocessor(model, folder / "vision")
    write_tokenizer_files(model, folder / "text")
    config = {"model_type": "clip_text_model", "projection_dim": model.tower.d_embed}
    (folder / "text" / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


PROFILE = Profile(
    target="fastembed",
    write=write_fastembed,
    visual=GraphSpec("vision/model.onnx", "pixel_values", "image_embeds"),
    textual=GraphSpec("text/model.onnx", "input_ids", "text_embeds", dynamic_length=True),
    # fp16 crashes the CPU provider at the level of optimisation that it runs at.
    precisions=("fp32", "int8"),
    sidecars=(f"vision/{PREPROCESSOR_NAME}", "text/config.json", *(f"text/{name}" for name in TOKENIZER_FILES)),
    resizing=0.95,
)
