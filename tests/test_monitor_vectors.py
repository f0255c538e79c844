"""Drift of stored vectors and of concepts, without images; and the figures as Prometheus reads them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from prometheus_client.parser import text_string_to_metric_families

import clipedit
from clipedit.demo import world
from clipedit.editor.concepts.concepts import load_concept
from clipedit.editor.concepts.directions import concept_directions
from clipedit.editor.drift.held import unit_moments
from clipedit.editor.drift.monitor import DriftReport, HeadDrift
from clipedit.editor.drift.prometheus import format_metrics
from clipedit.editor.files.carried import write_sidecar
from clipedit.editor.images.demo import demo_calibration_source, render_source
from clipedit.editor.images.source import ImageSource

Run = Callable[..., tuple[int, str, str]]
pytestmark = pytest.mark.usefixtures("one_thread")


def embed(model: clipedit.Model, source: ImageSource) -> np.ndarray:
    images = [model.preprocess(source.open(index)) for index in range(len(source))]
    return torch.cat([model.encode_image(torch.stack(images[i : i + 64])) for i in range(0, len(images), 64)]).numpy()


@pytest.fixture(scope="module")
def calibration(demo_model: clipedit.Model) -> clipedit.Scan:
    return clipedit.scan(demo_model, demo_calibration_source(256), layers=[2, 3], workers=0)


@pytest.fixture(scope="module")
def scanned_vectors(demo_model: clipedit.Model) -> np.ndarray:
    return embed(demo_model, demo_calibration_source(256))


@pytest.fixture(scope="module")
def new_vectors(demo_model: clipedit.Model) -> np.ndarray:
    generator = np.random.default_rng(31)
    return embed(demo_model, render_source([world.draw_captioned_scene(generator)[0] for _ in range(320)]))


def test_a_scan_knows_the_moments_of_its_embeddings(
    demo_model: clipedit.Model, calibration: clipedit.Scan, scanned_vectors: np.ndarray
) -> None:
    mean, covariance = unit_moments(calibration.statistics, demo_model)
    unit = F.normalize(torch.from_numpy(scanned_vectors).double(), dim=1)
    assert torch.allclose(mean, unit.mean(0), atol=1e-6)
    assert torch.allclose(covariance, torch.cov(unit.T, correction=0), atol=1e-6)
    assert float(covariance.trace()) == pytest.approx(1 - float(mean.square().sum()), abs=1e-6)


def test_vectors_of_the_same_images_do_not_differ_and_those_of_the_same_world_are_quiet(
    demo_model: clipedit.Model,
    calibration: clipedit.Scan,
    scanned_vectors: np.ndarray,
    new_vectors: np.ndarray,
    tmp_path: Path,
) -> None:
    np.save(tmp_path / "same.npy", scanned_vectors)
    found = clipedit.monitor_vectors(calibration, demo_model, tmp_path / "same.npy", concepts=["location"])
    assert found.embedding is not None and found.heads == {} and not found.drifted
    assert found.embedding.mean_shift == 0 and found.embedding.covariance_distance < 1e-3
    location = found.concepts["location"]
    assert location.share_now == pytest.approx(location.share_then, abs=1e-5)
    assert location.mean_shift < 1e-4 and location.selectivity_now is None
    np.save(tmp_path / "new.npy", new_vectors)
    quiet = clipedit.monitor_vectors(calibration, demo_model, tmp_path / "new.npy")
    assert not quiet.drifted and (quiet.images, quiet.calibration_images) == (320, 256)


def test_a_folder_of_files_is_one_index_whatever_the_length_of_its_vectors(
    demo_model: clipedit.Model, calibration: clipedit.Scan, new_vectors: np.ndarray, tmp_path: Path
) -> None:
    np.save(tmp_path / "whole.npy", new_vectors)
    parts = tmp_path / "parts" / "deeper"
    parts.mkdir(parents=True)
    np.save(parts / "a.npy", 7 * new_vectors[:100])
    column = pa.array(list(new_vectors[100:].astype(np.float32)))
    pq.write_table(pa.table({"id": range(220), "vector": column, "other": column}), parts / "b.parquet")
    (parts / "notes.txt").write_text("no vectors")
    with pytest.raises(clipedit.VectorError, match="columns of vectors are vector, other"):
        clipedit.monitor_vectors(calibration, demo_model, tmp_path / "parts")
    one = clipedit.monitor_vectors(calibration, demo_model, tmp_path / "whole.npy")
    two = clipedit.monitor_vectors(calibration, demo_model, tmp_path / "parts", column="vector")
    assert one.embedding is not None and two.embedding is not None
    assert two.embedding.mean_shift == pytest.approx(one.embedding.mean_shift, abs=1e-5)
    assert two.images == one.images == 320


def test_a_concept_that_was_taken_out_of_the_vectors_is_gone(
    demo_model: clipedit.Model, calibration: clipedit.Scan, new_vectors: np.ndarray, tmp_path: Path, run: Run
) -> None:
    directions = concept_directions(load_concept("location", demo_model.folder), demo_model).numpy()
    np.save(tmp_path / "without.npy", new_vectors - new_vectors @ directions @ directions.T)
    calibration.save(tmp_path / "scan.safetensors")
    code, out, err = run(
        *("monitor", tmp_path / "scan.safetensors", "--vectors", tmp_path / "without.npy", "--concept", "location"),
        *("--concept", "color", "--json", "--metrics", tmp_path / "drift.prom"),
    )
    found = json.loads(out)
    assert code == 4, err
    assert found["drifted"] == ["embedding"] and found["re_measure"]
    assert found["concepts"]["location"]["share_then"] > 0.1
    assert found["concepts"]["location"]["share_now"] < 1e-6
    assert found["concepts"]["color"]["share_now"] > 0.01
    samples = parse((tmp_path / "drift.prom").read_text())
    scan = str(tmp_path / "scan.safetensors")
    assert samples["clipedit_monitor_drifted", scan, "", "", ""] == 1
    assert samples["clipedit_monitor_images", scan, "", "", ""] == 320
    key = ("clipedit_monitor_concept_share", scan, "", "location", "then")
    assert samples[key] == found["concepts"]["location"]["share_then"]
    assert ("clipedit_monitor_concept_selectivity", scan, "", "location", "then") not in samples


def parse(text: str) -> dict[tuple[str, ...], float]:
    """Every sample by name and labels, as Prometheus' own client reads them; all must be gauges with a help."""
    families = list(text_string_to_metric_families(text))
    assert all(family.type == "gauge" and family.documentation for family in families)
    labels = ("scan", "part", "concept", "when")
    return {
        (sample.name, *(sample.labels.get(label, "") for label in labels)): sample.value
        for family in families
        for sample in family.samples
    }


