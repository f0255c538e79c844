"""audit --discover: a concept that was taken out of the library is found again, and nothing where all is known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
import torch
import torch.nn.functional as F

import clipedit
from clipedit.commands.tables.outputs import make_schema
from clipedit.demo.world import COLORS, PLACES
from clipedit.editor.components import Features
from clipedit.editor.concepts.concepts import list_concepts
from clipedit.editor.concepts.queries import encode_unit
from clipedit.editor.images.texts import load_texts
from clipedit.editor.scan.sample import Sample
from clipedit.editor.select.discovery.candidates import Discovery, write_candidates
from clipedit.editor.select.discovery.discover import discover, search_concepts
from clipedit.editor.select.discovery.instances import Pool, cut_instances, name_instances
from clipedit.editor.select.discovery.low_margin import find_low_margin_directions
from clipedit.editor.select.discovery.writings import Writings, build_writings, explain_heads
from clipedit.editor.select.whose_heads import HeldConcepts


@pytest.fixture(scope="module")
def known(demo_scan: clipedit.Scan, demo_model: clipedit.Model) -> HeldConcepts:
    return HeldConcepts(demo_scan, demo_model)


@pytest.fixture(scope="module")
def pool(demo_model: clipedit.Model) -> Pool:
    texts = load_texts(model_folder=demo_model.folder)
    return Pool(texts, encode_unit(demo_model, texts))


@pytest.fixture(scope="module")
def found(known: HeldConcepts, pool: Pool) -> Discovery:
    return search_concepts(known, {name: one for name, one in known.library.items() if name != "location"}, pool)


def test_a_concept_taken_out_of_the_library_is_found_again(found: Discovery, known: HeldConcepts) -> None:
    """The demo's captions leave places out where they are usual: its heads hold places, whoever names them."""
    best, *others = found.candidates
    named = {place for place in PLACES for text in best.concept.texts if place in text}
    assert len(named) >= 6 and len(best.concept.parts()) >= 6
    location = clipedit.make_recipe(known.scan, known.model, concept="location")
    assert len(set(location.heads) & set(map(str, best.edit.heads))) >= len(location.heads) / 2
    assert best.selectivity.low > 1 and best.edit.chosen.removed > best.edit.chosen.elsewhere + 0.1
    assert 0 < best.share <= 1 and best.source == "heads" and best.spans[0].variance_share > 0.1
    assert not others


def test_a_concept_is_found_again_although_others_stand_in_for_it(known: HeldConcepts, pool: Pool) -> None:
    """Without colours in the library, watermarks are what explains the heads of colours best."""
    found = search_concepts(known, {name: one for name, one in known.library.items() if name != "color"}, pool)
    assert "location" in found.explained_by and len(found.explained_by) > 1
    (best,) = found.candidates
    assert sum(color in " ".join(best.concept.texts).split() for color in COLORS) >= 6
    # An edit of it does not have to keep what only stood in for it.
    assert set(best.concept.related) == set(found.explained_by) - {"location"}


def test_nothing_is_found_where_everything_is_known(known: HeldConcepts, demo_model: clipedit.Model) -> None:
    silent = discover(known.scan, demo_model, known=known)
    assert silent.candidates == () and silent.because.startswith("discovered nothing: ")
    assert set(silent.explained_by) == {"location", "color"} and silent.strong > 0
    assert silent.judged_images < silent.images == known.scan.statistics.n


def test_texts_are_chosen_on_one_half_of_the_images_and_judged_on_the_other(found: Discovery) -> None:
    assert 0 < found.judged_images < found.images


def test_what_heads_write_is_the_covariance_of_their_contributions(known: HeldConcepts, pool: Pool) -> None:
    writings = build_writings(known.scan, known.model)
    group = next(one for one in known.scan.groups(known.model) if one.ids[0].kind == "head")
    readout = known.model.tower.compute_readouts([group])[group.name]
    expected = readout @ known.scan.statistics.feature_covariance(group.name) @ readout.transpose(1, 2)
    factors = writings.factors[: len(group.ids)]
    torch.testing.assert_close(factors @ factors.transpose(1, 2), expected, rtol=1e-8, atol=1e-12)
    everything = torch.eye(known.model.tower.d_embed).double()
    torch.testing.assert_close(writings.shares_along(everything), torch.ones(len(writings.heads)).double())
    labels = clipedit.text_span(known.scan, known.model, texts=pool.texts, texts_per_head=3)
    chosen, shares = writings.label(pool.unit, 3)
    for head, texts, held in zip(writings.heads, chosen.tolist(), shares.tolist(), strict=True):
        assert [pool.texts[text] for text in texts] == [label.text for label in labels[str(head)]]
        assert held == pytest.approx([label.variance_share for label in labels[str(head)]])


def test_a_head_is_explained_by_the_concept_that_spans_what_it_writes() -> None:
    axes = torch.eye(6).double()
    # One head writes along the first two axes, one along the last two, one never varies.
    factors = torch.stack([axes[:, :2], axes[:, 4:], torch.zeros(6, 2).double()])
    heads = tuple(clipedit.HeadId(0, index) for index in range(3))
    writings = Writings(heads, factors)
    best = explain_heads(
        writings, {"first": axes[:, :2], "half": axes[:, 3:5]}, torch.tensor([[0.5, 1.0]] * 3).double()
    )
    assert best.tolist() == pytest.approx([1.0, 0.5, 0.0])
    assert writings.is_strong.tolist() == [True, True, False]


