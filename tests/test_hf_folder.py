"""`hf:FOLDER`: Hugging Face's models in open_clip's modules give transformers' own embeddings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

import clipedit
from clipedit import ModelError
from clipedit.editor.images.demo import demo_calibration_source
from clipedit.editor.models.hf.config import convert_clip_config, convert_siglip_config
from clipedit.editor.models.hf.folder import load_hf_folder
from clipedit.export.edited_folder import write_edited_model

TOWER = {"hidden_size": 48, "intermediate_size": 97, "num_hidden_layers": 2, "num_attention_heads": 3}
VISION = {**TOWER, "image_size": 32, "patch_size": 8}
TEXT = {
    **TOWER,
    "vocab_size": 40,
    "max_position_embeddings": 12,
    "bos_token_id": 38,
    "eos_token_id": 39,
    "pad_token_id": 1,
}
WORDS = ["a", "photo", "of", "bird", "on", "water", "the"]
TEXTS = ["a photo of a bird", "water", "the bird on the water of a photo"]
WATER = clipedit.Concept(name="water", texts=("water", "a photo of water", "the water", "on the water"))


def random_folder(folder: Path, kind: str, *, act: str, eos: int = 39) -> transformers.PreTrainedModel:
    """A model with random gains and biases, its preprocessing and a tokenizer that ends texts with token 39."""
    torch.manual_seed(0)
    text, vision = {**TEXT, "hidden_act": act, "eos_token_id": eos}, {**VISION, "hidden_act": act}
    if kind == "clip":
        model = transformers.CLIPModel(
            transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
        )
        processor = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    else:
        model = transformers.SiglipModel(
            transformers.SiglipConfig(text_config={**text, "projection_size": 48}, vision_config=vision)
        )
        processor = transformers.SiglipImageProcessor(size={"height": 32, "width": 32})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim == 1 else 0.1))
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    vocabulary = {**{word: number + 2 for number, word in enumerate(WORDS)}, "[PAD]": 1, "[UNK]": 0, "[EOS]": 39}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    from tokenizers.processors import TemplateProcessing

    tokenizer.post_processor = TemplateProcessing(single="$A [EOS]", special_tokens=[("[EOS]", 39)])
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]"
    )
    wrapped.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    ("kind", "act", "eos"),
    [
        ("clip", "quick_gelu", 39),
        ("clip", "gelu", 2),
        ("clip", "gelu_new", 5),
        ("siglip", "gelu_pytorch_tanh", 39),
        ("siglip", "gelu", 39),
    ],
)
def test_the_embeddings_are_those_of_transformers(tmp_path: Path, kind: str, act: str, eos: int) -> None:
    theirs = random_folder(tmp_path, kind, act=act, eos=eos)
    module: Any = load_hf_folder(tmp_path).module
    pixels = torch.randn(3, 3, 32, 32)
    tokens = transformers.AutoTokenizer.from_pretrained(tmp_path)(
        TEXTS, padding="max_length", max_length=12, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        images, texts = theirs.get_image_features(pixel_values=pixels), theirs.get_text_features(input_ids=tokens)
        assert relative_error(module.encode_image(pixels), pooled(images)) < 1e-5
        assert relative_error(module.encode_text(tokens), pooled(texts)) < 1e-5


def test_preprocessing_and_tokenizer_are_those_of_the_folder(tmp_path: Path) -> None:
    random_folder(tmp_path, "clip", act="quick_gelu")
    model = clipedit.load_model(f"hf:{tmp_path}")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    pixels = transformers.AutoImageProcessor.from_pretrained(tmp_path)(image, return_tensors="pt")["pixel_values"]
    assert torch.allclose(model.preprocess(image)[None], pixels, atol=1e-6)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    tokens = tokenizer(TEXTS, padding="max_length", max_length=12, return_tensors="pt").input_ids
    assert torch.equal(model.tokenizer(TEXTS), tokens)
    assert model.encode_text(TEXTS).shape == (3, 24)


def test_a_folder_of_siglip_is_decomposed_and_edited(tmp_path: Path) -> None:
    random_folder(tmp_path, "siglip", act="gelu_pytorch_tanh")
    model = clipedit.load_model(f"hf:{tmp_path}")
    pixels = torch.randn(3, 3, 32, 32)
    parts = clipedit.decompose(model, pixels)
    assert relative_error(parts.contributions.sum(1) + parts.constant, model.encode_image(pixels)) < 1e-5
    assert model.tokenizer(TEXTS)[0].tolist() == [2, 3, 4, 2, 5, 39, *[1] * 6]
    scanned = clipedit.scan(model, demo_calibration_source(8), workers=0)
    edited = clipedit.apply_recipe(clipedit.make_recipe(scanned, model, concept=WATER, heads=1, effect="total"), model)
    assert relative_error(edited.encode_image(pixels), model.encode_image(pixels)) > 1e-3


def pooled(answer: torch.Tensor | transformers.utils.ModelOutput) -> torch.Tensor:
    return answer if isinstance(answer, torch.Tensor) else answer.pooler_output


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_shards_and_pytorch_files_are_the_same_model(tmp_path: Path) -> None:
    random_folder(tmp_path, "clip", act="quick_gelu")
    whole = clipedit.load_model(f"hf:{tmp_path}")
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    path.unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert clipedit.load_model(f"hf:{tmp_path}").weights_hash == whole.weights_hash
    names = sorted(state)
    shards = {"a.safetensors": names[:20], "b.safetensors": names[20:]}
    for shard, inside in shards.items():
        save_file({name: state[name] for name in inside}, tmp_path / shard)
    index = {"metadata": {}, "weight_map": {name: shard for shard, inside in shards.items() for name in inside}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert clipedit.load_model(f"hf:{tmp_path}").weights_hash == whole.weights_hash


def split_in_two(folder: Path, names: list[str], suffix: str) -> dict[str, list[str]]:
    """An index for two shards of the given names."""
    shards = {f"a{suffix}": names[: len(names) // 2], f"b{suffix}": names[len(names) // 2 :]}
    index = {"metadata": {}, "weight_map": {name: shard for shard, inside in shards.items() for name in inside}}
    whole = "model.safetensors" if suffix == ".safetensors" else "pytorch_model.bin"
    (folder / f"{whole}.index.json").write_text(json.dumps(index))
    return shards


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_found_where_transformers_finds_them(tmp_path: Path, dtype: torch.dtype) -> None:
    random_folder(tmp_path, "clip", act="quick_gelu")
    path = tmp_path / "model.safetensors"
    state = {name: tensor.to(dtype) for name, tensor in load_file(path).items()}
    save_file(state, path, metadata={"format": "pt"})
    # An index that was left behind, of shards that hold other numbers.
    for shard, names in split_in_two(tmp_path, sorted(state), ".safetensors").items():
        save_file({name: state[name] * 0 for name in names}, tmp_path / shard, metadata={"format": "pt"})
    require_embeddings_of_transformers(tmp_path)
    whole = clipedit.load_model(f"hf:{tmp_path}").weights_hash
    path.unlink()
    (tmp_path / "model.safetensors.index.json").unlink()
    for shard, names in split_in_two(tmp_path, sorted(state), ".bin").items():
        torch.save({name: state[name] for name in names}, tmp_path / shard)
    require_embeddings_of_transformers(tmp_path)
    assert clipedit.load_model(f"hf:{tmp_path}").weights_hash == whole


def require_embeddings_of_transformers(folder: Path) -> None:
    theirs = transformers.CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    pixels = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        found = pooled(theirs.get_image_features(pixel_values=pixels))
    assert relative_error(clipedit.load_model(f"hf:{folder}").encode_image(pixels), found) < 1e-5


@pytest.mark.parametrize("layout", ["module.", "_orig_mod.module.", "model.", "with an average"])
def test_weights_of_a_training_are_those_of_the_model(tmp_path: Path, layout: str) -> None:
    random_folder(tmp_path, "clip", act="quick_gelu")
    whole = clipedit.load_model(f"hf:{tmp_path}").weights_hash
    state = load_file(tmp_path / "model.safetensors")
    if layout == "with an average":
        changed = state | {f"ema.{name}": tensor * 0.5 for name, tensor in state.items()}
    else:
        changed = {f"{layout}{name}": tensor for name, tensor in state.items()}
    save_file(changed, tmp_path / "model.safetensors")
    assert clipedit.load_model(f"hf:{tmp_path}").weights_hash == whole


def test_another_image_size_is_said(tmp_path: Path) -> None:
    random_folder(tmp_path, "clip", act="quick_gelu")
    config = json.loads((tmp_path / "config.json").read_text())
    config["vision_config"]["image_size"] = 64
    (tmp_path / "config.json").write_text(json.dumps(config))
    sizes = {"size": {"shortest_edge": 64}, "crop_size": 64, "image_processor_type": "CLIPImageProcessor"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(sizes))
    with pytest.raises(ModelError, match="positional_embedding is .17, 48., not .65, 48.* set `image_size` to it"):
        clipedit.load_model(f"hf:{tmp_path}")


def write_as(folder: Path, layout: str) -> None:
    """The folder's weights in two shards, or pickled; else as they are."""
    state = load_file(folder / "model.safetensors")
    if layout == "one file":
        return
    (folder / "model.safetensors").unlink()
    if layout == "pickled":
        torch.save(state, folder / "pytorch_model.bin")
    else:
        for shard, names in split_in_two(folder, sorted(state), ".safetensors").items():
            save_file({name: state[name] for name in names}, folder / shard, metadata={"format": "pt"})


