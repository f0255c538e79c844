"""Target `triton`: a model repository with one model for images and one for texts."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ...editor.errors import VerificationError
from ...editor.models.model import Model
from ..consumers.consumer import Consumer
from ..consumers.onnx_runtime import load_graphs
from ..consumers.shipped import Statement
from ..consumers.target import Target, TargetRow
from ..graphs.onnx_graphs import write_graphs
from ..graphs.profile import GraphSpec, Profile
from ..verify.reference import Reference
from .onnx import SIDECAR_NAME, read_preprocess, tell_sidecar, write_sidecar

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
    write_graphs(model, folder, profile)
    context = model.tokenizer(["a photo"]).shape[1]
    for inside, text in describe_configs(profile, model.image_shape, context, model.tower.d_embed).items():
        (folder / inside / "config.pbtxt").write_text(text, encoding="utf-8")
        write_sidecar(model, folder / inside)


def describe_configs(profile: Profile, image: Sequence[int], context: int, d_embed: int) -> dict[str, str]:
    """The content of `config.pbtxt`, by the folder of its model."""
    assert profile.visual is not None and profile.textual is not None
    found = {}
    for spec, kind, dims in (
        (profile.visual, "TYPE_FP32", [3, *image]),
        (profile.textual, "TYPE_INT64", [context]),
    ):
        text = _CONFIG.format(
            batch=MAX_BATCH_SIZE,
            input=spec.input_name,
            output=spec.output_name,
            type=kind,
            dims=json.dumps(dims),
            d_embed=d_embed,
        )
        # Triton's repository layout: the first folder is the model, the second its version.
        found[Path(spec.path).parts[0]] = text + (_HALF if profile.precision == "fp16" else "")
    return found


def _tell(folder: Path, reference: Reference, profile: Profile) -> list[Statement]:
    """Of each model `clip.json`, and what `config.pbtxt` says of its tensors; batching is the operator's."""
    context, d_embed = reference.tensors["tokens"].shape[1], reference.tensors["image_embedding"].shape[1]
    found = []
    for inside, text in describe_configs(profile, reference.pixels().shape[2:], context, d_embed).items():
        path = folder / inside / "config.pbtxt"
        if not path.is_file():
            raise VerificationError(f"cannot verify {folder}: {inside}/config.pbtxt is missing. Export again.")
        said = read_tensor_lines(path.read_text(encoding="utf-8", errors="replace"))
        found += [Statement(f"{inside}/config.pbtxt", read_tensor_lines(text), said)]
        found += [tell_sidecar(folder, reference, inside)]
    return found


def read_tensor_lines(text: str) -> dict[str, str]:
    """The platform and, of the input and the output, name, type and dimensions, as `config.pbtxt` spells them."""
    # Comments first: they could hold what looks like a field.
    plain = re.sub(r"#.*", "", text)
    found = {"platform": "".join(re.findall(r'platform\s*:\s*"([^"]*)"', plain))}
    for part, body in re.findall(r"\b(input|output)\s*:?\s*\[\s*\{([^}]*)\}", plain):
        for key, value in re.findall(r'(\w+)\s*:\s*(\[[^\]]*\]|"[^"]*"|\w+)', body):
            found[f"{part}.{key}"] = re.sub(r'[\s"]', "", value)
    return found


def _load(folder: Path, reference: Reference, profile: Profile) -> Consumer:
    assert profile.visual is not None
    preprocess = read_preprocess(folder / Path(profile.visual.path).parts[0] / SIDECAR_NAME)
    consumer = load_graphs(folder, reference, profile, preprocess=preprocess)
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
    tell=_tell,
    card=CARD,
    row=TargetRow(
        "`clip_visual/`, `clip_textual/`: `config.pbtxt`, `1/model.onnx`", "ONNX Runtime, standing in for Triton"
    ),
)
