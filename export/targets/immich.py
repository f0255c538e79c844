"""Target `immich`: `<name>/visual` and `<name>/textual`, as Immich keeps them in its cache under `clip/`."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ...editor.models.model import Model
from ..consumers.preprocessor_config import require_clip_preprocessing
from ..consumers.tokenizer_files import SIDECARS as TOKENIZER_FILES
from ..consumers.tokenizer_files import require_clip_text, write_tokenizer_files
from ..graphs.onnx_graphs import write_graphs
from ..graphs.profile import GraphSpec, Profile


def write_immich(model: Model, folder: Path, profile: Profile) -> None:
    """Write both graphs for batches of one, normalised, and what Immich reads beside them.

    Immich knows models by a fixed list of names: put these files in the place of a model of the same architecture.

    Raises:
        ExportError: If the target cannot hold the preprocessing or the tokenizer.
    """
    require_clip_preprocessing(model, profile.target)
    require_clip_text(model, profile.target)
    inner = folder / immich_name(model)
    write_graphs(model, inner, profile)
    preprocess = {**model.config["preprocess_cfg"], "size": list(model.image_shape)}
    for name, content in (("config.json", model.config["model_cfg"]), ("visual/preprocess_cfg.json", preprocess)):
        (inner / name).write_text(json.dumps(content, indent=2, default=list) + "\n", encoding="utf-8")
    write_tokenizer_files(model, inner / "textual")


def immich_name(model: Model) -> str:
    """`ViT-B-32__openai`, as Immich spells it: of the base, if a recipe names it."""
    recipe = model.recipe
    base = recipe.document.base if recipe else model
    name = Path(base.model if recipe else model.name).name  # type: ignore[union-attr]
    parts = [name, *([Path(base.pretrained).stem] if base.pretrained else [])]
    return re.sub(r"[^A-Za-z0-9_.-]", "_", "__".join(parts))


PROFILE = Profile(
    target="immich",
    write=write_immich,
    visual=GraphSpec("visual/model.onnx", "image", "embedding", batch=1, normalised=True),
    textual=GraphSpec("textual/model.onnx", "text", "embedding", integer="int32", batch=1, normalised=True),
    # fp16 crashes the CPU provider at the level of optimisation that it runs at.
    precisions=("fp32", "int8"),
    sidecars=("config.json", "visual/preprocess_cfg.json", *(f"textual/{name}" for name in TOKENIZER_FILES)),
)
