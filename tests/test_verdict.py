"""A verdict on every edit, wherever it goes: console, JSON, card, report, verification; and what can still be read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import clipedit
from clipedit.editor.concepts.concepts import Concept, load_concept
from clipedit.editor.edits.held_out import hold_out
from clipedit.editor.images.demo import render_source
from clipedit.editor.images.demo_name import DEMO
from clipedit.editor.images.labelled import write_metadata
from clipedit.editor.measure.certificate import bound_turn, certify_recipe, compute_turns, read_certificate
from clipedit.editor.measure.readable import Reader, find_column, find_readable, read_variance
from clipedit.editor.measure.verdict import read_verdict
from clipedit.export.judge import choose_dataset
from clipedit.export.pages.model_card import write_model_card
from clipedit.export.pages.report import write_report
from clipedit.export.targets.registry import load_target
from clipedit.export.verify.evidence import read_evidence

pytestmark = pytest.mark.usefixtures("verified_here")

HARMS = {"evidence": {"verdict": "HARMS", "because": "overall accuracy falls: 0.900 to 0.600."}}


@pytest.fixture(scope="module")
def recipe(demo_scan: clipedit.Scan, demo_model: clipedit.Model) -> clipedit.Recipe:
    return clipedit.make_recipe(demo_scan, demo_model, concept="location")


@pytest.fixture(scope="module")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled images whose class is the colour, which no group shares with the place."""
    from clipedit.demo import world

    folder = tmp_path_factory.mktemp("colors")
    source = render_source(world.draw_balanced_scenes(256, 77))
    for index, name in enumerate(source.names):
        source.open(index).save(folder / name)
    rows = [{"filename": row["filename"], "label": f"{row['color']} object"} for row in source.attributes]
    write_metadata(folder / "metadata.csv", rows)
    return folder


@pytest.mark.parametrize("word", ["HELPS", "HARMS", "NO DIFFERENCE", "NOT MEASURED"])
def test_a_recipe_gives_back_the_verdict_that_it_holds(word: str) -> None:
    found = read_verdict({"evidence": {"verdict": word, "because": "so", "differences": {}}})
    assert (found.word, found.because) == (word, "so")


@pytest.mark.parametrize(
    "measured",
    [
        None,
        {},
        {"evidence": "HELPS"},
        {"evidence": {"verdict": "FINE", "because": "x"}},
        {"evidence": {"because": "x"}},
    ],
)
def test_what_holds_no_verdict_is_not_measured_and_says_what_to_give(measured: dict | None) -> None:
    found = read_verdict(measured)
    assert found.word == "NOT MEASURED" and "--dataset" in found.because


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), "much", None])
def test_a_certificate_that_is_none_is_not_shown(bad: object) -> None:
    evidence = {"certificate": {"probe_change": 0.1, "mean_square": 0.2, "turns": {"0.95": bad}, "images": 9}}
    assert read_certificate({"evidence": evidence}) is None
    assert find_readable({"evidence": {"readable": [{"concept": "x", "before": bad}, "?"]}}) == []


def test_an_export_of_what_harms_is_refused_and_nothing_is_written(
    recipe: clipedit.Recipe, demo_model: clipedit.Model, tmp_path: Path
) -> None:
    edited = clipedit.apply_recipe(recipe.with_measured(HARMS), demo_model)
    with pytest.raises(
        clipedit.ExportError, match=r"its edit harms, overall accuracy falls: 0\.900 to 0\.600.*--force"
    ):
        clipedit.export_model(edited, tmp_path / "out", target="open-clip")
    assert list(tmp_path.iterdir()) == []


def test_what_harms_is_exported_by_force_only_and_says_so_for_good(
    run,  # type: ignore[no-untyped-def]
    recipe: clipedit.Recipe,
    demo_model: clipedit.Model,
    tmp_path: Path,
) -> None:
    edited = clipedit.apply_recipe(recipe.with_measured(HARMS), demo_model)
    clipedit.export_model(edited, tmp_path / "out", target="open-clip", force=True)
    verification = json.loads((tmp_path / "out" / "verification.json").read_text())
    assert list(verification)[:2] == ["verdict", "because"] and verification["verdict"] == "HARMS"
    # What harms costs no lower standard of verification.
    assert "forced" not in verification
    assert "**HARMS**: overall accuracy falls" in (tmp_path / "out" / "README.md").read_text()
    again = run("export", tmp_path / "out", "--target", "open-clip", "-o", tmp_path / "again")
    assert again.code == 1 and "its edit harms" in again.err and len(again.err.splitlines()) == 1
    assert not (tmp_path / "again").exists()
    page = write_report(tmp_path / "out").read_text(encoding="utf-8")
    assert '<p class="verdict harms"><b>HARMS</b> overall accuracy falls' in page


