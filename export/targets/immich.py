"""Target `immich`: `<name>/visual` and `<name>/textual`, as Immich keeps them in its cache under `clip/`."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
# By the length of its embeddings, each model of open_clip that Immich lists: names in its machine learning's
# `models/constants.py` at 3356a00, lengths in the server's `CLIP_MODEL_INFO` at 6626cef (1.117), of SigLIP 2 in
# open_clip's configurations. Left out are nllb, XLM-Roberta and M-CLIP, whose texts Immich reads in ways of their own.
LISTED: Mapping[int, Sequence[str]] = {
    512: (
        *("ViT-B-32__openai", "ViT-B-32__laion2b-s34b-b79k", "ViT-B-32__laion2b_e16", "ViT-B-32__laion400m_e31"),
        *("ViT-B-32__laion400m_e32", "ViT-B-16__openai", "ViT-B-16__laion400m_e31", "ViT-B-16__laion400m_e32"),
        *("RN101__openai", "RN101__yfcc15m"),
    ),
    640: ("ViT-B-16-plus-240__laion400m_e31", "ViT-B-16-plus-240__laion400m_e32", "RN50x4__openai"),
    768: (
        *("ViT-L-14__openai", "ViT-L-14__laion2b-s32b-b82k", "ViT-L-14__laion400m_e31", "ViT-L-14__laion400m_e32"),
        *("ViT-L-14-336__openai", "ViT-L-14-quickgelu__dfn2b", "RN50x16__openai", "ViT-B-16-SigLIP__webli"),
        *("ViT-B-16-SigLIP-256__webli", "ViT-B-16-SigLIP-384__webli", "ViT-B-16-SigLIP-512__webli"),
        *("ViT-B-16-SigLIP-i18n-256__webli", "ViT-B-16-SigLIP2__webli", "ViT-B-32-SigLIP2-256__webli"),
    ),
    1024: (
        *("ViT-H-14__laion2b-s32b-b79k", "ViT-H-14-quickgelu__dfn5b", "ViT-H-14-378-quickgelu__dfn5b"),
        *("ViT-g-14__laion2b-s12b-b42k", "RN50__openai", "RN50__yfcc15m", "RN50__cc12m", "RN50x64__openai"),
        *("ViT-L-16-SigLIP-256__webli", "ViT-L-16-SigLIP-384__webli", "ViT-L-16-SigLIP2-256__webli"),
        *("ViT-L-16-SigLIP2-384__webli", "ViT-L-16-SigLIP2-512__webli"),
    ),
    1152: (
        *("ViT-SO400M-14-SigLIP-384__webli", "ViT-SO400M-14-SigLIP2__webli", "ViT-SO400M-14-SigLIP2-378__webli"),
        *("ViT-SO400M-16-SigLIP2-256__webli", "ViT-SO400M-16-SigLIP2-384__webli", "ViT-SO400M-16-SigLIP2-512__webli"),
    ),
    1536: ("ViT-gopt-16-SigLIP2-256__webli", "ViT-gopt-16-SigLIP2-384__webli"),
}
# How many names of the list are said.
_MOST_NAMED = 4
CARD = """\
Immich knows models by a fixed list of names, each with the length of its embeddings. {{ place }} Put `{{ name }}/` in
the cache of its machine-learning container (`/cache/clip/<name on the list>/`), restart it, choose that name under
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

    Immich knows models by a fixed list of names: for a model that is not on it, or is there with another length, a
    warning says which names fit.

    Raises:
        ExportError: If the target cannot hold the preprocessing or the tokenizer.
    """
    require_clip_preprocessing(model, profile.target)
    require_clip_text(model, profile.target)
    # Immich keeps a folder for each model, by its name.
    place = find_place(model)
    if not place.fits:
        warnings.warn(place.sentence, stacklevel=2)
    inner = folder / place.name
    write_graphs(model, inner, profile)
    for name, content in describe_sidecars(model.config, model.image_shape).items():
        (inner / name).write_text(json.dumps(content, indent=2, default=list) + "\n", encoding="utf-8")
    write_tokenizer_files(model, inner / "textual")


@dataclass(frozen=True)
class Place:
    """Where a model stands in Immich's list: its `name` as Immich spells it, whether it `fits`, and a sentence."""

    name: str
    fits: bool
    sentence: str


def find_place(model: Model) -> Place:
    """The model's name on Immich's list, or those that would fit."""
    spelled, length = spell_model_name(model), model.tower.d_embed
    known = {_fold(name): (name, size) for size, names in LISTED.items() for name in names}
    name, expected = known.get(_fold(spelled), (spelled, None))
    if expected == length:
        return Place(name, fits=True, sentence=f"This one is on it as `{name}`.")
    found = f"lists {name} with {expected} numbers, and this one has" if expected else f"lists no {name}, which has"
    return Place(name, fits=False, sentence=f"Immich {found} embeddings of {length}. {_say_what_fits(length)}")


def _say_what_fits(length: int) -> str:
    names = LISTED.get(length)
    if not names:
        return f"It refuses that length; it has {', '.join(map(str, LISTED))}."
    others = ", ..." if len(names) > _MOST_NAMED else ""
    return f"Give it the place of one of that length: {', '.join(names[:_MOST_NAMED])}{others}."


def _fold(name: str) -> str:
    """What spellings of one model share: tags with `_` or `-`, and `quickgelu` said or left to the weights."""
    return name.lower().replace("_", "-").replace("-quickgelu", "")


def _describe(model: Model) -> dict[str, str]:
    place = find_place(model)
    return {"name": place.name, "place": place.sentence}


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
    describe=_describe,
    photos="Immich embeds its own previews of photos, which are upright.",
    row=TargetRow(
        "`<name>/visual`, `<name>/textual`, as in Immich's cache",
        "ONNX Runtime and `tokenizers`, standing in for Immich",
        "extra `hf`, for `tokenizers`",
    ),
)
