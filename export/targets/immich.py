"""Target `immich`: `<name>/visual` and `<name>/textual`, as Immich keeps them in its cache under `clip/`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ...editor.errors import VerificationError
from ...editor.models.model import Model
from ..consumers.consumer import Consumer, Preprocess
from ..consumers.model_name import spell_model_name
from ..consumers.onnx_runtime import as_function, load_graphs, open_session
from ..consumers.preprocessor_config import require_clip_preprocessing
from ..consumers.shipped import Statement, read_said
from ..consumers.target import Target, TargetRow
from ..consumers.tokenizer_files import SIDECARS as TOKENIZER_FILES
from ..consumers.tokenizer_files import require_clip_text, write_tokenizer_files
from ..graphs.onnx_graphs import write_graphs
from ..graphs.profile import GraphSpec, Profile
from ..verify.reference import Reference

PREPROCESS_NAME = "visual/preprocess_cfg.json"
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
    # Immich keeps a folder for each model, by its name.
    inner = folder / spell_model_name(model)
    write_graphs(model, inner, profile)
    for name, content in describe_sidecars(model.config, model.image_shape).items():
        (inner / name).write_text(json.dumps(content, indent=2, default=list) + "\n", encoding="utf-8")
    write_tokenizer_files(model, inner / "textual")


def describe_sidecars(config: Mapping[str, Any], shape: Sequence[int]) -> dict[str, Any]:
    """The two files that say what the graphs take, by path."""
    return {"config.json": config["model_cfg"], PREPROCESS_NAME: {**config["preprocess_cfg"], "size": list(shape)}}


def _find_inner(folder: Path) -> Path:
    """The folder that stands in Immich's cache.

    Raises:
        VerificationError: If there is none.
    """
    found = next((path.parent for path in sorted(folder.glob("*/config.json"))), None)
    if found is None:
        raise VerificationError(f"cannot verify {folder}: it holds no folder with a config.json. Export again.")
    return found


def _tell(folder: Path, reference: Reference, profile: Profile) -> list[Statement]:
    inner = _find_inner(folder)
    wanted = describe_sidecars(reference.config, reference.pixels().shape[2:])
    return [Statement(f"{inner.name}/{name}", content, read_said(inner / name)) for name, content in wanted.items()]


def read_preprocess(path: Path) -> Preprocess:
    """Preprocessing as Immich does it: the shorter side resized, a square cut out of the middle.

    Raises:
        VerificationError: If it cannot be read.
    """
    said = read_said(path)
    try:
        size = said["size"][0] if isinstance(said["size"], list) else said["size"]
        filtering = Image.Resampling[said["interpolation"].upper()]
        mean, std = (np.array(said[key], dtype=np.float32) for key in ("mean", "std"))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise VerificationError(f"cannot verify {path}: it cannot be used ({error!r}). Export again.") from None

    def preprocess(image: Image.Image) -> Float[Tensor, "3 height width"]:
        image, (width, height) = image.convert("RGB"), image.size
        # Whole pixels, cut and not rounded: one pixel aside of what open_clip does where a margin is odd.
        shape = (size, int(height / width * size)) if width < height else (int(width / height * size), size)
        left, top = int(shape[0] / 2 - size / 2), int(shape[1] / 2 - size / 2)
        image = image.resize(shape, filtering).crop((left, top, left + size, top + size))
        pixels = (np.asarray(image, dtype=np.float32) / 255 - mean) / std
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()  # [height, width, 3] -> [3, height, width]

    return preprocess


def _load(folder: Path, reference: Reference, profile: Profile) -> Consumer:
    """Immich is a server: ONNX Runtime, and `tokenizers` with padding to the context, as it uses them."""
    inner = _find_inner(folder)
    consumer = load_graphs(inner, reference, profile, preprocess=read_preprocess(inner / PREPROCESS_NAME))
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
        resizing=0.95,
        sidecars=("config.json", PREPROCESS_NAME, *(f"textual/{name}" for name in TOKENIZER_FILES)),
    ),
    write=write_immich,
    load=_load,
    tell=_tell,
    card=CARD,
    photos="Immich embeds its own previews of photos, which are upright.",
    row=TargetRow(
        "`<name>/visual`, `<name>/textual`, as in Immich's cache",
        "ONNX Runtime and `tokenizers`, standing in for Immich",
        "extra `hf`, for `tokenizers`",
    ),
)
