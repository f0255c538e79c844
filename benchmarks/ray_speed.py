"""Speed of a scan on Ray, 1 and 2 workers: `OMP_NUM_THREADS=1 python benchmarks/ray_speed.py` (extra `[ray]`).

A local cluster of two nodes with a processor each; demo images in tar shards, one a unit. Every round scans them three
times, in turn: in this process, with one actor, with two. The steady rate leaves out the start: an actor's first unit
waits for Python, torch and the model. The merged scans are compared bit by bit.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import ray
import torch
from ray.cluster_utils import Cluster
from scale_memory import A_SHARD, write_shards

import clipedit
from clipedit.editor.load import load_aligned
from clipedit.editor.scan.on_ray import RayEngine

BATCH_SIZE = 64


def time_scan(model: clipedit.Model, shards: Path, folder: Path, actors: int) -> tuple[float, float, bytes]:
    """Seconds of a whole scan, steady images per second, and the merged scan's bytes; no actors: in this process."""
    finished: list[tuple[float, int]] = []

    def follow(done: int, total: int) -> None:
        if done % A_SHARD == 0:
            finished.append((time.perf_counter(), done))

    started = time.perf_counter()
    engine = RayEngine(load_aligned, "auto", actors) if actors else None
    options = {"batch_size": BATCH_SIZE, "workers": 0, "engine": engine, "progress": follow}
    found = clipedit.scan_units(model, shards, folder / "parts", **options)
    seconds = time.perf_counter() - started
    (begin, skipped), (end, done) = finished[max(actors, 1) - 1], finished[-1]
    found.merge().save(folder / "merged")
    return seconds, (done - skipped) / (end - begin), (folder / "merged").read_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=16, help=f"of {A_SHARD} images each")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DATA_DISABLE_PROGRESS_BARS": "1"}
    small = {"num_cpus": 1, "object_store_memory": 200 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    cluster.add_node(**small)
    ray.init(address=cluster.address, log_to_driver=False)
    cluster.wait_for_nodes()
    model = clipedit.load_model("demo")
    rates: dict[int, list[tuple[float, float]]] = {0: [], 1: [], 2: []}
    merged = set()
    with tempfile.TemporaryDirectory() as name:
        shards = Path(name) / "shards"
        shards.mkdir()
        write_shards(shards, options.shards * A_SHARD)
        for turn in range(options.rounds):
            for actors, found in rates.items():
                folder = Path(name) / f"{turn}-{actors}"
                folder.mkdir()
                seconds, steady, content = time_scan(model, shards, folder, actors)
                found.append((steady, options.shards * A_SHARD / seconds))
                merged.add(content)
                print(f"round {turn}, {actors or 'no'} actors: {seconds:.1f} s, {steady:.0f} images/s", flush=True)
    print(f"merged scans are {'equal to the bit' if len(merged) == 1 else 'DIFFERENT'}")
    for more, fewer in ((1, 0), (2, 1)):
        for what, text in enumerate(("steady", "whole scan")):
            values = [a[what] / b[what] for a, b in zip(rates[more], rates[fewer], strict=True)]
            print(
                f"images/s, {text}, {more} / {fewer or 'no'} actors: "
                f"median {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
            )
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
