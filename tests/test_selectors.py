"""Selectors: they return recipes, look only at what they are given, and say what they lack."""

from __future__ import annotations

import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import clipedit
from clipedit.editor.concepts.concepts import load_concept
from clipedit.editor.edits.bind import bind_recipe
from clipedit.editor.edits.direct import compute_direct_embeddings, compute_edited_readouts
from clipedit.editor.images.demo import labelled_tasks
from clipedit.editor.images.listing import list_images
from clipedit.editor.images.source import ImageSource, LabelledImages
from clipedit.editor.select.attention_region import (
    collect_region_shares,
    find_regions,
    parse_box,
    prune_in_order,
    subset,
    write_words,
    write_words_that_fool,
)
from clipedit.editor.select.frontier import Point, choose_within, pareto_front, search_subsets
from clipedit.editor.select.labelled_contrast import compute_excess
from clipedit.editor.select.overlay import overlay_word
from clipedit.editor.select.plan import EditPlan, Evidence, write_document
from clipedit.editor.select.tables import TaskImages, TaskTable, load_task, measure_subsets, subset_rows, tabulate
from clipedit.editor.towers.vit.open_clip_attention import collect_attention


@pytest.fixture(scope="module")
def tasks() -> tuple[LabelledImages, LabelledImages]:
    """Forty images of each of eight groups, and their colours."""
    task, colors = labelled_tasks()
    named = [f"{shape} / place {place}" for shape in ("circle", "triangle") for place in ("ocean", "city")]
    chosen = [index for index, group in enumerate(task.groups) if group in named][:160]
    return subset(task, chosen), subset(colors, chosen)


@pytest.fixture(scope="module")
def plan(demo_model: clipedit.Model) -> EditPlan:
    return EditPlan(load_concept("location", demo_model.folder), heads=3, output_strength=0.9)


@pytest.fixture(scope="module")
def loaded(demo_scan: clipedit.Scan, demo_model: clipedit.Model, tasks: tuple) -> TaskImages:
    return load_task(demo_scan, demo_model, tasks[0], Evidence())


@pytest.mark.parametrize("operation", ["mean-ablate", "project-out"])
def test_a_sum_of_table_rows_is_the_direct_edit(
    demo_scan: clipedit.Scan, demo_model: clipedit.Model, plan: EditPlan, loaded: TaskImages, operation: str
) -> None:
    plan = replace(plan, operation=operation)
    table = tabulate(demo_scan, demo_model, plan, loaded)
    chosen = [table.heads.index(clipedit.HeadId(3, 1)), table.heads.index(clipedit.HeadId(1, 6))]
    document = write_document(plan, [table.heads[index] for index in chosen], demo_model)
    recipe = bind_recipe(document.model_copy(update={"effect": "direct"}), demo_scan, demo_model)
    embeddings = compute_direct_embeddings(recipe, compute_edited_readouts(recipe, demo_model.tower), loaded.features)
    expected = embeddings @ loaded.weights.T
    assert torch.allclose(table.similarity - table.removed[chosen].sum(0), expected, atol=1e-4)
    worst, overall, mean = measure_subsets(table, subset_rows(table, [frozenset(chosen)]))
    right = (expected.argmax(1) == table.labels).float()
    assert float(overall) == pytest.approx(float(right.mean()))
    by_group = [float(right[table.groups == g].mean()) for g in table.groups.unique()]
    assert float(worst) == pytest.approx(min(by_group)) and float(mean) == pytest.approx(sum(by_group) / len(by_group))


@pytest.mark.parametrize("select", ["text-difference", "labelled-contrast", "attention-region", "frontier"])
def test_every_selector_returns_an_unbound_recipe(
    demo_scan: clipedit.Scan, demo_model: clipedit.Model, tasks: tuple, select: str
) -> None:
    evidence = Evidence(*tasks, budget=3.0)
    document = clipedit.select_recipe(
        demo_scan, demo_model, select=select, evidence=evidence, concept="location", heads=3
    )
    assert document.tensors is None and document.base.weights_hash is None
    heads = [head for step in document.steps for head in step.heads]
    assert len(heads) <= 3 and (heads or select in ("attention-region", "frontier"))
    assert bind_recipe(document, demo_scan, demo_model).is_bound