def files_of_the_model(folder: Path) -> dict[str, bytes]:
    kept = [*folder.glob("*.safetensors"), *folder.glob("*.json"), *folder.glob("recipe.*")]
    return {path.name: path.read_bytes() for path in kept if not path.name.startswith(("verification", "scan"))}


@pytest.mark.usefixtures("verified_here")
@pytest.mark.parametrize("layout", ["one file", "two shards", "pickled"])
def test_an_edited_folder_is_undone_to_the_byte(run, tmp_path: Path, layout: str) -> None:  # type: ignore[no-untyped-def]
    random_folder(tmp_path / "hf", "clip", act="gelu")
    write_as(tmp_path / "hf", layout)
    places = [tmp_path / "hf", tmp_path / "once", tmp_path / "twice"]
    effects = ("total", "direct" if layout == "one file" else "distilled")
    for base, out, effect in zip(places, places[1:], effects, strict=False):
        model = clipedit.load_model(f"hf:{base}")
        scanned = clipedit.scan(model, demo_calibration_source(8), workers=0)
        write_edited_model(clipedit.make_recipe(scanned, model, concept=WATER, heads=1, effect=effect), model, out)  # type: ignore[arg-type]
    said = json.loads(run("log", places[2], "--json").out)
    assert [edit["effect"] for edit in said["edits"]] == list(effects) and said["changed"] == []
    # A `direct` edit changes no tensor; the names are those of the files.
    assert [bool(edit["replaced"]) for edit in said["edits"]] == [True, effects[1] != "direct"]
    assert all(name.startswith("vision_model.encoder.layers.") for name in said["edits"][0]["replaced"])
    assert run("apply", "--undo", places[2], "-o", tmp_path / "a").code == 0
    assert files_of_the_model(tmp_path / "a") == files_of_the_model(places[1])
    assert run("apply", "--undo", tmp_path / "a", "-o", tmp_path / "b").code == 0
    if layout == "pickled":
        base, back = torch.load(places[0] / "pytorch_model.bin"), load_file(tmp_path / "b" / "model.safetensors")
        assert base.keys() == back.keys() and all(torch.equal(back[name], tensor) for name, tensor in base.items())
    else:
        assert files_of_the_model(tmp_path / "b") == files_of_the_model(places[0])
    changed = next(places[2].rglob("tokenizer.json"))
    changed.write_text(changed.read_text() + " ")
    for refused in (run("log", places[2]), run("apply", "--undo", places[2], "-o", tmp_path / "c")):
        assert refused.code == 1 and "tokenizer.json" in refused.err


