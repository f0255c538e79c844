"""Target `hf`: a folder that `transformers.CLIPModel` and `CLIPProcessor` read. Nothing here needs transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...editor.errors import ExportError
from ...editor.files.tensors import round_to_storage, tensor_reader
from ...editor.files.whole import save_tensors
from ...editor.models.hf.names import clip_names, convert_from_hf, convert_to_hf
from ...editor.models.model import Model
from ..consumers.consumer import Consumer, build_torch_consumer
from ..consumers.preprocessor_config import NAME as PREPROCESSOR_NAME
from ..consumers.preprocessor_config import (
    build_processor,
    require_clip_preprocessing,
    tell_preprocessor,
    write_preprocessor,
)
from ..consumers.target import Target, TargetRow
from ..consumers.tokenizer_files import SIDECARS as TOKENIZER_FILES
from ..consumers.tokenizer_files import require_clip_text, write_tokenizer_files
from ..graphs.profile import Profile, require_plain
from ..hf_folder import TARGET as HF_FOLDER
from ..hf_folder import read_features
from ..verify.reference import Reference, read_scales

WEIGHTS_NAME, CONFIG_NAME = "model.safetensors", "config.json"
SIDECARS = (CONFIG_NAME, PREPROCESSOR_NAME, *TOKENIZER_FILES)
_ACTIVATIONS = {"QuickGELU": "quick_gelu", "GELU": "gelu"}

CARD = """\
```python
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

model, processor = CLIPModel.from_pretrained("."), CLIPProcessor.from_pretrained(".")
inputs = processor(text=["a photo of a circle"], images=[Image.open("example.png")], return_tensors="pt", padding=True)
with torch.no_grad():
    answer = model(**inputs)
image, text = answer.image_embeds[0], answer.text_embeds[0]  # unit vectors
print("image ", *(f"{x:.4f}" for x in image[:4].tolist()))
print("text  ", *(f"{x:.4f}" for x in text[:4].tolist()))
print("cosine", f"{float(image @ text):.4f}")
```
"""


def write_hf(model: Model, folder: Path, profile: Profile) -> None:
    """Write weights under Hugging Face's names, and all that the processor reads.

    The weights are float32, or float16 if that was asked for, whatever they were: transformers computes in the type it
    finds.

    Raises:
        ExportError: If the model carries a direct edit, or has parts that `CLIPModel` has not.
    """
    require_plain(model, profile.target)
    state = require_hf_clip(model, profile.target)
    dtype = torch.float16 if profile.precision == "fp16" else torch.float32
    stored = {name: round_to_storage(name, tensor, dtype) for name, tensor in state.items()}
    # The metadata that transformers itself writes.
    save_tensors(folder / WEIGHTS_NAME, stored, "format", "pt")
    write_hf_sidecars(model, folder, profile)


def write_hf_sidecars(model: Model, folder: Path, profile: Profile) -> None:
    """Write configuration, preprocessing and tokenizer.

    Raises:
        ExportError: If the target cannot hold the preprocessing or the tokenizer.
    """
    require_clip_preprocessing(model, profile.target)
    require_clip_text(model, profile.target)
    config = describe_hf_config(model) | {"torch_dtype": "float16" if profile.precision == "fp16" else "float32"}
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    write_preprocessor(model, folder)
    write_tokenizer_files(model, folder)


def require_hf_clip(model: Model, target: str) -> dict[str, Tensor]:
    """The weights under the names of `CLIPModel`.

    Raises:
        ExportError: If the model has parts that `CLIPModel` has not, naming the first.
    """
    reason = _describe_difference(model)
    if reason is not None:
        raise ExportError(
            f"cannot export to {target}: {reason}, which transformers' CLIPModel does not have. "
            "Use --target open-clip or onnx."
        )
    return convert_to_hf(model.stored_state(), _names(model))


def describe_hf_config(model: Model) -> dict[str, Any]:
    """`config.json`; sizes are read off the weights."""
    visual, text = model.module.visual, getattr(model.module, "text", model.module)
    d_embed = model.tower.d_embed
    vision = _describe_transformer(visual, d_embed) | {
        "model_type": "clip_vision_model",
        "image_size": model.image_size,
        "patch_size": visual.conv1.kernel_size[0],
        "num_channels": 3,
    }
    textual = _describe_transformer(text, d_embed) | {
        "model_type": "clip_text_model",
        "vocab_size": text.token_embedding.num_embeddings,
        "max_position_embeddings": len(text.positional_embedding),
        # CLIP's vocabulary: `require_clip_text` has refused any other tokenizer.
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "pad_token_id": 49407,
    }
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": d_embed,
        "vision_config": vision,
        "text_config": textual,
    }


def _describe_transformer(tower: Any, d_embed: int) -> dict[str, Any]:
    first = tower.transformer.resblocks[0]
    return {
        "hidden_size": first.mlp.c_fc.in_features,
        "intermediate_size": first.mlp.c_fc.out_features,
        "num_hidden_layers": len(tower.transformer.resblocks),
        "num_attention_heads": first.attn.num_heads,
        "hidden_act": _ACTIVATIONS[type(first.mlp.gelu).__name__],
        "layer_norm_eps": first.ln_1.eps,
        "projection_dim": d_embed,
    }


def _names(model: Model) -> list[Any]:
    visual, text = model.module.visual, getattr(model.module, "text", model.module)
    # open_clip models with `custom_text` keep the text tower in a module of its own.
    prefix = "text." if text is not model.module else ""
    return clip_names(len(visual.transformer.resblocks), len(text.transformer.resblocks), text_prefix=prefix)


def _describe_difference(model: Model) -> str | None:
    """What the model has and `CLIPModel` has not, or None."""
    visual, text = model.module.visual, getattr(model.module, "text", model.module)
    if type(visual).__name__ != "VisionTransformer":
        return f"the image tower is a {type(visual).__name__}"
    # CLIPModel reads the class token and nothing else.
    if visual.pool_type != "tok" or visual.attn_pool is not None:
        return f"the image tower pools by {visual.pool_type!r} or attention"
    if not hasattr(getattr(text, "transformer", None), "resblocks"):
        return f"the text tower is a {type(text).__name__}"
    for tower in (visual, text):
        activation = type(tower.transformer.resblocks[0].mlp.gelu)
        if activation.__name__ not in _ACTIVATIONS:
            return f"the activation is {activation.__name__}"
    # Whatever has no name on the other side would be dropped in silence.
    known = {name for entry in _names(model) for name in entry.own}
    spare = sorted(set(model.module.state_dict()) - known)
    return f"the model has {spare[0]}" if spare else None


def _load(folder: Path, reference: Reference, profile: Profile) -> Consumer:
    import transformers

    model: Any = transformers.CLIPModel.from_pretrained(folder).eval()
    processor: Any = transformers.CLIPProcessor.from_pretrained(folder)

    def encode_images(pixels: Tensor) -> Tensor:
        return read_features(model.get_image_features(pixel_values=pixels))

    def embed_images(images: list[Image.Image]) -> Tensor:
        return encode_images(processor(images=images, return_tensors="pt")["pixel_values"])

    def embed_texts(texts: list[str]) -> Tensor:
        return read_features(model.get_text_features(**_tokenize(processor, texts)))

    runtime = f"transformers {transformers.__version__}"
    return Consumer(runtime, encode_images, embed_images, embed_texts, scales=read_scales(model))


def _tokenize(processor: Any, texts: list[str]) -> Any:
    return processor(text=texts, return_tensors="pt", padding=True, truncation=True)


def load_by_open_clip(folder: Path, reference: Reference, profile: Profile) -> Consumer:
    """The weights under open_clip's names again; the tokenizer's files are not read."""
    import open_clip
    from safetensors import safe_open

    # In a module's folder, for sentence-transformers.
    path = next(folder.rglob("model.safetensors"))
    with safe_open(path, framework="pt") as stream:
        names = list(stream.keys())
    read = tensor_reader(path)
    config = reference.config["model_cfg"]
    # The plain class keeps the text tower's weights without the prefix that custom_text gives them.
    module = open_clip.CLIP(**{k: v for k, v in config.items() if k not in ("custom_text",)})
    entries = clip_names(config["vision_cfg"]["layers"], config["text_cfg"]["layers"])
    # In float32: half weights may have been stored, and the comparison is with the float32 model.
    module.load_state_dict(convert_from_hf({name: read(name).float() for name in names}, entries))
    tokenizer = open_clip.SimpleTokenizer(context_length=module.context_length)
    runtime = f"open_clip {open_clip.__version__}, reading weights and preprocessing"
    return build_torch_consumer(runtime, module, build_processor(path.with_name(PREPROCESSOR_NAME)), tokenizer)


TARGET = Target(
    Profile(target="hf", sidecars=SIDECARS, precisions=("fp32", "fp16"), resizing=0.95),
    write=write_hf,
    load=_load,
    card=CARD,
    photos="the processor takes pictures as `PIL.Image.open` gives them, which is as they are stored; pipelines and "
    "`load_image` of transformers turn photos upright.",
    row=TargetRow(
        "`config.json`, `model.safetensors`, processor and tokenizer files",
        "transformers `CLIPModel`, `CLIPProcessor`",
        "extra `hf`",
    ),
    tell=lambda folder, reference, profile: [tell_preprocessor(folder, reference)],
    stand_in=load_by_open_clip,
    own_layout=HF_FOLDER,
)
