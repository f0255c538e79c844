"""Scores, made without labels, rank heads as retrieval with labels does."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch

import clipedit
from clipedit.commands.tables.outputs import make_schema
from clipedit.demo import world
from clipedit.editor.images.demo import demo_calibration_source, render_source
from clipedit.editor.images.source import ImageSource
from clipedit.editor.measure.score_agreement import (
    compute_average_precision,
    compute_spearman,
    evaluate_scores,
    find_label_columns,
)


@pytest.fixture(scope="module")
def balanced() -> ImageSource:
    return render_source(world.draw_balanced_scenes(256, 7_101))


def test_average_precision_is_one_for_a_perfect_ranking_and_zero_for_chance() -> None:
    labels = torch.tensor([0, 1, 0, 1, 1, 1])
    perfect = torch.where(labels == 0, 1.0, 0.0).double()[:, None, None]
    assert compute_average_precision(torch.cat([perfect, -perfect], 2), labels)[0].tolist() == [1.0, 1.0]
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(4_000, 50, 1, dtype=torch.float64, generator=generator)
    reached = compute_average_precision(noise, (torch.arange(4_000) % 8 == 0).long())
    assert abs(reached.mean()) < 0.01


def test_average_precision_is_that_of_scikit_learn() -> None:
    from sklearn.metrics import average_precision_score

    generator = torch.Generator().manual_seed(1)
    similarity = torch.rand(200, 3, 4, dtype=torch.float64, generator=generator)
    labels = torch.randint(4, (200,), generator=generator)
    for value in range(4):
        chance = (labels == value).double().mean().item()
        expected = average_precision_score(labels == value, similarity[:, 2, value])
        found = compute_average_precision(similarity, labels)[2, value].item()
        assert found == pytest.approx((expected - chance) / (1 - chance))


def test_spearman_is_that_of_scipy_with_ties() -> None:
    from scipy.stats import spearmanr

    generator = np.random.default_rng(0)
    first, second = generator.integers(0, 6, 40), generator.normal(size=40)
    assert compute_spearman(first.astype(float).tolist(), second.tolist()) == pytest.approx(
        spearmanr(first, second).statistic
    )
    assert compute_spearman([1.0, 1.0], [1.0, 2.0]) is None


def test_scores_rank_heads_as_retrieval_does(
    demo_model: clipedit.Model, demo_scan: clipedit.Scan, balanced: ImageSource
) -> None:
    columns = {"location": "place", "shape": "shape", "color": "color"}
    found = evaluate_scores(demo_scan, demo_model, balanced, columns=columns)
    assert (found.between["location"] or 0) > 0.5 and (found.within or 0) > 0.3
    assert set(found.scores["shape"]) == {f"L{layer}H{head}" for layer in range(4) for head in range(8)}
    assert all(-0.2 < value <= 1 for rows in found.retrieval.values() for value in rows.values())


def test_a_column_without_a_concept_stands_for_itself(
    demo_model: clipedit.Model, demo_scan: clipedit.Scan, balanced: ImageSource
) -> None:
    assert find_label_columns(balanced) == ["shape", "place", "color", "texture"]
    found = evaluate_scores(demo_scan, demo_model, balanced.subset(range(64)))
    assert set(found.between) == {"shape", "place", "color", "texture"}


def test_columns_that_cannot_be_tested_are_refused(
    demo_model: clipedit.Model, demo_scan: clipedit.Scan, balanced: ImageSource
) -> None:
    with pytest.raises(clipedit.ImageError, match="cannot test scores by size: the columns are filename, shape, place"):
        evaluate_scores(demo_scan, demo_model, balanced, columns={"shape": "size"})
    same = balanced.subset([i for i, row in enumerate(balanced.attributes) if row["shape"] == "star"])
    with pytest.raises(clipedit.ImageError, match="every image has 'star'"):
        evaluate_scores(demo_scan, demo_model, same, columns={"shape": "shape"})
    with pytest.raises(clipedit.ImageError, match="no column has 2 to 50 values"):
        find_label_columns(ImageSource(("a", "b"), balanced.open))


def test_layers_are_ablated_from_the_last_to_the_first(
    demo_model: clipedit.Model, balanced: ImageSource, tmp_path: Path
) -> None:
    from clipedit.editor.images.source import LabelledImages
    from clipedit.editor.look.plot import plot_layer_ablation, require_plot, save_figure
    from clipedit.editor.measure.layer_ablation import measure_layer_ablation

    shapes = [row["shape"] for row in balanced.attributes]
    labels = tuple(world.SHAPES.index(shape) for shape in shapes)
    task = LabelledImages(balanced, world.SHAPES, labels, tuple(row["place"] for row in balanced.attributes))
    scanned = clipedit.scan(demo_model, demo_calibration_source(128), layers=range(4), mlps=True)
    curves = measure_layer_ablation(scanned, demo_model, task)
    # What `--json` prints.
    jsonschema.validate(json.loads(json.dumps(curves)), make_schema("ablate-layers"))
    before = clipedit.evaluate({"before": demo_model}, task)["before"]
    assert {kind: len(rows) for kind, rows in curves.items()} == {"attention": 5, "MLPs": 5, "both": 5}
    assert all(rows[0] == before for rows in curves.values())
    # With every layer at its mean only the embedding of the CLS token and the norm are left: one class for all images.
    assert curves["both"][-1]["overall"] < 0.25
    assert before["overall"] > 0.5
    save_figure(plot_layer_ablation(curves), tmp_path / "curves.svg")
    assert (tmp_path / "curves.svg").read_bytes().startswith(b"<?xml")
    with pytest.raises(clipedit.ExportError, match="it exists"):
        require_plot(tmp_path / "curves.svg", overwrite=False)
    with pytest.raises(clipedit.ExportError, match="suffix is not one of .svg, .png, .pdf"):
        require_plot(tmp_path / "curves.txt", overwrite=False)
    with pytest.raises(clipedit.StatisticsError, match="4 of 4 layers and no MLPs. Scan with --layers all --mlps"):
        part = clipedit.scan(demo_model, demo_calibration_source(4))
        measure_layer_ablation(part, demo_model, task)
