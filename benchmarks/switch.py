"""What switching edits costs: `OMP_NUM_THREADS=1 python benchmarks/switch.py > benchmarks/results/switch.csv`.

One graph of the base with two adapters, a distilled edit and a `total` one, against plain graphs of the base and of
each edit, in ONNX Runtime on the CPU: the demo model and ViT-B-32 at real size with random weights (speed does not
depend on what they hold). All graphs of a model and batch take turns in every round, the order reversed in every other
one, so that drift of the machine cancels; a ratio is the median over the rounds of a graph's time to its plain graph's.
`every request another` runs base, distilled and total in turn, against the plain graphs in the same order. Opening is
the time of `InferenceSession`, and `clipedit.switch` that of entering and leaving, in place of a run.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from PIL import Image
from rows import print_rows

import clipedit
from clipedit.editor.edits.bind import bind_recipe
from clipedit.editor.edits.document import Base, RecipeDocument, Step
from clipedit.editor.edits.recipe import Recipe
from clipedit.editor.images.source import ImageSource
from clipedit.export.consumers.onnx_runtime import as_function, load_adapter
from clipedit.export.graphs.adapters import adapter_files, open_adapters, write_adapters
from clipedit.export.graphs.onnx_graphs import write_graphs
from clipedit.export.targets.onnx import TARGET

Runner = Callable[[], object]
HEADER = (
    "model",
    "graph",
    "against",
    "batch",
    "median ms",
    "time over the other median",
    "min",
    "max",
    "adapter bytes",
)
PROFILE = dataclasses.replace(TARGET.profile, textual=None)


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """On one thread: idle sessions spin theirs, and would slow down the one that is timed."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    onnxruntime.set_default_logger_severity(4)
    return onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])


def bind(model: clipedit.Model, scan: clipedit.Scan, effect: str) -> Recipe:
    """Two heads of each of the last four layers, mean-ablated."""
    last = range(model.tower.n_layers - 4, model.tower.n_layers)
    step = Step(operation="mean-ablate", heads=tuple(f"L{layer}H{head}" for layer in last for head in range(2)))
    said = {"schema_version": 1, "name": effect, "base": Base(model=model.name), "effect": effect, "steps": (step,)}
    document = RecipeDocument.model_validate(said)
    return bind_recipe(document, scan, model)


def noise(count: int, size: int) -> ImageSource:
    drawn = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return ImageSource(tuple(f"{i}.png" for i in range(count)), lambda index: Image.fromarray(drawn[index]))


def measure(runners: Mapping[str, Runner], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every runner in every round."""
    times: dict[str, list[float]] = {label: [] for label in runners}
    for index in range(rounds + 1):
        for label in list(runners)[:: -1 if index % 2 else 1]:
            started = time.perf_counter()
            runners[label]()
            # The first round warms up.
            times[label] += [1_000 * (time.perf_counter() - started)] if index else []
    return times


def compare(
    model: str, times: Mapping[str, list[float]], pairs: Mapping[str, str], batch: int, sizes: Mapping[str, int]
) -> Iterator[Sequence[object]]:
    """A row for each label, with its time over the other's."""
    for label, other in pairs.items():
        ratios = [own / base for own, base in zip(times[label], times[other], strict=True)]
        figures = (statistics.median(times[label]), statistics.median(ratios), min(ratios), max(ratios))
        yield [model, label, other, batch or "", *(f"{x:.3f}" for x in figures), sizes.get(label, "")]


def run_model(name: str, folder: Path, rounds: int) -> Iterator[Sequence[object]]:
    model = clipedit.load_model(name)
    scan = clipedit.scan(model, noise(16, model.image_size), batch_size=8, workers=0)
    base, adapters = open_adapters(model, [bind(model, scan, effect) for effect in ("distilled", "total")])
    plain = {"base": base, **{adapter.name: adapter.edited for adapter in adapters}}
    for label, which in plain.items():
        (folder / label).mkdir()
        write_graphs(which, folder / label, PROFILE)
    one = folder / "one"
    one.mkdir()
    write_graphs(base, one, dataclasses.replace(PROFILE, adapters=adapters))
    write_adapters(base, one, adapters)
    files = {adapter.name: adapter_files(one, adapter.name)[0] for adapter in adapters}
    opening: dict[str, Runner] = {
        f"opening, {label}": lambda path=folder / inside / "visual.onnx": open_session(path)
        for label, inside in (("plain", "base"), ("one graph", "one"))
    }
    sizes = {f"one graph, {label}": path.stat().st_size for label, path in files.items()}
    yield from compare(name, measure(opening, max(5, rounds // 4)), {"opening, one graph": "opening, plain"}, 0, sizes)

    session = open_session(one / "visual.onnx")
    switched = {"base": as_function(session)}
    switched |= {label: as_function(session, adapter=load_adapter(path)) for label, path in files.items()}
    apart = {label: as_function(open_session(folder / label / "visual.onnx")) for label in plain}
    for batch in (1, 8):
        pixels = torch.randn(batch, 3, *model.image_shape, generator=torch.Generator().manual_seed(0))
        runners: dict[str, Runner] = {}
        for label in plain:
            runners[f"plain, {label}"] = lambda run=apart[label]: run(pixels)
            runners[f"one graph, {label}"] = lambda run=switched[label]: run(pixels)
        runners["plain, three in turn"] = lambda: [run(pixels) for run in apart.values()]
        runners["one graph, every request another"] = lambda: [run(pixels) for run in switched.values()]
        pairs = {f"one graph, {label}": f"plain, {label}" for label in plain}
        pairs["one graph, every request another"] = "plain, three in turn"
        yield from compare(name, measure(runners, rounds), pairs, batch, sizes)

    def enter_and_leave(recipe: Recipe) -> None:
        with clipedit.switch(model, recipe):
            pass

    pixels = torch.randn(8, 3, *model.image_shape)
    in_torch: dict[str, Runner] = {"PyTorch, one run": lambda: model.encode_image(pixels)}
    in_torch |= {f"clipedit.switch, {one.name}": lambda recipe=one.recipe: enter_and_leave(recipe) for one in adapters}
    pairs = {label: "PyTorch, one run" for label in in_torch if label != "PyTorch, one run"}
    yield from compare(name, measure(in_torch, rounds // 2), pairs, 8, {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["demo", "ViT-B-32"])
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    print_rows(HEADER, run_models(options.models, options.rounds))


def run_models(names: Sequence[str], rounds: int) -> Iterator[Sequence[object]]:
    """The rows of all models."""
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            yield from run_model(name, Path(folder), rounds)


if __name__ == "__main__":
    main()
