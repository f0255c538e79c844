"""Target `fastembed`: a folder for `ImageEmbedding`, one for `TextEmbedding`, each given as `specific_model_path`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...editor.models.model import Model
from ..consumers.consumer import Consumer
from ..consumers.onnx_runtime import as_function, load_graphs
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
from ..graphs.onnx_graphs import write_graphs
from ..graphs.profile import GraphSpec, Profile
from ..verify.reference import Reference

CARD = """\
The model names only tell fastembed how to read the files; the weights are those of the two folders.

```python
import numpy as np
from fastembed import ImageEmbedding, TextEmbedding
from PIL import Image

visual = ImageEmbedding("Qdrant/clip-ViT-B-32-vision", specific_model_path="vision")
textual = TextEmbedding("Qdrant/clip-ViT-B-32-text", specific_model_path="text")
image = next(iter(visual.embed([Image.open("example.png")])))  # a unit vector
text = next(iter(textual.embed(["a photo of a circle"])))  # not one: Qdrant normalises for cosine distance
text = text / np.linalg.norm(text)
print("image ", *(f"{x:.4f}" for x in image[:4].tolist()))
print("text  ", *(f"{x:.4f}" for x in text[:4].tolist()))
print("cosine", f"{float(image @ text):.4f}")
```
"""


def write_fastembed(model: Model, folder: Path, profile: Profile) -> None:
    """Write both graphs, preprocessing and tokenizer. fastembed normalises images itself, and texts not.

    Raises:
        ExportError: If the target cannot hold the preprocessing or the tokenizer.
    """
    require_clip_preprocessing(model, profile.target)
    require_clip_text(model, profile.target)
    write_graphs(model, folder, profile)
    write_preprocessor(model, folder / "vision")
    write_tokenizer_files(model, folder / "text")
    config = {"model_type": "clip_text_model", "projection_dim": model.tower.d_embed}
    (folder / "text" / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _load(folder: Path, reference: Reference, profile: Profile) -> Consumer:
    import fastembed

    # The model names only say how the files are read; the weights come from the folder.
    images: Any = fastembed.ImageEmbedding("Qdrant/clip-ViT-B-32-vision", specific_model_path=str(folder / "vision"))
    texts: Any = fastembed.TextEmbedding("Qdrant/clip-ViT-B-32-text", specific_model_path=str(folder / "text"))
    return Consumer(
        f"fastembed {fastembed.__version__} on {images.model.model.get_providers()[0]}",
        as_function(images.model.model),
        lambda batch: _stack(images.embed(batch)),
        lambda batch: _stack(texts.embed(batch)),
    )


def _stand_in(folder: Path, reference: Reference, profile: Profile) -> Consumer:
    return load_graphs(folder, reference, profile, preprocess=build_processor(folder / "vision" / PREPROCESSOR_NAME))


def _stack(embeddings: Any) -> Tensor:
    return torch.stack([torch.from_numpy(embedding) for embedding in embeddings])


TARGET = Target(
    Profile(
        target="fastembed",
        visual=GraphSpec("vision/model.onnx", "pixel_values", "image_embeds"),
        textual=GraphSpec("text/model.onnx", "input_ids", "text_embeds", dynamic_length=True),
        # fp16 crashes the CPU provider at the level of optimisation that it runs at.
        precisions=("fp32", "int8"),
        sidecars=(f"vision/{PREPROCESSOR_NAME}", "text/config.json", *(f"text/{name}" for name in TOKENIZER_FILES)),
        resizing=0.95,
    ),
    write=write_fastembed,
    load=_load,
    card=CARD,
    photos="fastembed reads files as their pixels are stored; give it what `PIL.ImageOps.exif_transpose` turned.",
    row=TargetRow(
        "`vision/`, `text/`: graphs, preprocessing, tokenizer",
        "`ImageEmbedding` and `TextEmbedding` with `specific_model_path`",
        "extra `fastembed`",
    ),
    tell=lambda folder, reference, profile: [tell_preprocessor(folder, reference, "vision")],
    stand_in=_stand_in,
)
