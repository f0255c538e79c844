"""Every export is reopened by its real consumer, and an export of the wrong weights fails."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import open_clip
import pytest
import torch
import torch.nn.functional as F

import clipedit
from clipedit.editor.edits.direct import as_stored, encode_before_and_after
from clipedit.editor.images.demo import demo_calibration_source
from clipedit.export.edited_folder import write_edited_model
from clipedit.export.graphs.onnx_graphs import write_graphs
from clipedit.export.graphs.profile import GraphSpec, Profile
from clipedit.export.targets.open_clip import write_open_clip_folder
from clipedit.export.verify.verify import Verifier


@pytest.fixture(scope="module")
def edited(demo_model: clipedit.Model) -> clipedit.Model:
    scanned = clipedit.scan(demo_model, demo_calibration_source(512))
    return clipedit.apply_recipe(clipedit.make_recipe(scanned, demo_model, concept="location"), demo_model)


@pytest.fixture(scope="module")
def direct(demo_model: clipedit.Model) -> clipedit.Model:
    scanned = clipedit.scan(demo_model, demo_calibration_source(512))
    recipe = clipedit.make_recipe(scanned, demo_model, concept="location", effect="direct")
    return clipedit.apply_recipe(recipe, demo_model)


@pytest.fixture(scope="module")
def onnx_folder(edited: clipedit.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "onnx"
    clipedit.export_model(edited, out, target="onnx")
    return out


@pytest.fixture(scope="module")
def open_clip_folder(edited: clipedit.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "open-clip"
    clipedit.export_model(edited, out, target="open-clip")
    return out


def test_open_clip_loads_the_folder_with_preprocessing_and_tokenizer(
    edited: clipedit.Model, demo_model: clipedit.Model, open_clip_folder: Path
) -> None:
    name = f"local-dir:{open_clip_folder}"
    module, _, preprocess = open_clip.create_model_and_transforms(name)
    image = demo_calibration_source(1).open(0)
    pixels = preprocess(image)[None]  # type: ignore[operator]
    assert torch.equal(pixels[0], edited.preprocess(image))
    found = module.eval().encode_image(pixels)
    assert F.cosine_similarity(found, edited.encode_image(pixels)).min() > 0.99999
    assert F.cosine_similarity(found, demo_model.encode_image(pixels)).max() < 0.99
    tokens = open_clip.get_tokenizer(name)(["a photo of a circle"])
    assert torch.allclose(module.encode_text(tokens), edited.encode_text(["a photo of a circle"]), atol=1e-4)


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_onnx_runtime_gives_the_edited_embedding_at_any_batch(
    edited: clipedit.Model, demo_model: clipedit.Model, onnx_folder: Path, batch: int
) -> None:
    session = onnxruntime.InferenceSession(onnx_folder / "visual.onnx", providers=["CPUExecutionProvider"])
    pixels = torch.randn(batch, 3, 64, 64)
    (found,) = session.run(["image_embedding"], {"image": pixels.numpy()})
    expected = edited.encode_image(pixels)
    assert (torch.from_numpy(found) - expected).norm() / expected.norm() < 1e-5
    assert (demo_model.encode_image(pixels) - expected).norm() / expected.norm() > 0.01
    textual = onnxruntime.InferenceSession(onnx_folder / "textual.onnx", providers=["CPUExecutionProvider"])
    texts = [f"a photo of {index} circles" for index in range(batch)]
    (embedding,) = textual.run(["text_embedding"], {"text": edited.tokenizer(texts).numpy().astype(np.int64)})
    assert np.abs(embedding - edited.encode_text(texts).numpy()).max() < 1e-4


def test_the_onnx_sidecar_says_what_a_caller_needs(onnx_folder: Path) -> None:
    sidecar = json.loads((onnx_folder / "clip.json").read_text())
    assert sidecar["embedding_size"] == 64 and sidecar["context_length"] == 32 and sidecar["normalised"] is False
    assert sidecar["preprocess_cfg"]["mean"] == [0.5, 0.5, 0.5]
    assert {path.name for path in onnx_folder.iterdir()} == {
        "visual.onnx",
        "textual.onnx",
        "clip.json",
        "reproduce",
        "verification.json",
        "verification.safetensors",
        "README.md",
        "example.png",
    }


def test_a_direct_edit_exports_to_onnx_and_is_refused_as_a_plain_checkpoint(
    direct: clipedit.Model, tmp_path: Path
) -> None:
    checks = clipedit.export_model(direct, tmp_path / "onnx", target="onnx")
    assert all(check.holds for check in checks)
    with pytest.raises(clipedit.ExportError, match="carries a direct edit.*--effect distilled or total"):
        clipedit.export_model(direct, tmp_path / "plain", target="open-clip")
    assert [path.name for path in tmp_path.iterdir()] == ["onnx"]


@pytest.mark.parametrize("effect", ["direct", "distilled"])
def test_before_and_after_come_from_one_pass(
    demo_model: clipedit.Model, effect: str, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue("direct" if effect == "direct" else "edited")
    pixels = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    before, after = encode_before_and_after(as_stored(model.recipe, model), demo_model, pixels)
    torch.testing.assert_close(before, demo_model.encode_image(pixels), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(after, model.encode_image(pixels), atol=1e-5, rtol=1e-5)
    assert (after - before).norm() > 0.05 * before.norm()


def test_a_child_that_is_asked_nothing_ends(tmp_path: Path) -> None:
    with pytest.raises(clipedit.VerificationError, match="there is no such folder"), Verifier() as verifier:
        child = verifier._child
        verifier.verify(tmp_path / "absent")
    assert child.returncode is not None


def test_one_verifier_serves_several_folders_and_outlives_a_refusal(
    onnx_folder: Path, open_clip_folder: Path, tmp_path: Path
) -> None:
    with Verifier() as verifier:
        child = verifier._child.pid
        assert all(check.holds for check in verifier.verify(onnx_folder))
        said = f"^cannot verify {re.escape(str(tmp_path))}: .*no such file"
        with pytest.raises(clipedit.VerificationError, match=said):
            verifier.verify(tmp_path)
        assert all(check.holds for check in verifier.verify(open_clip_folder))
        assert verifier._child.pid == child and verifier._child.poll() is None


def test_a_verifier_that_was_killed_is_a_failed_check_and_not_a_hang(onnx_folder: Path) -> None:
    with Verifier() as verifier:
        verifier._child.kill()
        with pytest.raises(clipedit.VerificationError, match=r"the consumer crashed \(signal 9\)"):
            verifier.verify(onnx_folder)
    assert all(check.holds for check in clipedit.verify(onnx_folder))


def test_what_a_consumer_prints_is_not_taken_for_an_answer() -> None:
    script = (
        "import os\nfrom clipedit.export.verify import verify_child\n"
        "verify_child.check_folder = lambda folder, trusted: (print('{}'), os.write(1, b'[]\\n'), {'checks': []})[2]\n"
        "verify_child.main()"
    )
    asked = '{"folder": "a", "trusted": true}\n' * 2
    done = subprocess.run([sys.executable, "-c", script], input=asked, capture_output=True, text=True, check=True)
    assert done.stdout == '{"checks": []}\n' * 2


def test_a_direct_edit_on_disk_cannot_be_mistaken_for_a_plain_model(
    demo_model: clipedit.Model, demo_scan: clipedit.Scan, tmp_path: Path
) -> None:
    recipe = clipedit.make_recipe(demo_scan, demo_model, concept="location", effect="direct")
    write_edited_model(recipe, demo_model, tmp_path / "out")
    with pytest.raises(FileNotFoundError):
        open_clip.create_model(f"local-dir:{tmp_path / 'out'}")
    pixels = torch.randn(2, 3, 64, 64)
    found = clipedit.load_model(str(tmp_path / "out")).encode_image(pixels)
    assert torch.equal(found, clipedit.apply_recipe(recipe, demo_model).encode_image(pixels))


def test_verification_figures_are_on_disk(onnx_folder: Path) -> None:
    report = json.loads((onnx_folder / "verification.json").read_text())
    assert report["target"] == "onnx" and report["runtime"].startswith("onnxruntime ")
    names = [check["name"] for check in report["checks"]]
    assert "image, batch 1, worst cosine" in names and "image, distance to the unedited model" in names
    assert len(clipedit.verify(onnx_folder)) == len(names)


def test_the_unedited_weights_under_an_edited_name_fail(
    open_clip_folder: Path, demo_model: clipedit.Model, tmp_path: Path
) -> None:
    shutil.copytree(open_clip_folder, tmp_path / "wrong")
    assert demo_model.checkpoint is not None
    shutil.copy(demo_model.checkpoint, tmp_path / "wrong" / "open_clip_model.safetensors")
    with pytest.raises(clipedit.VerificationError, match="does not compute what the edited model computes: FAIL image"):
        clipedit.verify(tmp_path / "wrong")


def test_a_damaged_graph_fails(onnx_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(onnx_folder, tmp_path / "damaged")
    data = (tmp_path / "damaged" / "visual.onnx").read_bytes()
    (tmp_path / "damaged" / "visual.onnx").write_bytes(data[: len(data) // 2])
    with pytest.raises(clipedit.VerificationError, match="cannot verify"):
        clipedit.verify(tmp_path / "damaged")


def test_a_failed_verification_leaves_nothing(
    edited: clipedit.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clipedit.export.targets import open_clip as target_file

    def write_base(model: clipedit.Model, folder: Path, profile: Profile) -> None:
        assert model.base is not None
        write_open_clip_folder(model.base, folder)

    wrong = dataclasses.replace(target_file.TARGET, write=write_base)
    monkeypatch.setattr(target_file, "TARGET", wrong)
    with pytest.raises(clipedit.VerificationError):
        clipedit.export_model(edited, tmp_path / "out", target="open-clip")
    assert not list(tmp_path.iterdir())


def test_an_old_export_is_only_replaced_on_request(edited: clipedit.Model, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    with pytest.raises(clipedit.ExportError, match="the folder is not empty"):
        clipedit.export_model(edited, tmp_path / "out", target="open-clip")
    clipedit.export_model(edited, tmp_path / "out", target="open-clip", overwrite=True)
    assert not (tmp_path / "out" / "old").exists()


def test_a_precision_that_is_not_written_is_refused_before_anything_else(
    edited: clipedit.Model, tmp_path: Path
) -> None:
    with pytest.raises(clipedit.ExportError, match="cannot export to open-clip in fp16.*Use --precision fp32"):
        clipedit.export_model(edited, tmp_path / "out", target="open-clip", precision="fp16")
    assert not list(tmp_path.iterdir())


def test_a_graph_has_the_names_types_and_axes_of_its_profile(edited: clipedit.Model, tmp_path: Path) -> None:
    profile = Profile(
        "some",
        visual=GraphSpec("a/model.onnx", "image", "embedding", batch=1, normalised=True),
        textual=GraphSpec("b/model.onnx", "text", "embedding", integer="int32", dynamic_length=True),
    )
    write_graphs(edited, tmp_path, profile)
    visual, textual = (onnxruntime.InferenceSession(tmp_path / name / "model.onnx") for name in "ab")
    described = [(value.name, value.type, value.shape) for value in visual.get_inputs() + visual.get_outputs()]
    assert described == [("image", "tensor(float)", [1, 3, 64, 64]), ("embedding", "tensor(float)", [1, 64])]
    assert (textual.get_inputs()[0].name, textual.get_inputs()[0].type) == ("text", "tensor(int32)")
    pixels = torch.randn(1, 3, 64, 64)
    (found,) = visual.run(None, {"image": pixels.numpy()})
    assert np.abs(found - F.normalize(edited.encode_image(pixels), dim=1).numpy()).max() < 1e-5
    tokens = edited.tokenizer(["a photo of a circle"])
    expected = edited.encode_text(["a photo of a circle"]).numpy()
    for length in (7, 20, 32):
        (found,) = textual.run(None, {"text": tokens[:, :length].numpy().astype(np.int32)})
        assert np.abs(found - expected).max() < 1e-4