def test_an_unedited_model_has_no_verdict(demo_model: clipedit.Model, tmp_path: Path) -> None:
    write_model_card(demo_model, tmp_path, load_target("onnx"))
    assert "MEASURED" not in (tmp_path / "README.md").read_text() and read_evidence(tmp_path) == {}


def test_the_demos_own_images_judge_location_only(demo_model: clipedit.Model) -> None:
    concepts = {name: load_concept(name, demo_model.folder) for name in ("location", "color", "texture", "watermark")}
    chosen = {name: choose_dataset(demo_model, concept, None, DEMO) for name, concept in concepts.items()}
    assert chosen == {"location": DEMO, "color": None, "texture": None, "watermark": None}
    assert choose_dataset(demo_model, concepts["color"], "own.csv", None) == "own.csv"
    # Labels say what is removed where no concept does: the demo's are shapes and places.
    assert choose_dataset(demo_model, None, None, DEMO) == DEMO
    assert choose_dataset(demo_model, None, None, "own.csv") is None
    other = replace(demo_model, name="other")
    assert choose_dataset(other, concepts["location"], None, DEMO) is None


def test_of_another_concept_the_demo_is_not_measured_and_says_why(
    demo_scan: clipedit.Scan, demo_model: clipedit.Model
) -> None:
    done = clipedit.repair(demo_model, scan=demo_scan, concept="color")
    assert done.verdict.word == "NOT MEASURED" and done.rows == {}
    assert "judge location only" in done.verdict.because and "--dataset" in done.verdict.because
    assert done.report()["verdict"] == "NOT MEASURED" and list(done.report())[:2] == ["verdict", "because"]
    own, *others = done.readable
    assert (own.concept, own.edited, own.left_out) == ("color", True, True)
    assert 0 < own.after < 0.6 * own.before
    assert "location" in {other.concept for other in others} and not any(other.edited for other in others)


