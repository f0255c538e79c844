"""timm models by name, file and folder; an edited folder is again a timm folder, for plain timm as for clipedit."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models._hub import save_for_hf

import clipedit
from clipedit import cli
from clipedit.editor.files.tensors import hash_checkpoint
from clipedit.editor.images.demo import demo_calibration_source

pytestmark = pytest.mark.usefixtures("verified_here")

RECIPE = """schema_version: 1
name: two-heads
base: {{model: any}}
effect: {effect}
steps:
- {{operation: mean-ablate, heads: [L5H1, L4H0]}}
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier as someone trained and saved it with timm."""
    torch.manual_seed(0)
    module = timm.create_model("test_vit", num_classes=5)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    folder = tmp_path_factory.mktemp("timm") / "base"
    save_for_hf(module, str(folder), safe_serialization=True)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    source = demo_calibration_source(16)
    for index in range(16):
        source.open(index).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["clipedit", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(stop.value.code or 0), capfd.readouterr().err

    return call


def load_plainly(folder: Path) -> Any:
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


def test_a_timm_folder_loads_with_its_preprocessing_and_classifier(base: Path) -> None:
    model = clipedit.load_model(str(base))
    module = load_plainly(base)
    image = demo_calibration_source(1).open(0)
    transform: Any = timm.data.create_transform(**timm.data.resolve_model_data_config(module), is_training=False)
    pixels = transform(image)[None]
    assert torch.equal(model.preprocess(image)[None], pixels)
    assert torch.equal(model.classify(pixels), module(pixels))
    assert torch.equal(
        model.encode_image(pixels), module.forward_head(module.forward_features(pixels), pre_logits=True)
    )
    assert model.weights_hash == hash_checkpoint(base / "model.safetensors")
    assert model.image_size == 160 and not model.has_texts


@pytest.mark.parametrize("effect", ["distilled", "total", "direct"])
def test_an_edited_timm_folder_is_a_timm_folder(
    base: Path, photos: Path, tmp_path: Path, run: Callable[..., tuple[int, str]], effect: str
) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(effect=effect))
    asked = ("--model", base, "--images", photos, "-o", tmp_path / "out")
    assert run("apply", tmp_path / "recipe.yaml", *asked)[0] == 0
    edited, pixels = clipedit.load_model(str(tmp_path / "out")), torch.randn(4, 3, 160, 160)
    before = load_plainly(base)(pixels)
    assert (edited.classify(pixels) - before).norm() > 1e-3 * before.norm()
    names = {check["name"] for check in json.loads((tmp_path / "out" / "verification.json").read_text())["checks"]}
    assert "image, batch 1, worst cosine" in names
    if effect == "direct":
        assert (tmp_path / "out" / "base" / "model.safetensors").read_bytes() == (
            base / "model.safetensors"
        ).read_bytes()
        return
    assert torch.allclose(load_plainly(tmp_path / "out")(pixels), edited.classify(pixels), atol=1e-5)
    same = load_plainly(tmp_path / "out").state_dict()
    changed = {key for key, value in load_plainly(base).state_dict().items() if not torch.equal(value, same[key])}
    folded = {f"blocks.{layer}.attn.proj.{leaf}" for layer in (4, 5) for leaf in ("weight", "bias")}
    assert changed == ({"head.weight", "head.bias"} if effect == "distilled" else folded)


def test_an_edited_timm_folder_exports_to_timm_and_nowhere_that_needs_texts(
    base: Path, tmp_path: Path, run: Callable[..., tuple[int, str]]
) -> None:
    assert run("export", base, "--target", "timm", "-o", tmp_path / "again")[0] == 0
    assert (tmp_path / "again" / "model.safetensors").is_file()
    pixels = torch.randn(2, 3, 160, 160)
    assert torch.equal(load_plainly(tmp_path / "again")(pixels), load_plainly(base)(pixels))
    code, message = run("export", base, "--target", "onnx", "-o", tmp_path / "onnx")
    assert code == 1 and "it has no text tower, which onnx asks for. Use --target timm." in message
    code, message = run("export", "demo", "--target", "timm", "-o", tmp_path / "demo")
    assert code == 1 and "it is not a timm model. Use --target open-clip" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again"]


def test_a_checkpoint_file_says_how_many_classes_there_are(tmp_path: Path) -> None:
    state = timm.create_model("test_vit", num_classes=3).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    model = clipedit.load_model("test_vit", pretrained=str(tmp_path / "w.safetensors"))
    assert model.classify(torch.randn(1, 3, 160, 160)).shape == (1, 3)
    headless = {key: value for key, value in state.items() if not key.startswith("head.")}
    save_file(headless, tmp_path / "f.safetensors")
    with pytest.raises(clipedit.ModelError, match="no linear classifier"):
        clipedit.load_model("test_vit", pretrained=str(tmp_path / "f.safetensors")).classify(
            torch.randn(1, 3, 160, 160)
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--model", "deit_tiny_patch16_224"),
            "cannot load deit_tiny_patch16_224 without weights. Add --pretrained, one of: fb_in1k",
        ),
        (
            ("--model", "deit_tiny_patch16_224", "--pretrained", "fb_in1"),
            "neither a file nor a tag. Did you mean fb_in1k?",
        ),
        (("--model", "deit_tiny_patch16_224.fb_in2k"), "'fb_in2k' is neither a file nor a tag"),
        (("--model", "resnet18", "--pretrained", "FILE"), "cannot load resnet18"),
        (("--model", "BASE"), "it has no text tower. Align it to a CLIP (`clipedit align`)"),
    ],
)
def test_wrong_input_is_a_message(
    base: Path,
    tmp_path: Path,
    run: Callable[..., tuple[int, str]],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    (tmp_path / "FILE").write_bytes(b"nothing")
    given = [{"BASE": base, "FILE": tmp_path / "FILE"}.get(word, word) for word in arguments]
    code, found = run("remove-heads", "--concept", "location", "--images", "demo", *given, "-o", tmp_path / "out")
    assert code == 1 and message in found and "Traceback" not in found
    assert not (tmp_path / "out").exists()
