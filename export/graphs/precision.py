"""Precision: 8-bit weights from ONNX Runtime's quantiser, and what lower precision costs (half: `encoders.py`).

The cost is measured on the file that ships, in `verify_child`: cosines of its embeddings to those of the edited fp32
model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...editor.errors import ImageError
from ...editor.images.source import ImageSource
from ...editor.images.texts import load_texts
from ...editor.models.fitting import quiet
from ...editor.models.model import Model

CALIBRATION_INPUTS = 128
_QUANTISED = ["MatMul", "Gemm", "Gather"]


@dataclass(frozen=True)
class Limits:
    """The least worst cosine to the edited fp32 model, and the least share of equal zero-shot answers."""

    cosine: float
    agreement: float


# Below these an export is refused unless forced.
LIMITS: dict[str, Limits] = {"fp32": Limits(0.9999, 1.0), "fp16": Limits(0.999, 0.95), "int8": Limits(0.95, 0.85)}
FORCED = Limits(-1.0, 0.0)


def quantize_graph(path: Path, calibration: Iterable[np.ndarray] | None) -> None:
    """Replace a graph on disk by its 8-bit form: dynamic, or static with ranges of activations from calibration inputs.

    Weights get a scale a column. The patch convolution, under a hundredth of the weights, stays in float32: not every
    runtime has an 8-bit one. Dynamic weights are unsigned: signed ones overflow on processors without VNNI.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic, quantize_static

    shared: dict[str, Any] = {"op_types_to_quantize": _QUANTISED, "per_channel": True}
    # Beside the graph and then moved over it: the quantiser reads one while it writes the other.
    staged = path.with_name(f"quantised-{path.name}")
    # The quantiser advises on preprocessing, through the root logger.
    with quiet():
        if calibration is None:
            quantize_dynamic(path, staged, weight_type=QuantType.QUInt8, **shared)
        else:
            reader = _build_reader(path, calibration)
            # Products of two activations, as in attention, stay in float32.
            options = {"MatMulConstBOnly": True}
            quantize_static(path, staged, reader, activation_type=QuantType.QUInt8, extra_options=options, **shared)
    staged.replace(path)
    # The float32 weights of a large graph; the 8-bit graph holds its own.
    path.with_name(f"{path.name}.data").unlink(missing_ok=True)


def collect_calibration_images(model: Model, source: ImageSource) -> Iterator[np.ndarray]:
    """Preprocessed images one by one, `[1, 3, height, width]`, spread evenly over the source, readable ones."""
    # Unique, since small sources would give the same image several times.
    for index in np.unique(np.linspace(0, len(source) - 1, CALIBRATION_INPUTS).astype(int)):
        try:
            yield model.preprocess(source.open(int(index)))[None].numpy()
        except ImageError:
            continue


def collect_calibration_texts(model: Model, dtype: str) -> Iterator[np.ndarray]:
    """Token ids `[1, context]` of texts spread evenly over the general pool."""
    texts = load_texts(model_folder=model.folder)
    chosen = np.unique(np.linspace(0, len(texts) - 1, CALIBRATION_INPUTS).astype(int))
    for row in model.tokenizer([texts[int(index)] for index in chosen]).numpy().astype(dtype):
        yield row[None]


def _build_reader(path: Path, calibration: Iterable[np.ndarray]) -> Any:
    import onnx
    from onnxruntime.quantization import CalibrationDataReader

    name = onnx.load(path, load_external_data=False).graph.input[0].name
    inputs = iter(calibration)

    class Reader(CalibrationDataReader):
        def get_next(self) -> Any:  # None at the end
            found = next(inputs, None)
            return None if found is None else {name: found}

    return Reader()
