"""Towers of CLIP and SigLIP in folders of their own: read, edited, and written back for the programs that read them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

import clipedit
from clipedit import AlignmentError, ExportError, ModelError, RecipeError
from clipedit.editor.edits.bind import bind_recipe
from clipedit.editor.edits.document import Base, RecipeDocument, Step
from clipedit.editor.images.demo import demo_calibration_source
from clipedit.editor.images.texts import text_source
from clipedit.export.edited_folder import require_writable
from clipedit.export.hf_folder import write_hf_folder

pytestmark = pytest.mark.usefixtures("verified_here")

TOWER = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
VISION = {**TOWER, "image_size": 32, "patch_size": 8}
# CLIP's own vocabulary, which comes with open_clip.
TEXT = {**TOWER, "vocab_size": 49408, "max_position_embeddings": 16, "eos_token_id": 49407, "bos_token_id": 49406}
SIZES = {
    "CLIPVisionModel": {"size": {"shortest_edge": 32}, "crop_size": 32, "image_processor_type": "CLIPImageProcessor"},
    "SiglipVisionModel": {"size": {"height": 32, "width": 32}, "image_processor_type": "SiglipImageProcessor"},
}
ALONE = (
    ("CLIPVisionModel", "CLIPVisionConfig", VISION),
    ("CLIPVisionModelWithProjection", "CLIPVisionConfig", {**VISION, "projection_dim": 24}),
    ("SiglipVisionModel", "SiglipVisionConfig", VISION),
    ("CLIPTextModel", "CLIPTextConfig", TEXT),
    ("CLIPTextModelWithProjection", "CLIPTextConfig", {**TEXT, "projection_dim": 24, "hidden_act": "gelu"}),
)
TEXTS = ("a photo of a bird", "water", "a bird on the water", "red", "a city street", "the ocean", "two dogs", "snow")


def randomise(model: torch.nn.Module) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim == 1 else 0.1))


def save_alone(folder: Path, name: str, config: str, sizes: dict[str, Any], *, dtype: torch.dtype | None = None) -> Any:
    """A tower with random gains and biases, as `save_pretrained` of transformers leaves it."""
    model: Any = getattr(transformers, name)(getattr(transformers, config)(**sizes)).eval()
    randomise(model)
    model = model if dtype is None else model.to(dtype)
    model.save_pretrained(folder)
    if "Vision" in name:
        processor = SIZES[name.removesuffix("WithProjection")]
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return model


def make_recipe(model: clipedit.Model, effect: Any, heads: tuple[str, ...] = ("L1H1",)) -> clipedit.Recipe:
    source: Any = text_source(TEXTS) if model.side == "text" else demo_calibration_source(16)
    scanned = clipedit.scan(model, source, workers=0, layers=range(3))
    step = Step(operation="zero-ablate", heads=heads)
    document = RecipeDocument(
        schema_version=1, name="none", base=Base(model=model.name), effect=effect, steps=(step,), tower=model.side
    )
    return bind_recipe(document, scanned, model)


def inputs_of(model: clipedit.Model) -> dict[str, torch.Tensor]:
    if model.side == "text":
        return {"input_ids": model.tokenizer(list(TEXTS)).long()}
    return {"pixel_values": torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))}


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("prefixed", [False, True])
@pytest.mark.parametrize(("name", "config", "sizes"), ALONE, ids=[name for name, *_ in ALONE])
def test_a_tower_alone_gives_transformers_embeddings_and_sums_to_them(
    tmp_path: Path, name: str, config: str, sizes: dict[str, Any], prefixed: bool
) -> None:
    theirs = save_alone(tmp_path, name, config, sizes)
    path, prefix = tmp_path / "model.safetensors", "vision_model." if "Vision" in name else "text_model."
    if prefixed and not name.endswith("WithProjection"):
        # As versions of transformers before the fifth wrote them.
        save_file({prefix + key: tensor for key, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    model = clipedit.load_model(tmp_path)
    given = inputs_of(model)
    with torch.no_grad():
        answer = theirs(**given)
    found = model.encode_tokens(given["input_ids"]) if model.side == "text" else model.encode_image(*given.values())
    projected = getattr(answer, "image_embeds", getattr(answer, "text_embeds", None))
    assert relative_error(found, answer.pooler_output if projected is None else projected) < 1e-5
    parts = clipedit.decompose(model, *given.values())
    assert relative_error(parts.contributions.sum(1) + parts.constant, found) < 1e-5


@pytest.mark.parametrize(("name", "config", "sizes"), ALONE, ids=[name for name, *_ in ALONE])
def test_an_edited_tower_keeps_its_layout_and_moves_what_its_readers_see(
    tmp_path: Path, name: str, config: str, sizes: dict[str, Any]
) -> None:
    half = torch.bfloat16 if name == "CLIPTextModel" else None
    save_alone(tmp_path / "base", name, config, sizes, dtype=half)
    model = clipedit.load_model(tmp_path / "base")
    write_folder(model, make_recipe(model, "total"), tmp_path / "out")
    assert_same_layout(tmp_path / "base", tmp_path / "out", changed={"encoder.layers.1.self_attn.out_proj"})
    # The reader's own class: the tokens that LLaVA and SDXL read, one layer before the last.
    kind = getattr(transformers, name)
    before, after = (kind.from_pretrained(tmp_path / folder).float().eval() for folder in ("base", "out"))
    moved = [relative_error(*pair) for pair in zip(*hidden(model, after, before), strict=True)]
    assert moved[0] == moved[1] == 0.0 and moved[2] > 1e-3 and moved[3] > 1e-3
    again = clipedit.load_model(tmp_path / "out")
    assert again.recipe is not None and again.hf_towers == model.hf_towers


def write_folder(model: clipedit.Model, recipe: clipedit.Recipe, out: Path) -> None:
    """As `write_edited_model`, without the child process that verifies."""
    out.mkdir()
    write_hf_folder(clipedit.apply_recipe(recipe, model), out)
    recipe.save(out / "recipe.yaml")


def hidden(model: clipedit.Model, *readers: Any) -> list[tuple[torch.Tensor, ...]]:
    with torch.no_grad():
        return [reader(**inputs_of(model), output_hidden_states=True).hidden_states for reader in readers]


def assert_same_layout(base: Path, out: Path, *, changed: set[str]) -> None:
    """The same files, tensors and types; bytes differ only in the named modules."""
    for path in base.iterdir():
        if path.suffix == ".json":
            assert (out / path.name).read_bytes() == path.read_bytes(), path.name
    names = sorted(path.name for path in base.glob("*.safetensors"))
    assert set(names) | {"recipe.safetensors"} == {path.name for path in out.glob("*.safetensors")}
    found = set()
    for name in names:
        before, after = load_file(base / name), load_file(out / name)
        assert before.keys() == after.keys()
        for key in before:
            assert before[key].dtype == after[key].dtype
            if not torch.equal(before[key], after[key]):
                found.add(key.rpartition(".")[0].removeprefix("vision_model.").removeprefix("text_model."))
    assert found == changed


@pytest.mark.parametrize("row", [1, 4], ids=["images", "texts"])
def test_distilled_moves_the_projected_output_and_no_hidden_state(tmp_path: Path, row: int) -> None:
    name, config, sizes = ALONE[row]
    save_alone(tmp_path / "base", name, config, sizes)
    model = clipedit.load_model(tmp_path / "base")
    write_folder(model, make_recipe(model, "distilled"), tmp_path / "out")
    kind = getattr(transformers, name)
    before, after = (kind.from_pretrained(tmp_path / folder).eval() for folder in ("base", "out"))
    assert all(torch.equal(*pair) for pair in zip(*hidden(model, before, after), strict=True))
    edited = clipedit.load_model(tmp_path / "out")
    given = next(iter(inputs_of(model).values()))
    answers = [one.encode_tokens(given) if one.side == "text" else one.encode_image(given) for one in (edited, model)]
    assert relative_error(*answers) > 1e-3


@pytest.mark.parametrize("row", [0, 2, 3], ids=["CLIP's images", "SigLIP's images", "texts"])
def test_distilled_is_refused_without_a_projection(tmp_path: Path, row: int) -> None:
    save_alone(tmp_path, *ALONE[row])
    model = clipedit.load_model(tmp_path)
    with pytest.raises(RecipeError, match="no final linear map .* Use --effect total or --effect direct"):
        make_recipe(model, "distilled")


def test_total_is_the_default_of_a_tower_alone_only(tmp_path: Path, demo_model: clipedit.Model) -> None:
    from clipedit.editor.edits.bind import default_effect

    save_alone(tmp_path, *ALONE[1])
    assert default_effect(clipedit.load_model(tmp_path)) == "total" and default_effect(demo_model) == "distilled"


def test_shards_stay_shards_and_pickled_weights_become_safetensors(tmp_path: Path) -> None:
    base = tmp_path / "base"
    save_alone(base, *ALONE[1], dtype=torch.float16)
    state = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    names = sorted(state)
    shards = {"model-00001-of-00002.safetensors": names[:20], "model-00002-of-00002.safetensors": names[20:]}
    for shard, inside in shards.items():
        save_file({name: state[name] for name in inside}, base / shard, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: shard for shard, inside in shards.items() for name in inside}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    model = clipedit.load_model(base)
    recipe = make_recipe(model, "total")
    write_folder(model, recipe, tmp_path / "out")
    assert_same_layout(base, tmp_path / "out", changed={"encoder.layers.1.self_attn.out_proj"})
    for path in [*base.glob("*.safetensors"), base / "model.safetensors.index.json"]:
        path.unlink()
    torch.save(state, base / "pytorch_model.bin")
    write_folder(clipedit.load_model(base), recipe, tmp_path / "pickled")
    written = load_file(tmp_path / "pickled" / "model.safetensors")
    both = {key: tensor for shard in shards for key, tensor in load_file(tmp_path / "out" / shard).items()}
    assert written.keys() == both.keys() and all(torch.equal(written[key], both[key]) for key in both)


def test_a_text_encoder_of_a_pipeline_is_found_and_its_tokenizer_beside_it(tmp_path: Path) -> None:
    pipeline = tmp_path / "pipeline"
    small = {**TEXT, "vocab_size": 40, "eos_token_id": 39, "bos_token_id": 38, "pad_token_id": 1}
    save_alone(pipeline / "text_encoder", "CLIPTextModel", "CLIPTextConfig", small)
    (pipeline / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(ModelError, match="pipeline of diffusers. Give its text encoder: `--model .*text_encoder --tow"):
        clipedit.load_model(pipeline)
    save_tokenizer(pipeline / "tokenizer")
    model = clipedit.load_model(pipeline / "text_encoder")
    assert model.tokenizer(["water bird"])[0].tolist()[:3] == [7, 5, 39]
    assert model.side == "text" and not model.has_images
    with pytest.raises(ModelError, match="text tower alone. Add --tower text"):
        model.with_tower("image")


def save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from tokenizers.processors import TemplateProcessing

    words = {word: number + 2 for number, word in enumerate(["a", "photo", "of", "bird", "on", "water", "the"])}
    tokenizer = Tokenizer(models.WordLevel({**words, "[PAD]": 1, "[UNK]": 0, "[EOS]": 39}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="$A [EOS]", special_tokens=[("[EOS]", 39)])
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[EOS]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole CLIP, its image tower alone with and without the projection, and another CLIP."""
    root = tmp_path_factory.mktemp("clips")
    for name in ("clip", "other"):
        sizes = {"text_config": TEXT, "vision_config": {**VISION, "projection_dim": 24}}
        config = transformers.CLIPConfig(**sizes, projection_dim=24)
        model = transformers.CLIPModel(config).eval()
        randomise(model)
        if name == "other":
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.2 * torch.randn_like(parameter))
        model.save_pretrained(root / name)
        (root / name / "preprocessor_config.json").write_text(json.dumps(SIZES["CLIPVisionModel"]))
    for kind in ("CLIPVisionModel", "CLIPVisionModelWithProjection"):
        getattr(transformers, kind).from_pretrained(root / "clip").save_pretrained(root / kind)
        shutil.copy(root / "clip" / "preprocessor_config.json", root / kind)
    return root


