"""The readers that `fuzz.py` tests, with small valid files of each kind to start from."""

from __future__ import annotations

import hashlib
import json
import random
import struct
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from fuzz import Target
from fuzz_formats import build_format_targets
from fuzz_inputs import (
    concept_documents,
    make_celeba,
    make_fairface,
    make_image,
    make_lines,
    make_npy,
    make_table,
    make_yaml,
    read_dataset,
    read_lines,
    read_table,
    read_vectors,
    recipe_documents,
)
from fuzz_mutate import NASTY, change_bytes, change_value, encode_json
from PIL import Image
from safetensors.torch import save as save_tensors

import clipedit
from clipedit.editor.concepts.concepts import load_concept
from clipedit.editor.edits.apply import compute_edited_tensors, rewrite_checkpoint
from clipedit.editor.edits.recipe import load_recipe
from clipedit.editor.edits.singular import load_weights
from clipedit.editor.files.tensors import hash_checkpoint, read_header
from clipedit.editor.images.decode import open_image
from clipedit.editor.images.demo import demo_calibration_source
from clipedit.editor.images.demo_name import demo_folder
from clipedit.editor.load import load_model
from clipedit.editor.models.aligner import KIND as ALIGNER_KIND
from clipedit.editor.models.aligner import load_aligner
from clipedit.editor.scan.features import load_features
from clipedit.editor.scan.partials import merge_partials
from clipedit.editor.scan.scan import load_scan
from clipedit.export.targets.registry import load_target
from clipedit.export.verify.record_file import load_record
from clipedit.export.verify.reference import load_reference
from clipedit.export.verify.verify import REFERENCE_NAME

Generator = random.Random


def build_targets(folder: Path) -> dict[str, Target]:
    """All targets; valid files that take a model to make are written into the folder once."""
    torch.set_num_threads(1)
    made = _make_files(folder)
    yaml_target = {
        "recipe": (load_recipe, recipe_documents(), 22_000),
        "concept": (load_concept, concept_documents(), 14_000),
        "weights of directions": (load_weights, [{"L3H5": [1.0, 0.2], "L2H0": [0.0] * 8}], 4_000),
    }
    found = {name: Target(partial(make_yaml, given), read, count) for name, (read, given, count) in yaml_target.items()}
    return found | {
        "bound recipe": Target(partial(_make_bound, made), partial(_apply, made), 2_500),
        "safetensors": Target(_make_safetensors, _read_weights, 14_000),
        "scan": Target(partial(_make_stored, made, "scan.safetensors"), partial(_use_scan, made), 5_000),
        "partial scans": Target(
            partial(_make_stored, made, "scan.safetensors"), lambda path: merge_partials([path]), 1_500
        ),
        "aligner": Target(partial(_make_stored, made, "aligner.safetensors"), load_aligner, 4_000),
        "features": Target(partial(_make_stored, made, "f.features.safetensors"), load_features, 4_000),
        "reference": Target(partial(_make_reference, made), _read_reference, 2_500),
        "record": Target(_make_record, load_record, 3_000),
        "table": Target(make_table, read_table, 9_000),
        "celeba": Target(make_celeba, read_dataset, 3_000),
        "fairface": Target(make_fairface, read_dataset, 2_000),
        "lines": Target(make_lines, read_lines, 3_000),
        "images": Target(make_image, open_image, 14_000),
        "npy": Target(make_npy, read_vectors, 5_000),
        "parquet": Target(partial(_make_parquet, made), read_vectors, 2_000),
        "open_clip folder": Target(partial(_make_model, made / "clip", "open_clip_config.json"), _load_model, 700),
        "hf folder": Target(
            partial(_make_model, made / "hf", "config.json"), lambda path: _load_model(f"hf:{path}"), 700
        ),
        "timm folder": Target(partial(_make_model, made / "timm", "config.json"), _load_model, 700),
        **build_format_targets(folder),
    }


# Safetensors files of every kind.


