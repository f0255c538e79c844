"""Rivals: each one's theorem or identity, what a checkpoint holds of it, and the table on the command line."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.nn.functional as F

import clipedit
from clipedit.editor.components import HeadId
from clipedit.editor.concepts.concepts import Concept, load_concept
from clipedit.editor.concepts.directions import concept_directions, differences
from clipedit.editor.edits.bind import bind_recipe
from clipedit.editor.edits.document import RecipeDocument, Step
from clipedit.editor.errors import ClipeditError
from clipedit.editor.images.decode import Decoding
from clipedit.editor.images.demo import SHAPES, example_source, labelled_by, labelled_tasks
from clipedit.editor.images.demo import test_source as reported_source
from clipedit.editor.images.labelled_options import LabelledOptions
from clipedit.editor.images.source import OpenPath
from clipedit.editor.measure.demo_measure import SHAPE_TEMPLATES
from clipedit.editor.rivals import measure
from clipedit.editor.rivals.causal import compute_divergence, score_causes, swap_backgrounds
from clipedit.editor.rivals.erasers import fit_splince
from clipedit.editor.rivals.inferred import fit_translation
from clipedit.editor.rivals.residual import find_components, fit_weights
from clipedit.editor.rivals.roster import METHODS
from clipedit.editor.rivals.selectors import head_covariances, pursue, remove_best
from clipedit.editor.rivals.setting import Setting
from clipedit.editor.rivals.text_maps import CALIBRATION, calibrate, insight_map, scatter_of_pairs
from clipedit.editor.select.attention_region import subset
from clipedit.editor.select.options import HeadChoice
from clipedit.export.inputs import follow_nothing, load_erased, load_evidence
from clipedit.export.rivals import _load_labels

PIXELS = 16


@pytest.fixture(scope="module")
def setting(demo_model: clipedit.Model, demo_scan: clipedit.Scan) -> Setting:
    task, colors = labelled_tasks()
    some = range(0, len(task.labels), 8)
    concept = load_concept("location", demo_model.folder)
    labelled = [subset(one, some) for one in (task, labelled_by("place"), colors)]
    return Setting(demo_model, demo_scan, concept, SHAPES, SHAPE_TEMPLATES, example_source(8), *labelled)


@pytest.fixture(scope="module")
def pixels(demo_model: clipedit.Model) -> torch.Tensor:
    source = example_source(PIXELS)
    return torch.stack([demo_model.preprocess(source.open(index)) for index in range(PIXELS)])


def collect(model: clipedit.Model, pixels: torch.Tensor):
    return model.tower.collect_features(pixels, [])


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("frontier", "TIE*")])
def test_a_plain_checkpoint_holds_what_is_measured(name: str, setting: Setting, pixels: torch.Tensor) -> None:
    rival = METHODS[name].make(setting)
    assert rival.is_plain and (rival.image or rival.texts)
    applied = rival.apply(setting.model)
    found = rival.embed(setting.model, collect(setting.model, pixels))
    assert torch.allclose(applied.encode_image(pixels), found, atol=0.01 * float(found.abs().max()))
    # Of images only, texts stay as they are, and the other way round.
    texts = ["a photo of the ocean", "a circle"]
    assert torch.equal(applied.encode_text(texts), setting.model.encode_text(texts)) == (not rival.texts)
    unedited = setting.model.encode_image(pixels)
    assert torch.equal(applied.encode_image(pixels), unedited) == (not rival.image)


def test_nothing_is_left_along_what_is_projected_out(setting: Setting, pixels: torch.Tensor) -> None:
    basis = concept_directions(setting.concept, setting.model)
    features = collect(setting.model, pixels)
    images = METHODS["output projection"].make(setting).embed(setting.model, features)
    texts = METHODS["class-text projection"].make(setting).apply(setting.model).encode_text(list(SHAPES))
    for found in (images, texts):
        assert float((found.double() @ basis).norm() / found.norm()) < 2e-3
    assert METHODS["class-text projection"].make(setting).image == {}


def test_differences_in_one_context_span_what_centred_texts_span() -> None:
    texts = torch.randn(1, 4, 9, dtype=torch.float64)
    pairs = differences(texts[0])
    assert len(pairs) == 6
    centred = texts[0] - texts[0].mean(0)
    for one, other in ((pairs, centred), (centred, pairs)):
        assert torch.allclose(one @ torch.linalg.pinv(other) @ other, one)


def test_the_scatter_of_pairs_is_that_of_every_pair() -> None:
    prompts = torch.randn(3, 5, 7, dtype=torch.float64)
    every = [one - other for row in prompts for one, other in combinations(row, 2)]
    assert torch.allclose(scatter_of_pairs(prompts), sum(torch.outer(d, d) for d in every) / len(every))


def test_the_calibration_is_where_its_loss_is_flat() -> None:
    start, prompts = torch.randn(7, 7, dtype=torch.float64), torch.randn(3, 5, 7, dtype=torch.float64)
    scatter = scatter_of_pairs(prompts)
    found = calibrate(start, scatter, CALIBRATION)
    # The gradient of |P - P_0|^2 + lambda tr(P M P^T), up to a factor of two.
    assert torch.allclose(found - start + CALIBRATION * found @ scatter, torch.zeros(7, 7).double(), atol=1e-8)
    assert torch.allclose(calibrate(start, scatter, 0.0), start)


def test_roboshot_image_by_image_is_one_matrix() -> None:
    harmful, helpful = torch.randn(3, 8, dtype=torch.float64), torch.randn(2, 8, dtype=torch.float64)
    image = torch.randn(8, dtype=torch.float64)
    found = image
    for direction in torch.linalg.qr(harmful.T)[0].T:
        found = found - (found @ direction) * direction
    for direction in torch.linalg.qr(helpful.T)[0].T:
        found = found + (found @ direction) * direction
    assert torch.allclose(insight_map(harmful, helpful) @ image, found)


def test_differences_that_others_span_are_no_noise() -> None:
    vectors = torch.randn(4, 8, dtype=torch.float64)
    # Six differences span three dimensions.
    left = torch.linalg.matrix_rank(insight_map(differences(vectors), vectors[:1]))
    assert int(left) == 5


def test_a_translated_group_projects_to_zero_on_its_own_text() -> None:
    texts = F.normalize(torch.randn(3, 8, dtype=torch.float64), dim=1)
    embeddings = torch.randn(200, 8) * 5
    translate = fit_translation(embeddings, texts)
    found, guessed = translate(embeddings).double(), (F.normalize(embeddings.double(), dim=1) @ texts.T).argmax(1)
    for index in range(3):
        assert abs(float((found[guessed == index] @ texts[index]).mean())) < 1e-6


def test_what_is_translated_depends_on_the_image(setting: Setting, pixels: torch.Tensor) -> None:
    rival = METHODS["TIE*"].make(setting)
    assert not rival.is_plain and not rival.image and not rival.texts
    one, other = (rival.embed(setting.model, collect(setting.model, pixels[index, None])) for index in (0, 1))
    both = rival.embed(setting.model, collect(setting.model, pixels[:2]))
    assert torch.allclose(both, torch.cat([one, other]), atol=1e-4)
    bare = replace(setting.scan, sample=None)
    with pytest.raises(clipedit.StatisticsError, match="no sample"):
        METHODS["TIE*"].make(replace(setting, scan=bare))


def test_splince_erases_the_concept_and_keeps_the_covariance_with_the_task() -> None:
    generator = torch.Generator().manual_seed(0)
    concept = torch.randint(3, (500,), generator=generator)
    task = (concept + torch.randint(2, (500,), generator=generator)) % 4
    mixing = torch.randn(7, 12, generator=generator)
    signal = torch.cat([F.one_hot(concept, 3), F.one_hot(task, 4)], 1).float() @ mixing
    found = signal + 0.3 * torch.randn(500, 12, generator=generator) + 2
    labels, classes = F.one_hot(concept).double(), F.one_hot(task).double()
    maps = fit_splince(found, labels, classes)

    def covariance(embeddings: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        return (embeddings - embeddings.mean(0)).double().T @ (columns - columns.mean(0)) / len(embeddings)

    edited = found.double() @ maps.T
    assert float(covariance(edited, labels).norm()) < 1e-8
    assert float(covariance(found, labels).norm()) > 0.1
    assert torch.allclose(covariance(edited, classes), covariance(found, classes), atol=1e-8)
    assert torch.allclose(maps @ maps, maps, atol=1e-8)
    # Two of twelve dimensions go: three instances, less their mean.
    assert int(torch.linalg.matrix_rank(maps)) == 10


def test_weights_of_one_change_no_head_and_others_scale_its_components(setting: Setting) -> None:
    subsets = setting.known.probe.subsets
    head = find_components(setting, subsets)[5]
    readout, count = subsets.readouts[5], len(head.reading)
    same = head.rescale(readout, torch.ones(count).double())
    assert torch.equal(same.map[0], torch.eye(count).double()) and not same.offset.any()
    weights = torch.rand(count, dtype=torch.float64)
    found = head.rescale(readout, weights)
    wanted = readout + head.directions @ torch.diag(weights - 1) @ head.directions.T @ readout
    assert torch.allclose(readout @ found.map[0], wanted, atol=1e-8)
    # The mean stays.
    assert torch.allclose(found.map[0] @ head.mean + found.offset[0], head.mean)


def test_residual_weights_answer_their_own_images_better(setting: Setting) -> None:
    texts, (features, _) = setting.class_weights, setting.labelled
    heads = find_components(setting, setting.known.probe.subsets)
    weights = fit_weights(heads, features, setting.class_labels, texts)
    moved = sum(one.coordinates(features) * (w - 1) @ one.directions.T for one, w in zip(heads, weights, strict=True))
    before, after = (
        float(((features.embedding.double() + change) @ texts.T).argmax(1).eq(setting.class_labels).double().mean())
        for change in (0.0, moved)
    )
    assert after > before + 0.05


def test_head_pursuit_from_a_covariance_is_that_of_the_data() -> None:
    data, atoms = torch.randn(50, 10, dtype=torch.float64), F.normalize(torch.randn(20, 10, dtype=torch.float64), dim=1)
    data = data - data.mean(0)
    covariance = data.T @ data / len(data)
    taken: list[int] = []
    residual = data
    for _ in range(4):
        taken.append(int((residual @ atoms.T).norm(dim=0).argmax()))
        span = atoms[taken].T
        residual = data - data @ span @ torch.linalg.pinv(span)
    expected = 1 - float(residual.square().sum() / data.square().sum())
    assert pursue(covariance, atoms, steps=4) == pytest.approx(expected)
    assert pursue(covariance, atoms, steps=10) == pytest.approx(1)
    assert pursue(torch.zeros(10, 10).double(), atoms, steps=4) == 0
    # The same atom again explains nothing more.
    assert pursue(covariance, atoms[[0, 0]], steps=2) == pytest.approx(pursue(covariance, atoms[:1], steps=1))


def test_selectors_take_as_many_heads_as_the_tool_would(setting: Setting) -> None:
    heads = setting.known.probe.subsets.heads
    assert len(head_covariances(setting)) == len(heads)
    wanted = [HeadId.parse(head) for head in setting.default.heads]
    scores = torch.tensor([float(head in wanted) for head in heads]).double()
    found, alone = remove_best(setting, scores), METHODS["clipedit, heads alone"].make(setting)
    assert all(torch.equal(found.image[name], alone.image[name]) for name in alone.image)


def test_divergence_is_that_of_kullback_and_leibler() -> None:
    one, other = (F.log_softmax(torch.randn(6, 4, dtype=torch.float64), 1) for _ in range(2))
    expected = F.kl_div(other, one, reduction="none", log_target=True).sum(1)
    assert torch.allclose(compute_divergence(one, other), expected)
    assert not compute_divergence(one, one).any()


def test_a_swapped_image_has_its_object_and_the_next_background(setting: Setting, pixels: torch.Tensor) -> None:
    found = swap_backgrounds(setting, pixels)
    own, nexts = (found == pixels).all(1), (found == pixels.roll(-1, 0)).all(1)
    assert bool((own | nexts).all()) and 0.05 < float(own.float().mean()) < 0.95


def test_an_image_on_its_own_background_has_no_cause(setting: Setting) -> None:
    source = example_source(1).subset([0, 0, 0])
    assert score_causes(replace(setting, images=source)).abs().max() < 1e-9
    assert score_causes(setting).abs().max() > 1e-3
    with pytest.raises(clipedit.ImageError, match="pixels"):
        score_causes(replace(setting, images=None))


def test_labels_that_are_missing_are_named(setting: Setting) -> None:
    bare = replace(setting, task=None, attribute=None)
    for method in METHODS.values():
        if method.labels:
            with pytest.raises(ClipeditError, match="--labelled"):
                method.make(bare)
    with pytest.raises(ClipeditError, match="--erase"):
        METHODS["SPLINCE"].make(replace(setting, attribute=None))
    with pytest.raises(ClipeditError, match="different images"):
        METHODS["LEACE"].make(replace(setting, attribute=subset(labelled_by("place"), range(4))))


def test_a_plain_list_of_texts_has_an_instance_for_each(setting: Setting) -> None:
    concept = Concept(name="plain", texts=("a photo of the ocean", "a photo of the city", "a photo of the desert"))
    found = replace(setting, concept=concept, classes=("circle", "square"))
    assert [len(part) for part in found.instances] == [1, 1, 1]
    assert found.pairs.shape[:2] == (2, 3)


def test_a_directly_edited_model_beside_rivals_has_its_own_figures(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "METHODS", {})
    assert setting.task is not None
    recipe = bind_recipe(setting.default.model_copy(update={"effect": "direct"}), setting.scan, setting.model)
    edited = clipedit.apply_recipe(recipe, setting.model)
    assert edited.readout_edit is not None
    rows = measure.measure_rivals(setting, setting.task, others={"edited": edited}).methods
    alone = clipedit.evaluate({"edited": edited}, setting.task, templates=setting.templates)
    assert rows["edited"].figures == alone["edited"] != rows["unedited"].figures


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty test images with a table of shapes and places, half of them to fit to."""
    out, source = tmp_path_factory.mktemp("rivals"), reported_source()
    chosen = [i for i, row in enumerate(source.attributes) if row["shape"] in ("circle", "star")][:80]
    with (out / "metadata.csv").open("w", newline="") as stream:
        table = csv.DictWriter(stream, ["filename", "shape", "place", "split"])
        table.writeheader()
        for number, index in enumerate(chosen):
            source.open(index).save(out / source.names[index])
            row = {name: source.attributes[index][name] for name in ("filename", "shape", "place")}
            table.writerow(row | {"split": "val" if number % 2 else "test"})
    return out


