"""Verification looks at what ships: files that say something else of preprocessing fail, and the field is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import clipedit
from clipedit.editor.images.demo import demo_calibration_source
from clipedit.editor.models.preprocessing import build_preprocess
from clipedit.export.consumers.consumer import after_preprocessing
from clipedit.export.consumers.preprocessor_config import build_processor, describe_preprocessor
from clipedit.export.consumers.shipped import Statement
from clipedit.export.consumers.target import load_consumer
from clipedit.export.graphs.profile import Profile
from clipedit.export.targets import fastembed, immich, onnx, torch_export, transformers_js, triton
from clipedit.export.targets.registry import load_target
from clipedit.export.targets.timm import tell_timm, write_timm_folder
from clipedit.export.targets.triton import read_tensor_lines
from clipedit.export.verify.odd_images import has_odd_images
from clipedit.export.verify.reference import Reference, load_reference, write_reference
from clipedit.export.verify.verify_child import compute_checks, run_checks

pytestmark = pytest.mark.filterwarnings("ignore:Attempt to set CUDAExecutionProvider")
PREPROCESSOR, CLIP_JSON, IMMICH = "preprocessor_config.json", "clip.json", "visual/preprocess_cfg.json"
# The file of each target that says how pixels are made.
FILES = {
    "onnx": CLIP_JSON,
    "torch-export": CLIP_JSON,
    "triton": "clip_visual/clip.json",
    "immich": f"demo/{IMMICH}",
    "open-clip": "open_clip_config.json",
    "hf": PREPROCESSOR,
    "sentence-transformers": f"0_CLIPModel/{PREPROCESSOR}",
    "fastembed": f"vision/{PREPROCESSOR}",
    "transformers-js": PREPROCESSOR,
}


@pytest.fixture(scope="module")
def edited(demo_model: clipedit.Model) -> clipedit.Model:
    scanned = clipedit.scan(demo_model, demo_calibration_source(256), workers=0)
    return clipedit.apply_recipe(clipedit.make_recipe(scanned, demo_model, concept="location"), demo_model)


@pytest.fixture(scope="module")
def sidecars(edited: clipedit.Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every target's files without its graphs, which say nothing."""

    def make_folders(model: clipedit.Model, folder: Path, profile: Profile) -> None:
        for spec in (profile.visual, profile.textual):
            assert spec is not None
            (folder / spec.path).parent.mkdir(parents=True, exist_ok=True)

    found = {}
    with pytest.MonkeyPatch.context() as patch:
        for module in (onnx, triton, immich, fastembed, transformers_js):
            patch.setattr(module, "write_graphs", make_folders)
        patch.setattr(torch_export, "_write_program", lambda *_: None)
        for name in FILES:
            found[name] = tmp_path_factory.mktemp("shipped") / name
            found[name].mkdir()
            load_target(name).write(edited, found[name], load_target(name).profile)
            write_reference(edited, found[name], target=name)
    return found


