"""What a model card says, and that what users wrote in it stays text. Its code is run in test_targets.py."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

import clipedit
from clipedit.export.pages.model_card import write_model_card
from clipedit.export.targets.registry import load_target


@pytest.fixture(scope="module")
def edited(demo_model: clipedit.Model, demo_scan: clipedit.Scan) -> clipedit.Model:
    recipe = clipedit.make_recipe(demo_scan, demo_model, concept="location", heads=8, output_strength=0.9)
    figures = {"before": {"worst_group": 0.5}, "after": {"worst_group": 0.75}, "control": {"worst_group": 0.51}}
    return clipedit.apply_recipe(recipe.with_measured(figures), demo_model)


def test_the_card_has_the_figures_and_what_users_wrote_stays_text(edited: clipedit.Model, tmp_path: Path) -> None:
    recipe = edited.recipe
    hostile = "x | <script>alert(1)</script> [a](http://b)\n# heading `c` {{ 7 * 7 }}"
    document = recipe.document.model_copy(update={"name": hostile, "description": hostile})
    figures = {**recipe.document.measured, hostile: {"worst_group": 0.25}}
    edited = replace(edited, applied=replace(recipe, document=document).with_measured(figures))
    write_model_card(edited, tmp_path, load_target("hf"))
    card = (tmp_path / "README.md").read_text()
    assert (
        "| unedited | 0.500 |" in card
        and "| **edited** | 0.750 |" in card
        and "| random heads, same projection | 0.510 |" in card
    )
    assert (
        "<script>" not in card
        and "\n# heading" not in card
        and not re.search(r"(?<!\\)\]\(http", card)
        and "49" not in card.split("## How")[0][:900]
    )
    row = next(line for line in card.splitlines() if line.endswith("0.250 |"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 3
    assert re.search(r"^license:\s+#", card, re.MULTILINE)
    assert f"1. mean-ablate on {len(recipe.heads)} heads ({', '.join(recipe.heads)})" in card


def test_figures_of_a_card_are_rounded_and_none_is_left_blank(edited: clipedit.Model, tmp_path: Path) -> None:
    document = edited.recipe.document
    steps = [step.model_copy(update={"strength": 0.1 + 0.2}) for step in document.steps[-1:]]
    nan = float("nan")
    figures = {
        "before": {"worst_group": 1 / 3, "overall": nan},
        "after": {"worst_group": 2 / 3, "place": 0.1 + 0.2, "overall": nan},
    }
    document = document.model_copy(update={"steps": [*document.steps[:-1], *steps]})
    edited = replace(edited, applied=replace(edited.recipe, document=document).with_measured(figures))
    write_model_card(edited, tmp_path, load_target("open-clip"))
    card = (tmp_path / "README.md").read_text()
    words, code = card.split("## How to load it")
    assert "strength 0.3\n" in words and "strength 1" not in words
    assert "| model | worst group | place |" in words and "overall" not in words
    assert "| unedited | 0.333 | not measured |" in words and "| **edited** | 0.667 | 0.300 |" in words
    assert not re.search(r"\| *\|", words) and not re.search(r"\b\d+\.\d{4,}", words)
    assert "\n\n\n" not in card
    # As its code prints them: `print("image ", ...)` puts two spaces.
    assert re.search(r"^image  -?\d\.\d{4} ", code, re.MULTILINE)


def test_a_card_without_figures_says_so_in_one_line(edited: clipedit.Model, tmp_path: Path) -> None:
    recipe = edited.recipe
    plain = replace(recipe, document=recipe.document.model_copy(update={"measured": None}))
    edited = replace(edited, applied=plain)
    write_model_card(edited, tmp_path, load_target("open-clip"))
    card = (tmp_path / "README.md").read_text()
    assert card.split("## What was measured\n\n")[1].startswith("Nothing yet: `clipedit evaluate`")
    assert "| model |" not in card and "\n\n\n" not in card


def test_a_base_gets_a_card_that_says_so(demo_model: clipedit.Model, tmp_path: Path) -> None:
    write_model_card(demo_model, tmp_path, load_target("onnx"))
    assert "without an edit" in (tmp_path / "README.md").read_text()


def test_the_hub_reads_the_head_of_a_card(edited: clipedit.Model, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    write_model_card(edited, tmp_path, load_target("hf"))
    assert ModelCard((tmp_path / "README.md").read_text()).data.to_dict() == {"tags": ["clip", "clipedit", "hf"]}


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("open-clip", "gives photos as their pixels are stored"),
        ("hf", "pipelines and `load_image` of transformers turn photos upright"),
        ("fastembed", "fastembed reads files as their pixels are stored"),
        ("transformers-js", "turns photos upright"),
        ("immich", "embeds its own previews of photos, which are upright"),
    ],
)
def test_a_card_says_what_its_consumer_does_with_photos_on_their_side(
    name: str, told: str, demo_model: clipedit.Model, tmp_path: Path
) -> None:
    write_model_card(demo_model, tmp_path, load_target(name))
    card = (tmp_path / "README.md").read_text()
    assert told in card and "clipedit scans photos upright" in card
