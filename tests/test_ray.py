"""Scans on a Ray cluster: the same bits as here, also when a node dies in the middle, and engines can be mixed."""

from __future__ import annotations

import io
import os
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import clipedit
from clipedit.editor.images.demo import demo_calibration_source
from clipedit.editor.images.units import list_units
from clipedit.editor.load import load_aligned
from clipedit.editor.scan.on_ray import RayEngine, describe_scanner
from clipedit.editor.scan.scanner import Scanner

try:
    import ray
    from ray.cluster_utils import Cluster
except ImportError:
    ray = None  # type: ignore[assignment]

needs_ray = pytest.mark.skipif(ray is None, reason='Ray is not installed: pip install ".[ray]"')
SHARDS, A_SHARD = 8, 16

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, source = tmp_path_factory.mktemp("shards"), demo_calibration_source(SHARDS * A_SHARD)
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard:03d}.tar", "w") as tar:
            for index in range(shard * A_SHARD, (shard + 1) * A_SHARD):
                stream = io.BytesIO()
                source.open(index).save(stream, "PNG")
                entry = tarfile.TarInfo(f"{index:04d}.png")
                entry.size = stream.tell()
                tar.addfile(entry, io.BytesIO(stream.getvalue()))
    return folder


def scan_bytes(model: clipedit.Model, images: Path, folder: Path, **options: Any) -> bytes:
    found = clipedit.scan_units(model, images, folder, layers=[3], batch_size=4, **options)
    found.merge().save(folder.parent / "merged")
    return (folder.parent / "merged").read_bytes()


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two nodes with a processor each, on this machine."""
    for name, value in (
        ("RAY_USAGE_STATS_ENABLED", "0"),
        ("OMP_NUM_THREADS", "1"),
        ("RAY_DATA_DISABLE_PROGRESS_BARS", "1"),
    ):
        monkeypatch.setenv(name, value)
    small = {"num_cpus": 1, "object_store_memory": 200 * 2**20}
    find_node, deadline = ray._private.services.get_node, time.monotonic() + 300

    def wait_for_node(*arguments: Any) -> Any:
        """Ray gives a node half a minute to start: on a busy machine that is too short."""
        while True:
            try:
                return find_node(*arguments)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)

    monkeypatch.setattr(ray._private.services, "get_node", wait_for_node)
    cluster = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    second = cluster.add_node(**small)
    ray.init(address=cluster.address, log_to_driver=False)
    cluster.wait_for_nodes()
    yield cluster, second
    ray.shutdown()
    cluster.shutdown()


@needs_ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_node_that_dies_in_the_middle_changes_no_bit(
    demo_model: clipedit.Model, shards: Path, tmp_path: Path, cluster: Any
) -> None:
    expected = scan_bytes(demo_model, shards, tmp_path / "here" / "parts", workers=0)
    nodes, second = cluster
    killed = threading.Event()

    def kill_after_two(done: int, total: int) -> None:
        if done >= 2 * A_SHARD and not killed.is_set():
            killed.set()
            nodes.remove_node(second, allow_graceful=False)

    found = scan_bytes(
        demo_model, shards, tmp_path / "ray" / "parts", engine=RayEngine(load_aligned, "auto"), progress=kill_after_two
    )
    assert killed.is_set() and sum(node["Alive"] for node in ray.nodes()) == 1
    assert found == expected
    # One engine goes on with what the other one left.
    for path in sorted((tmp_path / "ray" / "parts").iterdir())[:3]:
        path.unlink()
    said: list[str] = []
    assert scan_bytes(demo_model, shards, tmp_path / "ray" / "parts", workers=0, say=said.append) == expected
    assert said == [f"resuming: {SHARDS - 3} of {SHARDS} units are done"]
    for path in sorted((tmp_path / "here" / "parts").iterdir())[1:]:
        path.unlink()
    rest = [unit for unit in list_units(shards) if unit.name not in ("000.tar", "003.tar")]
    options: dict[str, Any] = {"layers": [3], "batch_size": 4, "engine": RayEngine(load_aligned, "auto", actors=1)}
    with pytest.raises(clipedit.StatisticsError, match="is of other images"):
        clipedit.scan_units(demo_model, rest, tmp_path / "here" / "parts", **options)
    found = clipedit.scan_units(demo_model, shards, tmp_path / "here" / "parts", **options).merge()
    found.save(tmp_path / "mixed")
    assert (tmp_path / "mixed").read_bytes() == expected


@needs_ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_shard_that_cannot_be_read_fails_alone_on_a_cluster(
    demo_model: clipedit.Model, shards: Path, tmp_path: Path, cluster: Any
) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in shards.iterdir():
        os.link(path, damaged / path.name)
    (damaged / "002.tar").unlink()
    (damaged / "002.tar").write_bytes(b"nothing" * 1000)
    found = clipedit.scan_units(
        demo_model, damaged, tmp_path / "parts", layers=[3], engine=RayEngine(load_aligned, "auto")
    )
    assert found.missing == ("002.tar",) and "002.tar" in found.failed["002.tar"]
    assert len(found.files) == SHARDS - 1
    edited = demo_model.with_tensors({"visual.proj": demo_model.module.visual.proj * 2})
    with pytest.raises(clipedit.ModelError, match="a worker loads demo with weights"):
        clipedit.scan_units(edited, damaged, tmp_path / "other", layers=[3], engine=RayEngine(load_aligned, "auto"))


class Local:
    """The calls of Ray that the engine makes, in this process; every second unit is computed twice."""

    def __init__(self) -> None:
        self.data, self.asked, self.calls = self, {}, 0

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 3.0}

    def put(self, value: Any) -> Any:
        return value

    get = put

    def from_items(self, rows: list[dict[str, Any]], override_num_blocks: int) -> Local:
        assert override_num_blocks == len(rows)
        self.rows = rows
        return self

    def map_batches(self, actor: type, *, fn_constructor_args: tuple[Any, ...], batch_size: int, **asked: Any) -> Local:
        assert batch_size == 1
        self.actor, self.asked = actor(*fn_constructor_args), asked
        return self

    def iter_rows(self) -> Iterator[dict[str, Any]]:
        for row in reversed(self.rows):
            for _ in range(1 + row["index"] % 2):
                found = self.actor({"index": [row["index"]]})
            self.calls += 1
            yield {key: values[0] for key, values in found.items()}


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> Local:
    found = Local()
    for name in ("ray", "ray.data"):
        monkeypatch.setitem(sys.modules, name, found)  # type: ignore[arg-type]
    return found


def test_partials_of_another_engine_have_the_same_bits(
    demo_model: clipedit.Model, shards: Path, tmp_path: Path, local: Local
) -> None:
    expected = scan_bytes(demo_model, shards, tmp_path / "here" / "parts", workers=0)
    for path in sorted((tmp_path / "here" / "parts").iterdir())[2:5]:
        path.unlink()
    said: list[str] = []
    seen: list[int] = []
    options = {"engine": RayEngine(load_aligned), "say": said.append, "progress": lambda done, total: seen.append(done)}
    assert scan_bytes(demo_model, shards, tmp_path / "here" / "parts", **options) == expected
    assert said == [f"resuming: {SHARDS - 3} of {SHARDS} units are done"] and local.calls == 3
    assert seen == [A_SHARD, 2 * A_SHARD, 3 * A_SHARD]
    assert local.asked["concurrency"] == 3 and local.asked["num_cpus"] == 1


def test_a_unit_that_fails_on_a_worker_fails_alone(
    demo_model: clipedit.Model, shards: Path, tmp_path: Path, local: Local
) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in list(shards.iterdir())[:3]:
        os.link(path, damaged / path.name)
    (damaged / "x.tar").write_bytes(b"nothing" * 1000)
    found = clipedit.scan_units(
        demo_model, damaged, tmp_path / "parts", layers=[3], engine=RayEngine(load_aligned, actors=2)
    )
    assert found.missing == ("x.tar",) and "Fetch it again" in found.failed["x.tar"]
    assert len(found.files) == 3 and local.asked["concurrency"] == 2
    edited = demo_model.with_tensors({"visual.proj": demo_model.module.visual.proj * 2})
    with pytest.raises(clipedit.ModelError, match="a worker loads demo with weights"):
        clipedit.scan_units(edited, damaged, tmp_path / "other", layers=[3], engine=RayEngine(load_aligned))


def test_without_ray_the_extra_is_named(
    demo_model: clipedit.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(clipedit.ModelError, match=r'Run `pip install "clipedit\[ray\]"`'):
        clipedit.scan_units(demo_model, demo_calibration_source(4), tmp_path / "parts", engine=RayEngine(load_aligned))


def test_a_worker_is_told_all_that_the_numbers_depend_on(demo_model: clipedit.Model) -> None:
    scanner = Scanner(demo_model, (2, 3), mlps=True, batch_size=None, precision="bf16")
    given = describe_scanner(scanner, None, 7)
    assert (
        given["model"]["name"] == "demo" and given["weights_hash"] == demo_model.weights_hash and given["threads"] == 1
    )
    same = Scanner(demo_model, **given["scanner"])
    assert same == scanner and given["of"] == 7 and given["model"]["tower"] == "image"


@needs_ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_cluster_that_is_not_there_is_refused(demo_model: clipedit.Model, tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(clipedit.ModelError, match="cannot join the Ray cluster auto: .* Start one with `ray start`"):
        clipedit.scan_units(
            demo_model, demo_calibration_source(4), tmp_path / "parts", engine=RayEngine(load_aligned, "auto")
        )
    assert time.monotonic() - start < 120
