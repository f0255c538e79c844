"""Checkpoints as people have them: wrappers' prefixes, averages, training files, other architectures, no hub."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
import transformers
from huggingface_hub import constants
from safetensors.torch import load_file, save_file, save_model
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

import clipedit
from clipedit import ModelError, RecipeError
from clipedit.editor.edits.bind import bind_recipe
from clipedit.editor.edits.diff import diff_models
from clipedit.editor.edits.document import Base, RecipeDocument, Step
from clipedit.editor.files.checkpoint import find_layout
from clipedit.editor.images.demo import demo_calibration_source
from clipedit.editor.images.demo_name import demo_folder
from clipedit.editor.models.hub import reach
from clipedit.export.edited_folder import apply_to_folder, write_edited_model
from clipedit.export.verify.reference import load_reference

State = dict[str, Tensor]
WEIGHTS, CONFIG = "open_clip_model.safetensors", "open_clip_config.json"
PREFIXES = ("module.", "_orig_mod.", "model.", "module._orig_mod.", "_orig_mod.module.", "model._orig_mod.module.")


def prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def averaged(state: State) -> State:
    """What an average of other weights would be."""
    return {name: tensor * 0.5 for name, tensor in state.items()}


def training(state: State) -> State:
    return {f"optimizer.state.{i}.exp_avg": torch.zeros_like(tensor) for i, tensor in enumerate(state.values())}


# What lies in a file of safetensors, from the plain state.
FLAT: dict[str, Callable[[State], State]] = {
    **{prefix: lambda state, prefix=prefix: prefixed(state, prefix) for prefix in PREFIXES},
    "a compiled tower": lambda state: {
        name.replace("visual.", "visual._orig_mod."): tensor for name, tensor in state.items()
    },
    "an average beside": lambda state: state | prefixed(averaged(state), "ema."),
    "an average beside, both wrapped": lambda state: (
        prefixed(state, "model.") | prefixed(averaged(state), "model_ema.module.")
    ),
    "the average alone": lambda state: prefixed(state, "ema_model."),
    "the optimizer's state": lambda state: prefixed(state, "module.") | training(state),
    "a student": lambda state: prefixed(state, "student.module."),
    "a part of a module of Lightning": lambda state: prefixed(state, "model.clip_model."),
    "PEFT's": lambda state: prefixed(state, "base_model.model."),
    "a counted average": lambda state: prefixed(state, "module.") | {"n_averaged": torch.tensor(7)},
}
# What is in a file of PyTorch.
NESTED: dict[str, Callable[[State], Any]] = {
    "plain": lambda state: state,
    "open_clip's": lambda state: {
        "epoch": 3,
        "name": "run",
        "state_dict": prefixed(state, "module."),
        "optimizer": {"state": {0: {"step": torch.tensor(5.0)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]},
    },
    "timm's": lambda state: {"state_dict": state, "state_dict_ema": averaged(state), "arch": "x"},
    "model and average": lambda state: {
        "model": prefixed(state, "_orig_mod."),
        "ema": prefixed(averaged(state), "module."),
    },
    "Lightning's": lambda state: {
        "state_dict": prefixed(state, "model."),
        "optimizer_states": [{"state": {}}],
        "callbacks": {},
        "global_step": 9,
    },
    "a model_state_dict": lambda state: {"model_state_dict": state, "optimizer_state_dict": {"state": {}}},
    "the average alone": lambda state: {"ema_state_dict": prefixed(state, "module.")},
}


@pytest.fixture(scope="module")
def plain() -> State:
    return load_file(demo_folder() / WEIGHTS)


@pytest.fixture(scope="module")
def recipe(demo_model: clipedit.Model) -> clipedit.Recipe:
    scanned = clipedit.scan(demo_model, demo_calibration_source(64), workers=0)
    return clipedit.make_recipe(scanned, demo_model, concept="location", heads=3, effect="total", output_strength=0.5)


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.randn(2, 3, 64, 64)


def write_folder(folder: Path, state: State | None = None) -> Path:
    folder.mkdir()
    shutil.copy(demo_folder() / CONFIG, folder)
    shutil.copy(demo_folder() / "texts.txt", folder)
    if state is not None:
        save_file(state, folder / WEIGHTS)
    return folder


@pytest.mark.parametrize("kind", FLAT)
def test_a_safetensors_file_of_any_layout_is_the_plain_model_and_is_edited_in_its_layout(
    kind: str, plain: State, demo_model: clipedit.Model, recipe: clipedit.Recipe, tmp_path: Path
) -> None:
    pixels = torch.randn(2, 3, 64, 64)
    folder = write_folder(tmp_path / "base", FLAT[kind](plain))
    model = clipedit.load_model(str(folder))
    assert torch.equal(model.encode_image(pixels), demo_model.encode_image(pixels))
    assert model.weights_hash == demo_model.weights_hash
    apply_to_folder(recipe, folder, tmp_path / "out")
    edited = clipedit.load_model(str(tmp_path / "out"))
    assert torch.equal(edited.encode_image(pixels), clipedit.apply_recipe(recipe, demo_model).encode_image(pixels))
    # The same names, but for what is of the unedited model.
    written, given = load_file(tmp_path / "out" / WEIGHTS), load_file(folder / WEIGHTS)
    kept = set(find_layout(given, "").names.values())
    assert written.keys() == kept and len(kept) == len(plain)
    assert diff_models(folder, tmp_path / "out").others == ()
    changed = {name for name in kept if not torch.equal(written[name], given[name])}
    edits = clipedit.apply_recipe(recipe, demo_model).stored_state()
    assert {find_layout([name], "").names.popitem()[0] for name in changed} == {
        name for name, tensor in plain.items() if not torch.equal(tensor, edits[name])
    }


def test_weights_that_are_not_looked_for_are_named(plain: State, tmp_path: Path) -> None:
    torch.save(plain, write_folder(tmp_path / "base") / "epoch_32.pt")
    with pytest.raises(ModelError, match="holds no weights, and epoch_32.pt is not looked for: rename it"):
        clipedit.load_model(str(tmp_path / "base"))


@pytest.mark.parametrize("kind", NESTED)
def test_a_pytorch_file_of_any_layout_is_the_plain_model(
    kind: str, plain: State, demo_model: clipedit.Model, pixels: Tensor, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "base")
    torch.save(NESTED[kind](plain), folder / "open_clip_pytorch_model.bin")
    model = clipedit.load_model(str(folder))
    assert torch.equal(model.encode_image(pixels), demo_model.encode_image(pixels))
    assert model.encode_text(["a photo"]).shape == (1, demo_model.tower.d_embed)


@pytest.mark.usefixtures("verified_here")
def test_an_edited_folder_under_a_prefix_is_written_and_verified(
    plain: State, recipe: clipedit.Recipe, tmp_path: Path
) -> None:
    targets: list[str] = []
    for prefix in ("_orig_mod.", "module."):
        model = clipedit.load_model(str(write_folder(tmp_path / f"base{prefix}", prefixed(plain, prefix))))
        checks = write_edited_model(recipe, model, tmp_path / f"out{prefix}")
        assert checks and all(check.holds for check in checks)
        targets.append(load_reference(tmp_path / f"out{prefix}").target)
    # open_clip itself takes off DDP's prefix only.
    assert targets == ["clipedit", "open-clip"]


def test_a_file_with_two_models_is_refused(plain: State, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "base", prefixed(plain, "model.") | averaged(plain))
    with pytest.raises(ModelError, match="is there twice, as .*. Keep the model that is meant"):
        clipedit.load_model(str(folder))


def test_tied_tensors_of_save_model_are_both_there(demo_model: clipedit.Model, pixels: Tensor, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "base")
    module: Any = clipedit.load_model("demo").module
    module.visual.transformer.resblocks[1].mlp = module.visual.transformer.resblocks[0].mlp
    save_model(module, str(folder / WEIGHTS))
    assert len(load_file(folder / WEIGHTS)) < len(module.state_dict())
    model = clipedit.load_model(str(folder))
    with torch.no_grad():
        assert torch.equal(model.encode_image(pixels), module.encode_image(pixels))
    # No place for an edit of one of the two: such a model is written anew.
    assert model.checkpoint is None


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The demo's architecture as one that open_clip knows by a name."""
    config = json.loads((demo_folder() / CONFIG).read_text())["model_cfg"]
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-test", config)
    yield "tiny-test"


