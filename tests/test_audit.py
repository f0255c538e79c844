"""audit: on a model of known truth the right concept first and alone, and figures that are what they say."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

import clipedit
from clipedit.commands.audit import _spell_commands
from clipedit.editor.concepts.concepts import Concept
from clipedit.editor.concepts.margins import Lean, Margins
from clipedit.editor.images.demo import SHAPES
from clipedit.editor.select.audit import Audit, AuditRow, AuditVerdict, sort_rows

KEYS = {"concept", "selectivity", "interval", "lean_percentile", "heads", "verdict", "because"}


@pytest.fixture(scope="module")
def audited(demo_scan: clipedit.Scan, demo_model: clipedit.Model) -> Audit:
    return clipedit.audit(demo_scan, demo_model, classes=SHAPES)


def test_shapes_lean_on_location_and_not_on_colour_and_nothing_else_is_there(audited: Audit) -> None:
    """The demo's captions name places with nine in ten shapes, and colours with none (demo/world.py)."""
    first, second, *others = audited.rows
    assert (first.concept, first.verdict) == ("location", "leans")
    assert first.lean is not None and first.lean.percentile >= 95 and 0.3 < first.lean.in_heads <= 1
    assert (second.concept, second.verdict) == ("color", "held")
    assert second.lean is not None and second.lean.percentile < 95
    assert {row.verdict for row in others} == {"other", "absent"} and len(others) > 5
    assert all(row.lean is None and row.heads == () and row.removed is None for row in others)
    assert [row.concept for row in audited.found] == ["location", "color"]


def test_the_edit_that_is_told_is_the_one_that_is_made(
    audited: Audit, demo_scan: clipedit.Scan, demo_model: clipedit.Model
) -> None:
    for row in audited.found:
        recipe = clipedit.make_recipe(demo_scan, demo_model, concept=row.concept)
        assert tuple(recipe.heads) == row.heads and row.removed is not None and row.elsewhere is not None
        assert row.removed > row.elsewhere + 0.1
        output = next((step.strength for step in recipe.document.steps if step.target == "output"), 0.0)
        assert output == pytest.approx(row.output_strength)


def test_what_classes_lean_on_stands_before_what_is_removed_best() -> None:
    """Of what is held; written words that name the classes are leant on, and are no less in their way."""

    def row(concept: str, percentile: float, removed: float, verdict: AuditVerdict = "held") -> AuditRow:
        lean = Lean(share=0.3, percentile=percentile)
        return AuditRow(concept, verdict, "", 2.0, (1.5, 2.5), lean, removed=removed, elsewhere=0.1)

    rows = [row("color", 16.0, 0.9), row("absent", 99.0, 0.9, "absent"), row("words", 100.0, 0.4)]
    assert [one.concept for one in sort_rows(rows)] == ["words", "color", "absent"]


def test_without_classes_heads_are_looked_at_only(demo_scan: clipedit.Scan, demo_model: clipedit.Model) -> None:
    found = clipedit.audit(demo_scan, demo_model, concepts=["location", "watermark"])
    assert [(row.concept, row.lean) for row in found] == [("location", None), ("watermark", None)]
    assert found.rows[0].verdict == "held" and found.rows[1].verdict == "other"
    assert "color" in found.rows[1].because


def test_texts_that_name_the_classes_are_the_task_itself(
    demo_scan: clipedit.Scan, demo_model: clipedit.Model, audited: Audit
) -> None:
    places = ("the ocean", "a forest", "a desert", "snow")
    (row,) = clipedit.audit(demo_scan, demo_model, classes=places, concepts=["location"])
    assert row.verdict == "held" and "the task itself" in row.because
    assert row.lean is not None and row.lean.percentile == 100 and row.lean.share > audited.rows[0].lean.share  # type: ignore[union-attr]


def random_margins() -> Margins:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(12, 12, generator=generator).double()
    pool = torch.randn(64, 12, generator=generator).double()
    return Margins(root @ root.T, torch.randn(12, 3, generator=generator).double(), pool - pool.mean(0))


def test_a_lean_is_the_share_of_a_margins_variance_that_regression_on_the_concept_explains() -> None:
    """Against least squares on drawn data with that covariance: its coefficient of determination."""
    margins, generator = random_margins(), torch.Generator().manual_seed(1)
    span = torch.linalg.qr(torch.randn(12, 2, generator=generator).double())[0]
    drawn = torch.randn(200_000, 12, generator=generator).double() @ torch.linalg.cholesky(margins.covariance).T
    read, margin = drawn @ span, drawn @ margins.directions
    fitted = read @ torch.linalg.lstsq(read, margin).solution
    explained = (fitted.square().sum(0) / margin.square().sum(0)).mean()
    assert margins.share(span) == pytest.approx(float(explained), abs=0.01)


def test_all_of_the_space_explains_all_and_what_does_not_covary_nothing() -> None:
    margins = random_margins()
    assert margins.share(torch.eye(12).double()) == pytest.approx(1)
    turned = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(2)).double())[0]
    assert margins.share(turned) == pytest.approx(1)
    # Directions that C takes out of every margin's sight.
    blind = torch.linalg.svd((margins.covariance @ margins.directions).T)[2][3:].T
    assert margins.share(blind) == pytest.approx(0, abs=1e-9)


