"""No file, however changed, raises anything but a `ClipeditError`; the whole budget is in `benchmarks/fuzz.py`."""

from __future__ import annotations

import csv
import io
import json
import os
import struct
import sys
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import clipedit
from clipedit.editor.concepts.concepts import load_concept
from clipedit.editor.edits.recipe import load_recipe
from clipedit.editor.files.tensors import read_header
from clipedit.editor.files.vectors import open_vectors
from clipedit.editor.images.labelled import load_labelled_images
from clipedit.editor.images.layouts import load_dataset
from clipedit.editor.images.listing import list_images
from clipedit.editor.models.hf.config import read_sections
from clipedit.editor.scan.scan import load_scan

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
# FUZZ_EXAMPLES=5000 pytest tests/test_fuzz.py: what RESULTS.md counts.
BUDGET = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "60")),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["L3H5", "demo", "../x", "location"])
)
PLAIN = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def read(function: Callable[[Path], object], name: str, data: bytes) -> None:
    """Read a file with these bytes; a refusal is as good as an answer."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(data)
        with suppress(clipedit.ClipeditError):
            function(Path(folder) / name)


def overlay(valid: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A valid mapping with some of its values replaced, and perhaps a key that is not known."""
    changed = {key: st.just(value) | PLAIN for key, value in valid.items()}
    return st.builds(
        lambda known, other: known | other,
        st.fixed_dictionaries({}, optional=changed),
        st.dictionaries(st.text(max_size=6), PLAIN, max_size=1),
    )


STEP = {
    "operation": "project-out",
    "then": ["scale"],
    "target": "heads",
    "heads": ["L3H5"],
    "layers": [1],
    "concept": "location",
    "texts": ["a", "b"],
    "along": "texts",
    "directions": 2,
    "factor": 0.5,
    "weights": {"L3H5": [1.0]},
    "strength": 0.5,
}
BASE = {"model": "demo", "pretrained": None, "weights_hash": "0"}
RECIPE = {
    "schema_version": 1,
    "name": "n",
    "base": BASE,
    "effect": "total",
    "tower": "image",
    "measured": {"a": 1},
    "tensors": {"file": "a", "sha256": "0"},
}


@BUDGET
@given(overlay(RECIPE), st.lists(overlay(STEP), max_size=2), st.booleans())
def test_any_recipe_is_read_or_refused(document: dict[str, Any], steps: list[Any], whole: bool) -> None:
    document = {**(RECIPE | document if whole else document), "steps": steps}
    read(load_recipe, "r.yaml", yaml.safe_dump(document, allow_unicode=True).encode("utf-8", "replace"))


@BUDGET
@given(overlay({"name": "n", "description": "", "keep": "shape", "texts": ["a", "b"]}))
def test_any_concept_is_read_or_refused(document: dict[str, Any]) -> None:
    read(load_concept, "c.yaml", yaml.safe_dump(document).encode("utf-8", "replace"))


@BUDGET
@given(st.text(alphabet="ab:-[]{}&*!|>'\"#%@,?\n \t1.\x85\ufeff", max_size=60))
def test_any_text_is_read_as_yaml_or_refused(text: str) -> None:
    read(load_recipe, "r.yaml", text.encode())


ENTRY = overlay({"dtype": "F32", "shape": [2], "data_offsets": [0, 8]})


@BUDGET
@given(
    st.dictionaries(st.text(max_size=4) | st.just("__metadata__"), ENTRY | PLAIN, max_size=3),
    st.binary(max_size=16),
    st.integers(-8, 8),
)
def test_any_safetensors_header_is_read_or_refused(header: dict[str, Any], data: bytes, off: int) -> None:
    text = json.dumps(header).encode()
    content = struct.pack("<Q", max(0, len(text) + off)) + text + data
    read(read_header, "x.safetensors", content)
    read(load_scan, "x.safetensors", content)


FIELDS = st.text(max_size=12) | st.sampled_from(
    ["path", "label", "y", "split", "place", "img_filename", "a.png", '"', "\n", "../x", "2"]
)


@BUDGET
@given(st.lists(st.lists(FIELDS, max_size=4), max_size=4), st.sampled_from([",", "\t", ";"]))
def test_any_table_is_read_or_refused(rows: list[list[str]], mark: str) -> None:
    stream = io.StringIO()
    csv.writer(stream, delimiter=mark, escapechar="\\").writerows(rows)
    for function in (lambda path: list_images(path).fingerprint(), load_labelled_images):
        read(function, "t.csv", stream.getvalue().encode("utf-8", "replace"))


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Any:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        from fuzz_targets import build_targets

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield build_targets(tmp_path_factory.mktemp("fuzz"))
    finally:
        sys.path.remove(str(BENCHMARKS))


def test_changed_files_of_every_kind_are_read_or_refused(targets: dict[str, Any]) -> None:
    from fuzz import run_target

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, target in targets.items():
            result = run_target(name, target, seed=99, inputs=4 if name.endswith("folder") else 25)
            assert result.failures == {}, (name, result.failures)
            assert result.inputs == result.read + result.refused


# What fuzzing found, once each.


def npy(shape: str) -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + np.ones(15, np.float32).tobytes()


