"""Target `open-clip`: a folder that `open_clip.create_model_and_transforms("local-dir:PATH")` reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...editor.files.whole import save_tensors
from ...editor.models.identity import describe_function
from ...editor.models.loaders import WEIGHTS_NAME
from ...editor.models.model import Model
from ...editor.models.open_clip_config import CONFIG_NAME, read_open_clip_config
from ..consumers.consumer import Consumer, build_torch_consumer
from ..consumers.shipped import Statement
from ..consumers.target import Target, TargetRow
from ..graphs.profile import Profile, require_plain
from ..verify.reference import Reference

CARD = """\
```python
import open_clip
import torch
from PIL import Image

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:.")
tokenizer = open_clip.get_tokenizer("local-dir:.")
with torch.no_grad():
    image = model.eval().encode_image(preprocess(Image.open("example.png"))[None], normalize=True)[0]
    text = model.encode_text(tokenizer(["a photo of a circle"]), normalize=True)[0]
print("image ", *(f"{x:.4f}" for x in image[:4].tolist()))
print("text  ", *(f"{x:.4f}" for x in text[:4].tolist()))
print("cosine", f"{float(image @ text):.4f}")
```
"""


def write_open_clip_folder(model: Model, folder: Path) -> None:
    """Write weights in their dtype on disk, the configuration with preprocessing, and its Hugging Face tokenizer.

    Raises:
        ExportError: If the model carries a direct edit, which a plain checkpoint cannot hold.
    """
    require_plain(model, "open-clip")
    save_tensors(folder / WEIGHTS_NAME, model.stored_state(), "format", "pt")
    (folder / CONFIG_NAME).write_text(json.dumps(model.config, indent=2, default=list) + "\n", encoding="utf-8")
    # open_clip reads the tokenizer from the folder where the configuration names a Hugging Face one.
    wrapped: Any = getattr(model.tokenizer, "tokenizer", None)
    if hasattr(wrapped, "save_pretrained"):
        wrapped.save_pretrained(folder)


def tell_open_clip(folder: Path, reference: Reference, inside: str = "") -> Statement:
    """What the configuration says, defaults filled in as open_clip does."""
    found = describe_function(read_open_clip_config(folder / inside))
    path = f"{inside}/{CONFIG_NAME}" if inside else CONFIG_NAME
    return Statement(path, describe_function(reference.config), found)


def _load(folder: Path, reference: Reference, profile: Profile) -> Consumer:
    import open_clip

    name = f"local-dir:{folder}"
    created: Any = open_clip.create_model_and_transforms(name)
    tokenizer = open_clip.get_tokenizer(name)
    module, _, preprocess = created
    return build_torch_consumer(f"open_clip {open_clip.__version__}", module, preprocess, tokenizer)


TARGET = Target(
    Profile(
        target="open-clip",
        sidecars=(CONFIG_NAME,),
    ),
    write=lambda model, folder, profile: write_open_clip_folder(model, folder),
    load=_load,
    tell=lambda folder, reference, profile: [tell_open_clip(folder, reference)],
    card=CARD,
    row=TargetRow("`open_clip_config.json`, `open_clip_model.safetensors`", "open_clip `local-dir:`"),
)
