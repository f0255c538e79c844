"""Ratios of speed and memory in one run: `OMP_NUM_THREADS=2 python benchmarks/speed.py`. Needs a quiet machine.

Absolute times mean little; every figure is a ratio of interleaved runs (medians, after a warm-up), or a peak of memory.
Random weights at real size: speed does not depend on what they hold.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from repair_price import KINDS, SIZES, measure_repair, write_base
from timing import describe, interleaved, seconds

import clipedit
from clipedit.editor.concepts.textspan import compute_text_span
from clipedit.editor.edits.bind import bind_recipe
from clipedit.editor.edits.document import Base, RecipeDocument, Step
from clipedit.editor.images.batches import load_batches
from clipedit.editor.images.source import ImageSource
from clipedit.editor.look.spatial import compute_token_shares, draw_heatmaps
from clipedit.editor.look.view import find_view

# The high-water mark of this address space; `ru_maxrss` would count the parent's, which a child inherits.
PRINT_PEAK = "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"


def image_source(count: int) -> ImageSource:
    generator = torch.Generator().manual_seed(0)
    data = torch.randint(0, 256, (8, 224, 224, 3), dtype=torch.uint8, generator=generator).numpy()
    images = [Image.fromarray(array) for array in data]
    return ImageSource(tuple(f"{i}.png" for i in range(count)), lambda index: images[index % 8])


def measure_scan(model: clipedit.Model, rounds: int) -> None:
    """Slopes between two numbers of images, the same loader and preprocessing on both sides."""
    for batch_size in (8, 32):
        small, large = image_source(batch_size), image_source(batch_size + 96)

        def plain(source: ImageSource, batch_size: int = batch_size) -> None:
            for batch in load_batches(source, model.preprocess, batch_size=batch_size, workers=0):
                model.encode_image(batch.pixels)

        def scan(source: ImageSource, batch_size: int = batch_size) -> None:
            clipedit.scan(model, source, batch_size=batch_size, workers=0)

        plain(small), scan(small)
        ratios = []
        for _ in range(rounds):
            below = -seconds(lambda: plain(small)) + seconds(lambda: plain(large))
            above = -seconds(lambda: scan(small)) + seconds(lambda: scan(large))
            ratios.append(above / below)
        print(
            f"scan / encode_image, ViT-B-16, batch {batch_size}, slope over 96 images: {describe(ratios)}", flush=True
        )


def measure_heatmap(model: clipedit.Model, rounds: int) -> None:
    """One image, all heads of the last four layers, a text whose embedding is known."""
    image = image_source(1).open(0).resize((500, 375))
    pixels, directions = model.preprocess(image)[None], torch.randn(1, model.tower.d_embed, dtype=torch.float64)
    ratios = interleaved(
        lambda: compute_token_shares(model, pixels, directions), lambda: model.encode_image(pixels), rounds
    )
    print(f"token shares of all heads of 4 layers / encode_image, ViT-B-16, one image: {describe(ratios)}", flush=True)

    def draw(*, remembered: bool) -> None:
        if not remembered:
            find_view.cache_clear()
        assert len(draw_heatmaps(model, image, ["a text"], directions, each_head=True)) == 48

    def plain() -> None:
        model.encode_image(model.preprocess(image)[None])

    for remembered in (True, False):
        ratios = interleaved(lambda: draw(remembered=remembered), plain, rounds)
        size = "seen before" if remembered else "not seen before"
        print(f"48 heatmaps / (preprocess + encode_image), image size {size}: {describe(ratios)}", flush=True)


def measure_text_span() -> None:
    generator = torch.Generator().manual_seed(0)
    readouts = torch.randn(64, 768, 64, generator=generator, dtype=torch.float64)
    factors = torch.randn(64, 64, 64, generator=generator, dtype=torch.float64)
    texts = torch.nn.functional.normalize(torch.randn(3000, 768, generator=generator, dtype=torch.float64), dim=1)
    compute_text_span(readouts, factors @ factors.mT, texts, steps=1)
    times = [seconds(lambda: compute_text_span(readouts, factors @ factors.mT, texts, steps=20)) for _ in range(5)]
    print(f"TextSpan, 64 heads of 64, 768 dimensions, 3,000 texts, 20 each: median {statistics.median(times):.2f} s")


def edited_model(model: clipedit.Model) -> clipedit.Model:
    scanned = clipedit.scan(model, image_source(16), batch_size=8, workers=0)
    step = Step(
        operation="mean-ablate", heads=tuple(f"L{layer}H{head}" for layer in (8, 9, 10, 11) for head in range(3))
    )
    document = RecipeDocument(
        schema_version=1, name="speed", base=Base(model=model.name), effect="distilled", steps=(step,)
    )
    return clipedit.apply_recipe(bind_recipe(document, scanned, model), model)


def measure_edited(model: clipedit.Model, rounds: int) -> None:
    import onnxruntime

    edited = edited_model(model)
    pixels = torch.randn(8, 3, 224, 224)
    ratios = interleaved(lambda: edited.encode_image(pixels), lambda: model.encode_image(pixels), rounds)
    print(f"edited / unedited encode_image, ViT-B-16, batch 8: {describe(ratios)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        sessions = []
        for name, which in (("edited", edited), ("base", model)):
            clipedit.export_model(which, Path(folder) / name, target="onnx")
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 2
            path = Path(folder) / name / "visual.onnx"
            sessions.append(onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]))
        feed = {"image": pixels.numpy()}
        ratios = interleaved(lambda: sessions[0].run(None, feed), lambda: sessions[1].run(None, feed), rounds)
    print(f"edited / unedited ONNX, ViT-B-16, batch 8: {describe(ratios)}", flush=True)


def measure_apply(rounds: int) -> None:
    """`apply` on a checkpoint file against `cp` and `sha256sum`, whole processes, ViT-L-14 layout."""
    model = clipedit.load_model("ViT-L-14")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = write_base(folder, model) / "open_clip_model.safetensors"
        scanned = clipedit.scan(model, image_source(4), batch_size=4, workers=0)
        for effect in ("distilled", "total"):
            step = Step(operation="mean-ablate", heads=tuple(f"L23H{head}" for head in range(12)))
            document = RecipeDocument(
                schema_version=1,
                name="speed",
                base=Base(model="base"),
                effect=effect,
                steps=(step,),  # type: ignore[arg-type]
            )
            bind_recipe(document, scanned, model).save(folder / f"{effect}.yaml")
        largest = max(tensor.nbytes for tensor in model.module.state_dict().values())
        size = weights.stat().st_size
        del model, scanned
        plain = (
            f"cp {weights} {folder}/copy && sync {folder}/copy && sha256sum {weights} > /dev/null && rm {folder}/copy"
        )
        for effect in ("distilled", "total"):
            command = (
                f"rm -f {folder}/base/.*.json && "
                f'{sys.executable} -c "import sys; from clipedit.cli import main; main()" '
                f"apply {folder}/{effect}.yaml --model {folder}/base -o {folder}/out --overwrite 2>/dev/null"
            )
            idle = f'{sys.executable} -c "import clipedit.editor.edits.apply"'
            run = lambda shell: subprocess.run(shell, shell=True, check=True)  # noqa: E731
            run(command), run(plain), run(idle)
            ratios, net = [], []
            for _ in range(rounds):
                own, other, start = (seconds(lambda line=line: run(line)) for line in (command, plain, idle))
                ratios.append(own / other)
                net.append((own - start) / other)
            print(
                f"apply ({effect}) / (cp + sync + sha256sum), {size / 1e9:.2f} GB: {describe(ratios)}; "
                f"without the start of Python and torch: {describe(net)}",
                flush=True,
            )
            peak = measure_peak(
                ["apply", f"{folder}/{effect}.yaml", "--model", f"{folder}/base", "-o", f"{folder}/out", "--overwrite"]
            )
            print(
                f"  peak memory {peak / 1e6:.0f} MB; importing torch alone {measure_peak([]) / 1e6:.0f} MB; "
                f"largest tensor {largest / 1e6:.0f} MB",
                flush=True,
            )


def measure_peak(arguments: list[str]) -> float:
    """Peak resident memory of a command of ours in bytes; mapped pages of input files count."""
    code = (
        "import sys; import clipedit.editor.edits.apply; from clipedit import cli\n"
        f"sys.argv = ['clipedit', *{arguments!r}]\n"
        "if len(sys.argv) > 1:\n    try: cli.main()\n    except SystemExit: pass\n"
        f"{PRINT_PEAK}"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(answer.stdout.split()[-1]) * 1024


def measure_memory() -> None:
    peaks = {}
    for count in (500, 8_000):
        code = (
            "import clipedit, torch; torch.set_num_threads(2)\n"
            "from clipedit.editor.images.demo import demo_calibration_source\n"
            f"clipedit.scan(clipedit.load_model('demo'), demo_calibration_source({count}), workers=0)\n"
            f"{PRINT_PEAK}"
        )
        answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        peaks[count] = int(answer.stdout.split()[-1])
    (small, low), (large, high) = peaks.items()
    print(f"peak memory of a scan, {large} / {small} images: {high / low:.3f} ({high / 1e3:.0f} / {low / 1e3:.0f} MB)")


def main() -> None:
    options = read_options()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    rounds, names, sizes = options.rounds, options.models.split(","), options.megapixels.split(",")
    counts = [int(count) for count in options.images.split(",")]
    chosen = options.only.split(",")
    if options.quick:
        measure_repair(1, [100], ["ViT-B-32"], list(SIZES), kinds=("cold",))
        return
    model: Any = clipedit.load_model("ViT-B-16") if {"scan", "heatmap", "edited"} & set(chosen) else None
    measures: dict[str, Callable[[], None]] = {
        "textspan": measure_text_span,
        "scan": lambda: measure_scan(model, rounds),
        "heatmap": lambda: measure_heatmap(model, 3 * rounds),
        "edited": lambda: measure_edited(model, 3 * rounds),
        "memory": measure_memory,
        "apply": lambda: measure_apply(3),
        "repair": lambda: measure_repair(options.repair_rounds, counts, names, sizes, options.kinds.split(";")),
    }
    for name, measure in measures.items():
        if name in chosen:
            measure()


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="scan,textspan,heatmap,edited,apply,memory,repair")
    parser.add_argument("--images", default="400", help="Photographs of `repair`, such as 200,1000,4000.")
    parser.add_argument("--models", default="ViT-B-32", help="Of `repair`, such as ViT-B-32,ViT-B-16.")
    parser.add_argument("--megapixels", default="0.3", help="Of the photographs, such as 0.3,12.")
    parser.add_argument("--repair-rounds", type=int, default=5)
    parser.add_argument("--kinds", default="cold;warm", help=f"Of `repair`: {'; '.join(KINDS)}.")
    parser.add_argument("--quick", action="store_true", help="`repair` alone, 100 photographs of both sizes, once.")
    return parser.parse_args()


if __name__ == "__main__":
    main()
