"""Target `onnx`: `visual.onnx` and `textual.onnx`, fp32, dynamic batch, embeddings unnormalised."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from ..editor.model import Model

SIDECAR_NAME = "clip.json"
OPSET = 20
_PROTOBUF_LIMIT = 2**31 - 2**26
_PRIVATE_IN, _PRIVATE_OUT = "clipedit_graph_input", "clipedit_graph_output"


class _ImageEncoder(nn.Module):
    def __init__(self, model: Model):
        super().__init__()
        self.module, self.model = model.module, model

    def forward(self, pixels: Tensor) -> Tensor:
        if self.model.readout_edit is not None:
            return self.model.readout_edit(self.model.tower, pixels)
        return self.model.tower.embed(pixels)


class _TextEncoder(nn.Module):
    def __init__(self, model: Model):
        super().__init__()
        self.module = model.module

    def forward(self, tokens: Tensor) -> Tensor:
        return self.module.encode_text(tokens)  # type: ignore[operator]


def write_onnx(model: Model, folder: Path) -> None:
    """Write both graphs, and `clip.json` with preprocessing, context length and embedding size.

    Inputs and outputs: `image` float32 `[batch, 3, height, width]` to `image_embedding` `[batch, d_embed]`; `text` int64
    `[batch, context]` to `text_embedding` `[batch, d_embed]`.
    """
    tokens = model.tokenizer(["a photo", "a picture"]).long().to(model.device)
    pixels = torch.randn(2, 3, *model.image_shape, device=model.device)
    _write_graph(_ImageEncoder(model), pixels, folder / "visual.onnx", "image", "image_embedding")
    _write_graph(_TextEncoder(model), tokens, folder / "textual.onnx", "text", "text_embedding")
    sidecar = {
        "preprocess_cfg": model.config["preprocess_cfg"],
        "text_cfg": model.config["model_cfg"]["text_cfg"],
        "context_length": tokens.shape[1],
        "embedding_size": model.tower.d_embed,
        "normalised": False,
    }
    (folder / SIDECAR_NAME).write_text(json.dumps(sidecar, indent=2, default=list) + "\n", encoding="utf-8")


def _write_graph(encoder: nn.Module, example: Tensor, path: Path, input_name: str, output_name: str) -> None:
    size = sum(tensor.numel() * tensor.element_size() for tensor in encoder.state_dict().values())
    large = size > _PROTOBUF_LIMIT
    with torch.no_grad(), _quiet_exporter():
        program = torch.onnx.export(
            encoder.eval(),
            (example,),
            dynamo=True,
            # The exporter's own names are private: one that equals an inner name can write an invalid graph.
            input_names=[_PRIVATE_IN],
            output_names=[_PRIVATE_OUT],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            opset_version=OPSET,
            verbose=False,
        )
        assert program is not None
        program.save(path, external_data=large)
    graph = onnx.load(path, load_external_data=False)
    _rename(graph, {_PRIVATE_IN: input_name, _PRIVATE_OUT: output_name})
    onnx.save(graph, path)
    onnx.checker.check_model(str(path))


def _rename(model: onnx.ModelProto, names: dict[str, str]) -> None:
    """Rename values of the main graph, wherever they are used."""
    for value in [*model.graph.input, *model.graph.output]:
        value.name = names.get(value.name, value.name)
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """No fast path (it cannot be traced), no warnings about tracing, no log lines of the exporter."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