def test_a_checkpoint_of_another_architecture_is_told_by_names_and_by_what_fits(tmp_path: Path) -> None:
    with torch.device("meta"):
        other: nn.Module = open_clip.create_model("ViT-B-16", load_weights=False, device="meta")
    state = {
        name: torch.zeros((), dtype=torch.float16).expand(tensor.shape) for name, tensor in other.state_dict().items()
    }
    path = tmp_path / "clip.pt"
    # Expanded zeros are stored as one number each: the file is small.
    torch.save({"state_dict": prefixed(state, "module.")}, path)
    with pytest.raises(ModelError) as caught:
        clipedit.load_model("ViT-B-32", pretrained=str(path))
    assert "its tensors are not those of ViT-B-32" in str(caught.value)
    assert "visual.conv1.weight is (768, 3, 16, 16), not (768, 3, 32, 32)" in str(caught.value)
    assert "All its tensors fit ViT-B-16" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="does not say its architecture. All its tensors fit ViT-B-16 .*--pretrained"):
        clipedit.load_model(str(path))


def test_missing_and_unexpected_tensors_are_named(named: str, plain: State, tmp_path: Path) -> None:
    changed = {name: tensor for name, tensor in plain.items() if not name.startswith("transformer.resblocks.0.")}
    save_file(changed | {"head.weight": torch.zeros(2)}, tmp_path / "clip.safetensors")
    with pytest.raises(ModelError, match=r"12 missing \(transformer\.resblocks\.0\..*; 1 unexpected \(head\.weight\)"):
        clipedit.load_model(named, pretrained=str(tmp_path / "clip.safetensors"))


