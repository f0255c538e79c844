"""Statistics add up, survive the disk, and refuse what they were not made from."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import clipedit
from clipedit.editor.components import Features
from clipedit.editor.images.demo import demo_calibration_source
from clipedit.editor.scan.statistics import Statistics, add_features, empty_statistics


def test_merged_scans_equal_the_scan_of_the_whole(demo_model: clipedit.Model, tmp_path: Path) -> None:
    source = demo_calibration_source(96)
    whole = clipedit.scan(demo_model, source, batch_size=32)
    parts = [clipedit.scan(demo_model, source.subset(range(*r)), batch_size=32) for r in ((0, 32), (32, 96))]
    merged = parts[0].merge(parts[1])
    assert merged.statistics.n == 96
    assert_close(merged.statistics, whole.statistics, 1e-10)
    merged.save(tmp_path / "scan.safetensors")
    assert_close(clipedit.load_scan(tmp_path / "scan.safetensors").statistics, merged.statistics, 0.0)


def test_the_same_scan_twice_gives_the_same_bytes(demo_model: clipedit.Model, tmp_path: Path) -> None:
    for name in ("a", "b"):
        clipedit.scan(demo_model, demo_calibration_source(64)).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_workers_do_not_change_a_scan(demo_model: clipedit.Model) -> None:
    source = demo_calibration_source(64)
    alone, helped = (clipedit.scan(demo_model, source, workers=workers) for workers in (0, 2))
    assert_close(helped.statistics, alone.statistics, 0.0)


def test_moments_are_those_of_the_features(demo_model: clipedit.Model) -> None:
    tower = demo_model.tower
    groups = tower.groups([2, 3], mlps=True)
    features = tower.collect_features(torch.randn(40, 3, 64, 64), groups)
    statistics = add_features(empty_statistics(groups, tower.d_model), features)
    norm = features.embedding.double().norm(dim=1, keepdim=True)
    u, final = features.groups["L3.heads"][:, 2].double(), features.final.double() / norm
    assert torch.allclose(statistics.feature_covariance("L3.heads")[2], torch.cov((u / norm).T, correction=0))
    both = torch.cov(torch.cat([u / norm, final], 1).T, correction=0)
    assert torch.allclose(statistics.feature_final_covariance("L3.heads")[2], both[:16, 16:], atol=1e-12)
    assert torch.allclose(statistics.mean_features("L3.heads")[2], u.mean(0))
    assert torch.allclose(statistics.mean_values("L3.heads")[2], features.values["L3.heads"][:, 2].double().mean(0))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.integers(0, 2**16))
def test_any_split_into_batches_gives_the_same_sums(sizes: list[int], seed: int) -> None:
    from clipedit.editor.components import ComponentGroup, ComponentId

    generator = torch.Generator().manual_seed(seed)
    groups = [ComponentGroup("L0.heads", (ComponentId("head", 0, 0), ComponentId("head", 0, 1)), 3, d_head=3)]
    total = sum(sizes)
    everything = Features(
        {"L0.heads": torch.randn(total, 2, 3, generator=generator)},
        {"L0.heads": torch.randn(total, 2, 3, generator=generator)},
        torch.randn(total, 4, generator=generator),
        torch.randn(total, 5, generator=generator),
    )
    whole = add_features(empty_statistics(groups, 4), everything)
    summed, start = empty_statistics(groups, 4), 0
    for size in sizes:
        part = dataclasses.replace(
            everything,
            groups={k: v[start : start + size] for k, v in everything.groups.items()},
            values={k: v[start : start + size] for k, v in everything.values.items()},
            final=everything.final[start : start + size],
            embedding=everything.embedding[start : start + size],
        )
        summed = summed + add_features(empty_statistics(groups, 4), part)
        start += size
    assert_close(summed, whole, 1e-9)


def test_a_scan_of_other_weights_is_refused(demo_model: clipedit.Model, small_demo_scan: clipedit.Scan) -> None:
    other = demo_model.with_tensors({"visual.proj": demo_model.module.visual.proj * 2})
    with pytest.raises(clipedit.StatisticsError, match="it was made with weights .* Scan this model"):
        clipedit.score_heads(small_demo_scan, other, concept="location")


def test_scans_of_other_layers_are_not_merged(demo_model: clipedit.Model) -> None:
    source = demo_calibration_source(8)
    first, second = (clipedit.scan(demo_model, source, layers=layers) for layers in ([3], [2, 3]))
    with pytest.raises(clipedit.StatisticsError, match="layers is"):
        first.merge(second)


def test_a_missing_layer_is_refused(demo_model: clipedit.Model) -> None:
    with pytest.raises(clipedit.StatisticsError, match="has layers 0-3"):
        clipedit.scan(demo_model, demo_calibration_source(4), layers=[4])


def test_a_scan_of_one_image_is_refused(demo_model: clipedit.Model) -> None:
    one = clipedit.scan(demo_model, demo_calibration_source(1))
    with pytest.raises(clipedit.StatisticsError, match="saw 1 images, at least 2"):
        clipedit.score_heads(one, demo_model, concept="location")


def assert_close(found: Statistics, expected: Statistics, tolerance: float) -> None:
    assert found.n == expected.n
    pairs = [(found.gg, expected.gg)]
    for name, sums in expected.groups.items():
        pairs += [(getattr(found.groups[name], part), getattr(sums, part)) for part in ("uu", "ug", "u", "v")]
    for a, b in pairs:
        assert torch.equal(a, b) if tolerance == 0 else (a - b).norm() <= tolerance * b.norm() + 1e-12