def test_evaluate_shows_every_rival_with_what_it_needs(run, folder: Path, saved: Path, tmp_path: Path) -> None:
    command = ["evaluate", "demo", "--dataset", folder, "--rivals", "location", "--scan", saved]
    found = run(*command, "--labelled", folder, "--erase", "place", "--json", "--csv", tmp_path / "rows.csv")
    assert found.code == 0, found.err
    report = json.loads(found.out)
    rows = {row["method"]: row for row in report["rows"]}
    assert set(rows) | set(report["left_out"]) == {"unedited", *METHODS}
    assert set(report["left_out"]) <= {"frontier"}
    assert not rows["TIE*"]["plain_checkpoint"] and rows["ResiDual"]["labels_used"]
    assert all(0 <= row["worst_group"] <= row["overall"] <= 1 for row in rows.values())
    with (tmp_path / "rows.csv").open() as stream:
        assert [row["method"] for row in csv.DictReader(stream)] == list(rows)


def test_images_to_fit_to_are_read_in_the_layout_and_the_way_that_is_named(folder: Path) -> None:
    options = LabelledOptions(layout="table", label="shape", split="test", retention="place", exif="ignore")
    task, places, second = _load_labels("demo", str(folder), "place", options)
    assert task is not None and places is not None and second is None
    # Heads are chosen on validation rows, whichever the report is on.
    assert task.split == places.split == "val" and task.source.names == places.source.names
    assert task.classes == ("circle", "star") and "ocean" in places.classes
    for found in (task, places):
        assert isinstance(found.source.open, OpenPath) and found.source.open.decoding == Decoding("ignore")
    with pytest.raises(clipedit.ImageError, match="as CLIP_benchmark"):
        _load_labels("demo", str(folder), None, replace(options, layout="webdataset"))