def test_the_frontier_meets_its_budget_on_the_images_it_saw(
    demo_scan: clipedit.Scan, demo_model: clipedit.Model, tasks: tuple, plan: EditPlan, loaded: TaskImages
) -> None:
    table = tabulate(demo_scan, demo_model, replace(plan, output_strength=0.0), loaded)
    points = search_subsets(table, None, most=2)
    assert points[0].heads == () and len({point.heads for point in points}) == len(points)
    chosen = choose_within(points, points[0], 2.0)
    assert chosen.worst_group > points[0].worst_group and chosen.retention >= points[0].retention - 0.02 - 1e-9
    singles = measure_subsets(table, torch.eye(len(table.heads), dtype=torch.bool))
    inside = singles[1] >= points[0].retention - 0.02 - 1e-9
    assert chosen.worst_group >= float(singles[0][inside].max()) - 1e-6
    with pytest.raises(
        clipedit.RecipeError, match=r"cannot meet a budget of -90.0 points.*the nearest edit loses -?\d"
    ):
        choose_within(points, points[0], -90.0)
    with pytest.raises(clipedit.RecipeError, match="no edit improves the worst group. Raise --budget or --heads."):
        choose_within(points[:1], points[0], 1.0)


def test_where_the_worst_group_stays_at_0_the_mean_of_groups_decides() -> None:
    heads = tuple(clipedit.HeadId(0, head) for head in range(3))
    # Four groups of five images, all answered wrongly; head 0 gives one group back, head 1 two others, head 2 none.
    groups, similarity = torch.arange(20) // 5, torch.tensor([[0.0, 1.0]]).repeat(20, 1)
    removed = torch.zeros(3, 20, 2)
    removed[0, groups == 0, 1] = removed[1, (groups == 1) | (groups == 2), 1] = 2.0
    table = TaskTable(heads, similarity, removed, torch.zeros(20, dtype=torch.long), groups)
    points = search_subsets(table, None, most=2)
    assert all(point.worst_group == 0 for point in points)
    assert {point.heads: point.mean_of_groups for point in points}[("L0H1",)] == 0.5
    assert choose_within(points, points[0], 2.0).heads == ("L0H0", "L0H1")
    assert choose_within(search_subsets(table, None, most=1), points[0], 2.0).heads == ("L0H1",)


def test_the_frontier_tries_a_hundred_edits_a_second(demo_scan: clipedit.Scan, demo_model: clipedit.Model) -> None:
    heads = tuple(clipedit.HeadId(layer, head) for layer in range(4) for head in range(8))
    generator = torch.Generator().manual_seed(0)
    table = TaskTable(
        heads,
        torch.randn(2048, 8, generator=generator),
        torch.randn(32, 2048, 8, generator=generator),
        torch.randint(0, 8, (2048,), generator=generator),
        torch.arange(2048) % 32,
    )
    started = time.process_time()
    points = search_subsets(table, table, most=4)
    assert len(points) / (time.process_time() - started) >= 100


points = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=40)


@given(points)
def test_no_point_beats_one_of_the_front(figures: list[tuple[int, int]]) -> None:
    tried = [Point((str(index),), 0.0, a / 20, b / 20) for index, (a, b) in enumerate(figures)]
    front = pareto_front(tried)
    for point in tried:
        assert any(f.worst_group >= point.worst_group and f.retention >= point.retention for f in front)
        for best in front:
            beats = point.worst_group >= best.worst_group and point.retention >= best.retention
            assert not beats or (point.worst_group, point.retention) == (best.worst_group, best.retention)


def test_the_head_that_decides_wrong_answers_is_found() -> None:
    generator = torch.Generator().manual_seed(1)
    labels, groups = torch.arange(200) % 2, torch.arange(200) % 4
    removed = 0.1 * torch.randn(4, 200, 2, generator=generator)
    truth = torch.nn.functional.one_hot(labels, 2).float()
    removed[1] += truth  # The core: always pushes towards the true class.
    fooled = (torch.arange(200) % 3 == 0)[:, None]
    removed[2] += torch.where(fooled, 3 * (1 - truth), torch.zeros(1))
    table = TaskTable(tuple(clipedit.HeadId(0, head) for head in range(4)), removed.sum(0), removed, labels, groups)
    excess = compute_excess(table)
    assert excess.argmax() == 2 and excess[2] > 0.8 and excess[1] < -0.5
    assert float(excess.sum()) == pytest.approx(0, abs=1e-5)
    with pytest.raises(clipedit.RecipeError, match="100% of the labelled images are classified rightly"):
        compute_excess(replace(table, similarity=truth))


