"""Nothing is judged on what it was fitted to: folds, ridge, left-out figures, certificates, blank images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import clipedit
from clipedit.editor.edits.held_out import compute_leverages, estimate_fidelity
from clipedit.editor.edits.refit import RIDGES, NormalEquations, choose_ridge, solve_ridge, sum_equations
from clipedit.editor.images.demo import demo_calibration_source
from clipedit.editor.images.source import ImageSource
from clipedit.editor.measure.certificate import bound_turn, certify_recipe, compute_turns
from clipedit.editor.measure.fidelity import measure_fidelity
from clipedit.editor.measure.reindex import compute_embedding_map
from clipedit.editor.models.identity import describe_function, find_function_difference
from clipedit.editor.scan.sample import SAMPLE_IMAGES, choose_folds
from clipedit.editor.scan.variety import count_distinct_images


@pytest.fixture(scope="module")
def pool() -> ImageSource:
    return demo_calibration_source(1024)


@pytest.fixture(scope="module")
def few(demo_model: clipedit.Model, pool: ImageSource) -> clipedit.Scan:
    """As many images as the model is wide: where a fixed ridge explains the images at hand and nothing else."""
    return clipedit.scan(demo_model, pool.subset(range(128)))


def test_folds_add_up_to_the_whole_and_do_not_depend_on_order(demo_model: clipedit.Model, pool: ImageSource) -> None:
    whole = clipedit.scan(demo_model, pool.subset(range(48)), batch_size=16)
    back = clipedit.scan(demo_model, pool.subset(range(47, -1, -1)), batch_size=16)
    assert [fold.n for fold in whole.folds] == [fold.n for fold in back.folds] and whole.statistics.n == 48
    for one, two in zip(whole.folds, back.folds, strict=True):
        assert (one.gg - two.gg).norm() <= 1e-6 * one.gg.norm()
    assert whole.sample is not None and back.sample is not None and whole.sample.marks == back.sample.marks


def test_the_sample_of_merged_scans_is_that_of_one_pass(demo_model: clipedit.Model, pool: ImageSource) -> None:
    whole = clipedit.scan(demo_model, pool.subset(range(700)))
    parts = [clipedit.scan(demo_model, pool.subset(part)) for part in (range(400), range(400, 700))]
    merged = parts[1].merge(parts[0])
    assert merged.sample is not None and whole.sample is not None
    assert len(merged.sample) == SAMPLE_IMAGES and merged.sample.marks == whole.sample.marks
    assert torch.allclose(merged.sample.features.final, whole.sample.features.final, atol=1e-5)


def test_a_scan_merged_with_itself_is_refused(few: clipedit.Scan) -> None:
    with pytest.raises(clipedit.StatisticsError, match="would count twice"):
        few.merge(few)


def test_marks_fall_into_all_folds() -> None:
    folds = choose_folds([f"{i * 2654435761 % 2**64:016x}" for i in range(200)])
    assert 60 < sum(folds) < 140


def test_the_ridge_is_the_one_of_least_error_on_the_fold_left_out() -> None:
    """Against the errors themselves, on data: the sums tell them up to a constant."""
    generator = torch.Generator().manual_seed(0)
    data = [torch.randn(40, 30, generator=generator).double() for _ in range(2)]
    truth = torch.randn(30, 3, generator=generator).double() * 0.2
    seen = [x @ truth + 2 * torch.randn(40, 3, generator=generator).double() for x in data]
    folds = [NormalEquations(x.T @ x, -x.T @ y) for x, y in zip(data, seen, strict=True)]

    def error(ridge: float) -> float:
        changes = [solve_ridge(folds[1 - i], ridge) for i in range(2)]
        return sum(float((x @ change - y).square().sum()) for x, y, change in zip(data, seen, changes, strict=True))

    assert choose_ridge(folds) == min(RIDGES, key=error)
    assert sum_equations(folds).gram.shape == (30, 30)


def test_leave_one_out_is_what_leaving_an_image_out_gives(demo_model: clipedit.Model, few: clipedit.Scan) -> None:
    """The formula against one refit without the image, at the same ridge."""
    assert few.sample is not None
    leverage = compute_leverages(few, demo_model, 1e-2)
    assert ((leverage > 0) & (leverage < 1)).all()
    columns = [*range(demo_model.tower.d_model), len(few.statistics.gg) - 2]
    gram = few.statistics.gg[columns][:, columns]
    scale = 1e-2 * gram.trace() / len(gram)
    final, norm = few.sample.features.final.double(), few.sample.features.embedding.double().norm(dim=1, keepdim=True)
    rows = torch.cat([final, torch.ones(len(final), 1).double()], 1) / norm
    target = torch.randn(len(rows), 2, generator=torch.Generator().manual_seed(1)).double()
    ridged = gram + scale * torch.eye(len(gram)).double()
    whole = torch.linalg.solve(ridged, rows.T @ target)
    for image in (0, 17):
        rest = [i for i in range(len(rows)) if i != image]
        alone = torch.linalg.solve(ridged - rows[image, :, None] * rows[image], rows[rest].T @ target[rest])
        expected = (rows[image] @ whole - target[image]) / (1 - leverage[image])
        assert torch.allclose(rows[image] @ alone - target[image], expected, atol=1e-7)


def test_128_images_hold_on_images_they_have_not_seen_and_say_how_well(
    demo_model: clipedit.Model, pool: ImageSource, few: clipedit.Scan
) -> None:
    recipe = clipedit.make_recipe(few, demo_model, concept="location", heads=8)
    claimed = estimate_fidelity(recipe, few, demo_model)
    true = measure_fidelity(recipe, few, demo_model, pool.subset(range(512, 1024)))
    assert claimed is not None and claimed.held_out and claimed.images == 128
    assert true.explained_change > 0.9
    assert abs(true.explained_change - claimed.explained_change) < 0.03
    assert recipe.document.fold is not None and (recipe.document.fold.ridge or 0) > 1e-4


def test_too_few_images_are_refused_with_the_figure_and_what_works(
    demo_model: clipedit.Model, pool: ImageSource
) -> None:
    scan = clipedit.scan(demo_model, pool.subset(range(16)))
    with pytest.raises(
        clipedit.StatisticsError, match=r"reproduces 0\.\d\d .* images would do; .*--effect direct or total"
    ):
        clipedit.make_recipe(scan, demo_model, concept="location")
    assert clipedit.make_recipe(scan, demo_model, concept="location", effect="direct").is_bound


@pytest.mark.parametrize("kind", ["two images", "copies of one image", "blank images"])
def test_images_that_say_nothing_are_refused(
    demo_model: clipedit.Model, pool: ImageSource, tmp_path: Path, kind: str
) -> None:
    from PIL import Image

    count = 2 if kind == "two images" else 24
    for index in range(count):
        image = Image.new("RGB", (64, 64)) if kind == "blank images" else pool.open(index if count == 2 else 0)
        image.save(tmp_path / f"{index}.png")
    scan = clipedit.scan(demo_model, tmp_path)
    assert count_distinct_images(scan) < 8
    with pytest.raises(clipedit.StatisticsError, match="images are worth"):
        clipedit.make_recipe(scan, demo_model, concept="location")


def test_a_map_of_stored_vectors_says_how_it_does_on_left_out_images(
    demo_model: clipedit.Model, few: clipedit.Scan
) -> None:
    recipe = clipedit.make_recipe(few, demo_model, concept="location", heads=8)
    found = compute_embedding_map(recipe, few, demo_model)
    assert found.held_out is not None and 0.9 < found.held_out.explained_change < 1


@pytest.mark.parametrize("texts", [("a forest", "A Forest", "A FOREST"), ("a forest", "a  forest", " a forest ")])
def test_texts_that_are_one_to_the_model_are_refused(
    demo_model: clipedit.Model, few: clipedit.Scan, tmp_path: Path, texts: tuple[str, ...]
) -> None:
    path = tmp_path / "one.yaml"
    path.write_text("name: one\ntexts:\n" + "".join(f"- '{text}'\n" for text in texts))
    with pytest.raises(clipedit.ConceptError, match="to the model they are one"):
        clipedit.score_heads(few, demo_model, concept=str(path))


@pytest.mark.parametrize(
    "case",
    [
        ("preprocess_cfg", {"mean": [0.4, 0.4, 0.4]}, "preprocess_cfg.mean"),
        ("preprocess_cfg", {"resize_mode": "squash"}, "preprocess_cfg.resize_mode"),
        ("vision_cfg", {"pool_type": "avg"}, "model_cfg.vision_cfg.pool_type"),
        ("model_cfg", {"quick_gelu": True}, "model_cfg.quick_gelu"),
    ],
)
def test_the_same_weights_with_another_function_are_another_base(
    demo_model: clipedit.Model, few: clipedit.Scan, tmp_path: Path, case: tuple[str, dict[str, object], str]
) -> None:
    part, change, named = case

    shutil.copytree(demo_model.folder or "", tmp_path / "other")
    path = tmp_path / "other" / "open_clip_config.json"
    config = json.loads(path.read_text())
    owner = config["model_cfg"]["vision_cfg"] if part == "vision_cfg" else config[part]
    owner.update(change)
    path.write_text(json.dumps(config))
    other = clipedit.load_model(str(tmp_path / "other"))
    recipe = clipedit.make_recipe(few, demo_model, concept="location", effect="total", heads=4)
    assert other.weights_hash == demo_model.weights_hash
    with pytest.raises(clipedit.StatisticsError, match=named):
        clipedit.make_recipe(few, other, concept="location")
    with pytest.raises(clipedit.RecipeError, match=named):
        clipedit.apply_recipe(recipe, other)


def test_defaults_that_are_spelled_out_are_no_difference(demo_model: clipedit.Model) -> None:
    spelled = json.loads(json.dumps(demo_model.config))
    spelled["model_cfg"]["vision_cfg"]["pool_type"] = "tok"
    spelled["model_cfg"]["quick_gelu"] = False
    assert find_function_difference(describe_function(demo_model.config), describe_function(spelled)) is None


def test_conformal_bounds_hold_as_often_as_they_say() -> None:
    generator, held = torch.Generator().manual_seed(3), 0
    for _ in range(200):
        angles = torch.rand(201, generator=generator).double().square()
        bound = bound_turn(angles[:200], 0.95)
        assert bound is not None
        held += float(angles[200]) <= bound
    assert held / 200 >= 0.95 - 3 * (0.95 * 0.05 / 200) ** 0.5
    assert bound_turn(torch.rand(50), 0.99) is None


def test_certificates_bound_what_new_images_and_any_text_see(
    demo_model: clipedit.Model, pool: ImageSource, few: clipedit.Scan
) -> None:
    recipe = clipedit.make_recipe(few, demo_model, concept="location", heads=8)
    found = certify_recipe(recipe, few, demo_model)
    assert found is not None and found.probe_change is not None and found.mean_square is not None
    assert 0 < found.probe_change <= found.mean_square
    pixels = torch.stack([demo_model.preprocess(pool.open(index)) for index in range(600, 728)])
    before, after = demo_model.encode_image(pixels), clipedit.apply_recipe(recipe, demo_model).encode_image(pixels)
    turns = compute_turns(before.double(), after.double())
    assert float((turns <= found.turns["0.95"]).double().mean()) > 0.88
    text = torch.nn.functional.normalize(
        torch.randn(64, 50, generator=torch.Generator().manual_seed(4)).double(), dim=0
    )
    unit = [torch.nn.functional.normalize(x.double(), dim=1) @ text for x in (before, after)]
    assert ((unit[0] - unit[1]).abs() <= (2 * torch.sin(turns / 2))[:, None] + 1e-9).all()
