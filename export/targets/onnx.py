"""Target `onnx`: `visual.onnx` and `textual.onnx`, dynamic batch, embeddings unnormalised, and `clip.json` beside them."""

from __future__ import annotations

import json
from pathlib import Path

from ...editor.models.model import Model
from ..graphs.onnx_graphs import write_graphs
from ..graphs.profile import GraphSpec, Profile

SIDECAR_NAME = "clip.json"


def write_onnx(model: Model, folder: Path, profile: Profile) -> None:
    """Write both graphs, and `clip.json` with preprocessing, context length and embedding size.

    Inputs and outputs: `image` float32 `[batch, 3, height, width]` to `image_embedding` `[batch, d_embed]`; `text` int64
    `[batch, context]` to `text_embedding` `[batch, d_embed]`.
    """
    write_graphs(model, folder, profile)
    write_sidecar(model, folder)


def write_sidecar(model: Model, folder: Path) -> None:
    """Write `clip.json`: what a caller needs beside the graphs."""
    sidecar = {
        "preprocess_cfg": model.config["preprocess_cfg"],
        "text_cfg": model.config["model_cfg"]["text_cfg"],
        "context_length": model.tokenizer(["a photo"]).shape[1],
        "embedding_size": model.tower.d_embed,
        "normalised": False,
    }
    (folder / SIDECAR_NAME).write_text(json.dumps(sidecar, indent=2, default=list) + "\n", encoding="utf-8")


PROFILE = Profile(
    target="onnx",
    write=write_onnx,
    visual=GraphSpec("visual.onnx", "image", "image_embedding", opset=20),
    textual=GraphSpec("textual.onnx", "text", "text_embedding", opset=20),
    sidecars=(SIDECAR_NAME,),
    precisions=("fp32", "fp16", "int8"),
)
