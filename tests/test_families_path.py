"""The whole path on small folders of each kind of open_clip tower, random weights: every command and effect."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file

import clipedit
from clipedit.editor.images.demo import demo_calibration_source

pytestmark = pytest.mark.usefixtures("verified_here")

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
COCA_VISION = {
    "image_size": 32,
    "patch_size": 8,
    "width": 48,
    "layers": 3,
    "head_width": 12,
    "attentional_pool": True,
    "attn_pooler_heads": 2,
    "attn_pooler_queries": 5,
    "output_tokens": True,
}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "SigLIP": {
        "embed_dim": 96,
        "custom_text": True,
        "init_logit_bias": -10,
        "text_cfg": {**TEXT, "proj_bias": True},
        "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none"},
    },
    "EVA": {
        "embed_dim": 48,
        "custom_text": True,
        "text_cfg": TEXT,
        "vision_cfg": {
            "image_size": 224,
            "timm_model_name": "eva02_tiny_patch14_224",
            "timm_pool": "token",
            "timm_proj": None,
        },
    },
    "CoCa": {
        "embed_dim": 48,
        "custom_text": True,
        "vision_cfg": COCA_VISION,
        "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {**TEXT, "attn_pooler_heads": 2},
    },
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    source = demo_calibration_source(16)
    for index in range(16):
        source.open(index).save(folder / f"{index}.png")
    return folder


def write_folder(name: str, folder: Path) -> Path:
    """As a user's checkpoint of that family, smaller."""
    torch.manual_seed(0)
    config = {"model_cfg": CONFIGURATIONS[name], "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    module = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    with torch.no_grad():
        for key, parameter in module.named_parameters():
            if parameter.ndim == 1 and "ls" not in key:
                parameter.add_(torch.randn_like(parameter) * 0.3)
            elif parameter.ndim >= 2:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            elif "gamma" in key:
                parameter.fill_(0.5)
    save_file(
        {key: value.contiguous() for key, value in module.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    return folder


def test_a_family_goes_the_whole_path(photos: Path, tmp_path: Path, run: Callable[..., Any]) -> None:
    check_path("SigLIP", ("total",), photos, tmp_path, run, graphs=False)
    assert (
        run(
            "remove-heads",
            "--concept",
            "location",
            "--model",
            tmp_path / "base",
            "--scan",
            tmp_path / "scan",
            "-o",
            tmp_path / "distilled",
        ).code
        == 1
    )
    assert not (tmp_path / "distilled").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SigLIP", "EVA", "CoCa"])
def test_every_family_goes_the_whole_path(name: str, photos: Path, tmp_path: Path, run: Callable[..., Any]) -> None:
    effects = ("direct", "total") if name == "SigLIP" else ("direct", "total", "distilled")
    check_path(name, effects, photos, tmp_path, run, graphs=True)


def check_path(
    name: str, effects: tuple[str, ...], photos: Path, folder: Path, run: Callable[..., Any], *, graphs: bool
) -> None:
    """Scan, label, score, edit, apply, export and verify; consumers load it. Tracing `graphs` takes a minute."""
    base, scan = write_folder(name, folder / "base"), folder / "scan"
    assert run("scan", photos, "--model", base, "-o", scan, "--mlps").code == 0
    assert run("score", scan, "--concept", "location").code == 0
    assert run("label", scan, "--texts-per-head", "2").code == 0
    unedited = clipedit.load_model(str(base))
    pixels = torch.randn(2, 3, *unedited.image_shape)
    before = unedited.encode_image(pixels)
    for effect in effects:
        out, again = folder / effect, folder / f"{effect}-again"
        report = () if effect == effects[0] else ("--no-report",)
        asked = ("--model", base, "--scan", scan, "--effect", effect, "--heads", 3, "--force", "-o", out, *report)
        assert run("remove-heads", "--concept", "location", *asked).code == 0
        assert run("apply", out, "--model", base, "-o", again).code == 0
        edited = clipedit.load_model(str(out)).encode_image(pixels)
        assert torch.equal(clipedit.load_model(str(again)).encode_image(pixels), edited)
        assert (edited - before).norm() > 1e-3 * before.norm()
    if graphs:
        assert run("export", folder / "direct", "--target", "onnx", "-o", folder / "onnx").code == 0
    assert run("export", folder / "total", "--target", "open-clip", "-o", folder / "open-clip").code == 0
    assert run("verify", folder / "open-clip").code == 0
    total = clipedit.load_model(str(folder / "total")).encode_image(pixels)
    module: Any = open_clip.create_model(f"local-dir:{folder / 'open-clip'}").eval()
    assert torch.allclose(module.encode_image(pixels, normalize=False), total, atol=1e-4)


def test_what_a_tower_cannot_hold_is_said_before_the_images_are_read(tmp_path: Path, run: Callable[..., Any]) -> None:
    base = write_folder("SigLIP", tmp_path / "base")
    options = ("--model", base, "--images", tmp_path, "-o", tmp_path / "out")
    code, _, message = run("remove-heads", "--concept", "location", *options)
    assert code == 1
    assert "cannot make a distilled edit of" in message and "it has no final linear map" in message
    assert "Use --effect total or --effect direct." in message
    code, _, message = run(
        "remove-heads", "--concept", "location", "--effect", "total", "--output-strength", 0.5, *options
    )
    assert code == 1 and "cannot edit the output of" in message


def test_a_projection_under_total_on_an_attention_pool_warns_where_it_is_ablation(photos: Path, tmp_path: Path) -> None:
    model = clipedit.load_model(str(write_folder("SigLIP", tmp_path / "base")))
    scanned = clipedit.scan(model, photos)
    with pytest.warns(UserWarning, match="project-out is plain ablation there. Use fewer --directions"):
        clipedit.make_recipe(
            scanned, model, concept="location", operation="project-out", effect="total", heads=2, directions=11
        )
