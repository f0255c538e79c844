"""Where classes are known, what they do not lean on is said before anything is measured, and refused if it is clear."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

import clipedit
from clipedit.demo import world
from clipedit.editor.concepts.concepts import Concept
from clipedit.editor.concepts.margins import LEANS_NOT_BELOW, Lean, name_classes
from clipedit.editor.images.demo import render_source
from clipedit.editor.images.labelled_options import DEFAULT_TEMPLATES, LabelledOptions
from clipedit.editor.images.layouts import list_classes, open_dataset
from clipedit.editor.images.skew import RetrievalSet
from clipedit.editor.images.source import LabelledImages
from clipedit.editor.measure.verdict import describe_doubts, read_leans
from clipedit.editor.select.options import EditOptions, HeadChoice
from clipedit.editor.select.whose_heads import HeldConcepts
from clipedit.export.choose import Leans, measure_leans, read_request, require_leant_on


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shapes in all places: of location they lean, of colour they do not (demo/world.py)."""
    folder = tmp_path_factory.mktemp("shapes")
    scenes = world.draw_balanced_scenes(64, 11)
    source, rows = render_source(scenes), [["filename", "shape", "place", "color"]]
    for index, scene in enumerate(scenes):
        source.open(index).save(folder / f"{index}.png")
        rows.append([f"{index}.png", scene.shape, scene.place, scene.color])
    with (folder / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


@pytest.fixture(scope="module")
def known(demo_scan: clipedit.Scan, demo_model: clipedit.Model) -> HeldConcepts:
    return HeldConcepts(demo_scan, demo_model)


def ask(known: HeldConcepts, concept: str, classes: tuple[str, ...], choice: HeadChoice | None = None) -> Leans:
    """What `repair` asks of classes before it measures."""
    source = render_source(world.draw_balanced_scenes(64, 1))
    task = LabelledImages(source, classes, (0,) * len(source), ("",) * len(source))
    request = read_request(known.model, concept, None, EditOptions(), choice or HeadChoice())
    return measure_leans(request, known, task, DEFAULT_TEMPLATES)


def test_shapes_lean_on_places_as_the_audit_says(known: HeldConcepts, recwarn: pytest.WarningsRecorder) -> None:
    lean = ask(known, "location", world.SHAPES)["location"]
    assert lean.is_leant_on and lean.describe("location").startswith("the classes lean on location: ")
    assert not [one for one in recwarn if "lean" in str(one.message)]
    (row,) = clipedit.audit(known.scan, known.model, classes=world.SHAPES, concepts=["location"], known=known)
    assert row.lean is not None and (row.lean.share, row.lean.percentile) == (lean.share, lean.percentile)


def test_between_both_ends_it_is_a_warning(known: HeldConcepts) -> None:
    request = read_request(known.model, "location", None, EditOptions(), HeadChoice())
    said = "the classes do not lean on location: 5 % of .*, more than along 50 % of random texts: .* nothing to give"
    with pytest.warns(UserWarning, match=said):
        require_leant_on(request, {"location": Lean(0.05, 50.0)})


def test_classes_that_have_nothing_to_do_with_a_concept_do_not_lean_on_it(known: HeldConcepts) -> None:
    """The demo's captions say colours of any shape in any place (demo/world.py)."""
    with pytest.raises(clipedit.ConceptError, match="cannot remove location: the classes do not lean on location"):
        ask(known, "location", tuple(f"{color} object" for color in world.COLORS))


def test_texts_that_name_the_classes_and_what_no_heads_hold_are_not_asked(known: HeldConcepts) -> None:
    assert ask(known, "color", tuple(world.COLORS)) == {}
    assert ask(known, "watermark", world.SHAPES) == {}


def test_what_classes_clearly_do_not_lean_on_is_refused_before_anything_is_measured(
    run: Callable, saved: Path, table: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    given = ("remove-heads", "--concept", "color", "--scan", saved, "--dataset", table, "--label", "shape", "-o", out)
    result = run(*given)
    assert result.code == 1 and not out.exists() and "measure" not in result.err
    (line,) = [one for one in result.err.splitlines() if "cannot remove color" in one]
    assert "the classes do not lean on color: " in line and "more than along 0 % of random texts" in line
    assert "--force" in line
    planned = run(*given, "--dry-run", "--json")
    assert planned.code == 1 and "do not lean on color" in json.loads(planned.out)["refused"]


def test_forced_it_is_a_warning_and_stays_with_the_figures(
    demo_model: clipedit.Model, demo_scan: clipedit.Scan, table: Path
) -> None:
    labels, choice = LabelledOptions(label="shape"), HeadChoice(force=True)
    with pytest.warns(UserWarning, match="do not lean on color"):
        done = clipedit.repair(demo_model, scan=demo_scan, concept="color", choice=choice, dataset=table, labels=labels)
    (row,) = done.report()["leans"]
    assert row["concept"] == "color" and not row["leant_on"] and row["percentile"] < LEANS_NOT_BELOW
    (line,) = [one for one in describe_doubts(done.measured) if "lean" in one]
    assert line.startswith("the classes do not lean on color")


@pytest.mark.parametrize(
    ("percentile", "leant_on", "clearly_not"),
    [(0.0, False, True), (4.5, False, True), (5.0, False, False), (95.0, True, False)],
)
def test_a_lean_is_clear_at_both_ends_only(percentile: float, leant_on: bool, clearly_not: bool) -> None:
    lean = Lean(0.1, percentile)
    assert (lean.is_leant_on, lean.is_clearly_not) == (leant_on, clearly_not)


def test_classes_are_those_of_whatever_set_was_opened(table: Path) -> None:
    assert list_classes(open_dataset(table, LabelledOptions(label="color"))) == tuple(sorted(world.COLORS))
    assert list_classes("demo") == world.SHAPES and list_classes(table) == ()
    source = render_source(world.draw_balanced_scenes(64, 1))
    assert list_classes(RetrievalSet(source, ("a doctor", "a nurse"), {})) == ("a doctor", "a nurse")


def test_classes_are_named_by_words() -> None:
    concept = Concept(name="seas", texts=("an ocean", "two Lakes"))  # pyright: ignore[reportCallIssue]
    assert name_classes(concept, ["ocean", "desert"]) and name_classes(concept, ["lake", "a", "an"])
    assert not name_classes(concept, ["ocean", "desert", "forest"]) and not name_classes(concept, [])


@pytest.mark.parametrize("leans", [None, "x", [1], [{"leant_on": False}], [{"because": 3}]])
def test_leans_that_cannot_be_read_are_left_out(leans: object) -> None:
    assert read_leans({"evidence": {"leans": leans}}) == [] and read_leans(None) == []
