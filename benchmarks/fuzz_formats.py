"""Inputs of `fuzz.py` for what pipelines read: options (TOML), adapters of graphs, files against their schemas."""

from __future__ import annotations

import json
import random
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
import typer
from fuzz import Target
from fuzz_inputs import concept_documents, make_yaml, recipe_documents
from fuzz_mutate import NASTY, change_bytes, change_lines, change_value
from jsonschema import Draft202012Validator
from onnx import TensorProto, helper

from clipedit.cli import app
from clipedit.commands.running.configuration import CONFIG_NAME, load_configuration
from clipedit.commands.tables.outputs import make_schema
from clipedit.editor.concepts.concepts import load_concept
from clipedit.editor.edits.document import load_document
from clipedit.export.consumers.onnx_runtime import as_function, load_adapter, open_session

Generator = random.Random


def build_format_targets(folder: Path) -> dict[str, Target]:
    """The targets; the graph that adapters go with is written into the folder once."""
    _write_graph(folder)
    return {
        "configuration": Target(_make_toml, _read_toml, 20_000),
        "adapter": Target(partial(_make_adapter, folder), partial(_run_adapter, folder), 20_000),
        "schema of recipes": Target(partial(make_yaml, recipe_documents()), _check_recipe, 20_000),
        "schema of concepts": Target(partial(make_yaml, concept_documents()), _check_concept, 20_000),
    }


# Options.

_OPTIONS: dict[str, Any] = {
    "quiet": True,
    "log_json": False,
    "remove-heads": {
        "concept": ["location", "color"],
        "output-strength": 0.5,
        "heads": 4,
        "select": "frontier",
        "operation": "scale",
        "leace": True,
        "out": "a",
    },
    "scan": {"batch_size": "auto", "workers": 0, "mlps": True, "exif": "upright"},
    "evaluate": {"layout": "celeba", "top": 5, "group-by": "a,b"},
    "concepts": {"list": {"json": True}},
    "verify": {"trust": False},
}
_NASTY = (*NASTY, 1.5, "auto", "1-3", "0/8", "trust", {"json": True}, {"trust": True}, ["location"], "nan", "\u0661")


def _make_toml(generator: Generator, folder: Path) -> Path:
    value = change_value(generator, _OPTIONS, _NASTY)
    text = "\n".join(_spell_table((), value)) if isinstance(value, dict) else _spell(value)
    if generator.random() < 0.4:
        text = change_lines(generator, text, separators="=.[]")
    data = text.encode("utf-8", "replace")
    path = folder / CONFIG_NAME
    path.write_bytes(change_bytes(generator, data, most=3) if generator.random() < 0.3 else data)
    return path


def _spell_table(names: tuple[str, ...], table: dict[Any, Any]) -> list[str]:
    lines = [f"[{'.'.join(map(_spell_key, names))}]"] if names else []
    inner = []
    for key, value in table.items():
        if isinstance(value, dict):
            inner += _spell_table((*names, str(key)), value)
        else:
            lines.append(f"{_spell_key(str(key))} = {_spell(value)}")
    return [*lines, *inner]


def _spell_key(key: str) -> str:
    return key if key.replace("-", "a").replace("_", "a").isalnum() and key.isascii() else json.dumps(key)


def _spell(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_spell, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_spell_key(str(key))} = {_spell(one)}" for key, one in value.items()) + "}"
    # JSON's scalars are TOML's, but for these two.
    return json.dumps(value).replace("NaN", "nan").replace("Infinity", "inf")


@cache
def _root() -> Any:
    return typer.Context(typer.main.get_command(app), info_name="clipedit")  # type: ignore[arg-type]


def _read_toml(path: Path) -> None:
    load_configuration(path, _root(), named=False)


# Adapters.

_SHAPE = (4, 3)


def _write_graph(folder: Path) -> None:
    """`y = x W + b`, with both weights also inputs, and two adapters: of one of them, and of both."""
    weight = np.arange(12, dtype=np.float32).reshape(_SHAPE)
    bias = np.ones(3, dtype=np.float32)
    described = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", ["batch", 4]), ("W", [4, 3]), ("b", [3]), ("y", ["batch", 3]))
    ]
    nodes = [helper.make_node("MatMul", ["x", "W"], ["m"]), helper.make_node("Add", ["m", "b"], ["y"])]
    held = [onnx.numpy_helper.from_array(weight, "W"), onnx.numpy_helper.from_array(bias, "b")]
    graph = helper.make_graph(nodes, "linear", described[:3], described[3:], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, folder / "linear.onnx")
    for name, arrays in (("one", {"W": weight * 2}), ("both", {"W": weight * 2, "b": bias * 3})):
        adapter = onnxruntime.AdapterFormat()
        adapter.set_adapter_version(1)
        adapter.set_model_version(1)
        values = {key: onnxruntime.OrtValue.ortvalue_from_numpy(array) for key, array in arrays.items()}
        adapter.set_parameters(values)
        adapter.export_adapter(str(folder / f"{name}.onnx_adapter"))


def _make_adapter(made: Path, generator: Generator, folder: Path) -> Path:
    content = (made / f"{generator.choice(('one', 'both'))}.onnx_adapter").read_bytes()
    path = folder / "x.onnx_adapter"
    path.write_bytes(change_bytes(generator, content))
    return path


@cache
def _session(path: Path) -> Any:
    return open_session(path, half=False)


def _run_adapter(made: Path, path: Path) -> None:
    """Load an adapter as `verify` does, and run the graph with it."""
    as_function(_session(made / "linear.onnx"), None, load_adapter(path))(torch.ones(2, 4))


# Schemas.


@cache
def _validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(make_schema(name))


def _check_recipe(path: Path) -> None:
    """Whatever is read is valid as it is written again: the schema and the reader are of one format."""
    _require_valid("recipe", load_document(path)[0])


def _check_concept(path: Path) -> None:
    _require_valid("concept", load_concept(path))


def _require_valid(name: str, read: Any) -> None:
    _validator(name).validate(json.loads(json.dumps(read.model_dump(mode="json", exclude_defaults=True))))
