"""Target `sentence-transformers`: the files of target `hf` in the module that `SentenceTransformer` loads."""

from __future__ import annotations

import json
from pathlib import Path

from ...editor.models.model import Model
from ..graphs.profile import Profile
from ..verify.foreign_code import ST_MODULE
from .hf import SIDECARS, write_hf

MODULE = "0_CLIPModel"


def write_sentence_transformers(model: Model, folder: Path, profile: Profile) -> None:
    """Write `modules.json` and the folder of its one module."""
    (folder / MODULE).mkdir()
    write_hf(model, folder / MODULE, profile)
    module = {"idx": 0, "name": "0", "path": MODULE, "type": ST_MODULE}
    (folder / "modules.json").write_text(json.dumps([module], indent=2) + "\n", encoding="utf-8")


PROFILE = Profile(
    target="sentence-transformers",
    write=write_sentence_transformers,
    sidecars=("modules.json", *(f"{MODULE}/{name}" for name in SIDECARS)),
    precisions=("fp32", "fp16"),
    resizing=0.95,
)
