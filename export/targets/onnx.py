"""Target `onnx`: `visual.onnx` and `textual.onnx`, dynamic batch, embeddings unnormalised, `clip.json` beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...editor.errors import VerificationError
from ...editor.models.model import Model
from ...editor.models.preprocessing import build_preprocess
from ..consumers.consumer import Consumer, Preprocess
from ..consumers.onnx_runtime import load_graphs
from ..consumers.shipped import Statement, read_said
from ..consumers.target import Target, TargetRow
from ..graphs.adapters import describe_adapters, write_adapters
from ..graphs.onnx_graphs import write_graphs
from ..graphs.profile import GraphSpec, Profile
from ..verify.reference import Reference

SIDECAR_NAME, GRAPHS = "clip.json", ("visual.onnx", "textual.onnx")

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
{% if adapters %}
That runs the base, whose answers stand below. A run with an adapter answers as the edited model; `clip.json` says which
file goes with which graph. Keep what was loaded: one session and its adapters serve many threads.

```python
loaded = onnxruntime.LoraAdapter()
loaded.Load({{ adapters[0] }})
options = onnxruntime.RunOptions()
options.add_active_adapter(loaded)
edited = visual.run(None, {"image": preprocess(Image.open("example.png"))[None].numpy()}, options)[0][0]
```
{% endif %}"""


def write_onnx(model: Model, folder: Path, profile: Profile) -> None:
    """Write both graphs, and `clip.json` with preprocessing, context length and embedding size.

    Inputs and outputs: `image` float32 `[batch, 3, height, width]` to `image_embedding` `[batch, d_embed]`; `text`
    int64 `[batch, context]` to `text_embedding` `[batch, d_embed]`. With adapters the graphs answer as the base, and
    `clip.json` says which file of an adapter goes with which graph.
    """
    write_graphs(model, folder, profile)
    write_adapters(model, folder, profile.adapters)
    write_sidecar(model, folder, [adapter.name for adapter in profile.adapters])


def write_sidecar(model: Model, folder: Path, adapters: Sequence[str] = ()) -> None:
    """Write `clip.json`: what a caller needs beside the graphs."""
    sidecar = describe_sidecar(model.config, model.tokenizer(["a photo"]).shape[1], model.tower.d_embed)
    sidecar |= _describe_switches(folder, adapters)
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
    wanted = describe_sidecar(reference.config, *sizes) | _describe_switches(folder, reference.adapters)
    return Statement(path, wanted, read_said(folder / path))


def _describe_switches(folder: Path, adapters: Sequence[str]) -> dict[str, Any]:
    return {"adapters": describe_adapters(folder, adapters, GRAPHS)} if adapters else {}


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
        visual=GraphSpec(GRAPHS[0], "image", "image_embedding", opset=20),
        textual=GraphSpec(GRAPHS[1], "text", "text_embedding", opset=20),
        sidecars=(SIDECAR_NAME,),
        precisions=("fp32", "fp16", "int8"),
        has_adapters=True,
    ),
    write=write_onnx,
    load=_load,
    tell=lambda folder, reference, profile: [tell_sidecar(folder, reference)],
    card=CARD,
    row=TargetRow(
        "`visual.onnx`, `textual.onnx` (dynamic batch, unnormalised embeddings), `clip.json`", "ONNX Runtime"
    ),
)
