"""Target `onnx`: `visual.onnx` and `textual.onnx`, dynamic batch, embeddings unnormalised, `clip.json` beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...editor.errors import VerificationError
from ...editor.models.model import Model
from ...editor.models.preprocessing import build_preprocess
from ..consumers.consumer import Consumer, Preprocess
from ..consumers.onnx_runtime import load_graphs
from ..consumers.shipped import Statement, read_said
from ..consumers.target import Target, TargetRow
from ..graphs.onnx_graphs import write_graphs
from ..graphs.profile import GraphSpec, Profile
from ..verify.reference import Reference

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
    sidecar = describe_sidecar(model.config, model.tokenizer(["a photo"]).shape[1], model.tower.d_embed)
    (folder / SIDECAR_NAME).write_text(json.dumps(sidecar, indent=2, default=list) + "\n", encoding="utf-8")


def describe_sidecar(config: Mapping[str, Any], context: int, d_embed: int) -> dict[str, Any]:
    """The content of `clip.json`."""
    return {
        "preprocess_cfg": config["preprocess_cfg"],
        "text_cfg": config["model_cfg"]["text_cfg"],
        "context_length": context,
        "embedding_size": d_embed,
        "normalised": False,
    }


def tell_sidecar(folder: Path, reference: Reference, inside: str = "") -> Statement:
    """What `clip.json` says, in the folder or one inside it."""
    sizes = reference.tensors["tokens"].shape[1], reference.tensors["image_embedding"].shape[1]
    path = f"{inside}/{SIDECAR_NAME}" if inside else SIDECAR_NAME
    return Statement(path, describe_sidecar(reference.config, *sizes), read_said(folder / path))


def read_preprocess(path: Path) -> Preprocess:
    """Preprocessing as a `clip.json` says it.

    Raises:
        VerificationError: If it says none that can be made.
    """
    try:
        return build_preprocess(read_said(path))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise VerificationError(f"cannot verify {path}: its preprocess_cfg cannot be used ({error}).") from None


def _load(folder: Path, reference: Reference, profile: Profile) -> Consumer:
    return load_graphs(folder, reference, profile, preprocess=read_preprocess(folder / SIDECAR_NAME))


TARGET = Target(
    Profile(
        target="onnx",
        visual=GraphSpec("visual.onnx", "image", "image_embedding", opset=20),
        textual=GraphSpec("textual.onnx", "text", "text_embedding", opset=20),
        sidecars=(SIDECAR_NAME,),
        precisions=("fp32", "fp16", "int8"),
    ),
    write=write_onnx,
    load=_load,
    tell=lambda folder, reference, profile: [tell_sidecar(folder, reference)],
    card=CARD,
    row=TargetRow(
        "`visual.onnx`, `textual.onnx` (dynamic batch, unnormalised embeddings), `clip.json`", "ONNX Runtime"
    ),
)
