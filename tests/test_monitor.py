"""Drift: new images of the same world are quiet, other places and grey pictures raise the alarm."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import clipedit
from clipedit.demo import world
from clipedit.editor.images.demo import demo_calibration_source, render_source
from clipedit.editor.images.source import ImageSource

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def calibration(demo_model: clipedit.Model) -> clipedit.Scan:
    return clipedit.scan(demo_model, demo_calibration_source(256), layers=[2, 3], workers=0)


def draw(seed: int, count: int, wanted: Callable[[world.Scene], bool] = lambda scene: True) -> ImageSource:
    generator, scenes = np.random.default_rng(seed), []
    while len(scenes) < count:
        scene = world.draw_captioned_scene(generator)[0]
        scenes += [scene] if wanted(scene) else []
    return render_source(scenes)


def changed(source: ImageSource, change: Callable[[Image.Image], Image.Image]) -> ImageSource:
    return ImageSource(source.names, lambda index: change(source.open(index)), stamps=source.stamps)


@pytest.mark.parametrize(("seed", "count"), [(31, 256), (32, 320)])
def test_new_images_of_the_same_world_are_quiet(
    demo_model: clipedit.Model, calibration: clipedit.Scan, seed: int, count: int
) -> None:
    found = clipedit.monitor(calibration, demo_model, draw(seed, count), workers=0)
    assert not found.drifted and (found.images, found.calibration_images) == (count, 256)
    assert len(found.heads) == 16 and max(head.mean_shift for head in found.heads.values()) < 0.3


DRIFTS = {
    "other places": lambda: draw(21, 256, lambda scene: scene.place in ("space", "snow")),
    "grey": lambda: changed(draw(23, 256), lambda image: ImageOps.grayscale(image).convert("RGB")),
    "inverted": lambda: changed(draw(24, 256), ImageOps.invert),
}


@pytest.mark.parametrize("kind", DRIFTS)
def test_other_images_raise_the_alarm(demo_model: clipedit.Model, calibration: clipedit.Scan, kind: str) -> None:
    found = clipedit.monitor(calibration, demo_model, DRIFTS[kind](), workers=0)
    assert found.drifted and found.heads[found.drifted[0]].drifted
    strongest = max(found.heads.values(), key=lambda head: max(head.mean_shift, head.covariance_distance))
    assert found.heads[found.drifted[0]] == strongest


def test_the_same_images_do_not_differ(demo_model: clipedit.Model, calibration: clipedit.Scan) -> None:
    found = clipedit.monitor(calibration, demo_model, demo_calibration_source(256), workers=0)
    assert all(head.mean_shift == 0 and head.covariance_distance == 0 for head in found.heads.values())


def test_a_change_of_scale_has_the_size_it_says(demo_model: clipedit.Model, calibration: clipedit.Scan) -> None:
    """Statistics made up: a mean moved by one standard deviation, a covariance doubled."""
    from clipedit.editor.drift.monitor import Sides
    from clipedit.editor.scan.statistics import GroupSums, Statistics

    group = demo_model.tower.groups([3], mlps=False)[0]
    generator = torch.Generator().manual_seed(0)

    def sums(shift: float, scale: float, count: int) -> Statistics:
        u = torch.randn(count, 8, 16, generator=generator, dtype=torch.float64) * scale
        u[..., 0] += shift
        scaled = u.permute(1, 2, 0)
        ones = torch.ones(8, count, 1, dtype=torch.float64)
        return Statistics(
            count, ones[0].T @ ones[0], {group.name: GroupSums(scaled @ scaled.mT, scaled @ ones, u.sum(0), u.sum(0))}
        )

    root = torch.eye(16, dtype=torch.float64).expand(8, -1, -1)
    for shift, scale, expected in ((4.0, 1.0, (1.0, 0.0)), (0.0, 2**0.5, (0.0, 1.0)), (0.0, 1.0, (0.0, 0.0))):
        sides = Sides(sums(0, 1, 4_000), [sums(shift, scale, 500) for _ in range(8)], 0.3, 0.001)
        for head in sides.compare(group, root).values():
            assert head.mean_shift == pytest.approx(expected[0], abs=0.1)
            assert head.covariance_distance == pytest.approx(expected[1], abs=0.15)
            assert head.drifted == (max(expected) > 0)


def test_chances_are_those_of_the_distributions() -> None:
    """Against draws: sums of weighted squares, far out in the tail too, and F at a few degrees of freedom."""
    from clipedit.editor.drift.monitor import _chance_of_distance, _chance_of_shift

    generator = np.random.default_rng(0)
    for weights in ((1.0, 1.0, 1.0), (1.0, 0.5, 0.2, 0.2, 0.1), (1.0, 0.05, 0.05, 0.05)):
        squares = (generator.standard_normal((400_000, len(weights))) ** 2 @ np.array(weights)) / sum(weights)
        for value, within in ((1.0, 0.06), (3.0, 0.1), (float(np.quantile(squares, 0.999)), 0.15)):
            chance = _chance_of_shift(
                torch.tensor([value]).double(), torch.tensor(weights).double().diag()[None]
            ).item()
            assert chance == pytest.approx((squares > value).mean(), rel=within)
    for above, below in ((3.0, 21.0), (8.0, 56.0), (1.0, 7.0)):
        ratio = generator.chisquare(above, 400_000) / above / (generator.chisquare(below, 400_000) / below)
        for value in (1.0, 3.0):
            given = (torch.tensor([number]).double() for number in (value, above, below))
            assert _chance_of_distance(*given).item() == pytest.approx((ratio > value).mean(), abs=0.004)


def test_too_few_images_and_unknown_heads_are_refused(demo_model: clipedit.Model, calibration: clipedit.Scan) -> None:
    with pytest.raises(clipedit.StatisticsError, match="cannot monitor 255 images: noise would hide a drift, 256"):
        clipedit.monitor(calibration, demo_model, draw(1, 255))
    with pytest.raises(clipedit.StatisticsError, match="cannot monitor L0H0: the scan has L2H0 to L3H7"):
        clipedit.monitor(calibration, demo_model, draw(1, 256), heads=["L0H0"], workers=0)
    edited = demo_model.with_tensors({"visual.proj": demo_model.module.visual.proj * 2})
    with pytest.raises(clipedit.StatisticsError, match="it was made with weights"):
        clipedit.monitor(calibration, edited, draw(1, 256))


def test_the_exit_code_says_whether_to_measure_again(
    calibration: clipedit.Scan, tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    calibration.save(tmp_path / "scan")
    for name, source in (("same", draw(31, 256)), ("inverted", changed(draw(24, 256), ImageOps.invert))):
        (tmp_path / name).mkdir()
        for index in range(256):
            source.open(index).save(tmp_path / name / f"{index}.png")

    code, out, err = run("monitor", tmp_path / "scan", tmp_path / "same")
    assert code == 0 and "mean shift / sd" in out and "no drift: 256 images look to all 16 heads like the 256 of" in err
    code, out, err = run("monitor", tmp_path / "scan", tmp_path / "inverted", "--json")
    found = json.loads(out)
    assert code == 4
    assert found["re_measure"] and found["drifted"][0] in found["heads"] and found["images"] == 256
    code, out, err = run("monitor", tmp_path / "scan", tmp_path / "nowhere")
    assert code == 1 and "there is no such folder" in err and not out
