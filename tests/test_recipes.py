"""The shipped recipes name heads that their architectures have, and are applied by name."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest

import clipedit
from clipedit.editor.edits.apply import check_origin
from clipedit.editor.edits.bind import check_effect, check_heads
from clipedit.editor.edits.document import list_recipes
from clipedit.editor.images.demo import demo_calibration_source
from clipedit.editor.models.architecture import load_architecture

pytestmark = pytest.mark.usefixtures("verified_here")

LAST_FOUR = {"ViT-B-16": (12, 12), "ViT-L-14": (24, 16), "ViT-H-14": (32, 16)}  # layers and heads


def test_three_architectures_have_every_kind_of_recipe() -> None:
    names = {
        f"{kind}-vit-{size}"
        for kind in ("waterbirds", "waterbirds-protocol", "locate-then-correct")
        for size in ("b-16", "l-14", "h-14")
    }
    assert set(list_recipes()) == names


@pytest.mark.parametrize("name", list_recipes())
def test_a_shipped_recipe_fits_its_architecture(name: str) -> None:
    recipe = clipedit.load_recipe(name)
    document = recipe.document
    model = load_architecture(document.base.model)
    layers, heads = LAST_FOUR[document.base.model]
    assert model.tower.heads_per_layer == (heads,) * layers
    check_heads(document, model)
    check_effect(document.effect, model)
    assert document.name == name and not recipe.is_bound and document.source
    assert document.base.pretrained in open_clip.list_pretrained_tags_by_model(document.base.model)
    # What `scan` reads by default is enough for the heads of all of them.
    assert all(layers - 4 <= head.layer < layers for step in document.steps for head in step.head_ids())
    parts = {step.target: step.layers for step in document.steps if step.layers}
    if name.startswith("waterbirds-protocol"):
        # Every MLP, and whole layers below the last four.
        assert parts == {"mlps": tuple(range(layers - 4, layers)), "layers": tuple(range(layers - 4))}
        assert document.effect == "direct"
    else:
        assert not parts


def test_an_architecture_costs_no_memory() -> None:
    for name in ("ViT-H-14", "deit_base_patch16_224", "demo"):
        model = load_architecture(name)
        assert {parameter.device.type for parameter in model.module.parameters()} == {"meta"}


def test_heads_of_one_model_are_refused_on_another(demo_model: clipedit.Model) -> None:
    document = clipedit.load_recipe("locate-then-correct-vit-b-16").document
    with pytest.raises(
        clipedit.RecipeError, match="names heads of ViT-B-16 .laion2b.*12 layers of 12; this model has 4 of 8"
    ):
        check_origin(document, demo_model, force=False)
    check_origin(document, demo_model, force=True)
    other = document.model_copy(update={"base": document.base.model_copy(update={"model": "demo", "pretrained": None})})
    check_origin(other, demo_model, force=False)


def test_recipes_are_listed_shown_and_checked(run) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = run("recipes", "list", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert code == 0 and len(rows) == 9 and rows["waterbirds-vit-b-16"]["heads"][0] == "L9H6"
    code, out, _ = run("recipes", "show", "waterbirds-vit-l-14")
    assert code == 0 and "ICLR 2024" in out and "- L22H12" in out
    code, out, _ = run("recipes", "check", "waterbirds-vit-l-14")
    assert code == 0 and out == "waterbirds-vit-l-14 fits ViT-L-14: 15 heads, all of them there\n"
    code, _, err = run("recipes", "check", "waterbirds-vit-l-14", "--model", "ViT-B-16")
    assert code == 1 and "step 1 names head L21H1, ViT-B-16 has layers 0-11" in err
    code, _, err = run("recipes", "check", "waterbirds-vit-l-14", "--model", "ViT-L-41")
    assert code == 1 and "cannot find the architecture 'ViT-L-41'" in err and "Did you mean ViT-L-16, ViT-L-14" in err
    code, _, err = run("recipes", "show", "waterbird-vit-l-14")
    assert code == 1 and "unknown recipe 'waterbird-vit-l-14'. Did you mean waterbirds-vit-l-14" in err


def test_apply_takes_a_shipped_recipe_by_name_and_the_users_images(  # type: ignore[no-untyped-def]
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "shipped" / "demo-heads.yaml"
    own.parent.mkdir()
    own.write_text(
        "schema_version: 1\nname: demo-heads\nbase: {model: demo}\nsteps: [{operation: mean-ablate, heads: [L3H2]}]\n"
    )
    monkeypatch.setattr("clipedit.editor.edits.document.list_recipes", lambda: {"demo-heads": own})
    (tmp_path / "photos").mkdir()
    source = demo_calibration_source(8)
    for index in range(8):
        source.open(index).save(tmp_path / "photos" / f"{index}.png")
    code, _, err = run("apply", "demo-heads", "-o", tmp_path / "out")
    assert code == 1 and "it is unbound. Add --images DIR or --scan" in err
    given = ["apply", "demo-heads", "--images", tmp_path / "photos", "--effect", "total", "-o", tmp_path / "out"]
    code, _, err = run(*given)
    assert code == 0, err
    found = clipedit.diff_models("demo", tmp_path / "out")
    assert {head for change in found.changed for head in change.heads} == {"L3H2"} and not found.others
    code, _, err = run("apply", tmp_path / "out", "--effect", "direct", "-o", tmp_path / "again")
    assert code == 1 and "it is bound as total. Leave out --effect" in err
