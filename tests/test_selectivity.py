"""Selectivity: whether a few heads hold a concept, whose heads they are, and the closed form both stand on."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import clipedit
from clipedit.editor.components import HeadId
from clipedit.editor.concepts.concepts import Concept, list_concepts, load_concept
from clipedit.editor.concepts.directions import concept_directions
from clipedit.editor.concepts.queries import encode_unit
from clipedit.editor.concepts.scores import score_heads
from clipedit.editor.edits.operations import AffineMap
from clipedit.editor.edits.refit import compute_distilled_readout
from clipedit.editor.images.listing import list_images
from clipedit.editor.models.model import Model
from clipedit.editor.scan.scan import Scan
from clipedit.editor.select.choice import choose_edit, pose_task
from clipedit.editor.select.head_subsets import HeadSubsets, build_head_subsets, removed_share
from clipedit.editor.select.selectivity import (
    Probe,
    Selectivity,
    build_probe,
    compute_selectivity,
    find_as_selective,
    mean_interval,
    measure_selectivity,
)
from clipedit.editor.select.whose_heads import HeldConcepts, Measured, judge, measure, measure_library

IMAGES = 1_024
WIDTH, WIDE, HEADS, PLANTED = 32, 3, 12, (2, 7)


@pytest.fixture(scope="module")
def model() -> Model:
    return clipedit.load_model("demo")


@pytest.fixture(scope="module")
def scan(model: Model) -> Scan:
    return clipedit.scan(model, list_images("demo").subset(range(IMAGES)), batch_size=128)


@pytest.fixture(scope="module")
def probe(scan: Scan, model: Model) -> Probe:
    return build_probe(scan, model)


def planted_probe(words: dict[str, Tensor], subspace: Tensor) -> Probe:
    """Heads that all vary everywhere a little; two of them carry a subspace, three times as strongly as the rest."""
    generator = torch.Generator().manual_seed(0)
    readouts = torch.linalg.qr(torch.randn(HEADS, WIDTH, WIDE, generator=generator).double())[0]
    for head in PLANTED:
        readouts[head] = subspace
    features = torch.randn(4_000, HEADS, WIDE, generator=generator).double() * 0.5
    features[:, list(PLANTED)] *= 3
    rest = torch.randn(4_000, WIDTH, generator=generator).double() * 0.5
    final = rest + torch.einsum("hek,ihk->ie", readouts, features)
    fitted = torch.cat([final, torch.ones(len(final), 1).double()], 1)
    gram = fitted.T @ fitted
    changes = -torch.linalg.solve(gram, torch.einsum("ig,ihk->hgk", fitted, features - features.mean(0)))
    subsets = HeadSubsets(
        tuple(HeadId(0, head) for head in range(HEADS)),
        torch.eye(WIDTH + 1, WIDTH).double(),
        torch.cov(fitted.T, correction=0),
        changes,
        readouts,
        torch.einsum("ihk,id->hkd", features - features.mean(0), final - final.mean(0)) / len(final),
    )
    model = Mock(spec=Model, folder=None, tower=Mock(d_head=16))
    model.encode_text.side_effect = lambda texts: torch.stack([words[text] for text in texts])
    pool = F.normalize(torch.randn(200, WIDTH, generator=generator).double(), dim=-1)
    return Probe(model, subsets, pool)


def planted_words(inside: Tensor, name: str) -> dict[str, Tensor]:
    """Twelve texts whose embeddings differ within a subspace, and a little anywhere."""
    generator = torch.Generator().manual_seed(len(name))
    shared = torch.randn(WIDTH, generator=generator).double()
    drawn = torch.randn(12, inside.shape[1], generator=generator).double() @ inside.T
    noise = torch.randn(12, WIDTH, generator=generator).double() * 0.02
    return {f"{name} {index}": row for index, row in enumerate(shared + drawn + noise)}


def test_a_concept_planted_in_known_heads_is_selective_and_an_absent_one_is_not() -> None:
    basis = torch.linalg.qr(torch.randn(WIDTH, WIDE, generator=torch.Generator().manual_seed(3)).double())[0]
    # What is absent has words too: they point anywhere, and heads chosen from some say nothing of the rest.
    there, absent = planted_words(basis, "there"), planted_words(torch.eye(WIDTH).double(), "absent")
    probe = planted_probe(there | absent, basis)
    found = [compute_selectivity(probe, Concept(name=n, texts=tuple(w))) for n, w in (("t", there), ("a", absent))]
    assert found[0].by_count[2] > 3 and found[0].low > 2
    assert found[1].value < 1.5 and found[1].value < found[0].value / 2
    # What is planted no random texts reach; among twenty, what is absent is no exception.
    concepts = [Concept(name=n, texts=tuple(w)) for n, w in (("t", there), ("a", absent))]
    assert find_as_selective(probe, concepts[0], found[0].value) is None
    reached = find_as_selective(probe, concepts[1], found[1].value)
    assert reached is not None and 1 <= reached[0] <= 19 and reached[1] >= found[1].value
    assert find_as_selective(probe, concepts[1], found[1].value) == reached


def test_a_pool_too_small_to_draw_from_says_nothing_of_chance() -> None:
    probe = planted_probe({}, torch.eye(WIDTH)[:, :WIDE].double())
    texts = tuple(f"text {index}" for index in range(101))
    assert find_as_selective(probe, Concept(name="large", texts=texts), -1.0) is None
    assert find_as_selective(probe, Concept(name="small", texts=texts[:100]), -1.0) is not None


def test_texts_drawn_at_random_are_held_by_no_heads(scan: Scan, model: Model) -> None:
    known = HeldConcepts(scan, model)
    assert {known.judge(load_concept(name, model.folder)).verdict for name in ("location", "color")} == {"held"}
    lucky = []
    for seed in range(100, 160):
        drawn = np.random.default_rng(seed).choice(len(known.probe.pool_texts), (6, 4), replace=False)
        parts = {str(row): tuple(known.probe.pool_texts[text] for text in texts) for row, texts in enumerate(drawn)}
        group = Concept(name=f"group {seed}", instances=parts)  # pyright: ignore[reportCallIssue]
        # Their instances agree by chance, as those of some groups do among so many. Without a library nothing else
        # explains that away.
        if judge(known.measure(group), {}).verdict == "held":
            lucky.append(known.judge(group, {}))
    absent = [found for found in lucky if found.verdict == "absent"]
    # One in five by their intervals; of all sixty about one in twenty may do better than nineteen others.
    assert len(lucky) >= 9 and len(lucky) - len(absent) <= 6 and len(absent) >= len(lucky) / 2
    assert "no more than random texts: selectivity" in absent[0].because and "groups of as many" in absent[0].because


def test_the_quadratic_form_is_the_variance_that_the_refit_leaves(scan: Scan, model: Model) -> None:
    subsets = build_head_subsets(scan, model, ridge=1e-6)
    taken = [3, 9, 20]
    direction = concept_directions(load_concept("location", model.folder), model)[:, :2]
    edits = {}
    for index in taken:
        head = subsets.heads[index]
        mean = scan.statistics.mean_features(f"L{head.layer}.heads")[head.head]
        edits[head] = AffineMap(torch.zeros(1, len(mean), len(mean)).double(), mean[None])
    # One fold: the ridge is then the fixed one that the quadratic forms were built with.
    refit = compute_distilled_readout(replace(scan, folds=(scan.statistics,)), model, edits)
    after = torch.cat([refit.readout, refit.bias[None]]) @ direction
    before = subsets.readout @ direction
    spread = [(side * (subsets.covariance @ side)).sum() for side in (before, after)]
    assert removed_share(subsets.quadratic_forms(direction), taken) == pytest.approx(
        float(1 - spread[1] / spread[0]), abs=1e-6
    )


def test_shares_are_the_scores_of_heads(scan: Scan, model: Model) -> None:
    subsets = build_head_subsets(scan, model)
    shares = subsets.shares(concept_directions(load_concept("color", model.folder), model)).tolist()
    expected = {row.component: row.concept for row in score_heads(scan, model, concept="color")}
    assert {str(head): share for head, share in zip(subsets.heads, shares, strict=True)} == pytest.approx(
        {str(head): expected[str(head)] for head in subsets.heads}, abs=1e-9
    )


def test_the_order_of_texts_within_an_instance_does_not_matter(scan: Scan, model: Model) -> None:
    concept = load_concept("location", model.folder)
    turned = {name: tuple(reversed(texts)) for name, texts in concept.parts().items()}
    other = Concept(name="location", instances=turned)  # pyright: ignore[reportCallIssue]
    first, second = (measure_selectivity(scan, model, one) for one in (concept, other))
    assert second.instances == pytest.approx(first.instances, abs=1e-6)


def test_the_demo_holds_location_and_color_and_gives_the_heads_of_absent_concepts_to_color(probe: Probe) -> None:
    library = measure_library(probe)
    judged = {name: judge(found, library) for name, found in library.items()}
    assert {name for name, found in judged.items() if found.verdict == "held"} == {"location", "color"}
    for name in ("watermark", "written-text", "texture"):
        assert (judged[name].verdict, judged[name].other) == ("other", "color"), judged[name].because
    assert judged["watermark"].cosine == pytest.approx(1.0, abs=0.02)
    assert judged["shape"].verdict == "absent" and judged["shape"].selectivity.high < 1
    assert judged["location"].cosine < 0.8


def test_related_concepts_never_explain_each_other_away(probe: Probe) -> None:
    model = probe.model
    library = {"color": measure(probe, load_concept("color", model.folder))}
    mark = load_concept("watermark", model.folder)
    assert judge(measure(probe, mark), library).verdict == "other"
    own = measure(probe, mark.model_copy(update={"related": ("color",)}))
    assert judge(own, library).verdict == "held"


def test_every_shipped_concept_names_its_instances(model: Model) -> None:
    for name in list_concepts(model.folder):
        concept = load_concept(name, model.folder)
        assert concept.instances and len(concept.texts) == sum(map(len, concept.instances.values()))
        assert all(other in list_concepts(model.folder) for other in concept.related)


def test_a_plain_list_is_cut_into_five_parts_and_instances_give_the_texts() -> None:
    plain = Concept(name="plain", texts=tuple("abcdefg"))
    assert [len(part) for part in plain.parts().values()] == [1, 1, 2, 1, 2]
    named = Concept(name="named", instances={"x": ("a", "b"), "y": ("c",)})  # pyright: ignore[reportCallIssue]
    assert named.texts == ("a", "b", "c") and list(named.parts()) == ["x", "y"]


@pytest.mark.parametrize("instances", [{"x": ("a", "b")}, {"x": ("a",), "y": ()}, {"x": ("a",), "y": ("c",)}])
def test_instances_that_are_not_those_of_the_texts_are_refused(instances: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(ValueError, match="instances"):
        Concept(name="wrong", texts=("a", "b"), instances=instances)


def test_the_edit_of_location_takes_a_few_of_its_own_heads_and_leaves_color(probe: Probe) -> None:
    concept = load_concept("location", probe.model.folder)
    choice = choose_edit(probe, concept, measure_library(probe), most=8)
    assert 4 <= len(choice.heads) <= 8 and 0.3 < choice.output_strength <= 1
    assert choice.chosen.removed > 0.5 and choice.chosen.elsewhere < 0.25
    # Projecting the listed places says nothing of a place that is left out: heads alone reach it.
    alone = next(one for one in choice.weighed if one.heads == 0 and one.output_strength > 0)
    assert alone.removed < 0.1


def test_both_is_heads_alone_where_the_projection_has_no_strength(probe: Probe) -> None:
    concept = load_concept("location", probe.model.folder)
    task = pose_task(probe, concept, encode_unit(probe.model, concept.texts), {})
    first, second = task.weigh_heads(3)[3], task.weigh_both(3, 0.0)
    assert (second.removed, second.elsewhere) == pytest.approx((first.removed, first.elsewhere), abs=1e-9)


@pytest.mark.parametrize("name", ["location", "color", "shape", "emotion"])
def test_heads_at_or_below_zero_are_never_taken(probe: Probe, name: str) -> None:
    concept = load_concept(name, probe.model.folder)
    choice = choose_edit(probe, concept, {}, most=32)
    shares = probe.subsets.shares(probe.directions(encode_unit(probe.model, concept.texts)))
    scores = dict(zip(probe.subsets.heads, shares.tolist(), strict=True))
    assert all(scores[head] > 0 for head in choice.heads)


def test_nothing_is_taken_for_a_concept_that_no_few_heads_hold(probe: Probe) -> None:
    library = measure_library(probe)
    for name in ("shape", "food"):
        choice = choose_edit(probe, load_concept(name, probe.model.folder), library, most=8, project=False)
        assert (choice.heads, choice.output_strength) == ((), 0.0)


def test_what_an_edit_removed_is_no_longer_there_for_a_second_one(model: Model, scan: Scan, probe: Probe) -> None:
    """Also where nobody left a recipe: the floor is absolute, of the variance that texts in general have."""
    recipe = clipedit.make_recipe(scan, model, concept="location", heads=8, output_strength=0.9)
    edited = replace(clipedit.apply_recipe(recipe, model), applied=None)
    again = clipedit.scan(edited, list_images("demo").subset(range(256)), batch_size=128, workers=0)
    library = measure_library(build_probe(again, edited))
    gone, color = library["location"], library["color"]
    assert gone.selectivity.variance < 0.1 < compute_selectivity(probe, gone.concept).variance / 5
    assert judge(gone, library).verdict == "absent"
    assert "hardly anything in these images differs in location" in judge(gone, library).because
    assert judge(color, library).verdict == "held"


def measured_at(values: Tensor) -> Selectivity:
    instances = {str(index): value for index, value in enumerate(values.tolist())}
    return Selectivity("own", float(values.mean()), *mean_interval(values), {4: float(values.mean())}, instances)


def test_intervals_of_few_instances_are_students() -> None:
    """Student's quantiles of 95 %: 12.706, 4.303, 3.182 and 2.776 for 1 to 4 free values."""
    for values, quantile, near in (((1, 3), 12.7062, 1e-4), ((1, 2, 3), 4.3027, 1e-4), ((1, 2, 2, 3), 3.1824, 0.05)):
        row = torch.tensor(values).double()
        low, high = mean_interval(row)
        half = quantile * float(row.std()) / len(row) ** 0.5
        assert high - low == pytest.approx(2 * half, rel=near) and (low + high) / 2 == pytest.approx(2)


@pytest.mark.parametrize(("count", "told"), [(2, True), (3, True), (4, True), (5, False), (8, False)])
def test_too_few_instances_are_said_with_what_more_would_give(count: int, told: bool) -> None:
    values = torch.linspace(0.2, 2.6, count).double()
    found = Selectivity(
        "own", 1.4, *mean_interval(values), {4: 1.4}, dict(zip("abcdefgh", values.tolist(), strict=False))
    )
    judged = judge(Measured(Concept(name="own", texts=("a", "b")), found, torch.ones(4).double()), {})  # pyright: ignore[reportCallIssue]
    assert judged.verdict == "absent" and (f"{count} instances are too few" in judged.because) == told
    low, high = found.expect(5)
    assert (f"5 that differ as much would give {low:.1f} to {high:.1f}" in judged.because) == told


def test_five_instances_with_the_same_spread_have_the_interval_that_was_told() -> None:
    values = torch.tensor([1.0, 1.2, 1.4, 1.6, 1.8]).double()
    found = measured_at(values)
    assert found.expect(5) == pytest.approx((found.low, found.high))
