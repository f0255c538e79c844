"""Peak memory of a scan of 1,000 and of 50,000 demo images: `python benchmarks/scale_memory.py`.

Images are rendered into tar shards of 1,000 first; each scan is the command line in a process of its own. The small
scan runs three times, since the C library's heap alone moves its peak by a percent or two;
`MALLOC_MMAP_THRESHOLD_=1048576` takes that noise away.
"""

from __future__ import annotations

import argparse
import io
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from clipedit.demo import world

A_SHARD, SEED = 1_000, 5_002
SCAN = """
import sys
from clipedit import cli
sys.argv = ["clipedit", *sys.argv[1:]]
try:
    cli.main()
except SystemExit as stop:
    assert not stop.code, stop.code
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def write_shards(folder: Path, images: int) -> None:
    generator = np.random.default_rng(SEED)
    for shard in range(images // A_SHARD):
        with tarfile.open(folder / f"{shard:04d}.tar", "w") as tar:
            for index in range(A_SHARD):
                stream = io.BytesIO()
                Image.fromarray(world.render(world.draw_captioned_scene(generator)[0])).save(
                    stream, "PNG", compress_level=1
                )
                entry = tarfile.TarInfo(f"{index:04d}.png")
                entry.size = stream.tell()
                tar.addfile(entry, io.BytesIO(stream.getvalue()))


def peak_of_scan(shards: list[Path], out: Path) -> float:
    """Megabytes."""
    listed = out.with_suffix("")
    shutil.rmtree(listed, ignore_errors=True)
    out.unlink(missing_ok=True)
    listed.mkdir()
    for path in shards:
        (listed / path.name).symlink_to(path)
    command = [sys.executable, "-c", SCAN, "scan", str(listed), "-o", str(out), "--batch-size", "64", "--workers", "1"]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--few", type=int, default=1_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "shards").mkdir()
        write_shards(folder / "shards", options.images)
        shards = sorted((folder / "shards").iterdir())
        few, many = folder / "few.safetensors", folder / "many.safetensors"
        small = statistics.median(peak_of_scan(shards[: options.few // A_SHARD], few) for _ in range(3))
        large = peak_of_scan(shards, many)
        sizes = few.stat().st_size, many.stat().st_size
        print(
            f"peak memory of a scan, {options.images} / {options.few} images: {large / small:.3f} ({large:.0f} / "
            f"{small:.0f} MB); statistics files {sizes[1]} / {sizes[0]} bytes"
        )


if __name__ == "__main__":
    main()
