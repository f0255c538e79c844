"""Intervals and verdicts: known values, coverage, and one case for every word."""

from __future__ import annotations

import numpy as np
import pytest

from clipedit.editor.measure.intervals import (
    Cell,
    Difference,
    compare_outcomes,
    compute_figure,
    draw_weights,
    wilson_interval,
)
from clipedit.editor.measure.verdict import judge_edit


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 20, 0.0, 0.1611), (20, 20, 0.8389, 1.0), (500, 1000, 0.4691, 0.5309)],
)
def test_wilson_intervals_have_their_published_values(right: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(right, n) == pytest.approx((low, high), abs=2e-4)


def test_a_share_of_no_images_has_no_interval() -> None:
    with pytest.raises(ValueError, match="no images"):
        wilson_interval(0, 0)


def outcomes_of(right: np.ndarray, groups: np.ndarray) -> dict[str, list[list[Cell]]]:
    every = np.arange(len(right))
    cells = [Cell(every[groups == name], right[groups == name]) for name in np.unique(groups)]
    return {"overall": [[Cell(every, right)]], "worst_group": [cells]}


def test_figures_are_the_mean_over_tasks_of_the_worst_cell() -> None:
    groups = np.array(["a"] * 4 + ["b"] * 4)
    right = np.array([1, 1, 1, 0, 1, 0, 0, 0], bool)
    found = outcomes_of(right, groups)
    assert compute_figure(found["overall"]) == 0.5
    assert compute_figure(found["worst_group"]) == 0.25


def test_every_group_keeps_its_size_in_every_draw() -> None:
    groups = ["a"] * 30 + ["b"] * 5
    weights = draw_weights(groups, draws=50, seed=1)
    assert (weights[:, :30].sum(1) == 30).all() and (weights[:, 30:].sum(1) == 5).all()


def test_the_same_answers_have_no_difference_at_all() -> None:
    generator = np.random.default_rng(0)
    right, groups = generator.random(200) < 0.7, generator.choice(["a", "b"], 200)
    found = compare_outcomes(outcomes_of(right, groups), outcomes_of(right, groups), list(groups), draws=100)
    assert {(d.change, d.low, d.high) for d in found.values()} == {(0.0, 0.0, 0.0)}


def test_paired_intervals_cover_the_true_difference() -> None:
    """Of 200 experiments with a true rise of a tenth, the 95 % interval holds it in 95 % (three standard errors)."""
    generator, held = np.random.default_rng(2), 0
    groups = np.array(["a"] * 150 + ["b"] * 150)
    for seed in range(200):
        before = generator.random(300) < 0.6
        after = np.where(generator.random(300) < 0.25, True, before)  # rises by .25 * .4
        found = compare_outcomes(
            outcomes_of(before, groups), outcomes_of(after, groups), list(groups), draws=300, seed=seed
        )
        held += found["overall"].low <= 0.1 <= found["overall"].high
    assert 0.95 - 3 * (0.95 * 0.05 / 200) ** 0.5 <= held / 200 <= 1.0


@pytest.mark.parametrize("n", [1, 2, 5, 9])
def test_a_handful_of_images_is_not_compared(n: int) -> None:
    """One image that turns wrong is no harm beyond chance, although every draw of it says the same."""
    groups = np.array(["many"] * 50 + ["few"] * n)
    before, after = np.ones(50 + n, bool), np.array([True] * 50 + [False] * n)
    found = compare_outcomes(outcomes_of(before, groups), outcomes_of(after, groups), list(groups), draws=100)
    assert found["worst_group"] == Difference(1.0, 1.0, 0.0, 0.0, left_out=1)
    assert "1 small groups left out, of fewer than 10 images" in str(found["worst_group"])
    alone = compare_outcomes(outcomes_of(before[50:], groups[50:]), outcomes_of(after[50:], groups[50:]), ["few"] * n)
    assert alone == {}


RISE, FALL, STILL = Difference(0.5, 0.7, 0.1, 0.3), Difference(0.9, 0.6, -0.4, -0.2), Difference(0.8, 0.81, -0.02, 0.04)


@pytest.mark.parametrize(
    ("differences", "word"),
    [
        ({}, "NOT MEASURED"),
        ({"worst_group": RISE, "overall": STILL}, "HELPS"),
        ({"worst_group": RISE, "overall": FALL}, "HARMS"),
        ({"worst_group": RISE, "retention": FALL}, "HARMS"),
        ({"worst_group_listed": RISE, "worst_group_held_out": FALL}, "HARMS"),
        ({"worst_group": STILL, "overall": RISE}, "NO DIFFERENCE"),
        ({"worst_group": STILL, "overall": Difference(0.9, 0.897, -0.005, -0.001)}, "NO DIFFERENCE"),
        ({"worst_group": STILL, "place_accuracy": FALL}, "NO DIFFERENCE"),
    ],
)
def test_one_word_for_every_case(differences: dict[str, Difference], word: str) -> None:
    assert judge_edit(differences).word == word


def test_a_verdict_says_where_random_heads_or_the_projection_do_as_well() -> None:
    found = judge_edit(
        {"worst_group": RISE},
        control={"worst_group": 0.69},
        control_sd={"worst_group": 0.02},
        projection={"worst_group": 0.4},
    )
    assert "random heads 0.690 (sd 0.020), which is as good" in found.because
    assert "the projection alone 0.400" in found.because and "alone 0.400, which" not in found.because


def test_nothing_measured_says_what_to_give() -> None:
    assert "--dataset" in judge_edit({}).because
