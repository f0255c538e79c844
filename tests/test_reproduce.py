"""A patch and its base rebuild the edited folder; an export says what it was made from, and comes out again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import clipedit
from clipedit.editor.edits.recipe import KIND
from clipedit.editor.images.demo import demo_calibration_source
from clipedit.export.edited_folder import apply_to_folder
from clipedit.export.verify.record_file import FOLDER, RECORD_NAME
from clipedit.export.verify.reproduce import compare_environments

pytestmark = pytest.mark.usefixtures("verified_here")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module", params=["distilled", "total"])
def edited_folder(
    request: pytest.FixtureRequest,
    demo_model: clipedit.Model,
    demo_scan: clipedit.Scan,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    out = tmp_path_factory.mktemp("edited") / request.param
    recipe = clipedit.make_recipe(demo_scan, demo_model, concept="location", effect=request.param)
    assert demo_model.folder is not None
    apply_to_folder(recipe, demo_model.folder, out)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_patch_and_its_base_rebuild_the_edited_folder_byte_for_byte(
    edited_folder: Path, run: Run, tmp_path: Path
) -> None:
    patch = tmp_path / "patch"
    code, _, err = run("export", edited_folder, "--target", "patch", "-o", patch)
    assert code == 0, err
    held = {path.name: path.stat().st_size for path in patch.iterdir() if path.name.startswith("recipe.")}
    # 8 heads of 16 x 16 numbers and two offsets, the output map, and the readout where it was refitted.
    numbers = 8 * (16 * 16 + 32) + 64 * 64 + (128 * 64 + 128 if edited_folder.name == "distilled" else 0)
    assert 4 * numbers < sum(held.values()) < 4 * numbers + 20_000
    code, _, err = run("apply", patch, "--model", "demo", "-o", tmp_path / "again")
    assert code == 0, err
    assert contents(tmp_path / "again") == contents(edited_folder)


def test_a_patch_with_missing_tensors_is_refused(edited_folder: Path, run: Run, tmp_path: Path) -> None:
    import hashlib

    shutil.copytree(edited_folder, tmp_path / "patch")
    tensors, beside = load_file(edited_folder / "recipe.safetensors"), tmp_path / "patch" / "recipe.safetensors"
    lost = next(name for name in sorted(tensors) if name.endswith(".value_offset"))
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, beside, metadata={KIND: "{}"})
    text = (tmp_path / "patch" / "recipe.yaml").read_text()
    old = hashlib.sha256((edited_folder / "recipe.safetensors").read_bytes()).hexdigest()
    (tmp_path / "patch" / "recipe.yaml").write_text(text.replace(old, hashlib.sha256(beside.read_bytes()).hexdigest()))
    code, _, err = run("apply", tmp_path / "patch", "--model", "demo", "-o", tmp_path / "out")
    assert code == 1 and f"its tensors lack {lost}" in err and "Copy it whole" in err
    beside.unlink()
    code, _, err = run("apply", tmp_path / "patch", "--model", "demo", "-o", tmp_path / "out")
    assert code == 1 and "recipe.safetensors is missing beside it" in err
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_recipe_has_no_patch(demo_model: clipedit.Model, tmp_path: Path) -> None:
    with pytest.raises(clipedit.ExportError, match="no recipe was applied to it"):
        clipedit.export_model(demo_model, tmp_path / "out", target="patch")


def test_an_edit_of_an_edited_folder_is_the_patch_of_the_second_edit(edited_folder: Path) -> None:
    """Not of the first, whose recipe lies in the folder that the model was read from."""
    first = clipedit.load_model(str(edited_folder))
    document = clipedit.load_recipe(edited_folder).document
    texts = document.model_copy(
        update={"name": "second", "steps": tuple(s for s in document.steps if s.target == "output")}
    )
    recipe = clipedit.bind_recipe(texts, clipedit.scan(first, demo_calibration_source(8)), first)
    second = clipedit.apply_recipe(recipe, first)
    assert first.recipe.document.name == document.name and second.recipe.document.name == "second"


@pytest.fixture(scope="module")
def export(edited_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "out"
    clipedit.export_model(clipedit.load_model(str(edited_folder)), out, target="open-clip")
    return out


def test_an_export_is_built_again_byte_for_byte(export: Path, run: Run) -> None:
    before = contents(export)
    code, out, err = run("reproduce", export)
    assert code == 0 and out == "" and "every file was built again, byte for byte" in err
    assert contents(export) == before and [path.name for path in export.parent.iterdir()] == ["out"]
    record = json.loads((export / FOLDER / RECORD_NAME).read_text())
    assert record["environment"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert record["base"]["model"] == "demo" and record["inputs"]["scan"]["images"] == 1024
    assert {"open_clip_model.safetensors", "open_clip_config.json"} == set(record["outputs"])
    assert (export / FOLDER / "recipe.yaml").is_file()


def test_a_graph_is_built_again_byte_for_byte(edited_folder: Path, tmp_path: Path) -> None:
    if edited_folder.name == "total":
        pytest.skip("one graph is enough: tracing is slow")
    clipedit.export_model(clipedit.load_model(str(edited_folder)), tmp_path / "out", target="onnx")
    assert clipedit.reproduce(tmp_path / "out") == []
    assert str(Path(clipedit.__file__).parent).encode() not in (tmp_path / "out" / "visual.onnx").read_bytes()


def test_other_base_weights_are_an_error_and_other_versions_are_not(
    export: Path, demo_model: clipedit.Model, run: Run, tmp_path: Path
) -> None:
    shutil.copytree(export, tmp_path / "out")
    path = tmp_path / "out" / FOLDER / RECORD_NAME
    record = json.loads(path.read_text())
    record["environment"] |= {"torch": "2.0.0", "numpy": "1.0"}
    path.write_text(json.dumps(record))
    code, out, err = run("reproduce", tmp_path / "out")
    assert code == 0 and "every file was built again" in err
    assert "warning torch: recorded 2.0.0, here" in out and "note    numpy: recorded 1.0, here" in out
    other = demo_model.with_tensors({"visual.ln_post.bias": torch.zeros(128)})
    (found,) = [row for row in clipedit.reproduce(tmp_path / "out", model=other) if row.severity == "error"]
    assert found.what == "base weights" and found.recorded == record["base"]["weights_hash"][:12]


def test_a_file_that_was_changed_later_is_named(export: Path, run: Run, tmp_path: Path) -> None:
    shutil.copytree(export, tmp_path / "out")
    (tmp_path / "out" / "open_clip_config.json").write_text("{}")
    code, out, err = run("reproduce", tmp_path / "out", "--json")
    rows = json.loads(out)
    assert code == 1 and [(row["severity"], row["what"]) for row in rows] == [
        ("error", "open_clip_config.json as it is now")
    ]
    assert "Traceback" not in err


def test_what_cannot_be_reproduced_is_said(export: Path, run: Run, tmp_path: Path) -> None:
    code, _, err = run("reproduce", tmp_path)
    assert code == 1 and f"it holds no {FOLDER}/{RECORD_NAME}. Give an export." in err
    shutil.copytree(export, tmp_path / "out")
    path = tmp_path / "out" / FOLDER / RECORD_NAME
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "base": {**record["base"], "model": str(tmp_path / "gone")}}))
    code, _, err = run("reproduce", tmp_path / "out")
    assert code == 1 and "its base is not here" in err and "Name it with --model." in err
    path.write_text(json.dumps({**record, "inputs": {**record["inputs"], "calibration": "abc"}}))
    code, _, err = run("reproduce", tmp_path / "out")
    assert code == 1 and "Name the same ones with --calibration" in err
    for text in ("{", "[]", json.dumps({"schema_version": 2})):
        path.write_text(text)
        code, _, err = run("reproduce", tmp_path / "out")
        assert code == 1 and "cannot be read" in err and "Export again." in err and "Traceback" not in err


def test_packages_that_write_bytes_are_warnings() -> None:
    rows = compare_environments({"torch": "1", "timm": "1", "gone": "1"}, {"torch": "2", "timm": "1", "new": "3"})
    assert [str(row) for row in rows] == [
        "warning torch: recorded 1, here 2",
        "note    gone: recorded 1, here none",
        "note    new: recorded none, here 3",
    ]
