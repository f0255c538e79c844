"""Images per second of a scan and of the plain forward pass on a GPU: `python benchmarks/gpu.py [--model NAME]`.

Prints a table with a row for each precision. Random weights at real size: speed does not depend on
what they hold. Pixels are on the device beforehand, so that the model is measured and not the decoding of images;
`--loader` measures reading JPEGs by itself. Without a GPU it runs on the processor and says so.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

import clipedit
from clipedit.editor.images.batches import load_batches
from clipedit.editor.images.decode import read_image
from clipedit.editor.images.source import ImageSource
from clipedit.editor.models.devices import lower_precision
from clipedit.editor.scan.scan import choose_layers
from clipedit.editor.scan.scanner import Scanner
from clipedit.editor.scan.statistics import add_features

COLUMNS = (
    "| device | model | batch | precision | compiled | encode_image, images/s | scan, images/s | scan / encode "
    "| peak memory |"
)


def best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def wait(device: str) -> None:
    if device != "cpu":
        getattr(torch, device).synchronize()


def images_a_second(work: Callable[[], object], images: int, device: str, rounds: int) -> float:
    work(), wait(device)
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        wait(device)
        times.append(time.perf_counter() - started)
    return images / statistics.median(times)


def measure(model: clipedit.Model, options: argparse.Namespace, precision: str) -> str:
    device, size = model.device.type, options.batch_size
    scanner = Scanner(model, choose_layers(model, None), batch_size=size, precision=precision, compiled=options.compile)  # type: ignore[arg-type]
    pixels = torch.randn(size, 3, *model.image_shape, device=device)
    embed = torch.compile(model.tower.embed) if options.compile else model.tower.embed
    sums = scanner.empty()

    @torch.no_grad()
    def forward() -> None:
        with lower_precision(model.device, precision):  # type: ignore[arg-type]
            for _ in range(options.batches):
                embed(pixels)

    def scan() -> None:
        nonlocal sums
        for _ in range(options.batches):
            sums = add_features(sums, scanner.collect(pixels))

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    count = size * options.batches
    plain = images_a_second(forward, count, device, options.rounds)
    scanned = images_a_second(scan, count, device, options.rounds)
    name = torch.cuda.get_device_name() if device == "cuda" else f"{device} ({torch.get_num_threads()} threads)"
    peak = f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB" if device == "cuda" else "not measured"
    cells = [name, options.model, size, precision, "yes" if options.compile else "no"]
    return (
        "| " + " | ".join(map(str, [*cells, f"{plain:.1f}", f"{scanned:.1f}", f"{plain / scanned:.3f}", peak])) + " |"
    )


def measure_loader(model: clipedit.Model, workers: int) -> None:
    """JPEGs of 512 pixels from memory, decoded and preprocessed: what a worker must keep up."""
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).resize((512, 512), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
    content = stream.getvalue()
    source = ImageSource(tuple(map(str, range(1024))), lambda index: read_image(io.BytesIO(content), "image"))
    started = time.perf_counter()
    for _ in load_batches(source, model.preprocess, batch_size=32, workers=workers):
        pass
    rate = 1024 / (time.perf_counter() - started)
    print(f"reading JPEGs of 512 x 512 ({len(content)} bytes), {workers} processes: {rate:.0f} images/s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="ViT-L-14")
    parser.add_argument("--device", default=best_device())
    parser.add_argument("--batch-size", type=int, default=0, help="256 on a GPU, 4 on a processor")
    parser.add_argument("--batches", type=int, default=0, help="a round; 8 on a GPU, 1 on a processor")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precisions", default="fp32,bf16,fp16")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument(
        "--loader", type=int, default=0, metavar="WORKERS", help="also measure reading, with so many processes"
    )
    options = parser.parse_args()
    on_gpu = options.device != "cpu"
    options.batch_size = options.batch_size or (256 if on_gpu else 4)
    options.batches = options.batches or (8 if on_gpu else 1)
    if not on_gpu:
        print("no GPU here: these figures are of the processor, and say nothing about one\n")
    model = clipedit.load_model(options.model, device=options.device)
    print(COLUMNS + "\n" + "|---" * 9 + "|", flush=True)
    for precision in options.precisions.split(",") if on_gpu else ["fp32"]:
        print(measure(model, options, precision), flush=True)
    if options.loader:
        measure_loader(model, options.loader)


if __name__ == "__main__":
    main()
