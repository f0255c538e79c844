"""Target `sentence-transformers`: the files of target `hf` in the module that `SentenceTransformer` loads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ...editor.errors import VerificationError
from ...editor.files.bounded import load_json
from ...editor.models.model import Model
from ..consumers.consumer import Consumer
from ..consumers.preprocessor_config import tell_preprocessor
from ..consumers.target import Target, TargetRow
from ..graphs.profile import Profile
from ..hf_folder import read_features
from ..verify.reference import Reference, read_scales
from .hf import SIDECARS, load_by_open_clip, write_hf

MODULE, MODULE_TYPE = "0_CLIPModel", "sentence_transformers.models.CLIPModel"

CARD = """\
```python
from PIL import Image
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(".", device="cpu")
image = model.encode(Image.open("example.png"), normalize_embeddings=True)
text = model.encode("a photo of a circle", normalize_embeddings=True)
print("image ", *(f"{x:.4f}" for x in image[:4].tolist()))
print("text  ", *(f"{x:.4f}" for x in text[:4].tolist()))
print("cosine", f"{float(image @ text):.4f}")
```
"""


def write_sentence_transformers(model: Model, folder: Path, profile: Profile) -> None:
    """Write `modules.json` and the folder of its one module."""
    (folder / MODULE).mkdir()
    write_hf(model, folder / MODULE, profile)
    module = {"idx": 0, "name": "0", "path": MODULE, "type": MODULE_TYPE}
    (folder / "modules.json").write_text(json.dumps([module], indent=2) + "\n", encoding="utf-8")


def _load(folder: Path, reference: Reference, profile: Profile) -> Consumer:
    import sentence_transformers

    model: Any = sentence_transformers.SentenceTransformer(str(folder), device="cpu")

    def encode_images(pixels: Tensor) -> Tensor:
        return read_features(model[0].auto_model.get_image_features(pixel_values=pixels))

    def embed(inputs: Sequence[Any]) -> Tensor:
        return model.encode(list(inputs), convert_to_tensor=True)

    runtime = f"sentence-transformers {sentence_transformers.__version__}"
    return Consumer(runtime, encode_images, embed, embed, scales=read_scales(model[0].auto_model))


def _require_own_module(folder: Path) -> None:
    """sentence-transformers imports the classes that `modules.json` names, before version 6 from the folder itself."""
    try:
        types = [module["type"] for module in load_json(folder / "modules.json")]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise VerificationError(
            f"cannot verify {folder}: modules.json cannot be read ({error}). Export again."
        ) from None
    # Any other type is a class that would be imported.
    if any(kind != MODULE_TYPE for kind in types):
        raise VerificationError(
            f"cannot verify {folder}: modules.json names {', '.join(map(str, types))}, an export has {MODULE_TYPE}. "
            "Export again."
        )


TARGET = Target(
    Profile(
        target="sentence-transformers",
        sidecars=("modules.json", *(f"{MODULE}/{name}" for name in SIDECARS)),
        precisions=("fp32", "fp16"),
        resizing=0.95,
    ),
    write=write_sentence_transformers,
    load=_load,
    card=CARD,
    row=TargetRow("`modules.json` and the files of `hf`", "`SentenceTransformer(DIR)`", "extra `hf`"),
    tell=lambda folder, reference, profile: [tell_preprocessor(folder, reference, MODULE)],
    stand_in=load_by_open_clip,
    require_no_code=_require_own_module,
)
