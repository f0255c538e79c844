"""Throughput of exported graphs in one run: `OMP_NUM_THREADS=2 python benchmarks/export.py`. Needs a quiet machine.

Prints the tables of `benchmarks/results/throughput.csv`: images per second of ONNX Runtime on two CPU threads at batch
1 and 32, ViT-B-32 and ViT-B-16 at real size with random weights (speed does not depend on what they hold), of the
unedited, the distilled, the direct and the pruned graph, fp32, and of the pruned one in int8 and fp16. Every ratio is
the median over interleaved rounds, the order reversed in every other one, so that drift of the machine cancels. The
programs of torch.export likewise, direct to unedited.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from PIL import Image

import clipedit
from clipedit.editor.edits.bind import bind_recipe
from clipedit.editor.edits.document import Base, RecipeDocument, Step
from clipedit.editor.images.source import ImageSource
from clipedit.export.graphs.encoders import ImageEncoder
from clipedit.export.graphs.onnx_graphs import draw_examples, quiet_exporter, write_graphs
from clipedit.export.targets.onnx import TARGET

Runner = Callable[[np.ndarray], object]


def calibration_source(count: int, size: int) -> ImageSource:
    generator = torch.Generator().manual_seed(0)
    data = torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator).numpy()
    images = [Image.fromarray(array) for array in data]
    return ImageSource(tuple(f"{i}.png" for i in range(count)), lambda index: images[index])


def edit(model: clipedit.Model, scan: clipedit.Scan, effect: str, heads: tuple[str, ...]) -> clipedit.Model:
    step = Step(operation="mean-ablate", heads=heads)
    document = RecipeDocument(schema_version=1, name="speed", base=Base(model=model.name), effect=effect, steps=(step,))  # type: ignore[arg-type]
    return clipedit.apply_recipe(bind_recipe(document, scan, model), model)


def open_session(path: Path, precision: str) -> Runner:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    if precision == "fp16":
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(None, {"image": pixels})


def build_runners(name: str, folder: Path) -> dict[str, Runner]:
    """Unedited first; distilled and direct remove 2 heads of the last four layers each, pruned two thirds of them."""
    model = clipedit.load_model(name)
    last = range(model.tower.n_layers - 4, model.tower.n_layers)
    heads = model.tower.heads_per_layer[-2]
    few = tuple(f"L{layer}H{head}" for layer in last for head in range(2))
    many = tuple(f"L{layer}H{head}" for layer in last for head in range(2 * heads // 3))
    scan = clipedit.scan(model, calibration_source(16, model.image_size), batch_size=8, workers=0)
    total = edit(model, scan, "total", many)
    whole = edit(model, scan, "total", tuple(f"L{model.tower.n_layers - 2}H{head}" for head in range(heads)))
    variants: dict[str, tuple[clipedit.Model, str, bool]] = {
        "unedited": (model, "fp32", False),
        "distilled, 2 heads a layer": (edit(model, scan, "distilled", few), "fp32", False),
        "direct, 2 heads a layer": (edit(model, scan, "direct", few), "fp32", False),
        "total, 2/3 of the heads, not pruned": (total, "fp32", False),
        "total, 2/3 of the heads, pruned": (total, "fp32", True),
        "total, a whole layer, pruned": (whole, "fp32", True),
        "total, 2/3 of the heads, pruned, int8": (total, "int8", True),
        "total, 2/3 of the heads, pruned, fp16": (total, "fp16", True),
    }
    runners = {}
    for index, (label, (which, precision, prune)) in enumerate(variants.items()):
        (folder / str(index)).mkdir()
        profile = dataclasses.replace(TARGET.profile.at(precision), textual=None, prune=prune)  # type: ignore[arg-type]
        write_graphs(which, folder / str(index), profile)
        runners[label] = open_session(folder / str(index) / "visual.onnx", precision)
    return runners


def build_programs(name: str) -> dict[str, Runner]:
    model = clipedit.load_model(name)
    scan = clipedit.scan(model, calibration_source(16, model.image_size), batch_size=8, workers=0)
    few = tuple(
        f"L{layer}H{head}" for layer in range(model.tower.n_layers - 4, model.tower.n_layers) for head in range(2)
    )
    runners = {}
    for label, which in (("unedited", model), ("direct, 2 heads a layer", edit(model, scan, "direct", few))):
        with torch.no_grad(), quiet_exporter():
            axes = ({0: torch.export.Dim("batch", min=1)},)
            program = torch.export.export(
                ImageEncoder(which).eval(), draw_examples(which)[:1], dynamic_shapes=axes
            ).module()
        runners[label] = lambda pixels, program=program: program(torch.from_numpy(pixels))
    return runners


@torch.no_grad()
def measure(runners: dict[str, Runner], batch: int, size: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of every runner in every round."""
    pixels = np.random.default_rng(0).standard_normal((batch, 3, size, size), dtype=np.float32)
    repeats = max(1, 16 // batch)
    times: dict[str, list[float]] = {label: [] for label in runners}
    for runner in runners.values():
        runner(pixels)
    for index in range(rounds):
        for label in list(runners)[:: -1 if index % 2 else 1]:
            started = time.perf_counter()
            for _ in range(repeats):
                runners[label](pixels)
            times[label].append((time.perf_counter() - started) / repeats)
    return times


def print_table(title: str, runners: dict[str, Runner], size: int, rounds: int) -> None:
    print(f"\n### {title}\n\n| graph | batch | images/s | time / unedited (min to max) |\n|---|---|---|---|")
    for batch in (1, 32):
        times = measure(runners, batch, size, rounds)
        for label, found in times.items():
            ratios = [own / base for own, base in zip(found, times["unedited"], strict=True)]
            print(
                f"| {label} | {batch} | {batch / statistics.median(found):.1f} | {statistics.median(ratios):.3f} "
                f"({min(ratios):.3f} to {max(ratios):.3f}) |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--models", nargs="+", default=["ViT-B-32", "ViT-B-16"])
    options = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    print(
        f"## Throughput of exported graphs\n\n`python benchmarks/export.py --rounds {options.rounds}`: ONNX Runtime "
        f"{onnxruntime.__version__}, torch {torch.__version__}, two CPU threads, random weights (seed 0)."
    )
    for name in options.models:
        size = clipedit.load_model(name).image_size
        with tempfile.TemporaryDirectory() as folder:
            print_table(f"{name}, ONNX", build_runners(name, Path(folder)), size, options.rounds)
        print_table(f"{name}, torch.export programs", build_programs(name), size, options.rounds)


if __name__ == "__main__":
    main()
