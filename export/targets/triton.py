"""Target `triton`: a model repository with one model for images and one for texts."""

from __future__ import annotations

import json
from pathlib import Path

from ...editor.models.model import Model
from ..graphs.onnx_graphs import write_graphs
from ..graphs.profile import GraphSpec, Profile
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
        text = _CONFIG.format(batch=MAX_BATCH_SIZE, input=spec.input_name, output=spec.output_name, type=kind,
                              dims=json.dumps(dims), d_embed=model.tower.d_embed)  # fmt: skip
        text += _HALF if profile.precision == "fp16" else ""
        (folder / Path(spec.path).parts[0] / "config.pbtxt").write_text(text, encoding="utf-8")
        write_sidecar(model, folder / Path(spec.path).parts[0])


PROFILE = Profile(
    target="triton",
    write=write_triton,
    visual=GraphSpec("clip_visual/1/model.onnx", "image", "image_embedding"),
    textual=GraphSpec("clip_textual/1/model.onnx", "text", "text_embedding"),
    precisions=("fp32", "fp16", "int8"),
    sidecars=("clip_visual/config.pbtxt", "clip_textual/config.pbtxt"),
)
