"""The reduce of an internet-scale scan: `python benchmarks/scale_reduce.py [--partials 100000] [--files 16]`.

Writes a few distinct partials of ViT-L/14 size (random sums, last four layers), and sums as many as asked for by
reading those files again and again with the code that `clipedit merge` runs. What that shows is time a partial and peak
memory of the sum itself; files that are read again come from the page cache, so the time to fetch them from a disk or a
network must be added (`benchmarks/SCALE.md`).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

import clipedit
from clipedit.editor.scan import partials
from clipedit.editor.scan.scan import Scan
from clipedit.editor.scan.statistics import GroupSums, Statistics

LAYERS, HEADS, D_HEAD, D_MODEL = (20, 21, 22, 23), 16, 64, 1024
IMAGES = 8_192


def make_statistics(seed: int) -> Statistics:
    generator = torch.Generator().manual_seed(seed)
    wide = D_MODEL + 2

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    groups = {}
    for layer in LAYERS:
        heads = (
            random(HEADS, D_HEAD, D_HEAD),
            random(HEADS, D_HEAD, wide),
            random(HEADS, D_HEAD),
            random(HEADS, D_HEAD),
        )
        groups[f"L{layer}.heads"] = GroupSums(*heads)
        groups[f"L{layer}.bias"] = GroupSums(random(1, 1, 1), random(1, 1, wide), random(1, 1), random(1, 0))
    return Statistics(IMAGES, random(wide, wide), groups)


def write_files(folder: Path, count: int) -> list[Path]:
    paths = []
    for index in range(count):
        scan = Scan((make_statistics(index),), "ViT-L-14", None, "0" * 64, f"{index:064x}", LAYERS, False)
        unit = {"name": f"{index:06d}.tar", "key": "", "of": count, "batch_size": 256}
        paths.append(partials.partial_path(folder, unit["name"]))
        replace(scan, unit=unit).save(paths[-1])
    return paths


def peak_of(paths: list[Path]) -> tuple[float, float, int]:
    """Seconds of a sum, the highest resident memory in it (megabytes), and the images in it."""
    Path("/proc/self/clear_refs").write_text("5")  # The kernel forgets the peak so far.
    started = time.perf_counter()
    merged = partials._sum(paths)
    seconds = time.perf_counter() - started
    status = Path("/proc/self/status").read_text()
    return seconds, int(status.split("VmHWM:")[1].split()[0]) / 1024, merged.statistics.n


def measure(paths: list[Path], count: int) -> str:
    """A sum of `count` partials that lie in few files, beside a sum of two groups."""
    many = [paths[index % len(paths)] for index in range(count)]
    _, few, _ = peak_of(many[: 2 * partials.GROUP])
    seconds, peak, images = peak_of(many)
    assert images == IMAGES * count
    started = time.perf_counter()
    for path in many[:1_000]:
        partials.read_description(path)
    described = (time.perf_counter() - started) / min(count, 1_000)
    return (
        f"{count} partials: {seconds / count * 1e3:.1f} ms each, {seconds / 60:.1f} minutes in all, and "
        f"{described * 1e3:.2f} ms each for the descriptions; peak memory {peak:.0f} MB, of {2 * partials.GROUP} "
        f"partials {few:.0f} MB"
    )


def check_exact(paths: list[Path], folder: Path) -> None:
    """The command's own merge of the distinct files, against a sum in another order."""
    merged = clipedit.merge_partials(list(reversed(paths)))
    total = torch.stack([clipedit.load_scan(path).statistics.gg for path in paths]).sum(0)
    assert (merged.statistics.gg - total).norm() <= 1e-12 * total.norm()
    merged.save(folder / "merged")
    size = (folder / "merged").stat().st_size
    assert abs(size - paths[0].stat().st_size) < 1_000
    print(
        f"one partial {paths[0].stat().st_size / 1e6:.1f} MB, the sum of {len(paths)} {size / 1e6:.1f} MB", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--partials", default="1000,10000,100000", help="how many are summed, one run each")
    parser.add_argument("--files", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = write_files(Path(folder), options.files)
        check_exact(paths, Path(folder))
        for count in map(int, options.partials.split(",")):
            print(measure(paths, count), flush=True)


if __name__ == "__main__":
    main()
