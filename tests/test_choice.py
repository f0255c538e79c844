"""How much of an edit, where nobody says: chosen in closed form; and what is kept is spared by heads and projection."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

import clipedit
from clipedit.demo import world
from clipedit.editor.concepts.concepts import load_concept
from clipedit.editor.concepts.directions import compute_concept_directions, spare_directions
from clipedit.editor.edits.document import Step
from clipedit.editor.images.demo import render_source
from clipedit.editor.images.labelled_options import LabelledOptions
from clipedit.editor.models.model import Model
from clipedit.editor.scan.scan import Scan
from clipedit.editor.select.amounts import settle_amounts
from clipedit.editor.select.options import HeadChoice
from clipedit.editor.select.plan import default_heads
from clipedit.editor.select.whose_heads import HeldConcepts


@pytest.fixture(scope="module")
def known(demo_scan: Scan, demo_model: Model) -> HeldConcepts:
    return HeldConcepts(demo_scan, demo_model)


def test_what_was_asked_for_is_taken(demo_scan: Scan, demo_model: Model, known: HeldConcepts) -> None:
    concept = load_concept("location", demo_model.folder)
    kind = {"select": "text-difference", "effect": "distilled", "known": known}
    both = settle_amounts(demo_scan, demo_model, concept, heads=3, output_strength=0.25, **kind)
    assert (both.heads, both.output_strength, both.choice) == (3, 0.25, None)
    heads = settle_amounts(demo_scan, demo_model, concept, heads=3, **kind)
    assert heads.heads == 3 and 0 < heads.output_strength < 0.9
    strength = settle_amounts(demo_scan, demo_model, concept, output_strength=0.25, **kind)
    assert strength.output_strength == 0.25 and strength.heads > 3


def test_more_heads_hold_more_of_the_concept_so_the_projection_is_stronger(
    demo_scan: Scan, demo_model: Model, known: HeldConcepts
) -> None:
    concept = load_concept("location", demo_model.folder)
    strengths = [
        settle_amounts(
            demo_scan, demo_model, concept, heads=n, select="text-difference", effect="distilled", known=known
        ).output_strength
        for n in (1, 4, 16)
    ]
    assert 0 < strengths[0] < strengths[1] < strengths[2] <= 1


def test_the_default_of_location_is_not_a_constant_and_is_kept_in_the_recipe(
    demo_scan: Scan, demo_model: Model
) -> None:
    document = clipedit.make_recipe(demo_scan, demo_model, concept="location").document
    assert document.measured is not None
    chosen = document.measured["choice"]
    assert 4 <= chosen["heads"] <= default_heads(demo_scan, demo_model)
    assert len(document.steps[0].heads) == chosen["heads"]
    assert document.steps[1].strength == pytest.approx(chosen["output_strength"], abs=1e-4)
    assert chosen["removed"] - chosen["elsewhere"] > 0.35


def test_an_absent_concept_has_no_number_of_heads_worth_taking(
    demo_scan: Scan, demo_model: Model, known: HeldConcepts
) -> None:
    with pytest.warns(UserWarning, match="no number of heads removes much more of food"):
        found = settle_amounts(
            demo_scan,
            demo_model,
            load_concept("food", demo_model.folder),
            output_strength=0.0,
            select="text-difference",
            effect="distilled",
            known=known,
        )
    assert found.choice is None


@pytest.mark.parametrize("effect", ["distilled", "direct"])
def test_what_is_kept_is_not_changed_by_the_projection(demo_scan: Scan, demo_model: Model, effect: str) -> None:
    recipe = clipedit.make_recipe(
        demo_scan,
        demo_model,
        concept="location",
        keep="shape",
        heads=0,
        output_strength=1.0,
        effect=effect,  # pyright: ignore[reportArgumentType]
    )
    shape = load_concept("shape", demo_model.folder)
    kept = compute_concept_directions(
        demo_model.encode_text(list(shape.texts)).cpu(), most=max(1, demo_model.tower.d_head // 4)
    )
    assert recipe.tensors is not None
    moved = recipe.tensors["output.map"].double()
    # The map is symmetric: what it leaves of a kept direction is all of it.
    assert torch.allclose(moved @ kept, kept, atol=1e-6)
    plain = clipedit.make_recipe(demo_scan, demo_model, concept="location", heads=0, output_strength=1.0)
    assert plain.tensors is not None
    assert float((plain.tensors["output.map"].double() @ kept - kept).norm()) > 0.1
    assert recipe.document.steps[-1].spared == shape.texts


def test_directions_within_what_is_kept_are_left_out() -> None:
    basis = torch.eye(4).double()
    assert spare_directions(basis[:, :2], basis[:, :2]).shape == (4, 0)
    left = spare_directions(basis[:, :2], basis[:, 1:3])
    assert torch.allclose(left.abs(), basis[:, :1])


def test_a_kept_concept_costs_what_an_edit_removes_of_it(
    demo_scan: Scan, demo_model: Model, known: HeldConcepts
) -> None:
    concept, shape = (load_concept(name, demo_model.folder) for name in ("location", "shape"))
    kind = {"select": "text-difference", "effect": "distilled", "known": known}
    # As many heads in both: a choice of fewer would remove less by itself.
    free = settle_amounts(demo_scan, demo_model, concept, heads=16, **kind)
    kept = settle_amounts(demo_scan, demo_model, concept, keep=shape, heads=16, **kind)
    assert kept.choice is not None and free.choice is not None
    assert kept.choice["removed"] < free.choice["removed"] and kept.choice["elsewhere"] < free.choice["elsewhere"]


def test_heads_spare_nothing_by_texts() -> None:
    with pytest.raises(ValueError, match="`spared` goes with"):
        Step(operation="project-out", heads=("L0H0",), concept="location", spared=("a", "b"))


def test_what_was_removed_is_not_removed_again(demo_scan: Scan, demo_model: Model) -> None:
    recipe = clipedit.make_recipe(demo_scan, demo_model, concept="location", heads=2, output_strength=0.5)
    edited = clipedit.apply_recipe(recipe, demo_model)
    with pytest.raises(clipedit.ConceptError, match="remove-location has done so, and there is nothing left to do"):
        clipedit.repair(edited, images="demo", concept="location", measure=False)
    heads_only = clipedit.make_recipe(demo_scan, demo_model, concept="location", heads=2, output_strength=0.0)
    with pytest.raises(clipedit.ConceptError, match="nothing left to do"):
        clipedit.repair(clipedit.apply_recipe(heads_only, demo_model), images="demo", concept="location")


@pytest.fixture(scope="module")
def own_table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table whose columns have names of its owner's choice, with two splits."""
    folder = tmp_path_factory.mktemp("own")
    scenes = list(world.draw_balanced_scenes(128, 5))
    source, rows = render_source(scenes), []
    for index, scene in enumerate(scenes):
        source.open(index).save(folder / f"{index}.png")
        rows.append([f"{index}.png", scene.shape, scene.place, "val" if index % 2 else "test"])
    with (folder / "own.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "product", "scene", "split"], *rows])
    return folder / "own.csv"


def test_columns_of_the_users_own_reach_the_measuring(demo_scan: Scan, demo_model: Model, own_table: Path) -> None:
    labels = LabelledOptions(label="product", group_by=("scene",))
    done = clipedit.repair(demo_model, scan=demo_scan, concept="location", dataset=own_table, labels=labels)
    assert done.verdict.word in ("HELPS", "NO DIFFERENCE", "HARMS") and "worst_group" in done.rows["after"]


def test_figures_are_never_of_the_images_that_heads_were_chosen_by(
    demo_scan: Scan, demo_model: Model, own_table: Path
) -> None:
    choice = HeadChoice(select="labelled-contrast", labelled=str(own_table), label="product", split="all")
    labels = LabelledOptions(label="product", split="all")
    with pytest.raises(clipedit.ImageError, match="128 of 128 of --dataset are among those of --labelled"):
        clipedit.repair(demo_model, scan=demo_scan, concept="location", choice=choice, dataset=own_table, labels=labels)
