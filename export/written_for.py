"""Whom a folder was written for: a target of `export`, or clipedit itself, which alone reads a direct edit and tensors
under the names of a training wrapper.
"""

from __future__ import annotations

from pathlib import Path

from ..editor.choices import WeightPrecision
from ..editor.errors import ExportError, VerificationError, nearest_names
from ..editor.load import load_model
from ..editor.models.hub.repository import BASE_FOLDER
from ..editor.models.loaders import has_config
from ..editor.models.model import Model
from .consumers.consumer import Consumer, build_own_consumer
from .consumers.shipped import Statement
from .consumers.target import Target
from .graphs.profile import Profile
from .hf_folder import TARGET as HF_FOLDER
from .targets.open_clip import tell_open_clip
from .targets.registry import load_target, target_names
from .targets.timm import tell_timm
from .verify.reference import Reference

CARD = """\
Plain open_clip would load the unedited base of a direct edit, and knows no tensors under the names of a training
wrapper: load this folder with clipedit.

```python
import clipedit
import torch
from PIL import Image

model = clipedit.load_model(".")
image = torch.nn.functional.normalize(model.encode_image(model.preprocess(Image.open("example.png"))[None])[0], dim=0)
text = torch.nn.functional.normalize(model.encode_text(["a photo of a circle"])[0], dim=0)
print("image ", *(f"{x:.4f}" for x in image[:4].tolist()))
print("text  ", *(f"{x:.4f}" for x in text[:4].tolist()))
print("cosine", f"{float(image @ text):.4f}")
```
"""


def _refuse(model: Model, folder: Path, profile: Profile) -> None:
    raise ExportError(f"cannot export {model.name} to {profile.target}: `clipedit apply` writes such a folder.")


def _load(folder: Path, reference: Reference, profile: Profile) -> Consumer:
    return build_own_consumer(load_model(str(folder)))


def _tell(folder: Path, reference: Reference, profile: Profile) -> list[Statement]:
    if not has_config(folder) and not has_config(folder / BASE_FOLDER):
        return []  # A Hugging Face folder, which is copied.
    tell = tell_timm if "timm_cfg" in reference.config else tell_open_clip
    # Only a direct edit leaves its base apart.
    return [tell(folder, reference, BASE_FOLDER if (folder / BASE_FOLDER).is_dir() else "")]


OWN_FOLDER = Target(Profile(target="clipedit"), write=_refuse, load=_load, tell=_tell, card=CARD, row=None)


def find_written(name: str, precision: WeightPrecision = "fp32") -> Target:
    """The target that a folder was written for, by `export` or by `apply`.

    Raises:
        VerificationError: If this version of clipedit has no such target.
    """
    # Not among the targets: `apply` writes the first, which only clipedit reads, and the second where a Hugging Face
    # folder was edited.
    for folder in (OWN_FOLDER, HF_FOLDER):
        if name == folder.name:
            return folder.at(precision)
    if name not in target_names():
        raise VerificationError(
            f"cannot verify it: its target {name!r} is unknown. {nearest_names(name, target_names())} "
            "Is the plugin that has it installed?"
        )
    return load_target(name).at(precision)