def test_texts_that_heads_read_alike_are_one_instance() -> None:
    axes = torch.eye(5).double()
    # The last axis tells wordings apart, and the head does not read it.
    rows = [F.normalize(axes[thing] + 0.5 * wording * axes[4], dim=0) for thing in range(3) for wording in (-1, 0, 1)]
    texts = tuple(
        f"{form} {thing}" for thing in ("an owl", "a wren", "a kite") for form in ("oil of", "ink of", "photo of")
    )
    pool = Pool(texts, torch.stack(rows))
    found = cut_instances(pool, range(9), axes[None, :, :4])
    assert set(found) == {"owl", "wren", "kite"}
    assert all(len(part) == 3 and all(name in text for text in part) for name, part in found.items())


def test_instances_are_named_by_the_words_that_tell_them_apart() -> None:
    named = name_instances([["a photo of the sea", "in a sea"], ["a photo of a wood", "in the wood"]])
    assert named == ["sea", "wood"]
    assert len(set(name_instances([["a a"], ["a"], ["a", "A"]]))) == 3
    assert name_instances([["海"], ["森"]]) == ["海", "森"]


def test_images_of_low_margin_differ_in_what_was_planted() -> None:
    generator = torch.Generator().manual_seed(0)
    classes = torch.eye(8)[:2].double()
    decided = F.normalize(torch.randn(300, 8, generator=generator) * 0.05 + torch.eye(8)[0], dim=1)
    undecided = torch.randn(100, 8, generator=generator) * 0.05 + torch.eye(8)[:2].sum(0)
    undecided[:, 5] += torch.randn(100, generator=generator)
    rows = torch.cat([decided, undecided])
    names = tuple(map(str, range(400)))
    sample = Sample(Features({}, {}, rows, rows), ("0" * 16,) * 400, names)
    span = F.normalize(torch.tensor([1.0, -1, 0, 0, 0, 0, 0, 0]).double(), dim=0)[:, None]
    found = find_low_margin_directions(sample, classes, span, fold=None)
    assert abs(float(found[5, 0])) > 0.9
    assert found.shape[1] == 3 and float((span.T @ found).abs().max()) < 1e-9


def test_a_candidate_is_a_concept_file_that_says_where_it_is_from(found: Discovery, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("mine")
    files = write_candidates(found, tmp_path)
    best = found.candidates[0]
    path = files[best.concept.name]
    assert clipedit.load_concept(path) == best.concept
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# A candidate") and "Selectivity" in text and best.from_heads[0] in text
    assert f"{best.share:.0%}" in text and best.spans[0].text in text
    with pytest.raises(clipedit.ExportError, match="it exists"):
        write_candidates(found, tmp_path)
    path.write_text("edited")
    write_candidates(found, tmp_path, overwrite=True)
    assert path.read_text(encoding="utf-8") == text and (tmp_path / "own.yaml").read_text() == "mine"


def test_two_things_that_heads_tell_apart_are_told_and_no_candidate(
    known: HeldConcepts, demo_model: clipedit.Model
) -> None:
    """Of a pool that names two places only, nobody can say whether they are the values of one concept."""
    forms = ("a photo of the {}", "{}", "a picture of the {}", "something in the {}")
    words = [*(form.format(place) for place in ("forest", "desert") for form in forms), "a red circle", "a blue star"]
    pool = Pool(tuple(words), encode_unit(demo_model, words))
    told = search_concepts(known, {name: one for name, one in known.library.items() if name != "location"}, pool)
    assert told.candidates == () and told.because.startswith("discovered nothing")
    (pair,) = told.pairs
    assert set(pair.concept.parts()) == {"forest", "desert"} and pair.selectivity.low > 1
    assert "one concept of two values" in pair.advise() and "--concept" in pair.advise()
    (row,) = told.report()["pairs"]
    assert row["instances"].keys() == {"forest", "desert"} and row["advice"] == pair.advise()


def test_the_command_writes_candidates_and_prints_what_its_schema_says(
    run: Callable, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_location(folder: Path | None) -> dict[str, Path]:
        return {name: path for name, path in list_concepts(folder).items() if name != "location"}

    for where in ("whose_heads", "audit"):
        monkeypatch.setattr(f"clipedit.editor.select.{where}.list_concepts", without_location)
    out = tmp_path / "concepts"
    result = run("audit", "--scan", saved, "--discover", "-o", out, "--json")
    assert result.code == 0, result.err
    value = json.loads(result.out)
    jsonschema.validate(value, make_schema("audit"))
    (row,) = value["discovered"]["candidates"]
    assert Path(row["file"]).parent == out and row["file"] in row["command"]
    page = (out / "audit.html").read_text(encoding="utf-8")
    assert "Discovered" in page and row["name"] in page and row["file"] in page
    assert all(text in page for texts in row["instances"].values() for text in texts)
    judged = run("audit", "--scan", saved, "--concepts", "color", "--concept", row["file"], "--json")
    assert {one["concept"]: one["verdict"] for one in json.loads(judged.out)["concepts"]}[row["name"]] == "held"
    again = run("audit", "--scan", saved, "--discover", "-o", out)
    assert again.code == 1 and "--overwrite" in again.err


def test_the_command_is_silent_where_everything_is_known(run: Callable, saved: Path, tmp_path: Path) -> None:
    out = tmp_path / "concepts"
    result = run("audit", "--scan", saved, "--concepts", "color", "--discover", "-o", out)
    assert result.code == 0 and "discovered nothing" in result.err and "candidate" not in result.out
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--texts", "pool.txt"), 2, "--discover"),
        (("--discover", "-o", "audit.html"), 2, "folder"),
        (("--discover", "--texts", "nowhere.txt"), 1, "nowhere.txt"),
    ],
)
def test_what_is_wrong_is_said_before_a_model_runs(
    run: Callable, options: tuple[str, ...], code: int, message: str
) -> None:
    result = run("audit", *options)
    assert result.code == code and message in result.err and not result.out