@pytest.mark.parametrize("kind", ["CLIPVisionModel", "CLIPVisionModelWithProjection"])
def test_an_image_tower_borrows_the_texts_of_its_own_clip(clip_folder: Path, kind: str) -> None:
    clip, alone = clipedit.load_model(clip_folder / "clip"), clipedit.load_model(clip_folder / kind)
    with pytest.raises(ModelError, match="no text tower. Name the CLIP whose image tower it is: `--aligner hf:FOLDER`"):
        alone.encode_text(["water"])
    model = clipedit.apply_aligner(alone, clip_folder / "clip")
    pixels = torch.randn(3, 3, 32, 32)
    assert torch.allclose(model.encode_image(pixels), clip.encode_image(pixels), atol=1e-6)
    assert torch.equal(model.encode_text(list(TEXTS)), clip.encode_text(list(TEXTS)))
    assert model.weights_hash == alone.weights_hash
    with pytest.raises(ModelError, match="of the image tower are that CLIP's. Give the CLIP that it came from"):
        clipedit.apply_aligner(alone, f"hf:{clip_folder / 'other'}")
    with pytest.raises(AlignmentError, match="no such file"):
        clipedit.apply_aligner(clip, "nothing")


def test_a_lent_projection_is_in_no_file_and_cannot_be_edited(clip_folder: Path) -> None:
    model = clipedit.apply_aligner(clipedit.load_model(clip_folder / "CLIPVisionModel"), clip_folder / "clip")
    with pytest.raises(RecipeError, match="projection is the CLIP's, not its own. Use --effect total"):
        make_recipe(model, "distilled")
    with pytest.raises(RecipeError, match="cannot write a direct edit .* Use --effect total"):
        require_writable("direct", model)
    with pytest.raises(ExportError, match="has no text tower, which onnx asks for. Use --target hf"):
        clipedit.export_model(model, clip_folder / "onnx", target="onnx")