@pytest.fixture(scope="module")
def folders(edited: clipedit.Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Whole exports."""
    found = {}
    for name in ("onnx", "immich", "open-clip", "hf", "sentence-transformers"):
        found[name] = tmp_path_factory.mktemp("whole") / name
        found[name].mkdir()
        load_target(name).write(edited, found[name], load_target(name).profile)
        write_reference(edited, found[name], target=name)
    return found


def change(folder: Path, file: str, alter: Callable[[dict[str, Any]], object]) -> None:
    path = folder / file
    content = json.loads(path.read_text())
    alter(content.get("preprocess_cfg", content))
    path.write_text(json.dumps(content))


def failing(target: str, folder: Path) -> list[str]:
    """The checks that fail; of files that say what is right, those of running them."""
    checks = run_checks(load_target(target), folder, load_reference(folder))[1]
    return [check.name for check in checks if not check.holds]


def told(target: str, folder: Path) -> list[Statement]:
    return load_target(target).tell(folder, load_reference(folder), load_target(target).profile)


OPEN_CLIP_FIELDS = {
    "mean": lambda c: c.update(mean=[0.9, 0.9, 0.9]),
    "std": lambda c: c.update(std=[0.52, 0.52, 0.52]),
    "size": lambda c: c.update(size=[96, 96]),
    "interpolation": lambda c: c.update(interpolation="bilinear"),
    "resize_mode": lambda c: c.update(resize_mode="squash"),
}
HF_FIELDS = {
    "image_mean": lambda c: c.update(image_mean=[0.48, 0.46, 0.41]),
    "image_std": lambda c: c.update(image_std=[0.5, 0.5, 0.48]),
    "size": lambda c: c.update(size={"shortest_edge": 72}),
    "crop_size": lambda c: c.update(crop_size={"height": 48, "width": 48}),
    "resample": lambda c: c.update(resample=2),
    "do_rescale": lambda c: c.update(do_rescale=False),
    "rescale_factor": lambda c: c.update(rescale_factor=1 / 127.5),
    "do_normalize": lambda c: c.update(do_normalize=False),
    "do_center_crop": lambda c: c.pop("do_center_crop") and c.update(do_center_crop=False),
    "image_std left out": lambda c: c.pop("image_std"),
}
CASES = [
    (target, field)
    for target, file in FILES.items()
    for field in (HF_FIELDS if PREPROCESSOR in file else OPEN_CLIP_FIELDS)
]


@pytest.mark.parametrize(("target", "field"), CASES)
def test_a_field_that_ships_wrong_fails_and_is_named(
    target: str, field: str, sidecars: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(sidecars[target], tmp_path / "wrong")
    alter = (HF_FIELDS | OPEN_CLIP_FIELDS)[field] if PREPROCESSOR not in FILES[target] else HF_FIELDS[field]
    change(tmp_path / "wrong", FILES[target], alter)
    (name,) = failing(target, tmp_path / "wrong")
    assert name.startswith(f"{FILES[target]}, fields that differ") and field.split(maxsplit=1)[0] in name


@pytest.mark.parametrize("target", FILES)
def test_what_ships_right_holds_and_more_keys_are_no_fault(
    target: str, sidecars: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(sidecars[target], tmp_path / "right")
    change(tmp_path / "right", FILES[target], lambda content: content.update(note="ours"))
    found = told(target, tmp_path / "right")
    assert found and [one.differences() for one in found] == [[]] * len(found)


@pytest.mark.parametrize("target", ["onnx", "immich", "triton", "fastembed"])
@pytest.mark.parametrize("content", [None, "[]", "{", '{"preprocess_cfg": 3}'])
def test_a_file_that_is_missing_or_damaged_fails(
    target: str, content: str | None, sidecars: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(sidecars[target], tmp_path / "wrong")
    path = tmp_path / "wrong" / FILES[target]
    path.unlink() if content is None else path.write_text(content)
    try:
        names = failing(target, tmp_path / "wrong")
    except clipedit.VerificationError as error:
        names = [str(error)]
    assert names and path.name in names[0]


@pytest.mark.parametrize(
    ("target", "key", "value"),
    [
        ("onnx", "context_length", 77),
        ("onnx", "embedding_size", 512),
        ("onnx", "normalised", True),
        ("torch-export", "context_length", 16),
    ],
)
def test_sizes_and_the_norm_are_compared_too(
    target: str, key: str, value: object, sidecars: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(sidecars[target], tmp_path / "wrong")
    content = json.loads((tmp_path / "wrong" / CLIP_JSON).read_text())
    (tmp_path / "wrong" / CLIP_JSON).write_text(json.dumps({**content, key: value}))
    (name,) = failing(target, tmp_path / "wrong")
    assert f"{key} is {value}" in name


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("[3, 64, 64]", "[3, 224, 224]", "input.dims"),
        ('name: "image"', 'name: "pixels"', "input.name"),
        ("dims: [ 64 ]", "dims: [ 512 ]", "output.dims"),
        ("TYPE_FP32 dims: [3", "TYPE_FP16 dims: [3", "input.data_type"),
        ("onnxruntime_onnx", "tensorrt_plan", "platform"),
    ],
)
def test_tritons_configuration_must_be_that_of_the_graph(
    old: str, new: str, key: str, sidecars: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(sidecars["triton"], tmp_path / "wrong")
    path = tmp_path / "wrong" / "clip_visual" / "config.pbtxt"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    (name,) = failing("triton", tmp_path / "wrong")
    assert name.startswith("clip_visual/config.pbtxt") and key in name
    # How requests are batched is the operator's affair, and so is layout.
    path.write_text(text.replace("max_batch_size: 64", "max_batch_size: 8").replace("input [ {", "input: [\n {"))
    assert not any(one.differences() for one in told("triton", tmp_path / "wrong"))


def test_triton_spelling_is_read_with_comments_and_lines() -> None:
    text = '# input [ { name: "no" } ]\nplatform : "p"\ninput [\n  {\n    name: "a"\n    dims: [ 3, 4 ]\n  }\n]\n'
    assert read_tensor_lines(text) == {"platform": "p", "input.name": "a", "input.dims": "[3,4]"}


def with_preprocess(target: str, folder: Path, **changed: object) -> tuple[Any, Reference]:
    """A target's consumer whose preprocessing is another than its files say."""
    reference = load_reference(folder)
    consumer = load_consumer(load_target(target), folder, reference)
    config = {"preprocess_cfg": {**reference.config["preprocess_cfg"], **changed}}
    return replace(
        consumer, embed_images=after_preprocessing(consumer.encode_images, build_preprocess(config))
    ), reference


@pytest.mark.parametrize(
    "changed",
    [
        {"std": [0.52] * 3},
        {"std": [0.5, 0.48, 0.5]},
        {"mean": [0.48, 0.5, 0.5]},
        {"mean": [0.52] * 3, "std": [0.52] * 3},
    ],
)
def test_a_mean_or_deviation_that_is_wrong_by_two_hundredths_shows_in_what_is_computed(
    changed: dict[str, object], folders: dict[str, Path]
) -> None:
    """Whatever the files say: a consumer may have numbers of its own."""
    consumer, reference = with_preprocess("onnx", folders["onnx"], **changed)
    names = [check.name for check in compute_checks(consumer, reference, resizing=0.9999) if not check.holds]
    assert "image, normalised by the consumer, worst difference" in names


@pytest.mark.parametrize("changed", [{"resize_mode": "squash"}, {"resize_mode": "longest"}])
def test_another_way_to_resize_shows_in_what_is_computed(changed: dict[str, object], folders: dict[str, Path]) -> None:
    consumer, reference = with_preprocess("immich", folders["immich"], **changed)
    names = [check.name for check in compute_checks(consumer, reference, resizing=0.95) if not check.holds]
    assert names == ["image, resized by the consumer, mean cosine"]


@pytest.mark.parametrize("size", [(16, 16), (400, 400), (70, 41)])
def test_the_reference_has_images_that_are_larger_than_the_model_takes_and_not_square(
    size: tuple[int, int], edited: clipedit.Model, tmp_path: Path
) -> None:
    assert has_odd_images(write_reference(edited, tmp_path, target="onnx").images(), (64, 64))
    for index in range(9):
        Image.effect_noise(size, 50 + index).convert("RGB").save(tmp_path / f"{index}.png")
    reference = write_reference(edited, tmp_path, target="onnx", images=tmp_path)
    images = reference.images()
    assert (len(images) == 11 and images[0].size == size) or max(size) > 288
    larger = [image.size for image in images if min(image.size) > 64]
    assert any(width > height for width, height in larger) and any(width < height for width, height in larger)
    expected = edited.encode_image(torch.stack([edited.preprocess(image) for image in images]))
    assert torch.allclose(reference.tensors["image_embedding"], expected, atol=1e-5)


@pytest.mark.parametrize("target", ["open-clip", "hf", "sentence-transformers"])
def test_the_scale_of_logits_is_compared(target: str, folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders[target], tmp_path / "wrong")
    (path,) = (p for p in (tmp_path / "wrong").rglob("*model.safetensors") if "verification" not in p.name)
    state = load_file(path)
    state["logit_scale"] = state["logit_scale"] + 0.01
    save_file(state, path, metadata={"format": "pt"})
    assert failing(target, tmp_path / "wrong") == ["logit_scale, difference"]


def test_our_reading_of_a_preprocessor_file_is_that_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    plain = {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]}
    image = demo_calibration_source(1).open(0).resize((50, 50)).resize((96, 160))
    for mode, interpolation in (("shortest", "bicubic"), ("squash", "bilinear")):
        content = describe_preprocessor({**plain, "resize_mode": mode, "interpolation": interpolation}, (32, 32))
        (tmp_path / PREPROCESSOR).write_text(json.dumps(content))
        processor = transformers.CLIPImageProcessorPil.from_pretrained(tmp_path)
        wanted = torch.as_tensor(processor(images=[image], return_tensors="pt")["pixel_values"][0])
        assert (build_processor(tmp_path / PREPROCESSOR)(image) - wanted).abs().max() < 1e-5


