"""ONNX Runtime, which runs the graphs of several targets, itself or in the place of a server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..graphs.profile import Profile
from ..verify.reference import Reference
from .consumer import Consumer, Preprocess, after_preprocessing, known_tokens


def load_graphs(folder: Path, reference: Reference, profile: Profile, *, preprocess: Preprocess) -> Consumer:
    """ONNX Runtime, with the model's own tokens: for targets that are graphs and numbers only.

    Args:
        preprocess: As the files beside the graphs say it.
    """
    import onnxruntime

    assert profile.visual is not None and profile.textual is not None
    half = profile.precision == "fp16"
    visual, textual = (open_session(folder / spec.path, half=half) for spec in (profile.visual, profile.textual))
    tokens, integer = known_tokens(reference), getattr(torch, profile.textual.integer)
    encode = as_function(visual, profile.visual.batch)
    encode_text = as_function(textual, profile.textual.batch)
    return Consumer(
        f"onnxruntime {onnxruntime.__version__} on {visual.get_providers()[0]}",
        encode,
        after_preprocessing(encode, preprocess),
        lambda texts: encode_text(tokens(texts).to(integer)),
        normalised=profile.visual.normalised,
    )


def open_session(path: Path, *, half: bool) -> Any:
    """ONNX Runtime's defaults; for half precision one level of optimisation less: the CPU provider can crash."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    if half:
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    # TF32 would cost more than the tolerance.
    options = {"CUDAExecutionProvider": {"use_tf32": "0"}, "CPUExecutionProvider": {}}
    # In the order of preference: the GPU where this build has it.
    providers = [(name, options[name]) for name in options if name in onnxruntime.get_available_providers()]
    # 4: fatal messages only.
    onnxruntime.set_default_logger_severity(4)
    return onnxruntime.InferenceSession(path, settings, providers=providers)


def as_function(session: Any, batch: int | None = None) -> Callable[[Tensor], Tensor]:
    """A graph as a function of one tensor; one of a fixed batch is run as often as needed."""
    name = session.get_inputs()[0].name

    def run(inputs: Tensor) -> Tensor:
        return torch.cat(
            [
                # The last part of a fixed batch must be whole too, which batches of one always are.
                torch.from_numpy(session.run(None, {name: part.numpy()})[0])
                for part in inputs.split(batch or len(inputs))
            ]
        )

    return run
