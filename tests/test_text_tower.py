"""The text tower is decomposed, scored and edited by the same stages as the image tower."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.transform import PreprocessCfg

import clipedit
from clipedit.demo import world
from clipedit.editor.concepts.concepts import load_concept
from clipedit.editor.concepts.directions import concept_directions
from clipedit.editor.edits.bind import bind_recipe
from clipedit.editor.edits.document import Base, RecipeDocument, Step
from clipedit.editor.images.demo import render_source
from clipedit.editor.images.source import LabelledImages
from clipedit.editor.images.texts import list_texts, text_source
from clipedit.editor.measure.fidelity import measure_fidelity
from clipedit.editor.models.architecture import load_architecture
from clipedit.editor.models.decompose import decompose
from clipedit.editor.models.model import Model
from clipedit.editor.select.plan import default_heads
from clipedit.editor.towers.build import build_tower
from clipedit.export.edited_folder import apply_to_folder
from clipedit.export.inputs import follow_nothing
from clipedit.export.judge import Made, judge_made

pytestmark = pytest.mark.usefixtures("verified_here")

VISION = {"image_size": 32, "patch_size": 8, "width": 24, "layers": 1, "head_width": 12}
TEXT = {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 3}
TEXTS = [
    "a photo of a dog",
    "two red circles in the snow",
    "a",
    "the beach at night with a very long line of words in it",
]
CONFIGURATIONS: dict[str, tuple[Any, dict[str, Any]]] = {
    "CLIP: end of text, matrix": (CLIP, {}),
    "CLIP: QuickGELU": (CLIP, {"quick_gelu": True}),
    "CLIP: LayerScale": (CLIP, {"ls_init_value": 0.3}),
    "CLIP: linear projection": (CLIP, {"proj_bias": True}),
    "CustomTextCLIP: matrix": (CustomTextCLIP, {}),
    "CustomTextCLIP: linear projection": (CustomTextCLIP, {"proj_bias": True}),
    "SigLIP: no mask, last token": (CustomTextCLIP, {"no_causal_mask": True, "pool_type": "last", "proj_bias": True}),
    "CLIPA: end token by its number": (CustomTextCLIP, {"pool_type": "eos", "eos_id": 49407}),
}


def random_model(name: str) -> Model:
    torch.manual_seed(0)
    kind, overrides = CONFIGURATIONS[name]
    options = {"quick_gelu": overrides["quick_gelu"]} if "quick_gelu" in overrides else {}
    text = {**TEXT, **{key: value for key, value in overrides.items() if key != "quick_gelu"}}
    module = kind(24, VISION, text, **options).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    config = {"model_cfg": {"text_cfg": TEXT}, "preprocess_cfg": {**PreprocessCfg().__dict__, "size": 32}}
    return Model("random", None, module, build_tower(module), config).with_tower("text")


@pytest.fixture(scope="module")
def text_model() -> Model:
    return clipedit.load_model("demo").with_tower("text")


@pytest.fixture(scope="module")
def text_scan(text_model: Model) -> clipedit.Scan:
    return clipedit.scan(text_model, list_texts("demo"), batch_size=256, mlps=True, workers=0)


def document(effect: str, *heads: str) -> RecipeDocument:
    step = Step(operation="mean-ablate", heads=heads)
    return RecipeDocument(
        schema_version=1,
        name="t",
        base=Base(model="demo"),
        tower="text",
        effect=effect,
        steps=(step,),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_contributions_sum_to_the_text_embedding(name: str) -> None:
    model = random_model(name)
    expected = model.encode_text(TEXTS)
    parts = decompose(model, model.tokenizer(TEXTS))
    total = parts.contributions.sum(1) + parts.constant
    assert (parts.embedding - expected).norm() / expected.norm() < 1e-5
    assert (total - expected).norm() / expected.norm() < 1e-5
    assert len(parts.components) == 3 * 4 + 3 + 3 + 1


def test_the_demo_and_a_real_size_are_decomposed(text_model: Model) -> None:
    for model in (text_model, clipedit.load_model("ViT-S-32").with_tower("text")):
        expected = model.encode_text(TEXTS)
        parts = decompose(model, model.tokenizer(TEXTS))
        assert (parts.contributions.sum(1) + parts.constant - expected).norm() / expected.norm() < 1e-5


def test_models_with_other_text_encoders_are_refused_with_the_reason() -> None:
    model = load_architecture("coca_ViT-B-32")
    with pytest.raises(
        clipedit.ModelError, match="cannot decompose the texts of coca_ViT-B-32: it reads a class token"
    ):
        model.with_tower("text")
    with pytest.raises(clipedit.ModelError, match="it has no text tower"):
        load_architecture("deit_tiny_patch16_224").with_tower("text")
    module = random_model("CustomTextCLIP: matrix").module

    class HFTextEncoder(torch.nn.Module):
        pass

    module.text = HFTextEncoder()
    with pytest.raises(clipedit.ModelError, match="encoded by a HFTextEncoder .a Hugging Face model."):
        Model("random", None, module, build_tower(module), {}).with_tower("text")


def test_a_scan_remembers_its_tower(text_scan: clipedit.Scan, demo_model: Model, tmp_path: Path) -> None:
    assert text_scan.tower == "text" and text_scan.layers == (0, 1, 2)
    text_scan.save(tmp_path / "s.safetensors")
    assert clipedit.load_scan(tmp_path / "s.safetensors").tower == "text"
    with pytest.raises(clipedit.StatisticsError, match="it is of the text tower. Scan with --tower image"):
        clipedit.score_heads(text_scan, demo_model, concept="location")


def test_no_more_than_a_quarter_of_the_heads_is_removed_unless_told(
    text_scan: clipedit.Scan, text_model: Model, demo_scan: clipedit.Scan, demo_model: Model
) -> None:
    assert default_heads(demo_scan, demo_model) == 8 and default_heads(text_scan, text_model) == 3
    assert len(clipedit.make_recipe(text_scan, text_model, concept="location").heads) == 3


def test_scores_of_all_text_components_and_the_constant_sum_to_one(text_model: Model, text_scan: clipedit.Scan) -> None:
    statistics, tower = text_scan.statistics, text_model.tower
    scores = clipedit.score_heads(text_scan, text_model, concept="location")
    read = tower.readout() @ concept_directions(load_concept("location", text_model.folder), text_model)
    basis = concept_directions(load_concept("location", text_model.folder), text_model)
    constant = (tower.constant() @ basis) @ (statistics.inverse_norm_final_covariance() @ read)
    total = torch.einsum("dc,de,ec->", read, statistics.final_covariance(), read)
    assert abs(sum(row.concept for row in scores) + float(constant / total) - 1) < 1e-4


@pytest.mark.parametrize("effect", ["distilled", "total"])
def test_an_edited_folder_is_an_ordinary_checkpoint_with_other_texts(
    text_model: Model, text_scan: clipedit.Scan, tmp_path: Path, effect: str
) -> None:
    recipe = bind_recipe(document(effect, "L2H0", "L1H3"), text_scan, text_model)
    assert text_model.folder is not None
    apply_to_folder(recipe, text_model.folder, tmp_path / "out")
    again = clipedit.load_recipe(tmp_path / "out")
    assert again.document.tower == "text"
    plain = open_clip.create_model(f"local-dir:{tmp_path / 'out'}").eval()
    tokens, pixels = text_model.tokenizer(TEXTS), torch.randn(2, 3, 64, 64)
    edited = clipedit.apply_recipe(again, clipedit.load_model("demo"))
    assert edited.side == "image"
    with torch.no_grad():
        assert torch.allclose(plain.encode_text(tokens), edited.encode_text(TEXTS), atol=1e-5)
        assert torch.equal(plain.encode_image(pixels), text_model.encode_image(pixels))
    assert not torch.allclose(edited.encode_text(TEXTS), text_model.encode_text(TEXTS), atol=1e-2)
    found = clipedit.diff_models("demo", tmp_path / "out")
    assert not found.others
    if effect == "distilled":
        assert {change.name for change in found.changed} == {"text_projection", "ln_final.bias"}
    else:
        heads = {change.part: list(change.heads) for change in found.changed if change.heads}
        assert heads == {"text heads of layer 1": ["L1H3"], "text heads of layer 2": ["L2H0"]}


def test_an_empty_text_recipe_changes_no_byte(text_model: Model, text_scan: clipedit.Scan, tmp_path: Path) -> None:
    empty = document("distilled").model_copy(update={"steps": ()})
    assert text_model.folder is not None
    apply_to_folder(bind_recipe(empty, text_scan, text_model), text_model.folder, tmp_path / "out")
    name = "open_clip_model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (text_model.folder / name).read_bytes()


def test_distilled_text_edits_come_near_the_direct_ones(text_model: Model, text_scan: clipedit.Scan) -> None:
    recipe = bind_recipe(document("distilled", "L2H0"), text_scan, text_model)
    held_out = text_source(tuple(load_concept("location", text_model.folder).texts) + tuple(TEXTS))
    found = measure_fidelity(recipe, text_scan, text_model, held_out)
    assert found.mean_cosine > 0.9


def test_direct_text_edits_and_image_models_are_refused(
    text_model: Model, text_scan: clipedit.Scan, demo_model: Model, demo_scan: clipedit.Scan
) -> None:
    recipe = bind_recipe(document("direct", "L2H0"), text_scan, text_model)
    with pytest.raises(clipedit.RecipeError, match="text encoders carry no direct edit"):
        clipedit.apply_recipe(recipe, demo_model)
    with pytest.raises(clipedit.RecipeError, match="it edits the text tower. Give model.with_tower"):
        bind_recipe(document("total", "L2H0"), demo_scan, demo_model)
    with pytest.raises(clipedit.RecipeError, match="names head L2H7, demo has heads 0-3 in that layer"):
        bind_recipe(document("total", "L2H7"), text_scan, text_model)


def test_what_can_still_be_read_after_a_text_edit_is_said_by_the_columns_of_labelled_images(
    text_model: Model, text_scan: clipedit.Scan
) -> None:
    source = render_source(world.draw_balanced_scenes(64, 3))
    found = [world.SHAPES.index(row["shape"]) for row in source.attributes]
    task = LabelledImages(source, world.SHAPES, tuple(found), ("",) * len(source))
    recipe = clipedit.make_recipe(text_scan, text_model, concept="location", heads=4, output_strength=0.9)
    made = Made(recipe, text_scan, text_model, load_concept("location", text_model.folder))
    rows = {row["concept"]: row for row in judge_made(made, task, None, follow_nothing)["evidence"]["readable"]}
    assert rows["location"]["edited"] and not rows["color"]["edited"]
    for concept, column, instances in (("location", "place", 4), ("color", "color", 8)):
        row = rows[concept]
        assert (row["measure"], row["column"], row["instances"]) == ("zero-shot accuracy", column, instances)
    # Images are as they were: only the words of places moved.
    assert rows["color"]["before"] == 1 and rows["color"]["images"] == 64 and rows["location"]["images"] == 32
    assert rows["location"]["after"] < rows["location"]["before"] == 1


def test_the_command_line_edits_the_text_tower(tmp_path: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(list_texts("demo").names[:64]) + "\n")

    scan, out = tmp_path / "s.safetensors", tmp_path / "out"
    code, _, err = run("scan", texts, "--tower", "text", "-o", scan)
    assert code == 0 and f"wrote {scan}: 64 texts, layers 0-2" in err, err
    code, printed, _ = run("score", scan, "--concept", "location", "--json")
    assert code == 0 and len(json.loads(printed)) == 3 * 5
    assert run("label", scan)[0] == 0
    chosen = [
        "--concept",
        "location",
        "--tower",
        "text",
        "--model",
        clipedit.editor.images.demo_name.demo_folder(),
        "--scan",
        scan,
    ]
    code, printed, err = run("remove-heads", *chosen, "--heads", 2, "-o", out, "--json")
    assert code == 0, err
    assert clipedit.load_recipe(out).document.tower == "text"
    assert run("apply", out, "-o", tmp_path / "again")[0] == 0
    name = "open_clip_model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes()
    assert run("remove-heads", *chosen, "--effect", "direct", "-o", tmp_path / "x")[0] == 2
    code, _, err = run("scan", tmp_path, "--tower", "text", "-o", tmp_path / "t")
    assert code == 1 and "cannot scan a text tower on images" in err
