"""The examples run as they stand, and say what they promise; the notebook is stored without outputs."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NOTEBOOK = EXAMPLES / "tour.ipynb"


def run_example(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(sys, "argv", [name, str(folder)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out


def test_repair_raises_the_mean_of_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = run_example("repair.py", tmp_path, monkeypatch, capsys)
    before, after = (float(line.split()[-1]) for line in said.splitlines()[-2:])
    assert after > before
    assert (tmp_path / "recipe.yaml").is_file()


def test_own_concept_names_the_removed_heads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = run_example("own_concept.py", tmp_path, monkeypatch, capsys)
    assert said.splitlines()[-1].count("L") == 4
    assert (tmp_path / "without-place.yaml").is_file()


def test_heatmap_writes_a_picture_per_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = run_example("heatmap.py", tmp_path, monkeypatch, capsys)
    assert len(said.splitlines()) == len(list(tmp_path.glob("*.png"))) == 2


def test_reindex_comes_near_the_edited_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = run_example("reindex.py", tmp_path, monkeypatch, capsys)
    assert float(said.split()[-1]) > 0.99


@pytest.mark.slow
def test_onnx_runtime_gives_the_embeddings_of_pytorch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = run_example("onnx_runtime.py", tmp_path, monkeypatch, capsys)
    assert float(said.split()[-1]) < 1e-4


def test_an_index_in_qdrant_is_carried_over_and_finds_more_that_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("qdrant_client")
    said = run_example("reindex_qdrant.py", tmp_path, monkeypatch, capsys)
    old, carried, again = (float(line.split()[-1]) for line in said.splitlines()[-3:])
    assert carried > old and abs(carried - again) < 0.03


@pytest.mark.slow
def test_a_server_answers_with_every_edit_as_a_single_thread_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    testclient = pytest.importorskip("fastapi.testclient")
    said = run_example("serve.py", tmp_path, monkeypatch, capsys).splitlines()
    assert said[0] == "edits served: base, remove-location, remove-color" and said[-1].endswith(": 0")
    served = runpy.run_path(str(EXAMPLES / "serve.py"))
    client, image = testclient.TestClient(served["build_app"](tmp_path / "onnx")), next(tmp_path.glob("images/*.png"))
    assert client.get("/edits").json() == ["base", "remove-location", "remove-color"]
    whole = image.read_bytes()
    base, edited = (client.post(f"/embed{edit}", content=whole).json() for edit in ("", "?edit=remove-location"))
    assert len(base) == len(edited) and base != edited
    for edit, content, code in (
        ("none", whole, 404),
        ("base", bytes(served["MOST_BYTES"] + 1), 413),
        ("base", b"%!PS-Adobe-3.0 EPSF-3.0", 400),
        ("base", whole[: len(whole) // 2], 400),
        ("base", b"", 400),
    ):
        assert client.post(f"/embed?edit={edit}", content=content).status_code == code


def test_the_notebook_is_stored_without_outputs() -> None:
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert cells and all(not cell["outputs"] and cell["execution_count"] is None for cell in cells)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES), prepend=":")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("text/html" in output.get("data", {}) for output in shown)
    assert any("image/png" in output.get("data", {}) for output in shown)