def test_images_give_the_selectivity_of_a_concept_then_and_now(
    demo_model: clipedit.Model, calibration: clipedit.Scan
) -> None:
    found = clipedit.monitor(
        calibration, demo_model, demo_calibration_source(256), concepts=["location", load_concept("color")], workers=0
    )
    assert set(found.concepts) == {"location", "color"} and found.embedding is None
    for one in found.concepts.values():
        assert one.selectivity_then is not None and one.selectivity_now is not None
        assert one.selectivity_now == pytest.approx(one.selectivity_then, rel=1e-3)
        assert one.share_now == pytest.approx(one.share_then, rel=1e-3) and one.mean_shift < 1e-3
    with pytest.raises(clipedit.ConceptError, match="unknown concept 'locaton'"):
        clipedit.monitor(calibration, demo_model, demo_calibration_source(256), concepts=["locaton"], workers=0)


def test_any_name_and_any_number_is_read_back_by_prometheus(tmp_path: Path) -> None:
    scan = 'a "scan"\\ of\nnew images, {0} = 1'
    report = DriftReport(
        256, 512, 0.3, {"L3H5": HeadDrift(0.25, math.nan, True), "L3H6": HeadDrift(math.inf, 0.0, False)}
    )
    samples = parse(format_metrics(report, scan))
    assert samples["clipedit_monitor_mean_shift", scan, "L3H5", "", ""] == 0.25
    assert math.isnan(samples["clipedit_monitor_covariance_distance", scan, "L3H5", "", ""])
    assert samples["clipedit_monitor_mean_shift", scan, "L3H6", "", ""] == math.inf
    assert samples["clipedit_monitor_part_drifted", scan, "L3H5", "", ""] == 1
    assert samples["clipedit_monitor_limit", scan, "", "", ""] == 0.3
    assert not any("concept" in name for name, *_ in samples)


def test_vectors_that_are_none_of_the_models_are_refused(
    demo_model: clipedit.Model, calibration: clipedit.Scan, new_vectors: np.ndarray, tmp_path: Path, run: Run
) -> None:
    def refused(kind: type[Exception], match: str, path: Path) -> None:
        with pytest.raises(kind, match=match):
            clipedit.monitor_vectors(calibration, demo_model, path)

    np.save(tmp_path / "few.npy", new_vectors[:255])
    refused(clipedit.StatisticsError, "cannot monitor 255 images: noise would hide a drift, 256", tmp_path / "few.npy")
    np.save(tmp_path / "narrow.npy", new_vectors[:, :-1])
    refused(clipedit.VectorError, "its vectors are 63 wide, demo gives 64", tmp_path / "narrow.npy")
    (tmp_path / "empty").mkdir()
    refused(clipedit.VectorError, "it holds no .npy and no .parquet file", tmp_path / "empty")
    refused(clipedit.VectorError, "no such file", tmp_path / "nowhere.npy")
    np.save(tmp_path / "carried.npy", new_vectors)
    write_sidecar(tmp_path / "carried.npy", {"recipe": "remove-location"})
    refused(clipedit.VectorError, "marked as carried over by recipe remove-location", tmp_path / "carried.npy")
    other = dataclasses.replace(calibration, weights_hash="0" * 64)
    with pytest.raises(clipedit.StatisticsError, match="it was made with weights"):
        clipedit.monitor_vectors(other, demo_model, tmp_path / "few.npy")
    calibration.save(tmp_path / "scan")
    for arguments, match in (
        ((), "neither was given"),
        (("demo", "--vectors", tmp_path / "few.npy"), "both were given"),
        (("demo", "--column", "vector"), "give --vectors"),
        (("--vectors", tmp_path / "few.npy", "--column", "vector"), "a .npy file has no columns"),
        (("--vectors", tmp_path / "few.npy", "--metrics", tmp_path), "is a folder: give a file"),
        (("--vectors", tmp_path / "few.npy", "--recipe", tmp_path), "which vectors tell nothing of"),
        (("demo", "--metrics", tmp_path / "nowhere" / "x.prom"), "a folder that is not there"),
    ):
        code, out, err = run("monitor", tmp_path / "scan", *arguments)
        assert code == 2 and match in err and not out, arguments
