"""What the whole of `remove-heads` costs over one plain pass of open_clip: `python benchmarks/speed.py --only repair`.

python benchmarks/speed.py --quick
python benchmarks/speed.py --only repair --images 200,1000,4000 --models ViT-B-32,ViT-B-16 --megapixels 0.3,12
python benchmarks/speed.py --only repair --repair-rounds 2 --kinds "cold;warm;warm, --precision auto"
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from timing import describe, seconds

import clipedit

# Photographs of a small picture and of a phone, by their megapixels; so many of them differ.
SIZES, DISTINCT = {"0.3": (640, 480), "12": (4000, 3000)}, 100
# What the cache of texts holds at the start, and options; bf16 only where the CPU multiplies it.
KINDS: dict[str, tuple[str, ...]] = {"cold": (), "warm": (), "warm, --precision auto": ("--precision", "auto")}

PLAIN = """
import sys, torch, open_clip
from pathlib import Path
from PIL import Image
torch.set_num_threads(2)
model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{sys.argv[1]}")
files = sorted(Path(sys.argv[2]).iterdir())
with torch.no_grad():
    for start in range(0, len(files), 32):
        images = [preprocess(Image.open(path).convert("RGB")) for path in files[start : start + 32]]
        model.eval().encode_image(torch.stack(images))
"""


def write_photographs(folder: Path, count: int, *, width: int = 640, height: int = 480) -> None:
    """JPEG files that are as large to decode as photographs: smooth colours with edges and some noise.

    Beyond `DISTINCT` they come again under other names: 4,000 of a camera would take 12 GB.
    """
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for index in range(count):
        if index >= DISTINCT:
            os.link(folder / f"{index % DISTINCT:05d}.jpg", folder / f"{index:05d}.jpg")
            continue
        coarse = torch.rand(1, 3, 12, 16, generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0]
        edges = torch.nn.functional.interpolate(coarse[:, :, ::3, ::3], (height, width))[0]
        noise = torch.randn(3, height, width, generator=generator) * 0.03
        pixels = ((0.6 * smooth + 0.4 * edges + noise).clamp(0, 1) * 255).to(torch.uint8)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{index:05d}.jpg", quality=90)


def measure_repair(
    rounds: int, counts: list[int], names: list[str], megapixels: list[str], kinds: Sequence[str] = ("cold", "warm")
) -> None:
    """`remove-heads` with report, fidelity and verification against a plain pass of open_clip.

    Whole processes; the models have random weights.
    """
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            base = write_base(Path(folder), clipedit.load_model(name))
            for size in megapixels:
                for count in counts:
                    photographs = Path(folder) / f"photographs-{size}-{count}"
                    write_photographs(photographs, count, width=SIZES[size][0], height=SIZES[size][1])
                    compare_repair(
                        base, photographs, rounds, kinds, f"{name}, {count} photographs of {size} megapixels"
                    )


def write_base(folder: Path, model: clipedit.Model) -> Path:
    """A model as open_clip reads it, in a folder of its own."""
    base = folder / "base"
    base.mkdir()
    state = {key: tensor.contiguous() for key, tensor in model.module.state_dict().items()}
    save_file(state, base / "open_clip_model.safetensors", metadata={"format": "pt"})
    (base / "open_clip_config.json").write_text(json.dumps(dict(model.config), default=list))
    return base


def compare_repair(base: Path, photographs: Path, rounds: int, kinds: Sequence[str], what: str) -> None:
    """Interleaved runs; the text cache is emptied before each cold one."""
    cache = base.parent / "cache"
    # Random weights hold no concept: the edit is forced, and as large as usual.
    own: list[object] = [sys.executable, "-m", "clipedit", "remove-heads", "--concept", "location", "--force"]
    own += ["--heads", "8", "--output-strength", "0.5", "--model", base, "--images", photographs]
    own += ["--effect", "direct", "-o", base.parent / "out", "--overwrite"]
    plain = [sys.executable, "-c", PLAIN, base, photographs]
    environment = {**os.environ, "CLIPEDIT_CACHE": str(cache), "OMP_NUM_THREADS": "2"}
    run = lambda command: subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)  # noqa: E731
    # A quick look of one round is not worth a run to warm up.
    if rounds > 1:
        run(plain), run(own)
    for kind in kinds:
        ratios, times = [], []
        for _ in range(rounds):
            if kind == "cold":
                shutil.rmtree(cache, ignore_errors=True)
            below, above = seconds(lambda: run(plain)), seconds(lambda: run([*own, *KINDS[kind]]))
            ratios.append(above / below)
            times.append((above, below))
        above, below = (statistics.median(column) for column in zip(*times, strict=True))
        print(
            f"remove-heads / plain open_clip pass, {what}, cache {kind}: {describe(ratios)}; "
            f"{above:.1f} s / {below:.1f} s, starts included",
            flush=True,
        )
