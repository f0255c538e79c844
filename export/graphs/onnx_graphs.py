"""ONNX graphs: one function writes one graph, from an encoder and the names, types and axes its consumer wants."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from ...editor.images.source import ImageSource
from ...editor.models.model import Model
from .adapters import Switchable, switched_names
from .encoders import HalfPrecision, ImageEncoder, Normalised, TextEncoder
from .precision import collect_calibration_images, collect_calibration_texts, quantize_graph
from .profile import GraphSpec, Profile
from .prune import prune_heads

# Protobuf holds less than 2 GB a message, and the graph itself needs room beside the weights.
_PROTOBUF_LIMIT = 2**31 - 2**26
_PRIVATE_IN, _PRIVATE_OUT = "clipedit_graph_input", "clipedit_graph_output"
_TRACED_BATCH = 2  # A batch of one would be taken for a constant.


def write_graphs(model: Model, folder: Path, profile: Profile) -> None:
    """Write the image and the text graph of a profile."""
    pixels, tokens = draw_examples(model)
    if profile.visual is not None:
        encoder = prune_heads(ImageEncoder(model)) if profile.prune else ImageEncoder(model)
        switched = switched_names(encoder, model, profile.adapters)
        write_graph(encoder, pixels, folder, profile.visual, switched)
        _lower(folder, profile, profile.visual, lambda source, spec: collect_calibration_images(model, source))
    if profile.textual is not None:
        fitted_to = tokens.shape[1] if profile.textual.dynamic_length else None
        encoder = TextEncoder(model, fitted_to=fitted_to)
        encoder = prune_heads(encoder) if profile.prune else encoder
        write_graph(encoder, tokens, folder, profile.textual, switched_names(encoder, model, profile.adapters))
        _lower(folder, profile, profile.textual, lambda source, spec: collect_calibration_texts(model, spec.integer))


def draw_examples(model: Model) -> tuple[Tensor, Tensor]:
    """Inputs to trace with, a batch of 2 each: pixels and int64 token ids."""
    pixels = torch.randn(_TRACED_BATCH, 3, *model.image_shape, device=model.device)
    return pixels, model.tokenizer(["a photo"] * _TRACED_BATCH).long().to(model.device)


def _lower(
    folder: Path, profile: Profile, spec: GraphSpec, collect: Callable[[ImageSource, GraphSpec], Iterator[np.ndarray]]
) -> None:
    """Quantise a graph on disk, if that was asked for."""
    if spec.precision == "int8":
        quantize_graph(folder / spec.path, collect(profile.calibration, spec) if profile.calibration else None)


def write_graph(
    encoder: nn.Module, example: Tensor, folder: Path, spec: GraphSpec, switched: Mapping[str, str] | None = None
) -> None:
    """Write one encoder as one graph.

    Args:
        example: An input of batch 2; token ids are cast to the spec's integer type.
        switched: Names of tensors that a run may bring, each with the encoder's own name; its tensors are the default.
    """
    path = folder / spec.path
    path.parent.mkdir(parents=True, exist_ok=True)
    # Converted before tracing: native half weights, while inputs and outputs stay float32.
    encoder = HalfPrecision(encoder) if spec.precision == "fp16" else encoder
    size = sum(tensor.numel() * tensor.element_size() for tensor in encoder.state_dict().values())
    defaults = {public: encoder.state_dict()[own] for public, own in (switched or {}).items()}
    given = {f"{_PRIVATE_IN}_{index}": public for index, public in enumerate(defaults)}
    traced = Normalised(encoder) if spec.normalised else encoder
    with torch.no_grad(), quiet_exporter():
        program = torch.onnx.export(
            (Switchable(traced, list((switched or {}).values())) if switched else traced).eval(),
            (_shape_example(example, spec), *defaults.values()),
            dynamo=True,
            # The exporter's own names are private: one that equals an inner name can write an invalid graph.
            input_names=[_PRIVATE_IN, *given],
            output_names=[_PRIVATE_OUT],
            dynamic_shapes=(_dynamic_axes(spec), *([tuple({} for _ in given)] if given else [])),
            opset_version=spec.opset,
            verbose=False,
        )
        assert program is not None
        program.save(path, external_data=size > _PROTOBUF_LIMIT)
    # Large weights stay in the file beside the graph, where their names and offsets are left alone.
    graph = onnx.load(path, load_external_data=False)
    _strip(graph)
    _rename(graph, {_PRIVATE_IN: spec.input_name, _PRIVATE_OUT: spec.output_name, **given})
    # An input that is an initializer too has a default, and no run must bring it.
    graph.graph.initializer.extend(
        onnx.numpy_helper.from_array(tensor.cpu().numpy(), name) for name, tensor in defaults.items()
    )
    onnx.save(graph, path)
    # By path: above 2 GB the checker cannot take the model in memory.
    onnx.checker.check_model(str(path))


def _shape_example(example: Tensor, spec: GraphSpec) -> Tensor:
    if spec.batch is not None:
        # Of a fixed batch the traced size is the size.
        example = example[:1].expand(spec.batch, *example.shape[1:]).contiguous()
    return example if example.is_floating_point() else example.to(getattr(torch, spec.integer))


def _dynamic_axes(spec: GraphSpec) -> dict[int, torch.export.Dim]:
    # A single input must be accepted too, although two are traced.
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


def _strip(model: onnx.ModelProto) -> None:
    """Drop the exporter's notes: stack traces hold paths of this machine, and equal models should give equal files."""
    for part in (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.value_info, model.graph):
        del part.metadata_props[:]


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """No fast path (it cannot be traced), no warnings about tracing, no log lines of the exporter."""
    fast = torch.backends.mha.get_fastpath_enabled()
    # Process-wide state of torch: put back in `finally`.
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
