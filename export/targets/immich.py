"""Target `immich`: `<name>/visual` and `<name>/textual`, as Immich keeps them in its cache under `clip/`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...editor.models.model import Model
from ..consumers.consumer import Consumer
from ..consumers.model_name import spell_model_name
from ..consumers.onnx_runtime import as_function, load_graphs, open_session
from ..consumers.preprocessor_config import require_clip_preprocessing
from ..consumers.target import Target, TargetRow
from ..consumers.tokenizer_files import SIDECARS as TOKENIZER_FILES
from ..consumers.tokenizer_files import require_clip_text, write_tokenizer_files
from ..graphs.onnx_graphs import write_graphs
from ..graphs.profile import GraphSpec, Profile
from ..verify.reference import Reference

CARD = """\
Immich knows models by a fixed list of names. Put `{{ name }}/` in the place of a model of the same architecture, in the
cache of its machine-learning container (`/cache/clip/<name of that model>/`), restart it, choose that model under
Settings, Machine Learning, Smart Search, and run the Smart Search job on **all** assets: old vectors are of another
model. (These steps were not
run here. The code below was: it does with these files what Immich does.)

```python
import json

import numpy as np
import onnxruntime
from PIL import Image
from tokenizers import Tokenizer

folder = "{{ name }}"
described = json.load(open(f"{folder}/visual/preprocess_cfg.json"))
pixels = np.asarray(Image.open("example.png").convert("RGB"), dtype=np.float32) / 255
pixels = ((pixels - described["mean"]) / described["std"]).astype(np.float32).transpose(2, 0, 1)[None]
tokenizer = Tokenizer.from_file(f"{folder}/textual/tokenizer.json")
context = json.load(open(f"{folder}/config.json"))["text_cfg"].get("context_length", 77)
pad = json.load(open(f"{folder}/textual/tokenizer_config.json"))["pad_token"]
tokenizer.enable_padding(length=context, pad_token=pad, pad_id=tokenizer.token_to_id(pad))
tokenizer.enable_truncation(max_length=context)
tokens = np.array([tokenizer.encode("a photo of a circle").ids], dtype=np.int32)
image = onnxruntime.InferenceSession(f"{folder}/visual/model.onnx").run(None, {"image": pixels})[0][0]
text = onnxruntime.InferenceSession(f"{folder}/textual/model.onnx").run(None, {"text": tokens})[0][0]
print("image ", *(f"{x:.4f}" for x in image[:4].tolist()))
print("text  ", *(f"{x:.4f}" for x in text[:4].tolist()))
print("cosine", f"{float(image @ text):.4f}")
```
"""


def write_immich(model: Model, folder: Path, profile: Profile) -> None:
    """Write both graphs for batches of one, normalised, and what Immich reads beside them.

    Immich knows models by a fixed list of names: put these files in the place of a model of the same architecture.

    Raises:
        ExportError: If the target cannot hold the preprocessing or the tokenizer.
    """
    require_clip_preprocessing(model, profile.target)
    require_clip_text(model, profile.target)
    inner = folder / spell_model_name(model)
    write_graphs(model, inner, profile)
    preprocess = {**model.config["preprocess_cfg"], "size": list(model.image_shape)}
    for name, content in (("config.json", model.config["model_cfg"]), ("visual/preprocess_cfg.json", preprocess)):
        (inner / name).write_text(json.dumps(content, indent=2, default=list) + "\n", encoding="utf-8")
    write_tokenizer_files(model, inner / "textual")


def _load(folder: Path, reference: Reference, profile: Profile) -> Consumer:
    """Immich is a server: ONNX Runtime, and `tokenizers` with padding to the context, as it uses them."""
    inner = next(path.parent for path in sorted(folder.glob("*/config.json")))
    consumer = load_graphs(inner, reference, profile)
    runtime = f"{consumer.runtime}, standing in for Immich"
    try:
        from tokenizers import Tokenizer
    except ImportError:
        return replace(consumer, runtime=f"{runtime}; its tokenizer.json was not read, which needs `tokenizers`")
    assert profile.textual is not None
    context = json.loads((inner / "config.json").read_text(encoding="utf-8"))["text_cfg"].get("context_length", 77)
    pad = json.loads((inner / "textual" / "tokenizer_config.json").read_text(encoding="utf-8"))["pad_token"]
    tokenizer: Any = Tokenizer.from_file(str(inner / "textual" / "tokenizer.json"))
    tokenizer.enable_padding(length=context, pad_token=pad, pad_id=tokenizer.token_to_id(pad))
    tokenizer.enable_truncation(max_length=context)
    session = open_session(inner / profile.textual.path, half=profile.precision == "fp16")
    encode = as_function(session, batch=1)

    def embed_texts(texts: list[str]) -> Tensor:
        return encode(torch.tensor([item.ids for item in tokenizer.encode_batch(texts)], dtype=torch.int32))

    return replace(consumer, runtime=runtime, embed_texts=embed_texts)


TARGET = Target(
    Profile(
        target="immich",
        visual=GraphSpec("visual/model.onnx", "image", "embedding", batch=1, normalised=True),
        textual=GraphSpec("textual/model.onnx", "text", "embedding", integer="int32", batch=1, normalised=True),
        # fp16 crashes the CPU provider at the level of optimisation that it runs at.
        precisions=("fp32", "int8"),
        sidecars=("config.json", "visual/preprocess_cfg.json", *(f"textual/{name}" for name in TOKENIZER_FILES)),
    ),
    write=write_immich,
    load=_load,
    card=CARD,
    row=TargetRow(
        "`<name>/visual`, `<name>/textual`, as in Immich's cache",
        "ONNX Runtime and `tokenizers`, standing in for Immich",
        "extra `hf`, for `tokenizers`",
    ),
)
