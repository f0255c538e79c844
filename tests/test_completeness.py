"""Heads rebuilt from all their directions are whole; from none, they are their means."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import clipedit
from clipedit import cli
from clipedit.demo import world
from clipedit.editor.images.demo import demo_calibration_source, render_source
from clipedit.editor.images.source import LabelledImages
from clipedit.editor.images.texts import load_pools
from clipedit.editor.look.plot import plot_completeness, save_figure
from clipedit.editor.measure.completeness import (
    RANDOM_DIRECTIONS,
    RANDOM_TEXTS,
    CompletenessRow,
    default_steps,
    measure_completeness,
    span_basis,
)

pytestmark = pytest.mark.usefixtures("verified_here")


def small_task(images: int = 48) -> LabelledImages:
    source = render_source(world.draw_balanced_scenes(images, seed=5))
    shapes = [row["shape"] for row in source.attributes]
    return LabelledImages(source, tuple(world.SHAPES), tuple(world.SHAPES.index(s) for s in shapes), tuple(shapes))


@pytest.fixture(scope="module")
def scan_of_everything() -> clipedit.Scan:
    return clipedit.scan(clipedit.load_model("demo"), demo_calibration_source(256), mlps=True, workers=0)


@pytest.fixture(scope="module")
def rows(scan_of_everything: clipedit.Scan) -> list[CompletenessRow]:
    model = clipedit.load_model("demo")
    pools = load_pools(None, model.folder)
    return measure_completeness(scan_of_everything, model, small_task(), pools=pools, steps=[0, 2, 8, 16])


def accuracy(rows: list[CompletenessRow], variant: str, texts: int | None = None) -> float:
    (found,) = [row.accuracy for row in rows if (row.variant, row.texts) == (variant, texts)]
    return found


def test_a_basis_spans_what_the_first_directions_span_of_the_head() -> None:
    generator = torch.Generator().manual_seed(0)
    readouts = torch.randn(2, 12, 4, generator=generator).double()
    directions = torch.randn(2, 3, 12, generator=generator).double()
    basis = span_basis(readouts, directions)
    assert torch.allclose(basis.transpose(1, 2) @ basis, torch.eye(3).double())
    written = readouts @ torch.linalg.pinv(readouts)  # the projection onto what a head can write
    for m in (1, 2, 3):
        shadows = (written @ directions.transpose(1, 2))[:, :, :m]
        inside = basis[:, :, :m] @ basis[:, :, :m].transpose(1, 2) @ shadows
        assert torch.allclose(inside, shadows)


def test_all_directions_rebuild_the_heads_whatever_the_pool(rows: list[CompletenessRow]) -> None:
    whole = {accuracy(rows, name, 16) for name in ("own", "general", RANDOM_TEXTS, RANDOM_DIRECTIONS)}
    assert len(whole) == 1
    assert all(row.explained == pytest.approx(1, abs=1e-6) for row in rows if row.texts == 16)


def test_no_direction_leaves_the_mean(rows: list[CompletenessRow]) -> None:
    assert accuracy(rows, "own", 0) == accuracy(rows, RANDOM_TEXTS, 0)
    assert accuracy(rows, "own", 0) <= 1 / len(world.SHAPES) + 0.05  # one answer for every image
    assert all(row.explained == 0 for row in rows if row.texts == 0)


def test_chosen_texts_hold_more_of_the_heads_than_random_ones(rows: list[CompletenessRow]) -> None:
    held = {row.variant: row.explained for row in rows if row.texts == 2}
    assert held["own"] is not None and held[RANDOM_TEXTS] is not None and held[RANDOM_DIRECTIONS] is not None
    assert held["own"] > held[RANDOM_TEXTS] and held["own"] > held[RANDOM_DIRECTIONS]


def test_the_study_measures_what_ablation_of_the_components_gives(
    rows: list[CompletenessRow], scan_of_everything: clipedit.Scan
) -> None:
    model, task = clipedit.load_model("demo"), small_task()
    pixels = torch.stack([model.preprocess(task.source.open(i)) for i in range(len(task.source))])
    parts = clipedit.decompose(model, pixels)
    norm = parts.embedding.norm(dim=1)[:, None, None]
    scaled = parts.contributions / norm
    calibration = demo_calibration_source(256)
    others = torch.stack([model.preprocess(calibration.open(i)) for i in range(256)])
    reference = clipedit.decompose(model, others)
    mean = (reference.contributions / reference.embedding.norm(dim=1)[:, None, None]).mean(0)
    mlps = [i for i, identity in enumerate(parts.components) if identity.kind == "mlp"]
    embeddings = F.normalize(parts.embedding, dim=1) - (scaled - mean)[:, mlps].sum(1)
    from clipedit.editor.concepts.class_weights import DEFAULT_TEMPLATES, compute_class_weights
    from clipedit.editor.measure.evaluate import measure_task

    weights = compute_class_weights(model, task.classes, DEFAULT_TEMPLATES)
    expected = measure_task(embeddings @ weights.T, range(len(task.source)), task)["overall"]
    assert accuracy(rows, "all MLPs") == pytest.approx(expected, abs=0.021)  # one image may sit on the fence
    assert accuracy(rows, "unedited") == measure_task(parts.embedding @ weights.T, range(48), task)["overall"]


def test_more_texts_than_dimensions_or_in_the_pool_are_refused(
    demo_model: clipedit.Model, demo_scan: clipedit.Scan
) -> None:
    with pytest.raises(clipedit.ConceptError, match="demo has heads of 16 dimensions. Give numbers from 0"):
        measure_completeness(demo_scan, demo_model, small_task(8), pools={"a": ["b"] * 99}, steps=[17])
    with pytest.raises(clipedit.ConceptError, match="the pool a: it has 3 texts, 4 a head are asked for"):
        measure_completeness(demo_scan, demo_model, small_task(8), pools={"a": ["b"] * 3}, steps=[4])
    assert default_steps(16) == [0, 1, 2, 4, 8, 16] and default_steps(80)[-2:] == [64, 80]


def test_the_plot_is_drawn(rows: list[CompletenessRow], tmp_path: Path) -> None:
    for suffix, start in ((".png", b"\x89PNG"), (".svg", b"<?xml")):
        save_figure(plot_completeness(rows), tmp_path / f"plot{suffix}")
        assert (tmp_path / f"plot{suffix}").read_bytes().startswith(start)


def test_the_command_prints_a_table(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    scan_of_everything: clipedit.Scan,
) -> None:
    scan_of_everything.save(tmp_path / "s.safetensors")
    source = small_task(16).source
    for index, row in enumerate(source.attributes):
        (tmp_path / "set" / row["shape"]).mkdir(parents=True, exist_ok=True)
        source.open(index).save(tmp_path / "set" / row["shape"] / f"{index}.png")

    def run(*arguments: object) -> tuple[int, str, str]:
        given = ["clipedit", "completeness", tmp_path / "s.safetensors", "--dataset", tmp_path / "set", *arguments]
        monkeypatch.setattr(sys, "argv", list(map(str, given)))
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(stop.value.code or 0), *capfd.readouterr()

    code, out, err = run("--steps", "0,16", "--plot", tmp_path / "p.svg")
    assert code == 0 and "random directions" in out and "all MLPs" in out and f"wrote {tmp_path / 'p.svg'}" in err
    code, _, err = run("--plot", tmp_path / "p.svg")
    assert code == 1 and "it exists. Choose another --plot, or add --overwrite" in err
    code, _, err = run("--plot", tmp_path / "p.bmp")
    assert code == 1 and "its suffix is not one of .svg, .png, .pdf" in err
    assert run("--steps", "1;2")[0] == 2
    code, out, _ = run("--steps", "4", "--json")
    assert {"variant", "texts", "accuracy", "explained", "n", "low", "high"} == set(json.loads(out)[0])
