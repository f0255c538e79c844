"""Target `torch-export`: `visual.pt2` and `textual.pt2`, programs that run without clipedit and open_clip, direct edits included.

`torch.export.load(path).module()(batch)` gives unnormalised embeddings, for any batch; `clip.json` is that of target `onnx`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ...editor.models.model import Model
from ..graphs.encoders import ImageEncoder, TextEncoder
from ..graphs.onnx_graphs import draw_examples, quiet_exporter
from ..graphs.profile import Profile
from .onnx import SIDECAR_NAME, write_sidecar

VISUAL_NAME, TEXTUAL_NAME = "visual.pt2", "textual.pt2"


def write_programs(model: Model, folder: Path) -> None:
    """Write both programs, and `clip.json` with preprocessing, context length and embedding size."""
    pixels, tokens = draw_examples(model)
    _write_program(ImageEncoder(model), pixels, folder / VISUAL_NAME)
    _write_program(TextEncoder(model), tokens, folder / TEXTUAL_NAME)
    write_sidecar(model, folder)


def _write_program(encoder: nn.Module, example: Tensor, path: Path) -> None:
    with torch.no_grad(), quiet_exporter():
        axes = ({0: torch.export.Dim("batch", min=1)},)
        program = torch.export.export(encoder.eval(), (example,), dynamic_shapes=axes, strict=False)
        torch.export.save(program, path)


PROFILE = Profile(
    target="torch-export",
    write=lambda model, folder, profile: write_programs(model, folder),
    sidecars=(SIDECAR_NAME,),
)