def test_remove_heads_exits_3_on_harm_when_asked(run, saved: Path, colors: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    asked = ("remove-heads", "--concept", "watermark", "--scan", saved, "--no-report", "-o", tmp_path / "out")
    refused = run(*asked, "--model", "demo")
    assert refused.code == 1 and "cannot remove watermark" in refused.err and len(refused.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
    forced = run(*asked, "--model", "demo", "--force", "--heads", 8, "--dataset", colors, "--json", "--fail-if-worse")
    assert forced.code == 3, forced.err
    said = json.loads(forced.out)
    assert list(said)[:2] == ["verdict", "because"] and said["verdict"] == "HARMS" and "falls" in said["because"]
    assert read_evidence(tmp_path / "out")["verdict"] == "HARMS"
    # Of the concept nothing was there; of colour, which its heads hold, the labels say how much is left.
    read = {row["concept"]: row for row in said["readable"]}
    assert read["color"]["column"] == "label" and read["color"]["after"] < read["color"]["before"] - 0.2
    assert read["watermark"]["edited"] and read["watermark"]["measure"] == "share of the variance"


def test_without_the_flag_harm_is_said_first_and_exits_0(run, saved: Path, colors: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """The folder is there to be looked at; what ships is refused."""
    asked = ("remove-heads", "--concept", "watermark", "--scan", saved, "--model", "demo", "--no-report")
    found = run(*asked, "-o", tmp_path / "out", "--force", "--heads", 8, "--dataset", colors)
    assert found.code == 0 and found.err.startswith("HARMS: ")
    assert "next, for deployment" not in found.err and "without --force" in found.err
    applied = run("apply", tmp_path / "out", "--model", "demo", "-o", tmp_path / "again")
    assert applied.code == 0 and applied.err.startswith("HARMS: ") and "deployment" not in applied.err


OCEAN = Concept(
    name="places",
    texts=("a photo of the ocean", "the ocean", "a photo of a desert", "a city"),
    instances={
        "ocean": ("a photo of the ocean", "the ocean"),
        "sand": ("a photo of a desert",),
        "streets": ("a city",),
    },
)


def test_a_column_says_a_concept_by_its_instances_or_a_word_of_their_texts() -> None:
    rows = [
        {"filename": f"{i}_ocean.png", "shape": "ring", "where": where, "split": "0"}
        for i, where in enumerate(["Ocean", "desert", "CITY", "moon"] * 100)
    ]
    found = find_column(OCEAN, rows)
    assert found is not None and found.name == "where" and len(found.rows) == 300
    assert {rows[row]["where"]: found.texts[index] for row, index in zip(found.rows, found.found, strict=True)} == {
        "Ocean": ("a photo of the ocean", "the ocean"),
        "desert": ("a photo of a desert",),
        "CITY": ("a city",),
    }
    # A plain list has no instances: the texts with a value in them stand for one.
    plain = find_column(OCEAN.model_copy(update={"instances": None}), rows)
    assert plain is not None and plain.name == "where" and set(plain.texts) == set(found.texts)


def test_a_column_that_names_one_instance_or_none_says_nothing() -> None:
    assert find_column(OCEAN, [{"where": "ocean"}, {"where": "moon"}]) is None
    assert find_column(OCEAN, [{}]) is None and find_column(OCEAN, []) is None
    # `man` is no word of `woman`, and both are told apart.
    gender = load_concept("gender")
    rows = [{"sex": "male"}, {"sex": "female"}]
    found = find_column(gender, rows)
    assert found is not None and found.rows == (0, 1) and found.found[0] != found.found[1]


def test_the_variance_along_a_direction_is_a_share_and_what_is_projected_out_has_none() -> None:
    unit = torch.nn.functional.normalize(torch.randn(400, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    axes = torch.eye(8)
    assert float(read_variance(unit, axes).sum()) == pytest.approx(1)
    without = unit.clone()
    without[:, 0] = 0
    assert float(read_variance(without, axes)[0]) == 0
    # Images that are all alike, and a direction of no length, hold nothing; nothing is not a number.
    assert float(read_variance(unit[:1].expand(20, 8), axes).sum()) == pytest.approx(0, abs=1e-9)
    assert float(read_variance(torch.zeros(5, 8), torch.zeros(2, 8)).sum()) == 0


def test_an_edit_of_nothing_leaves_every_concept_as_it_was(
    demo_scan: clipedit.Scan, demo_model: clipedit.Model
) -> None:
    from clipedit.editor.select.selectivity import build_probe

    recipe = clipedit.make_recipe(demo_scan, demo_model, concept="location", heads=0, output_strength=0.0)
    held = hold_out(recipe, demo_scan, demo_model)
    assert held is not None
    reader = Reader(build_probe(demo_scan, demo_model), recipe, plain=(held.before, held.after))
    for name in ("location", "color"):
        found = reader.read(load_concept(name, demo_model.folder), edited=name == "location")
        assert found is not None and found.after == pytest.approx(found.before, rel=1e-6) and 0 < found.before < 1


def test_conformal_bounds_cover_images_left_out_over_200_splits(
    demo_scan: clipedit.Scan, demo_model: clipedit.Model, recipe: clipedit.Recipe
) -> None:
    """On the turns of real images: of 200 splits the bound of one part holds for the other as often as it says."""
    held = hold_out(recipe, demo_scan, demo_model)
    assert held is not None
    angles, generator = compute_turns(held.before, held.after), torch.Generator().manual_seed(1)
    for level in (0.95, 0.99):
        covered = []
        for _ in range(200):
            order = torch.randperm(len(angles), generator=generator)
            bound = bound_turn(angles[order[:256]], level)
            assert bound is not None
            covered.append(float((angles[order[256:]] <= bound).double().mean()))
        # A split's coverage is beta distributed (Vovk 2012): its mean is the level, up to one rank.
        mean, spread = torch.tensor(covered).mean(), (2 * level * (1 - level) / 256) ** 0.5
        assert level - 3 * spread / 200**0.5 <= float(mean) <= level + 1 / 257 + 3 * spread / 200**0.5


def test_the_certificate_is_the_same_whether_it_leaves_images_out_itself_or_is_told(
    demo_scan: clipedit.Scan, demo_model: clipedit.Model, recipe: clipedit.Recipe
) -> None:
    held = hold_out(recipe, demo_scan, demo_model)
    assert certify_recipe(recipe, demo_scan, demo_model, held=held) == certify_recipe(recipe, demo_scan, demo_model)
