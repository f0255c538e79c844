"""A model of a Hugging Face folder, written back in that folder's own layout, and read by transformers' own class.

The same files, tensors, names, types and shards: only what an edit touched is another number. Programs that read the
folder (LLaVA, Stable Diffusion, FLUX) read the edited one in its place.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..editor.choices import Effect
from ..editor.edits.apply import copy_companions
from ..editor.errors import ExportError
from ..editor.files.bounded import load_json
from ..editor.files.checkpoint import SAFE_SUFFIX, copy_model, read_layout, read_state
from ..editor.files.digests import digest_files, digest_state
from ..editor.files.tensors import ReadTensor, read_header, tensor_reader
from ..editor.files.whole import save_tensors
from ..editor.identities import HeadId
from ..editor.load import load_model
from ..editor.models.hf.folder import CONFIG_NAME, find_weights, read_names
from ..editor.models.hf.names import convert_to_hf
from ..editor.models.hub.repository import WEIGHT_NAMES
from ..editor.models.model import HF_PREFIX, Model
from ..editor.models.open_clip_config import CONFIG_NAME as OPEN_CLIP_CONFIG_NAME
from .consumers.consumer import Consumer, build_own_consumer, known_tokens
from .consumers.target import Target
from .graphs.profile import Profile, require_plain
from .verify.reference import Reference, read_scales

TARGET_NAME = "hf-folder"
# The class of each kind of folder where its `config.json` does not name one.
_CLASSES = {
    "clip": "CLIPModel",
    "clip_vision_model": "CLIPVisionModel",
    "clip_text_model": "CLIPTextModel",
    "metaclip_2": "MetaClip2Model",
    "metaclip_2_vision_model": "MetaClip2VisionModel",
    "metaclip_2_text_model": "MetaClip2TextModel",
    "siglip": "SiglipModel",
    "siglip_vision_model": "SiglipVisionModel",
    "siglip_text_model": "SiglipTextModel",
}
CARD = """\
```python
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

model, processor = AutoModel.from_pretrained(".").float().eval(), AutoProcessor.from_pretrained(".")
texts, images = ["a photo of a circle"], [Image.open("example.png")]
inputs = processor(text=texts, images=images, return_tensors="pt", padding="max_length", truncation=True)
with torch.no_grad():
    answer = model(**inputs)
image, text = answer.image_embeds[0], answer.text_embeds[0]  # unit vectors
print("image ", *(f"{x:.4f}" for x in image[:4].tolist()))
print("text  ", *(f"{x:.4f}" for x in text[:4].tolist()))
print("cosine", f"{float(image @ text):.4f}")
```
"""


def write_hf_folder(model: Model, folder: Path) -> None:
    """Write a model into an existing folder, in the layout of the Hugging Face folder that it was read from.

    Pickled weights become one `model.safetensors` of the same names and types, which transformers looks for first.

    Raises:
        ExportError: If the model carries a direct edit, which weights cannot hold, or was read from something else.
    """
    require_plain(model, TARGET_NAME)
    if not model.hf_towers or model.folder is None:
        raise ExportError(f"cannot write {model.name} as a Hugging Face folder: it is none. Use --target hf.")
    files = find_weights(model.folder)
    shards = {path: read_state(path) for path in files}
    stored = {name: tensor for shard in shards.values() for name, tensor in shard.items()}
    wanted = convert_to_hf(model.stored_state(), read_names(model.folder, stored))
    # Cast, because queries, keys and values may be of several types on disk.
    changed = {name: tensor.to(stored[name].dtype) for name, tensor in wanted.items()}
    changed = {name: tensor for name, tensor in changed.items() if not torch.equal(tensor, stored[name])}
    if _is_rewritten(files):
        save_tensors(folder / WEIGHT_NAMES[0], stored | changed, "format", "pt")
    else:
        for path, shard in shards.items():
            copy_model(path, folder / path.name, {name: tensor for name, tensor in changed.items() if name in shard})
        if len(files) > 1:
            shutil.copyfile(model.folder / WEIGHT_NAMES[1], folder / WEIGHT_NAMES[1])
    # Of open_clip, in folders that both libraries read: it would find no weights of its own beside it.
    copy_companions(model.folder, folder, left_out=(OPEN_CLIP_CONFIG_NAME,))


def open_stored(folder: Path) -> tuple[dict[str, str], ReadTensor]:
    """The digest of each tensor of a Hugging Face folder, and what reads one, by the names that are written back."""
    files = find_weights(folder)
    if _is_rewritten(files):
        state = {name: tensor for path in files for name, tensor in read_state(path).items()}
        return digest_state(state), lambda name: state[name]
    readers = {name: tensor_reader(path) for path in files for name in read_header(path)}
    return digest_files(files), lambda name: readers[name](name)


def _is_rewritten(files: Sequence[Path]) -> bool:
    """Whether weights are written as one new file: pickled ones, and several tensors that the file holds as one."""
    return any(path.suffix != SAFE_SUFFIX or read_layout(path).is_tied for path in files)


def describe_layout(model: Model) -> str:
    """What is written of a model that was read from a Hugging Face folder, in words."""
    files = find_weights(model.folder) if model.folder is not None else []
    if any(path.suffix != SAFE_SUFFIX for path in files):
        return f"a Hugging Face folder, its {files[0].name} as {WEIGHT_NAMES[0]}"
    types = sorted({str(dtype).removeprefix("torch.") for dtype in model.storage_dtypes.values()})
    shards = f", {len(files)} shards" if len(files) > 1 else ""
    return f"a Hugging Face folder in its own layout: {' and '.join(types)}{shards}"


def describe_reach(model: Model, effect: Effect, heads: Sequence[str]) -> str | None:
    """Which readers of a tower alone see an edit of it; None for other models, which are read at their end."""
    if not model.is_alone or effect == "direct":
        return None
    if effect != "total":
        return (
            f"{effect}: only the last projection is another one. Programs that read this tower's hidden states (LLaVA, "
            "Stable Diffusion, FLUX) see no difference: for those leave out --effect"
        )
    last = sum(HeadId.parse(head).layer == model.tower.n_layers - 1 for head in heads)
    above = f"; {last} of {len(heads)} heads are in the last layer, of which a reader of the one before it sees nothing"
    return (
        "total: the edit is in the layers, since programs that read this tower alone see its hidden states and not its "
        "last projection" + above * bool(last)
    )


def _load(folder: Path, reference: Reference, profile: Profile) -> Consumer:
    """transformers' own class of the folder; texts are given as the tokens of the model's own tokenizer."""
    import transformers

    config = load_json(folder / CONFIG_NAME)
    name = (config.get("architectures") or [_CLASSES[config["model_type"]]])[0]
    # In float32, as the reference is: a folder of half precision would be computed in it.
    model: Any = getattr(transformers, name).from_pretrained(folder).float().eval()
    images, texts = _image_encoder(model), _text_encoder(model)
    shown, asked = "image_embedding" in reference.tensors, "text_embedding" in reference.tensors
    return Consumer(
        f"transformers {transformers.__version__}, {name}",
        images if shown else None,
        _after(_reader(folder, reference), images) if shown else None,
        _after(known_tokens(reference), texts) if asked else None,
        scales=read_scales(model),
    )


def _after(read: Callable[[Any], Tensor], encode: Callable[[Tensor], Tensor]) -> Callable[[Any], Tensor]:
    return lambda given: encode(read(given))


def read_features(answer: Any) -> Tensor:
    """The embeddings in an answer: transformers 5 gives an object, 4 a tensor."""
    return getattr(answer, "pooler_output", answer)


def _image_encoder(model: Any) -> Callable[[Tensor], Tensor]:
    if hasattr(model, "get_image_features"):
        return lambda pixels: read_features(model.get_image_features(pixel_values=pixels))
    return lambda pixels: _read_pooled(model(pixel_values=pixels), "image_embeds")


def _text_encoder(model: Any) -> Callable[[Tensor], Tensor]:
    if hasattr(model, "get_text_features"):
        return lambda tokens: read_features(model.get_text_features(input_ids=tokens))
    return lambda tokens: _read_pooled(model(input_ids=tokens), "text_embeds")


def _read_pooled(answer: Any, projected: str) -> Tensor:
    """The projected output of a tower alone, or the pooled one where it has no projection."""
    found = getattr(answer, projected, None)
    return answer.pooler_output if found is None else found


def _reader(folder: Path, reference: Reference) -> Callable[[list[Image.Image]], Tensor]:
    """The folder's own image processor; in a pipeline of diffusers it lies beside the folder, and ours reads for it."""
    import transformers

    if not any((folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")):
        return lambda images: torch.stack([reference.preprocess(image) for image in images])
    processor: Any = transformers.AutoImageProcessor.from_pretrained(folder)
    return lambda images: processor(images=images, return_tensors="pt")["pixel_values"]


def _load_own(folder: Path, reference: Reference, profile: Profile) -> Consumer:
    return build_own_consumer(load_model(f"{HF_PREFIX}{folder}"))


TARGET = Target(
    Profile(target=TARGET_NAME, needs_texts=False, resizing=0.95),
    write=lambda model, folder, profile: write_hf_folder(model, folder),
    load=_load,
    card=CARD,
    photos="the processor takes pictures as `PIL.Image.open` gives them, which is as they are stored; pipelines and "
    "`load_image` of transformers turn photos upright.",
    row=None,
    keeps_rules=True,
    stand_in=_load_own,
)