def test_a_percentile_is_of_the_null_and_the_same_every_time() -> None:
    margins = random_margins()
    own = torch.linalg.qr(margins.directions)[0]
    assert margins.rank(own, 8).percentile == 100
    blind = torch.linalg.svd((margins.covariance @ margins.directions).T)[2][3:5].T
    assert margins.rank(blind, 8).percentile == 0
    drawn = margins.pool[:8]
    span = torch.linalg.svd(drawn - drawn.mean(0), full_matrices=False)[2][:2].T
    first, again = margins.rank(span, 8), margins.rank(span, 8)
    assert first == again and 0 < first.percentile < 100


def test_the_command_says_what_to_run_next(run: Callable, saved: Path, tmp_path: Path) -> None:
    page = tmp_path / "audit.html"
    result = run("audit", "--scan", saved, "--dataset", "demo", "-o", page)
    assert result.code == 0, result.err
    assert "next, to remove location:\n  clipedit remove-heads --concept location --model demo" in result.err
    assert result.out.index("location") < result.out.index("color") < result.out.index("watermark")
    html = page.read_text(encoding="utf-8")
    assert "leans" in html and f"--scan {saved}" in html and "http" not in html.replace("http-equiv", "")
    again = run("audit", "--scan", saved, "-o", page)
    assert again.code == 1 and "it exists" in again.err


def test_json_has_its_keys_and_nothing_found_is_said(run: Callable, saved: Path) -> None:
    result = run("audit", "--scan", saved, "--concepts", "watermark,gender", "--json")
    rows = json.loads(result.out)["concepts"]
    assert [set(row) >= KEYS for row in rows] == [True, True] and {row["verdict"] for row in rows} <= {
        "other",
        "absent",
    }
    quiet = run("audit", "--scan", saved, "--concepts", "watermark,gender")
    assert quiet.code == 0 and "nothing found" in quiet.err and "remove-heads" not in quiet.err


def test_hostile_words_are_text_on_the_page(run: Callable, saved: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("name: '<script>x</script>'\ntexts: ['<b>the ocean</b>', 'a forest', 'a desert', 'the snow']\n")
    page = tmp_path / "audit.html"
    result = run("audit", "--scan", saved, "--concepts", "texture", "--concept", own, "-o", page, "--json")
    assert result.code == 0, result.err
    assert {row["concept"] for row in json.loads(result.out)["concepts"]} == {"<script>x</script>", "texture"}
    assert "<script>" not in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--concepts", "locatoin"), "location"),
        (("--concept", "nowhere.yaml"), "no such file"),
        (("--label", "x"), "--dataset"),
    ],
)
def test_what_is_wrong_is_said_before_a_model_runs(run: Callable, options: tuple[str, ...], message: str) -> None:
    result = run("audit", *options)
    assert result.code in (1, 2) and message in result.err and not result.out


def test_one_class_has_no_margin(demo_scan: clipedit.Scan, demo_model: clipedit.Model) -> None:
    with pytest.raises(clipedit.ConceptError, match="one class"):
        clipedit.audit(demo_scan, demo_model, classes=["star"])


def test_a_concept_of_ones_own_is_asked_beside_the_library(
    demo_scan: clipedit.Scan, demo_model: clipedit.Model
) -> None:
    texts = ("a photo taken in the forest", "a photo of the ocean", "a photo in the desert", "a photo in the snow")
    own = Concept(name="scenery", texts=texts, related=("location",))
    (row,) = clipedit.audit(demo_scan, demo_model, concepts=[], own=[own])
    assert row.concept == "scenery" and row.verdict == "held"


def test_the_command_to_run_next_names_the_scanned_model_and_the_files_that_were_given(
    run: Callable, demo_scan: clipedit.Scan, tmp_path: Path
) -> None:
    folder = tmp_path / "with a blank"
    folder.mkdir()
    demo_scan.save(folder / "scan")
    own = folder / "own.yaml"
    texts = "['a photo taken in the forest', 'a photo of the ocean', 'a photo in the desert', 'a photo in the snow']"
    own.write_text(f"name: scenery\nrelated: [location]\ntexts: {texts}\n")
    result = run("audit", "--scan", folder / "scan", "--concepts", "texture", "--concept", own, "--json")
    (row,) = [row for row in json.loads(result.out)["concepts"] if row["command"]]
    expected = ["clipedit", "remove-heads", "--concept", str(own), "--model", "demo", "--scan", str(folder / "scan")]
    assert row["concept"] == "scenery" and shlex.split(row["command"]) == [*expected, "-o", "repaired"]
    # Not `--model`, whose default is another one: the model of the scan.
    found = Audit((AuditRow("location", "held", "so", 2.0, (1.5, 2.5)),), 10)
    asked = dict.fromkeys(("images", "scan", "dataset", "concept", "exif", "decode")) | {"model": "demo", "scan": "s"}
    other = Mock(model_name="ViT-B-32", pretrained="openai", aligner=None)
    spelled = _spell_commands(found, asked, other)["location"]
    assert "--model ViT-B-32 --pretrained openai --scan s" in spelled


def test_a_misspelt_concept_costs_no_scan(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipedit.export.inputs.scan", Mock(side_effect=AssertionError("images were scanned")))
    result = run("audit", "--concepts", "locatoin")
    assert result.code == 1 and "location" in result.err
