"""Target `transformers-js`: `onnx/` with both graphs beside the configuration files of target `hf`."""

from __future__ import annotations

from pathlib import Path

from ...editor.models.model import Model
from ..graphs.onnx_graphs import write_graphs
from ..graphs.profile import GraphSpec, Profile
from .hf import SIDECARS, require_hf_clip, write_hf_sidecars


def write_transformers_js(model: Model, folder: Path, profile: Profile) -> None:
    """Write both graphs and the configuration; the weights are in the graphs only.

    Raises:
        ExportError: If the target cannot hold the model, its preprocessing or its tokenizer.
    """
    require_hf_clip(model, profile.target)
    write_hf_sidecars(model, folder, profile)
    write_graphs(model, folder, profile)


# `{suffix}` is how transformers.js finds a precision: its option `dtype` is fp32, fp16 or q8.
PROFILE = Profile(
    target="transformers-js",
    write=write_transformers_js,
    visual=GraphSpec("onnx/vision_model{suffix}.onnx", "pixel_values", "image_embeds"),
    textual=GraphSpec("onnx/text_model{suffix}.onnx", "input_ids", "text_embeds", dynamic_length=True),
    precisions=("fp32", "fp16", "int8"),
    sidecars=SIDECARS,
    resizing=0.9,
)