@pytest.mark.parametrize("select", ["labelled-contrast", "attention-region", "frontier"])
def test_missing_labels_and_small_groups_are_said(
    demo_scan: clipedit.Scan, demo_model: clipedit.Model, tasks: tuple, select: str
) -> None:
    with pytest.raises(
        clipedit.ImageError, match=f"cannot select heads by {select}: it needs labelled images. Add --lab"
    ):
        clipedit.select_recipe(demo_scan, demo_model, select=select, concept="location")
    few = subset(tasks[0], [*range(4), *[i for i, g in enumerate(tasks[0].groups) if g == tasks[0].groups[0]][1:20]])
    with pytest.raises(
        clipedit.ImageError, match=r"has \d images, at least 5 are needed. Add images, or group by fewer"
    ):
        clipedit.select_recipe(demo_scan, demo_model, select=select, concept="location", evidence=Evidence(few))


def test_an_unknown_selector_and_a_missing_concept_are_refused(
    demo_scan: clipedit.Scan, demo_model: clipedit.Model
) -> None:
    with pytest.raises(clipedit.RecipeError, match="unknown selector 'fronteer'. Did you mean frontier"):
        clipedit.select_recipe(demo_scan, demo_model, select="fronteer")
    with pytest.raises(clipedit.ConceptError, match="cannot select heads by text-difference: no concept is named"):
        clipedit.select_recipe(demo_scan, demo_model)


def test_attention_over_patches_and_cls_sums_to_one(demo_model: clipedit.Model) -> None:
    pixels = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = collect_attention(demo_model.tower, pixels, [1, 3])  # type: ignore[arg-type]
    assert found.shape == (3, 2, 8, 8, 8) and (found >= 0).all()
    total = found.sum((-1, -2))
    assert (total <= 1 + 1e-5).all() and (total > 0).all()


def test_words_are_written_where_the_mask_says(
    demo_scan: clipedit.Scan, demo_model: clipedit.Model, tasks: tuple
) -> None:
    regions = write_words(tasks[0])
    before, after = (np.asarray(task.source.open(3)).astype(int) for task in (regions.clean, regions.attacked))
    mask = np.asarray(regions.mask(3, (64, 64))) > 0
    assert (before[~mask] == after[~mask]).all() and (before[mask] != after[mask]).mean() > 0.5
    shares = collect_region_shares(demo_scan, demo_model, first_regions(regions, 32))
    assert shares.shape == (32,) and (shares > 0).all() and (shares < 1).all() and shares.std() > 0