def test_a_folder_of_clip_is_scanned_edited_and_written_in_its_own_layout(tmp_path: Path) -> None:
    import open_clip

    from clipedit.export.targets.open_clip import write_open_clip_folder

    random_folder(tmp_path / "hf", "clip", act="gelu")
    model = clipedit.load_model(f"hf:{tmp_path / 'hf'}")
    scanned = clipedit.scan(model, demo_calibration_source(8), workers=0)
    recipe = clipedit.make_recipe(scanned, model, concept=WATER, heads=1, effect="total")
    assert all(check.holds for check in write_edited_model(recipe, model, tmp_path / "out", scan=scanned))
    for path in (tmp_path / "hf").glob("*.json"):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name
    theirs, edited = transformers.CLIPModel.from_pretrained(tmp_path / "out"), clipedit.load_model(tmp_path / "out")
    pixels = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        found = pooled(theirs.eval().get_image_features(pixel_values=pixels))
    assert relative_error(edited.encode_image(pixels), found) < 1e-5
    assert relative_error(model.encode_image(pixels), found) > 1e-4
    # For open_clip it is exported.
    (tmp_path / "open-clip").mkdir()
    write_open_clip_folder(edited.as_shipped, tmp_path / "open-clip")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'open-clip'}")
    assert tokenizer(TEXTS).tolist() == model.tokenizer(TEXTS).tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config.json": None}, "it has no config.json"),
        ({"config.json": "{"}, "cannot read .*config.json"),
        ({"config.json": {"model_type": "blip"}}, "of type 'blip': `clip` and `siglip` are known"),
        (
            {"config.json": {"model_type": "clip", "vision_config": VISION}},
            "does not describe the weights|has no tensor",
        ),
        ({"model.safetensors": None}, "neither model.safetensors nor pytorch_model.bin"),
        (
            {"model.safetensors": None, "model.fp16.safetensors": ""},
            "model.fp16.safetensors is a variant, rename it",
        ),
        ({"preprocessor_config.json": None, "processor_config.json": None}, "no preprocessor_config.json"),
    ],
)
def test_a_folder_that_cannot_be_read_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    random_folder(tmp_path, "clip", act="gelu")
    for name, content in change.items():
        (tmp_path / name).unlink(missing_ok=True)
        if content is not None:
            (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ModelError, match=message):
        clipedit.load_model(f"hf:{tmp_path}")


def test_a_missing_folder_and_a_pretrained_tag_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        clipedit.load_model(f"hf:{tmp_path / 'nothing'}")
    with pytest.raises(ModelError, match="holds its own weights"):
        clipedit.load_model(f"hf:{tmp_path}", pretrained="openai")


def test_what_open_clip_cannot_hold_is_refused() -> None:
    text = {"hidden_act": "gelu"}
    with pytest.raises(ModelError, match="its towers use quick_gelu and gelu"):
        convert_clip_config({"model_type": "clip", "text_config": text})
    with pytest.raises(ModelError, match="activation is 'relu'"):
        convert_clip_config(
            {"model_type": "clip", "text_config": {"hidden_act": "relu"}, "vision_config": {"hidden_act": "relu"}}
        )
    with pytest.raises(ModelError, match="no pooling head"):
        convert_siglip_config({"model_type": "siglip", "vision_config": {"vision_use_head": False}})


def test_sizes_that_a_file_leaves_out_are_those_of_transformers() -> None:
    for kind, section in (("clip", transformers.CLIPConfig()), ("siglip", transformers.SiglipConfig())):
        convert = convert_clip_config if kind == "clip" else convert_siglip_config
        assert convert({"model_type": kind}) == convert(section.to_dict())
