"""Target `onnx`: `visual.onnx` and `textual.onnx`, dynamic batch, embeddings unnormalised, `clip.json` beside them."""

from __future__ import annotations

import json
from pathlib import Path

from ...editor.models.model import Model
from ..consumers.onnx_runtime import load_graphs
from ..consumers.target import Target, TargetRow
from ..graphs.onnx_graphs import write_graphs
from ..graphs.profile import GraphSpec, Profile

SIDECAR_NAME = "clip.json"

CARD = """\
```python
import json

import numpy as np
import onnxruntime
import open_clip
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

described = json.load(open("clip.json"))
preprocess = image_transform_v2(PreprocessCfg(**described["preprocess_cfg"]), is_train=False)
tokens = open_clip.SimpleTokenizer(context_length=described["context_length"])(["a photo of a circle"])
settings = onnxruntime.SessionOptions()
{%- if precision == "fp16" %}
# The default level can crash the CPU provider in half precision.
settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
{%- endif %}
visual, textual = (onnxruntime.InferenceSession(name, settings) for name in ("visual.onnx", "textual.onnx"))
image = visual.run(None, {"image": preprocess(Image.open("example.png"))[None].numpy()})[0][0]
text = textual.run(None, {"text": tokens.numpy()})[0][0]
image, text = image / np.linalg.norm(image), text / np.linalg.norm(text)  # the graphs give unnormalised embeddings
print("image ", *(f"{x:.4f}" for x in image[:4].tolist()))
print("text  ", *(f"{x:.4f}" for x in text[:4].tolist()))
print("cosine", f"{float(image @ text):.4f}")
```
"""


def write_onnx(model: Model, folder: Path, profile: Profile) -> None:
    """Write both graphs, and `clip.json` with preprocessing, context length and embedding size.

    Inputs and outputs: `image` float32 `[batch, 3, height, width]` to `image_embedding` `[batch, d_embed]`; `text`
    int64 `[batch, context]` to `text_embedding` `[batch, d_embed]`.
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


TARGET = Target(
    Profile(
        target="onnx",
        visual=GraphSpec("visual.onnx", "image", "image_embedding", opset=20),
        textual=GraphSpec("textual.onnx", "text", "text_embedding", opset=20),
        sidecars=(SIDECAR_NAME,),
        precisions=("fp32", "fp16", "int8"),
    ),
    write=write_onnx,
    load=load_graphs,
    card=CARD,
    row=TargetRow(
        "`visual.onnx`, `textual.onnx` (dynamic batch, unnormalised embeddings), `clip.json`", "ONNX Runtime"
    ),
)