@pytest.mark.parametrize(("fooling_from", "parts", "lost"), [(6, 6, 8), (4, 4, 8), (99, 3, 2)])
def test_words_grow_until_they_fool(tasks: tuple, fooling_from: int, parts: int, lost: int) -> None:
    task = subset(tasks[0], range(10))
    labels = torch.tensor(task.labels)
    right = torch.nn.functional.one_hot(labels, len(task.classes)).float()

    def answer(count: int) -> TaskTable:
        wrong = right.roll(1, 1)
        heads = (clipedit.HeadId(0, 0),)
        similarity = torch.cat([wrong[:count], right[count:]])
        return TaskTable(heads, similarity, torch.zeros(1, *right.shape), labels, torch.zeros(10, dtype=torch.long))

    def look(attacked: LabelledImages) -> TaskTable:
        # How high the plate is, in parts of the image; words that fool nobody cost two answers at a third.
        before, after = (np.asarray(one.source.open(3)).astype(int) for one in (task, attacked))
        rows = np.flatnonzero((before != after).any((1, 2)))
        seen = round(len(before) / (rows[-1] - rows[0] + 1))
        return answer(8 if seen <= fooling_from != 99 else 2 if seen == 3 else 0)

    clean = answer(0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        regions, attacked, found = write_words_that_fool(task, clean, look)
    assert found == {"written_words": {"height": f"1/{parts}", "fooled": lost, "of": 10}}
    assert int((attacked.similarity.argmax(1) != labels).sum()) == lost and len(regions.attacked.labels) == 10
    told = [str(one.message) for one in said]
    assert (len(told) == 1 and "fool the model on 2 of 10 that it has right" in told[0]) if lost == 2 else not told


def first_regions(regions, count: int):  # type: ignore[no-untyped-def]
    return replace(regions, attacked=subset(regions.attacked, range(count)))


def test_masks_and_boxes_split_attacked_from_clean(tasks: tuple, tmp_path: Path) -> None:
    task = subset(tasks[0], range(4))
    rows = [{**row, "box": "8 8 40 24" if index < 2 else ""} for index, row in enumerate(task.source.attributes)]
    boxed = replace(task, source=replace(task.source, attributes=tuple(rows)))
    regions = find_regions(boxed, "box")
    assert len(regions.attacked.labels) == len(regions.clean.labels) == 2
    assert np.asarray(regions.mask(1, (64, 64))).sum() == 255 * 32 * 16
    Image.new("L", (64, 64), 255).save(tmp_path / f"{Path(task.source.names[3]).stem}.png")
    assert find_regions(task, tmp_path).attacked.source.names == (task.source.names[3],)
    with pytest.raises(clipedit.ImageError, match="watermark is neither a folder of masks nor a column"):
        find_regions(task, "watermark")
    with pytest.raises(clipedit.ImageError, match="cannot read the box '5 5 5': write `left top right bottom`"):
        parse_box("5 5 5")
    (tmp_path / "none").mkdir()
    with pytest.raises(clipedit.ImageError, match="0 of 4 labelled images have a region"):
        find_regions(task, tmp_path / "none")


def test_pruning_stops_at_the_budget() -> None:
    labels = torch.zeros(100, dtype=torch.long)
    groups = labels

    def table(*gains: float) -> TaskTable:
        """Each head's removal makes a share of the images right (or wrong, if negative)."""
        similarity = torch.stack([torch.full((100,), 0.5), torch.linspace(0, 1, 100)], 1)
        removed = torch.zeros(len(gains), 100, 2)
        for head, gain in enumerate(gains):
            removed[head, :, 1] = gain
        return TaskTable(tuple(clipedit.HeadId(0, i) for i in range(len(gains))), similarity, removed, labels, groups)

    attacked, clean = table(0.1, -0.2, 0.1, 0.1), table(0.0, 0.0, -0.005, -0.3)
    assert prune_in_order([0, 1, 2, 3], attacked, clean, 4, 1.0) == [0, 2]
    assert prune_in_order([0, 1, 2, 3], attacked, clean, 4, 40.0) == [0, 2, 3]
    assert prune_in_order([0, 1, 2, 3], attacked, clean, 1, 40.0) == [0]
    assert prune_in_order([3, 0], attacked, clean, 4, 1.0) == []


def test_an_overlaid_word_stays_inside_small_images() -> None:
    image, box = overlay_word(Image.new("RGB", (20, 12), "red"), "a very long word", np.random.default_rng(0))
    assert image.size == (20, 12) and 0 <= box.left < box.right <= 20 and 0 <= box.top < box.bottom <= 12


def test_selectors_read_cached_features(
    demo_scan: clipedit.Scan, demo_model: clipedit.Model, tasks: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clipedit.editor.scan.features import load_features

    clipedit.scan(demo_model, tasks[0].source, workers=0, keep_features=tmp_path / "f")
    cached = load_features(tmp_path / "f")
    evidence = Evidence(*tasks, budget=3.0)
    expected = clipedit.select_recipe(demo_scan, demo_model, select="frontier", evidence=evidence, heads=2)
    monkeypatch.setattr(type(demo_model.tower), "collect_features", lambda *given: pytest.fail("the model ran"))
    found = clipedit.select_recipe(
        demo_scan, demo_model, select="frontier", evidence=replace(evidence, cached=cached), heads=2
    )
    assert found == expected


def test_images_without_names_of_classes_are_no_labelled_set(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    assert isinstance(list_images(tmp_path), ImageSource)
    with pytest.raises(clipedit.ImageError, match="give one folder per class, or a metadata.csv"):
        from clipedit.editor.images.labelled import load_labelled_images

        load_labelled_images(tmp_path)