def test_timm_says_its_preprocessing(tmp_path: Path) -> None:
    model = clipedit.load_model("test_vit")
    (tmp_path / "timm").mkdir()
    write_timm_folder(model.stored_state(), model.config["timm_cfg"], tmp_path / "timm")
    reference = write_reference(model, tmp_path / "timm", target="timm")
    assert tell_timm(tmp_path / "timm", reference).differences() == []
    content = json.loads((tmp_path / "timm" / "config.json").read_text())
    content["pretrained_cfg"].update(crop_pct=0.5, std=[0.2, 0.2, 0.2])
    (tmp_path / "timm" / "config.json").write_text(json.dumps(content))
    found = tell_timm(tmp_path / "timm", reference).describe()
    assert "pretrained_cfg.crop_pct is 0.5" in found and "pretrained_cfg.std is [0.2, 0.2, 0.2]" in found


def test_the_command_prints_its_checks_also_when_it_fails(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import sys

    from clipedit import cli

    def run(folder: Path) -> tuple[int, list[dict[str, Any]], str]:
        monkeypatch.setattr(sys, "argv", ["clipedit", "verify", str(folder), "--json"])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capfd.readouterr()
        return int(stop.value.code or 0), json.loads(out), err

    shutil.copytree(folders["onnx"], tmp_path / "wrong")
    change(tmp_path / "wrong", CLIP_JSON, OPEN_CLIP_FIELDS["mean"])
    code, checks, err = run(tmp_path / "wrong")
    assert code == 1 and [check["holds"] for check in checks] == [False] and "preprocess_cfg.mean" in err
    code, checks, err = run(tmp_path / "nothing")
    assert code == 1 and checks[0]["holds"] is False and "there is no such folder" in err
    code, checks, _ = run(folders["onnx"])
    assert code == 0 and len(checks) > 10 and all(check["holds"] for check in checks)