def test_the_path_runs_on_an_image_tower_alone(clip_folder: Path, tmp_path: Path, run: Callable[..., Any]) -> None:
    done = run(
        *("remove-heads", "--model", clip_folder / "CLIPVisionModel", "--aligner", f"hf:{clip_folder / 'clip'}"),
        *("--concept", "location", "--images", "demo", "--force", "--heads", 2, "-o", tmp_path / "out"),
    )
    assert done.code == 0 and "total: the edit is in the layers" in done.err, done.err
    assert (
        "a Hugging Face folder in its own layout: float32" in done.err and (tmp_path / "out" / "report.html").is_file()
    )
    edited = clipedit.apply_aligner(clipedit.load_model(tmp_path / "out"), clip_folder / "clip")
    assert edited.encode_text(["water"]).shape == (1, 24)


def test_evaluate_measures_an_image_tower_with_the_texts_of_its_clip(
    clip_folder: Path, tmp_path: Path, run: Callable[..., Any]
) -> None:
    for number, name in enumerate(("red", "green", "blue") * 4):
        (tmp_path / name).mkdir(exist_ok=True)
        image = Image.effect_noise((32, 32), 60 + 10 * number).convert("RGB")
        Image.blend(image, Image.new("RGB", (32, 32), name), 0.5).save(tmp_path / name / f"{number}.png")
    alone, whole = clip_folder / "CLIPVisionModelWithProjection", f"hf:{clip_folder / 'clip'}"
    options = ("--dataset", tmp_path, "--json", "--no-cache")
    done = run("evaluate", alone, "--aligner", whole, *options)
    assert done.code == 0, done.err
    (found,) = json.loads(done.out).values()
    (expected,) = json.loads(run("evaluate", whole, *options).out).values()
    assert found == expected and [group["n"] for group in found["groups"]] == [4, 4, 4]
    done = run("evaluate", alone, *options)
    assert done.code == 1 and "it has neither texts nor a classifier" in done.err and "add --aligner" in done.err
    done = run("evaluate", alone, "--aligner", f"hf:{clip_folder / 'other'}", *options)
    assert done.code == 1 and "Give the CLIP that it came from" in " ".join(done.err.split())


def test_the_path_runs_on_a_text_tower_alone(tmp_path: Path, run: Callable[..., Any]) -> None:
    save_alone(tmp_path / "text_encoder", *ALONE[3])
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(f"{text} {number}" for text in TEXTS for number in range(8)))
    arguments = ("remove-heads", "--model", tmp_path / "text_encoder", "--concept", "location", "--images", texts)
    options = ("--heads", 2, "-o", tmp_path / "out", "--force")
    assert "Add --tower text" in run(*arguments, *options).err
    done = run(*arguments, *options, "--tower", "text")
    assert done.code == 0 and "total: the edit is in the layers" in done.err, done.err
