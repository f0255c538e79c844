"""Ratios of speed and memory in one run: `OMP_NUM_THREADS=2 python benchmarks/speed.py`. Needs a quiet machine.

Absolute times mean little; every figure is a ratio of interleaved runs (medians, after a warm-up), or a peak of memory.
Random weights at real size: speed does not depend on what they hold.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file

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


def seconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def interleaved(first: Callable[[], object], second: Callable[[], object], rounds: int) -> list[float]:
    """Ratios first / second of neighbouring runs, after one warm-up of each; the order alternates."""
    first(), second()
    ratios = []
    for index in range(rounds):
        if index % 2:
            below, above = seconds(second), seconds(first)
        else:
            above, below = seconds(first), seconds(second)
        ratios.append(above / below)
    return ratios


def describe(ratios: list[float]) -> str:
    return (
        f"median {statistics.median(ratios):.3f} (min {min(ratios):.3f}, max {max(ratios):.3f}, {len(ratios)} rounds)"
    )


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


def edited_model(model: clipedit.Model, effect: str) -> tuple[clipedit.Model, clipedit.Recipe]:
    scanned = clipedit.scan(model, image_source(16), batch_size=8, workers=0)
    step = Step(
        operation="mean-ablate", heads=tuple(f"L{layer}H{head}" for layer in (8, 9, 10, 11) for head in range(3))
    )
    document = RecipeDocument(schema_version=1, name="speed", base=Base(model=model.name), effect=effect, steps=(step,))  # type: ignore[arg-type]
    recipe = bind_recipe(document, scanned, model)
    return clipedit.apply_recipe(recipe, model), recipe


def measure_edited(model: clipedit.Model, rounds: int) -> None:
    import onnxruntime

    edited, _ = edited_model(model, "distilled")
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
        (folder / "base").mkdir()
        state = {key: tensor.contiguous() for key, tensor in model.module.state_dict().items()}
        save_file(state, folder / "base" / "open_clip_model.safetensors", metadata={"format": "pt"})
        (folder / "base" / "open_clip_config.json").write_text(json.dumps(dict(model.config), default=list))
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
        largest = max(tensor.numel() * tensor.element_size() for tensor in state.values())
        size = (folder / "base" / "open_clip_model.safetensors").stat().st_size
        del model, state, scanned
        weights = folder / "base" / "open_clip_model.safetensors"
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
    """JPEG files that are as large to decode as photographs: smooth colours with edges and some noise."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for index in range(count):
        coarse = torch.rand(1, 3, 12, 16, generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0]
        edges = torch.nn.functional.interpolate(coarse[:, :, ::3, ::3], (height, width))[0]
        noise = torch.randn(3, height, width, generator=generator) * 0.03
        pixels = ((0.6 * smooth + 0.4 * edges + noise).clamp(0, 1) * 255).to(torch.uint8)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{index:05d}.jpg", quality=90)


def measure_repair(rounds: int, counts: list[int]) -> None:
    """`remove-heads` with report, fidelity and verification against a plain pass of open_clip; whole processes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = clipedit.load_model("ViT-B-32")
        (folder / "base").mkdir()
        state = {key: tensor.contiguous() for key, tensor in model.module.state_dict().items()}
        save_file(state, folder / "base" / "open_clip_model.safetensors", metadata={"format": "pt"})
        (folder / "base" / "open_clip_config.json").write_text(json.dumps(dict(model.config), default=list))
        for count in counts:
            photographs, cache = folder / f"photographs{count}", folder / "cache"
            write_photographs(photographs, count)
            # Random weights hold no concept: the edit is forced, and as large as usual.
            own = [
                *(sys.executable, "-m", "clipedit", "remove-heads", "--concept", "location", "--force", "--heads", "8"),
                *(
                    "--output-strength",
                    "0.5",
                    "--model",
                    folder / "base",
                    "--images",
                    photographs,
                    "--effect",
                    "direct",
                ),
                *("-o", folder / "out", "--overwrite"),
            ]
            plain = [sys.executable, "-c", PLAIN, folder / "base", photographs]
            environment = {**os.environ, "CLIPEDIT_CACHE": str(cache), "OMP_NUM_THREADS": "2"}
            run = lambda command: subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)  # noqa: E731
            run(plain), run(own)
            for kind in ("cold", "warm"):
                ratios, times = [], []
                for _ in range(rounds):
                    if kind == "cold":
                        shutil.rmtree(cache, ignore_errors=True)
                    below, above = seconds(lambda: run(plain)), seconds(lambda: run(own))
                    ratios.append(above / below)
                    times.append((above, below))
                above, below = (statistics.median(column) for column in zip(*times, strict=True))
                print(
                    f"remove-heads / plain open_clip pass, ViT-B-32, {count} photographs, {kind} cache: "
                    f"{describe(ratios)}; {above:.1f} s / {below:.1f} s, starts included",
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="scan,textspan,heatmap,edited,apply,memory,repair")
    parser.add_argument("--images", default="400", help="Photographs of `repair`, such as 200,1000,4000.")
    options = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    chosen = options.only.split(",")
    model = clipedit.load_model("ViT-B-16") if {"scan", "heatmap", "edited"} & set(chosen) else None
    if "textspan" in chosen:
        measure_text_span()
    if "scan" in chosen and model is not None:
        measure_scan(model, options.rounds)
    if "heatmap" in chosen and model is not None:
        measure_heatmap(model, options.rounds * 3)
    if "edited" in chosen and model is not None:
        measure_edited(model, options.rounds * 3)
    if "memory" in chosen:
        measure_memory()
    if "apply" in chosen:
        measure_apply(3)
    if "repair" in chosen:
        measure_repair(5, [int(count) for count in options.images.split(",")])


if __name__ == "__main__":
    main()
