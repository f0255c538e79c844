"""ONNX Runtime, which runs the graphs of several targets, itself or in the place of a server."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...editor.errors import VerificationError
from ..graphs.adapters import adapter_files
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
    batches, normalised = (profile.visual.batch, profile.textual.batch), profile.visual.normalised
    runtime = f"onnxruntime {onnxruntime.__version__} on {visual.get_providers()[0]}"

    def build(files: Sequence[Path] = (), adapters: Mapping[str, Consumer] | None = None) -> Consumer:
        # The adapter of images goes with the first graph; a graph without one answers as the base.
        loaded = [load_adapter(file) if file.is_file() else None for file in files] or [None, None]
        encode = as_function(visual, batches[0], loaded[0])
        encode_text = as_function(textual, batches[1], loaded[1])
        return Consumer(
            runtime,
            encode,
            after_preprocessing(encode, preprocess),
            lambda texts: encode_text(tokens(texts).to(integer)),
            normalised=normalised,
            adapters=adapters or {},
        )

    return build(adapters={name: build(_find_files(folder, name)) for name in reference.adapters})


def _find_files(folder: Path, adapter: str) -> Sequence[Path]:
    """The files of an adapter, of which one may not be there: an edit may leave a tower as it is.

    Raises:
        VerificationError: If neither is there.
    """
    files = adapter_files(folder, adapter)
    if not any(file.is_file() for file in files):
        raise VerificationError(f"cannot verify {folder}: {files[0].name} is missing. Export again.")
    return files


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


def load_adapter(path: Path) -> Any:
    """An adapter, for any session of its graph, and any thread.

    Raises:
        VerificationError: If it is none.
    """
    import onnxruntime

    adapter = onnxruntime.LoraAdapter()
    try:
        adapter.Load(str(path))
    except Exception as error:  # The runtime's own kinds, and RuntimeError.
        said = str(error).strip().rpartition(") ")[2]  # Behind the place in the runtime's own source.
        raise VerificationError(f"cannot verify {path.parent}: {path.name} is no adapter ({said}).") from None
    return adapter


def as_function(session: Any, batch: int | None = None, adapter: Any = None) -> Callable[[Tensor], Tensor]:
    """A graph as a function of one tensor; one of a fixed batch is run as often as needed."""
    name, switch = session.get_inputs()[0].name, _Switch(adapter)

    def run(inputs: Tensor) -> Tensor:
        # The last part of a fixed batch must be whole too, which batches of one always are.
        parts = inputs.split(batch or len(inputs))
        return torch.cat([torch.from_numpy(switch.run(session, {name: part.numpy()})) for part in parts])

    return run


class _Switch:
    """The options of runs with an adapter; those without one have none."""

    def __init__(self, adapter: Any):
        self.options: Any = None
        # The options hold a bare pointer: the adapter must live as long as they do.
        self.adapter = adapter
        if adapter is not None:
            import onnxruntime

            self.options = onnxruntime.RunOptions()
            self.options.add_active_adapter(adapter)

    def run(self, session: Any, given: dict[str, Any]) -> Any:
        """The first output.

        Raises:
            VerificationError: If the adapter holds tensors that the graph does not take.
        """
        if self.adapter is None:
            return session.run(None, given)[0]
        try:
            return session.run(None, given, self.options)[0]
        except Exception as error:  # The runtime's own kinds; a name that is no UTF-8 is an error of Python.
            said = " ".join(str(error).split()).rpartition(" : ")[2]
            raise VerificationError(f"cannot run a graph with its adapter: {said}. Export again.") from None
