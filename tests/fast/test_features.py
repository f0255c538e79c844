"""Cached features: the same numbers as a forward pass, read lazily, written without holding them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

import clipedit
from clipedit.editor.components import Features
from clipedit.editor.images.demo import demo_calibration_source
from clipedit.editor.images.listing import list_images
from clipedit.editor.images.source import ImageSource
from clipedit.editor.scan.collect import collect_features
from clipedit.editor.scan.features import compute_features_bytes, features_path, load_features, write_features


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    source = demo_calibration_source(40)
    for index in range(40):
        source.open(index).save(folder / f"{index:02d}.png")
    return folder


def test_cached_features_are_those_of_a_forward_pass(demo_model: clipedit.Model, photos: Path, tmp_path: Path) -> None:
    path = tmp_path / "scan.features.safetensors"
    clipedit.scan(demo_model, photos, layers=[2, 3], batch_size=16, keep_features=path)
    cached = load_features(path)
    some = list_images(photos).subset([7, 3, 21])
    found, kept = cached.select(some)
    expected, _ = collect_features(demo_model, some, layers=[2, 3])
    assert kept == [0, 1, 2] and cached.layers == (2, 3)
    for name, tensor in expected.groups.items():
        assert torch.allclose(found.groups[name], tensor, atol=1e-5)
    assert torch.allclose(found.embedding, expected.embedding, atol=1e-5)
    assert torch.allclose(found.final @ demo_model.tower.readout().float(), found.embedding, atol=1e-4)
    assert collect_features(demo_model, list_images(photos), layers=[3], cached=cached)[0] is cached.features


def test_the_size_said_before_is_the_size_written(demo_model: clipedit.Model, photos: Path, tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    clipedit.scan(demo_model, photos, layers=[3], keep_features=path)
    said = compute_features_bytes(demo_model, demo_model.tower.groups([3], mlps=False), 40)
    assert said <= path.stat().st_size < said + 4_000
    assert features_path(tmp_path / "scan.safetensors").name == "scan.features.safetensors"


def test_unreadable_images_are_left_out_of_the_cache(demo_model: clipedit.Model, photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "in")
    (tmp_path / "in" / "05.png").write_bytes(b"nothing")
    clipedit.scan(demo_model, tmp_path / "in", max_bad=0.1, batch_size=8, keep_features=tmp_path / "f")
    cached = load_features(tmp_path / "f")
    good = list_images(tmp_path / "in").subset([4, 6])
    found, _ = cached.select(good)
    expected, _ = collect_features(demo_model, good, layers=[3])
    assert len(cached.row_of) == 39 and torch.allclose(found.embedding, expected.embedding, atol=1e-5)


def test_memory_does_not_grow_with_the_images(demo_model: clipedit.Model, tmp_path: Path) -> None:
    groups = demo_model.tower.groups([3], mlps=False)
    process, peaks = psutil.Process(), []
    batch = demo_model.tower.collect_features(torch.zeros(256, 3, 64, 64), groups)
    for count in (256, 100_000):
        source = ImageSource(tuple(map(str, range(count))), lambda index: Image.new("RGB", (64, 64)))
        before = process.memory_info().rss
        with write_features(tmp_path / "f", demo_model, groups, source, [3]) as write:
            for start in range(0, count - 255, 256):
                write(batch, range(start, start + 256))
            peaks.append(process.memory_info().rss - before)
    assert (tmp_path / "f").stat().st_size > 100_000 * 4 * (128 + 128 + 64)
    assert peaks[1] < peaks[0] + 30e6
    before = process.memory_info().rss
    cached = load_features(tmp_path / "f")
    assert cached.features.final.shape == (100_000, 128) and process.memory_info().rss - before < 40e6


def test_what_is_no_cache_of_this_model_is_refused(demo_model: clipedit.Model, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(clipedit.StatisticsError, match="no such file. Make it with `clipedit scan IMAGES --keep-feat"):
        load_features(tmp_path / "missing")
    clipedit.scan(demo_model, photos, layers=[3], keep_features=tmp_path / "f").save(tmp_path / "scan")
    with pytest.raises(clipedit.StatisticsError, match="cannot read features from"):
        load_features(tmp_path / "scan")
    cached = load_features(tmp_path / "f")
    with pytest.raises(clipedit.StatisticsError, match=r"they hold layers \[3\], \[2, 3\] are needed"):
        cached.require(demo_model, [2, 3])
    edited = demo_model.with_tensors({"visual.proj": demo_model.module.visual.proj * 2})
    with pytest.raises(clipedit.StatisticsError, match="they were made with weights"):
        cached.require(edited, [3])
    with pytest.raises(clipedit.ImageError, match="is not in them, nor are 2 more of 3 images"):
        cached.select(demo_calibration_source(3))


def test_too_little_room_is_said_before_anything_is_written(
    demo_model: clipedit.Model, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1_000})())
    with pytest.raises(clipedit.ExportError, match="features of 40 images take .* GB are free. Scan fewer layers"):
        clipedit.scan(demo_model, photos, keep_features=tmp_path / "f")
    assert not list(tmp_path.iterdir())


def test_a_batch_may_come_with_gaps(demo_model: clipedit.Model, tmp_path: Path) -> None:
    groups = demo_model.tower.groups([3], mlps=False)
    source = ImageSource(("a", "b", "c", "d"), lambda index: Image.new("RGB", (64, 64)))
    u = torch.arange(3 * 8 * 16).reshape(3, 8, 16).float()
    given = Features({"L3.heads": u, "L3.bias": torch.ones(3, 1, 1)}, {}, torch.ones(3, 128), torch.ones(3, 64))
    with write_features(tmp_path / "f", demo_model, groups, source, [3]) as write:
        write(given, [0, 2, 3])
    cached = load_features(tmp_path / "f")
    assert np.array_equal(cached.features.groups["L3.heads"][[0, 2, 3]].numpy(), u.numpy())
    assert cached.row_of.keys() == {"a\0a", "c\0c", "d\0d"}