@pytest.mark.parametrize("prefix", ["tower.", "tower.of.ours."])
def test_names_under_a_word_that_is_not_known_are_told_so(prefix: str, plain: State, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "base", prefixed(plain, prefix))
    with pytest.raises(ModelError, match=f"All its names begin with `{prefix}`: write it without, and it can be read"):
        clipedit.load_model(str(folder))


def test_a_student_beside_its_teacher_is_refused_with_both_names(plain: State) -> None:
    with pytest.raises(ModelError, match=r"is there twice, as student\..* and as teacher\..* Keep the model that is"):
        find_layout([*prefixed(plain, "student."), *prefixed(plain, "teacher.")], "both.pt")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("vision_model.embeddings.class_embedding",), "names are those of Hugging Face: .*--model hf:FOLDER"),
        (("something.else",), "No architecture of open_clip or timm is near it"),
    ],
)
def test_a_file_alone_is_told_how_to_name_its_architecture(
    names: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    save_file({name: torch.zeros(2) for name in names}, tmp_path / "clip.safetensors")
    with pytest.raises(ModelError, match=message):
        clipedit.load_model(str(tmp_path / "clip.safetensors"))


def test_a_file_of_timm_is_told_its_name(tmp_path: Path) -> None:
    module = timm.create_model("vit_tiny_patch16_224", depth=12, num_classes=3)
    torch.save({"model": {k: v.half() for k, v in module.state_dict().items()}, "epoch": 1}, tmp_path / "best.pth")
    with pytest.raises(ModelError, match="fit .*vit_tiny_patch16_224.* of timm: `--model "):
        clipedit.load_model(str(tmp_path / "best.pth"))
    loaded = clipedit.load_model("vit_tiny_patch16_224", pretrained=str(tmp_path / "best.pth"))
    assert loaded.classify(torch.zeros(1, 3, 224, 224)).shape == (1, 3)
    with pytest.raises(
        ModelError, match="not those of vit_small_patch16_224: cls_token is .1, 1, 192., not .1, 1, 384."
    ):
        clipedit.load_model("vit_small_patch16_224", pretrained=str(tmp_path / "best.pth"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"nothing", "no checkpoint of PyTorch"),
        ({"args": __import__("argparse").Namespace(lr=1)}, r"could run code \(it holds argparse.Namespace\)"),
        ({"epoch": 3}, "it holds no tensors, but a dict"),
    ],
)
def test_a_file_that_is_no_checkpoint_has_its_own_reason(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "clip.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ModelError, match=message):
        clipedit.load_model("ViT-B-32", pretrained=str(path))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_folder_of_another_image_size_is_resized(
    dtype: torch.dtype, plain: State, recipe: clipedit.Recipe, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "base", {name: tensor.to(dtype) for name, tensor in plain.items()})
    config = json.loads((folder / CONFIG).read_text())
    config["model_cfg"]["vision_cfg"]["image_size"] = 96
    config["preprocess_cfg"]["size"] = 96
    (folder / CONFIG).write_text(json.dumps(config))
    model = clipedit.load_model(str(folder))
    save_file({name: tensor.to(dtype).float() for name, tensor in plain.items()}, folder / WEIGHTS)
    expected = clipedit.load_model(str(folder))
    pixels = torch.randn(2, 3, 96, 96)
    assert torch.allclose(model.encode_image(pixels), expected.encode_image(pixels), atol=1e-5)


def test_the_configuration_beside_a_file_is_used(named: str, plain: State, pixels: Tensor, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "base", plain)
    config = json.loads((folder / CONFIG).read_text())
    config["preprocess_cfg"]["mean"] = [0.1, 0.2, 0.3]
    config["model_cfg"]["quick_gelu"] = not config["model_cfg"].get("quick_gelu", False)
    (folder / CONFIG).write_text(json.dumps(config))
    model, whole = clipedit.load_model(named, pretrained=str(folder / WEIGHTS)), clipedit.load_model(str(folder))
    assert model.config["preprocess_cfg"]["mean"] == [0.1, 0.2, 0.3]
    assert torch.equal(model.encode_image(pixels), whole.encode_image(pixels))
    assert not torch.equal(model.encode_image(pixels), clipedit.load_model("demo").encode_image(pixels))


def test_a_configuration_of_another_architecture_is_said_not_to_be_used(
    named: str, plain: State, pixels: Tensor, demo_model: clipedit.Model, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "base", plain)
    config = json.loads((folder / CONFIG).read_text())
    config["model_cfg"]["vision_cfg"]["layers"] += 1
    (folder / CONFIG).write_text(json.dumps(config))
    with pytest.warns(UserWarning, match=f"{CONFIG} is not used: it is not of tiny-test .vision_cfg.layers is"):
        model = clipedit.load_model(named, pretrained=str(folder / WEIGHTS))
    assert torch.equal(model.encode_image(pixels), demo_model.encode_image(pixels))


@pytest.mark.parametrize("of", ["folder", "file"])
def test_the_same_weights_under_another_configuration_are_refused_file_to_file(
    of: str, plain: State, recipe: clipedit.Recipe, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "base", prefixed(plain, "module."))
    base = folder if of == "folder" else folder / WEIGHTS
    apply_to_folder(recipe, base, tmp_path / "out")
    config = json.loads((folder / CONFIG).read_text())
    config["preprocess_cfg"]["mean"] = [0.1, 0.2, 0.3]
    (folder / CONFIG).write_text(json.dumps(config))
    with pytest.raises(RecipeError, match="the weights are the same, but preprocess_cfg.mean"):
        apply_to_folder(recipe, base, tmp_path / "other")


def write_timm_folder(folder: Path) -> None:
    module = timm.create_model("test_vit", num_classes=3)
    folder.mkdir()
    save_file(prefixed(module.state_dict(), "module."), folder / "model.safetensors")
    save_config_for_hf(module, str(folder / "config.json"))


@pytest.mark.parametrize("of", ["timm", "hugging face"])
def test_the_same_weights_of_timm_and_hugging_face_under_other_preprocessing_are_refused(
    of: str, tmp_path: Path, run: Callable[..., Any]
) -> None:
    folder, out = tmp_path / "base", tmp_path / "out"
    write_timm_folder(folder) if of == "timm" else write_hf_folder(folder)
    given = str(folder) if of == "timm" else f"hf:{folder}"
    model = clipedit.load_model(given)
    document = RecipeDocument(
        schema_version=1,
        name="one-head",
        base=Base(model=given),
        effect="total",
        steps=(Step(operation="mean-ablate", heads=("L0H0",)),),
    )
    bind_recipe(document, clipedit.scan(model, demo_calibration_source(8), layers=[0], workers=0), model).save(
        tmp_path / "r.yaml"
    )
    if of == "timm":
        # From file to file, under the names that the file has.
        assert run("apply", tmp_path / "r.yaml", "--model", given, "-o", out).code == 0
        written, before = load_file(out / "model.safetensors"), load_file(folder / "model.safetensors")
        changed = {name for name in written if not torch.equal(written[name], before[name])}
        assert written.keys() == before.keys()
        assert changed == {f"module.blocks.0.attn.proj.{leaf}" for leaf in ("weight", "bias")}
        shutil.rmtree(out)
    path = folder / ("config.json" if of == "timm" else "preprocessor_config.json")
    said = json.loads(path.read_text())
    (said["pretrained_cfg"] if of == "timm" else said)["mean" if of == "timm" else "image_mean"] = [0.1] * 3
    path.write_text(json.dumps(said))
    result = run("apply", tmp_path / "r.yaml", "--model", given, "-o", out)
    assert result.code == 1 and "the weights are the same, but" in result.err and "mean" in result.err, result.err
    assert not out.exists()


def write_hf_folder(folder: Path) -> None:
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={**tower, "max_position_embeddings": 8},
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    transformers.CLIPModel(config).save_pretrained(folder)
    sizes = {"size": {"shortest_edge": 32}, "crop_size": 32, "image_processor_type": "CLIPImageProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(sizes))


@pytest.mark.parametrize("offline", [True, False])
def test_without_a_hub_a_name_is_refused_within_seconds(
    offline: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    # A port of this machine that nothing listens on.
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    reach.is_reachable.cache_clear()
    started = time.monotonic()
    for name, tag in (("ViT-B-32", "laion2b_s34b_b79k"), ("vit_tiny_patch16_224", "augreg_in21k")):
        with pytest.raises(ModelError) as caught:
            clipedit.load_model(name, pretrained=tag)
        said = str(caught.value)
        assert ("HF_HUB_OFFLINE is set" if offline else "http://127.0.0.1:9 cannot be reached") in said
        assert "not in the cache" in said and "--pretrained FILE" in said and "\n" not in said
    assert time.monotonic() - started < 10
    assert constants.HF_HUB_OFFLINE is offline
