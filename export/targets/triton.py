"""Target `triton`: a model repository with one model for images and one for texts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from ...editor.models.model import Model
from ..consumers.consumer import Consumer
from ..consumers.onnx_runtime import load_graphs
from ..consumers.target import Target, TargetRow
from ..graphs.onnx_graphs import write_graphs
from ..graphs.profile import GraphSpec, Profile
from ..verify.reference import Reference
from .onnx import write_sidecar

MAX_BATCH_SIZE = 64
_CONFIG = """\
# The folder's name is the model's name: rename the folder freely.
platform: "onnxruntime_onnx"
max_batch_size: {batch}
input [ {{ name: "{input}" data_type: {type} dims: {dims} }} ]
output [ {{ name: "{output}" data_type: TYPE_FP32 dims: [ {d_embed} ] }} ]
dynamic_batching {{ max_queue_delay_microseconds: 1000 }}
"""
# One level less than the default, which can crash ONNX Runtime's CPU provider in half precision.
_HALF = "optimization { graph { level: 1 } }\n"

CARD = """\
Start the server (this line was not run here, the client below was, against these graphs behind the same protocol):

```bash
docker run --rm -p 8000:8000 -v "$PWD":/models nvcr.io/nvidia/tritonserver:25.06-py3 \\
    tritonserver --model-repository=/models
```

```python
import json
import os
import urllib.request

import numpy as np
import open_clip
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

SERVER = os.environ.get("TRITON_URL", "http://localhost:8000")


def infer(model: str, name: str, kind: str, batch: np.ndarray) -> np.ndarray:
    tensor = {"name": name, "datatype": kind, "shape": batch.shape, "data": batch.ravel().tolist()}
    request = urllib.request.Request(f"{SERVER}/v2/models/{model}/infer", json.dumps({"inputs": [tensor]}).encode())
    output = json.load(urllib.request.urlopen(request))["outputs"][0]
    return np.array(output["data"], dtype=np.float32).reshape(output["shape"])


described = json.load(open("clip_visual/clip.json"))
preprocess = image_transform_v2(PreprocessCfg(**described["preprocess_cfg"]), is_train=False)
tokens = open_clip.SimpleTokenizer(context_length=described["context_length"])(["a photo of a circle"])
image = infer("clip_visual", "image", "FP32", preprocess(Image.open("example.png"))[None].numpy())[0]
text = infer("clip_textual", "text", "INT64", tokens.numpy())[0]
image, text = image / np.linalg.norm(image), text / np.linalg.norm(text)  # the server gives unnormalised embeddings
print("image ", *(f"{x:.4f}" for x in image[:4].tolist()))
print("text  ", *(f"{x:.4f}" for x in text[:4].tolist()))
print("cosine", f"{float(image @ text):.4f}")
```
"""


def write_triton(model: Model, folder: Path, profile: Profile) -> None:
    """Write both graphs as version 1, their `config.pbtxt`, and `clip.json` with preprocessing beside them.

    The server batches: dimensions are without the batch axis.
    """
    assert profile.visual is not None and profile.textual is not None
    write_graphs(model, folder, profile)
    context = model.tokenizer(["a photo"]).shape[1]
    for spec, kind, dims in (
        (profile.visual, "TYPE_FP32", [3, *model.image_shape]),
        (profile.textual, "TYPE_INT64", [context]),
    ):
        text = _CONFIG.format(
            batch=MAX_BATCH_SIZE,
            input=spec.input_name,
            output=spec.output_name,
            type=kind,
            dims=json.dumps(dims),
            d_embed=model.tower.d_embed,
        )
        text += _HALF if profile.precision == "fp16" else ""
        (folder / Path(spec.path).parts[0] / "config.pbtxt").write_text(text, encoding="utf-8")
        write_sidecar(model, folder / Path(spec.path).parts[0])


def _load(folder: Path, reference: Reference, profile: Profile) -> Consumer:
    consumer = load_graphs(folder, reference, profile)
    return replace(consumer, runtime=f"{consumer.runtime}, standing in for Triton's backend")


TARGET = Target(
    Profile(
        target="triton",
        visual=GraphSpec("clip_visual/1/model.onnx", "image", "image_embedding"),
        textual=GraphSpec("clip_textual/1/model.onnx", "text", "text_embedding"),
        precisions=("fp32", "fp16", "int8"),
        sidecars=("clip_visual/config.pbtxt", "clip_textual/config.pbtxt"),
    ),
    write=write_triton,
    load=_load,
    card=CARD,
    row=TargetRow(
        "`clip_visual/`, `clip_textual/`: `config.pbtxt`, `1/model.onnx`", "ONNX Runtime, standing in for Triton"
    ),
)
