"""ONNX graphs: one function writes one graph, from an encoder and the names, types and axes its consumer wants."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..editor.model import Model
from .profile import GraphSpec, Profile

_PROTOBUF_LIMIT = 2**31 - 2**26
_PRIVATE_IN, _PRIVATE_OUT = "clipedit_graph_input", "clipedit_graph_output"
_TRACED_BATCH = 2  # A batch of one would be taken for a constant.


class _ImageEncoder(nn.Module):
    def __init__(self, model: Model):
        super().__init__()
        self.module, self.model = model.module, model

    def forward(self, pixels: Tensor) -> Tensor:
        if self.model.readout_edit is not None:
            return self.model.readout_edit(self.model.tower, pixels)
        return self.model.tower.embed(pixels)


class _TextEncoder(nn.Module):
    def __init__(self, model: Model, *, padded_to: int | None = None):
        super().__init__()
        self.module, self.padded_to = model.module, padded_to

    def forward(self, tokens: Tensor) -> Tensor:
        if self.padded_to is not None:
            # Text towers pool at the end-of-text token under a causal mask: padding after it changes nothing.
            padding = torch.zeros_like(tokens[:, :1]).expand(-1, self.padded_to)
            tokens = torch.cat([tokens, padding], dim=1)[:, : self.padded_to]
        return self.module.encode_text(tokens.long())  # type: ignore[operator]


class _Normalised(nn.Module):
    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def forward(self, inputs: Tensor) -> Tensor:
        return F.normalize(self.encoder(inputs), dim=1)


def write_graphs(model: Model, folder: Path, profile: Profile) -> None:
    """Write the image and the text graph of a profile."""
    if profile.visual is not None:
        pixels = torch.randn(_TRACED_BATCH, 3, *model.image_shape, device=model.device)
        write_graph(_ImageEncoder(model), pixels, folder, profile.visual)
    if profile.textual is not None:
        tokens = model.tokenizer(["a photo"] * _TRACED_BATCH).long().to(model.device)
        padded_to = tokens.shape[1] if profile.textual.dynamic_length else None
        write_graph(_TextEncoder(model, padded_to=padded_to), tokens, folder, profile.textual)


def write_graph(encoder: nn.Module, example: Tensor, folder: Path, spec: GraphSpec) -> None:
    """Write one encoder as one graph.

    Args:
        example: An input of batch 2; token ids are cast to the spec's integer type.
    """
    path = folder / spec.file
    path.parent.mkdir(parents=True, exist_ok=True)
    size = sum(tensor.numel() * tensor.element_size() for tensor in encoder.state_dict().values())
    with torch.no_grad(), _quiet_exporter():
        program = torch.onnx.export(
            (_Normalised(encoder) if spec.normalised else encoder).eval(),
            (_shape_example(example, spec),),
            dynamo=True,
            # The exporter's own names are private: one that equals an inner name can write an invalid graph.
            input_names=[_PRIVATE_IN],
            output_names=[_PRIVATE_OUT],
            dynamic_shapes=(_dynamic_axes(spec),),
            opset_version=spec.opset,
            verbose=False,
        )
        assert program is not None
        program.save(path, external_data=size > _PROTOBUF_LIMIT)
    graph = onnx.load(path, load_external_data=False)
    _rename(graph, {_PRIVATE_IN: spec.input_name, _PRIVATE_OUT: spec.output_name})
    onnx.save(graph, path)
    onnx.checker.check_model(str(path))


def _shape_example(example: Tensor, spec: GraphSpec) -> Tensor:
    if spec.batch is not None:
        example = example[:1].expand(spec.batch, *example.shape[1:]).contiguous()
    return example if example.is_floating_point() else example.to(getattr(torch, spec.integer))


def _dynamic_axes(spec: GraphSpec) -> dict[int, torch.export.Dim]:
    axes = {} if spec.batch is not None else {0: torch.export.Dim("batch", min=1)}
    return axes | ({1: torch.export.Dim("length", min=1)} if spec.dynamic_length else {})


def _rename(model: onnx.ModelProto, names: dict[str, str]) -> None:
    """Rename values of the main graph, wherever they are used; inner values that had the new names give way."""
    names = {public: f"{public}_inner" for public in names.values()} | names
    graph = model.graph
    for value in [*graph.input, *graph.output, *graph.initializer, *graph.value_info]:
        value.name = names.get(value.name, value.name)
    for node in graph.node:
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