def test_what_is_kept_is_of_the_rows_that_heads_are_chosen_on(folder: Path) -> None:
    columns = {"label": "shape", "group_by": ("shape",), "retention": "place", "layout": "table"}
    evidence = load_evidence(HeadChoice(select="labelled-contrast", labelled=str(folder), **columns))  # type: ignore[arg-type]
    assert evidence.labelled is not None and evidence.retention is not None
    assert evidence.labelled.split == "val"
    assert evidence.retention.source.names == evidence.labelled.source.names


def test_what_is_erased_is_of_the_rows_that_heads_are_chosen_on(folder: Path, demo_model: clipedit.Model) -> None:
    choice = HeadChoice(labelled=str(folder), erase="place")
    document = RecipeDocument.model_construct(steps=(Step.model_construct(operation="leace", along=None),))
    collect = mock.Mock(side_effect=ZeroDivisionError)
    with mock.patch("clipedit.export.inputs.collect_labelled", collect), pytest.raises(ZeroDivisionError):
        load_erased(document, demo_model, choice, follow_nothing)
    assert collect.call_args.args[1].split == "val"


@pytest.mark.slow
def test_without_labels_rivals_that_need_them_are_left_out(run, folder: Path, saved: Path) -> None:
    found = run("evaluate", "demo", "--dataset", folder, "--rivals", "location", "--scan", saved)
    assert found.code == 0 and "causal score" in found.out
    said = " ".join(found.err.split())
    assert all(f"left out: {name}" in said for name, method in METHODS.items() if method.labels)


def test_wrong_use_of_rivals_is_refused(run, folder: Path, saved: Path) -> None:
    assert run("evaluate", "demo", "--dataset", folder, "--scan", saved).code == 2
    assert run("evaluate", "demo", "--dataset", folder, "--rivals", "location", "--control").code == 2
    unknown = run("evaluate", "demo", "--dataset", folder, "--rivals", "locatoin")
    assert unknown.code == 1 and "location" in unknown.err
    shared = run(
        *("evaluate", "demo", "--dataset", folder, "--split", "all", "--rivals", "location", "--scan", saved),
        *("--labelled", folder, "--erase", "place"),
    )
    assert shared.code == 1 and "40 of 80" in shared.err