@pytest.mark.parametrize(
    "shape", ["(5, 1.5)", "(True, 3)", "(-1, 3)", "(5, 10**30)", "(" + "-" * 5_000 + "1, 3)", "(None, 3)"]
)
def test_a_shape_of_something_else_than_counts_is_refused(shape: str, tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(npy(shape))
    with pytest.raises(clipedit.VectorError):
        list(open_vectors(tmp_path / "x.npy").chunks())


@pytest.mark.parametrize("header", [b'"text"', b"[]", b"3", b"null"])
def test_a_header_that_is_no_object_is_refused(header: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(clipedit.ModelError, match="cannot read"):
        read_header(tmp_path / "x.safetensors")


@pytest.mark.parametrize("n", [10**400, -1, 1.5, "9", None])
def test_a_scan_of_no_count_of_images_is_refused(n: Any, demo_scan: clipedit.Scan, tmp_path: Path) -> None:
    demo_scan.save(tmp_path / "s.safetensors")
    content = (tmp_path / "s.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    described = json.loads(header["__metadata__"]["clipedit-scan-2"]) | {"folds": [n]}
    header["__metadata__"]["clipedit-scan-2"] = json.dumps(described)
    text = json.dumps(header).encode()
    (tmp_path / "s.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    with pytest.raises(clipedit.StatisticsError, match="cannot read the scan"):
        load_scan(tmp_path / "s.safetensors")


def test_a_partition_of_one_column_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list_attr_celeba.csv").write_text("image_id,Blond_Hair,Male\n0.jpg,1,-1\n")
    (tmp_path / "list_eval_partition.csv").write_text("image_id\n0.jpg\n")
    with pytest.raises(clipedit.ImageError, match="it has one column"):
        load_dataset(tmp_path)


def test_a_parquet_file_whose_names_are_no_text_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"embedding": pa.array([[1.0, 2.0]] * 3, pa.list_(pa.float32()))}), tmp_path / "x.parquet")
    content = (tmp_path / "x.parquet").read_bytes()
    for byte in (b"\xff",):
        (tmp_path / "x.parquet").write_bytes(
            content.replace(b"element", byte + b"lement").replace(b"embedding", byte + b"mbedding")
        )
        with pytest.raises(clipedit.VectorError, match="cannot read vectors"):
            list(open_vectors(tmp_path / "x.parquet").chunks())


@pytest.mark.parametrize(
    "change",
    [
        {"mean": ["x"]},
        {"std": [1.0, 1.0]},
        {"std": [0, 0, 0]},
        {"mean": {"a": 1}},
        {"size": {}},
        {"size": [7, 64]},
        {"size": 10**6},
        {"interpolation": 3},
    ],
)
def test_preprocessing_that_cannot_work_is_refused_when_the_model_is_loaded(
    change: dict[str, Any], tmp_path: Path
) -> None:
    from clipedit.editor.images.demo_name import demo_folder

    for path in demo_folder().glob("open_clip*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    config["preprocess_cfg"] = {**config.get("preprocess_cfg", {}), **change}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(clipedit.ModelError, match="cannot (load|use)"):
        clipedit.load_model(str(tmp_path))


@pytest.mark.parametrize(
    "change",
    [
        {"layer_norm_eps": "1e-5"},
        {"hidden_size": True},
        {"num_attention_heads": 0},
        {"hidden_act": None},
        {"layer_norm_eps": 10**400},
    ],
)
def test_sizes_that_are_no_numbers_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(clipedit.ModelError, match="cannot convert the model: its"):
        read_sections({"model_type": "clip", "vision_config": change})


def test_pixels_that_are_no_whole_number_of_patches_are_refused() -> None:
    import timm

    from clipedit.editor.models.timm import require_whole_patches

    module = timm.create_model("test_vit")
    require_whole_patches(module, [160, 160])
    with pytest.raises(clipedit.ModelError, match=r"\[160, 159\] pixels are no whole number of patches of \[16, 16\]"):
        require_whole_patches(module, [160, 159])


@pytest.mark.parametrize("name", ["V", "W\x00"])
def test_an_adapter_of_other_tensors_than_the_graph_takes_is_refused(name: str, tmp_path: Path) -> None:
    import onnx
    import onnxruntime
    import torch

    from clipedit.export.consumers.onnx_runtime import as_function, load_adapter, open_session

    text = '<ir_version: 9, opset_import: ["": 18]> linear (float[n,2] x, float[2,2] W) => (float[n,2] y)'
    onnx.save(
        onnx.parser.parse_model(text + " <float[2,2] W = {1, 0, 0, 1}> { y = MatMul(x, W) }"), tmp_path / "m.onnx"
    )
    session, run = open_session(tmp_path / "m.onnx", half=False), {}
    for tensor in ("W", name):
        adapter = onnxruntime.AdapterFormat()
        adapter.set_parameters({tensor: onnxruntime.OrtValue.ortvalue_from_numpy(np.full((2, 2), 2, np.float32))})
        adapter.export_adapter(str(tmp_path / "a.onnx_adapter"))
        run[tensor] = as_function(session, None, load_adapter(tmp_path / "a.onnx_adapter"))
    assert run["W"](torch.ones(1, 2)).tolist() == [[4.0, 4.0]]
    with pytest.raises(clipedit.VerificationError, match="cannot run a graph with its adapter"):
        run[name](torch.ones(1, 2))