def _encode(header: bytes, data: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def _split(content: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def _change_safetensors(generator: Generator, content: bytes) -> bytes:
    """The header as JSON, what its metadata holds as JSON, its length, the data, or plain bytes."""
    header, data = _split(content)
    kind = generator.randrange(10)
    if kind < 3:
        header = change_value(generator, header)
    elif kind < 7 and isinstance(header.get("__metadata__"), dict) and header["__metadata__"]:
        key = generator.choice(list(header["__metadata__"]))
        header["__metadata__"][key] = encode_json(
            generator, change_value(generator, _parsed(header["__metadata__"][key]))
        ).decode("utf-8", "replace")
    elif kind == 7:
        data = change_bytes(generator, data)
    elif kind == 8:
        return change_bytes(generator, content)
    text = encode_json(generator, header)
    if kind == 9 and isinstance(header, dict) and header:
        text = text[:-1] + b"," + text[1:]  # Every name twice.
    length = (
        generator.choice((0, 1, 7, len(text) - 1, len(text) + 8, 2**31, 2**63, 2**64 - 1))
        if generator.random() < 0.1
        else None
    )
    return _encode(text, data, length)


def _parsed(text: Any) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _make_safetensors(generator: Generator, folder: Path) -> Path:
    tensors = {
        "a.weight": torch.arange(12.0).reshape(3, 4),
        "b": torch.zeros(0, 5),
        "c": torch.ones(3, dtype=torch.int8),
        "d": torch.ones(2, 2).bfloat16(),
        "scalar": torch.tensor(1.0),
    }
    path = folder / "x.safetensors"
    path.write_bytes(_change_safetensors(generator, save_tensors(tensors, {"k": '{"a": 1}'})))
    return path


def _read_weights(path: Path) -> None:
    header = read_header(path)
    hash_checkpoint(path)
    from clipedit.editor.files.tensors import tensor_reader

    read = tensor_reader(path)
    for name in header:
        read(name)


def _make_stored(made: Path, name: str, generator: Generator, folder: Path) -> Path:
    path = folder / name
    path.write_bytes(_change_safetensors(generator, _content(made / name)))
    return path


_CONTENTS: dict[Path, bytes] = {}


def _content(path: Path) -> bytes:
    if path not in _CONTENTS:
        _CONTENTS[path] = path.read_bytes()
    return _CONTENTS[path]


def _use_scan(made: Path, path: Path) -> None:
    """Read a scan and take from it what every later stage takes."""
    scan = load_scan(path)
    model = _demo()
    for group in scan.groups(model):
        scan.statistics.feature_covariance(group.name)
    scan.merge(scan)


_MODELS: list[Any] = []


def _demo() -> Any:
    if not _MODELS:
        _MODELS.append(load_model("demo"))
    return _MODELS[0]


def _make_reference(made: Path, generator: Generator, folder: Path) -> Path:
    (folder / REFERENCE_NAME).write_bytes(_change_safetensors(generator, _content(made / REFERENCE_NAME)))
    return folder


def _read_reference(folder: Path) -> None:
    found = load_reference(folder)
    found.images()
    assert found.limits
    found.threshold_shift()


def _make_record(generator: Generator, folder: Path) -> Path:
    record = {
        "schema_version": 1,
        "target": "onnx",
        "options": {"precision": "fp32"},
        "edited": True,
        "base": {"model": "demo", "pretrained": None, "weights_hash": "0" * 64},
        "inputs": {"scan": None, "calibration": None},
        "edited_weights_hash": "1" * 64,
        "environment": {"torch": "2"},
        "outputs": {"visual.onnx": "2" * 64},
    }
    (folder / "reproduce").mkdir()
    (folder / "reproduce" / "reproduce.json").write_bytes(encode_json(generator, change_value(generator, record)))
    return folder


def _make_bound(made: Path, generator: Generator, folder: Path) -> Path:
    """A bound recipe: its tensors or its text changed; the hash is right, so that the tensors are read."""
    content = _content(made / f"{generator.choice(('distilled', 'total'))}.safetensors")
    document = yaml.safe_load(_content(made / f"{'distilled' if b'folded' in content else 'total'}.yaml"))
    if generator.random() < 0.6:
        content = _change_safetensors(generator, _resize(generator, content))
    else:
        document = change_value(generator, document)
    with suppress(TypeError, KeyError):
        document["tensors"] = {"file": "r.safetensors", "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "r.safetensors").write_bytes(content)
    (folder / "r.yaml").write_text(yaml.safe_dump(document), encoding="utf-8", errors="replace")
    return folder / "r.yaml"


def _resize(generator: Generator, content: bytes) -> bytes:
    """Sometimes one tensor is taken away, renamed, or has another size or NaN, in a file that is otherwise right."""
    from safetensors.torch import load

    if generator.random() < 0.3:
        return content
    tensors, header = load(content), _split(content)[0]
    name = generator.choice(sorted(tensors))
    taken = tensors.pop(name)
    changes: list[Callable[[], Any]] = [
        lambda: taken[..., :1].contiguous(),
        lambda: taken.half(),
        lambda: taken * float("nan"),
        lambda: taken[None].contiguous(),
        lambda: torch.zeros(3, 3),
        lambda: torch.zeros(0),
        lambda: taken.int(),
        lambda: taken.flatten().clone(),
    ]
    if generator.random() < 0.8:
        tensors[
            generator.choice(
                (name, name, name, f"heads.L0H{generator.randrange(9)}.map", "folded.x", "output.map", "x", f"{name}.y")
            )
        ] = generator.choice(changes)()
    return save_tensors(tensors, header["__metadata__"])


def _apply(made: Path, path: Path) -> None:
    recipe = load_recipe(path)
    out = path.parent / "out"
    out.mkdir()
    if recipe.is_bound:
        rewrite_checkpoint(recipe, demo_folder(), out, force=True)
        model = _demo()
        state = model.module.state_dict()
        clipedit.apply_recipe(recipe, model, force=True)
        with suppress(RuntimeError, KeyError, ValueError):
            compute_edited_tensors(recipe, lambda name: state[name])


def _make_parquet(made: Path, generator: Generator, folder: Path) -> Path:
    path = folder / "x.parquet"
    path.write_bytes(change_bytes(generator, _content(made / "x.parquet")))
    return path


# Folders of models.


def _make_model(valid: Path, name: str, generator: Generator, folder: Path) -> str:
    """A folder whose configuration, and now and then whose preprocessing or weights, is changed."""
    for path in valid.iterdir():
        (folder / path.name).symlink_to(path)
    kind = generator.random()
    others = sorted(path.name for path in valid.iterdir() if path.suffix == ".json" and path.name != name)
    changed = generator.choice(others) if others and kind < 0.2 else name
    (folder / changed).unlink()
    value = change_value(
        generator, json.loads(_content(valid / changed)), (*NASTY, 4, 16, 32, 64, 10**6, "gelu", "bicubic")
    )
    (folder / changed).write_bytes(encode_json(generator, value))
    return str(folder)


def _load_model(path: str) -> None:
    model = load_model(path)
    model.encode_image(model.preprocess(Image.new("RGB", (40, 30)))[None])


def _make_files(folder: Path) -> Path:
    """Valid files that take a model to make."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import timm
    from timm.models._hub import save_for_hf

    model = _demo()
    scan = clipedit.scan(
        model, demo_calibration_source(96), layers=[3], workers=0, keep_features=folder / "f.features.safetensors"
    )
    scan.save(folder / "scan.safetensors")
    for effect in ("distilled", "total"):
        made = clipedit.make_recipe(scan, model, concept="location", heads=2, effect=effect)
        made.save(folder / f"{effect}.yaml")
    described = {
        "base": {"name": "a", "pretrained": None, "weights_hash": "0"},
        "clip": {"name": "b", "pretrained": "c", "weights_hash": "1"},
        "report": {"cosine": 0.5},
        "log": [{"step": 10, "loss": 0.5}],
        "options": {"seed": 0},
    }
    maps = {"maps": torch.ones(2, 3, 4), "bias": torch.ones(3)}
    (folder / "aligner.safetensors").write_bytes(save_tensors(maps, {ALIGNER_KIND: json.dumps(described)}))
    from clipedit.export.verify.reference import write_reference

    write_reference(clipedit.apply_recipe(load_recipe(folder / "total.yaml"), model), folder, target="open-clip")
    vectors = pa.array([[1.0, 2.0]] * 9, pa.list_(pa.float32()))
    pq.write_table(pa.table({"id": list(range(9)), "embedding": vectors}), folder / "x.parquet")
    (folder / "clip").mkdir()
    for path in demo_folder().glob("open_clip*"):
        (folder / "clip" / path.name).write_bytes(path.read_bytes())
    (folder / "hf").mkdir()
    target = load_target("hf")
    target.write(model, folder / "hf", target.profile)
    save_for_hf(timm.create_model("test_vit", num_classes=5), str(folder / "timm"), safe_serialization=True)
    return folder
