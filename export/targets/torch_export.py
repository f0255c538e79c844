"""Target `torch-export`: `visual.pt2` and `textual.pt2`, programs that need neither clipedit nor open_clip.

`torch.export.load(path).module()(batch)` gives unnormalised embeddings, for any batch; `clip.json` is that of target
`onnx`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ...editor.models.model import Model
from ..consumers.consumer import Consumer, after_preprocessing, known_tokens
from ..consumers.target import Target, TargetRow
from ..graphs.encoders import ImageEncoder, TextEncoder
from ..graphs.onnx_graphs import draw_examples, quiet_exporter
from ..graphs.profile import Profile
from ..verify.reference import Reference
from .onnx import SIDECAR_NAME, read_preprocess, tell_sidecar, write_sidecar

VISUAL_NAME, TEXTUAL_NAME = "visual.pt2", "textual.pt2"

CARD = """\
```python
import json

import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

described = json.load(open("clip.json"))
preprocess = image_transform_v2(PreprocessCfg(**described["preprocess_cfg"]), is_train=False)
tokens = open_clip.SimpleTokenizer(context_length=described["context_length"])(["a photo of a circle"])
visual, textual = (torch.export.load(name).module() for name in ("visual.pt2", "textual.pt2"))
with torch.no_grad():
    image = torch.nn.functional.normalize(visual(preprocess(Image.open("example.png"))[None])[0], dim=0)
    text = torch.nn.functional.normalize(textual(tokens)[0], dim=0)
print("image ", *(f"{x:.4f}" for x in image[:4].tolist()))
print("text  ", *(f"{x:.4f}" for x in text[:4].tolist()))
print("cosine", f"{float(image @ text):.4f}")
```
"""


def write_programs(model: Model, folder: Path) -> None:
    """Write both programs, and `clip.json` with preprocessing, context length and embedding size."""
    pixels, tokens = draw_examples(model)
    _write_program(ImageEncoder(model), pixels, folder / VISUAL_NAME)
    _write_program(TextEncoder(model), tokens, folder / TEXTUAL_NAME)
    write_sidecar(model, folder)


def _write_program(encoder: nn.Module, example: Tensor, path: Path) -> None:
    with torch.no_grad(), quiet_exporter():
        # The batch alone is dynamic: pixels and context have fixed sizes.
        axes = ({0: torch.export.Dim("batch", min=1)},)
        program = torch.export.export(encoder.eval(), (example,), dynamic_shapes=axes, strict=False)
        torch.export.save(program, path)


def _load(folder: Path, reference: Reference, profile: Profile) -> Consumer:
    visual, textual = (torch.export.load(folder / name).module() for name in (VISUAL_NAME, TEXTUAL_NAME))
    tokens = known_tokens(reference)
    return Consumer(
        f"torch {torch.__version__}",
        visual,
        after_preprocessing(visual, read_preprocess(folder / SIDECAR_NAME)),
        lambda texts: textual(tokens(texts)),
    )


TARGET = Target(
    Profile(
        target="torch-export",
        sidecars=(SIDECAR_NAME,),
    ),
    write=lambda model, folder, profile: write_programs(model, folder),
    load=_load,
    tell=lambda folder, reference, profile: [tell_sidecar(folder, reference)],
    card=CARD,
    row=TargetRow(
        "`visual.pt2`, `textual.pt2`, which run without clipedit and open_clip, `clip.json`", "`torch.export.load`"
    ),
    runs_code=True,
)
