"""What decoding large JPEGs smaller costs: `python benchmarks/decode.py PHOTOGRAPH [...]`, or scikit-learn's two.

Each photograph is stored as a camera would have it, at 12 and at 0.3 megapixels, with noise of its own: enlarged
(`smooth`), and repeated at its own size until the picture is full (`sharp`: detail down to single pixels). The cosine
is between the embeddings of both ways; the time is of one processor, decoding and preprocessing, interleaved, medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

import clipedit
from clipedit.editor.images.decode import Decoding, open_image

SIZES = {"12": (4000, 3000), "0.3": (640, 480)}


def read_photographs(paths: list[Path]) -> list[Image.Image]:
    given = [Image.open(path).convert("RGB") for path in paths]
    return given or [Image.fromarray(pixels) for pixels in load_sample_images().images]


def enlarge(photograph: Image.Image, size: tuple[int, int]) -> Image.Image:
    ratio = max(size[0] / photograph.width, size[1] / photograph.height)
    whole = (max(size[0], round(photograph.width * ratio)), max(size[1], round(photograph.height * ratio)))
    return photograph.resize(whole, Image.Resampling.LANCZOS).crop((0, 0, *size))


def repeat(photograph: Image.Image, size: tuple[int, int]) -> Image.Image:
    pixels = np.asarray(photograph)
    # Mirrored, so that there is no edge where two copies meet.
    pixels = np.concatenate([pixels, pixels[:, ::-1]], 1)
    pixels = np.concatenate([pixels, pixels[::-1]], 0)
    times = size[1] // pixels.shape[0] + 1, size[0] // pixels.shape[1] + 1, 1
    return Image.fromarray(np.tile(pixels, times)[: size[1], : size[0]])


def write_photographs(folder: Path, photographs: list[Image.Image]) -> Iterator[tuple[str, str, list[Path]]]:
    generator = np.random.default_rng(0)
    for megapixels, size in SIZES.items():
        for kind, make in (("smooth", enlarge), ("sharp", repeat)):
            paths = []
            for number, photograph in enumerate(photographs):
                picture = np.asarray(make(photograph, size)) + generator.normal(0, 5, (size[1], size[0], 1))
                paths.append(folder / f"{megapixels}-{kind}-{number}.jpg")
                Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(paths[-1], quality=90)
            yield megapixels, kind, paths


def compare(model: clipedit.Model, paths: list[Path]) -> list[str]:
    ways = [model.decoding("upright", "exact"), model.decoding("upright", "scaled")]
    found: list[list[torch.Tensor]] = [[], []]
    taken: list[list[float]] = [[], []]
    for path in paths:
        for way, decoding in enumerate(ways):
            pixels, seconds = read(model, path, decoding)
            found[way].append(pixels)
            taken[way].append(seconds)
    exact, scaled = (model.encode_image(torch.stack(pixels)).double() for pixels in found)
    cosines = torch.nn.functional.cosine_similarity(exact, scaled)
    # Images of one model share most of their embedding: without what they share the same difference counts more.
    own = torch.nn.functional.cosine_similarity(exact - exact.mean(0), scaled - exact.mean(0))
    times = [1000 * statistics.median(seconds) for seconds in taken]
    return [
        *(f"{value:.6f}" for value in (cosines.mean(), cosines.min(), own.mean(), own.min())),
        *(f"{value:.0f}" for value in times),
    ]


def read(model: clipedit.Model, path: Path, decoding: Decoding) -> tuple[torch.Tensor, float]:
    started = time.process_time()
    pixels = model.preprocess(open_image(path, decoding))
    return pixels, time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photographs", nargs="*", type=Path)
    parser.add_argument("--models", nargs="+", default=["demo", "ViT-B-32"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    columns = "mean cosine | worst cosine | mean, centred | worst, centred | exact ms | scaled ms"
    print(f"| model | megapixels | detail | photographs | {columns} |\n|{'---|' * 10}")
    models = {name: clipedit.load_model(name) for name in options.models}
    with tempfile.TemporaryDirectory() as folder:
        for megapixels, kind, paths in write_photographs(Path(folder), read_photographs(options.photographs)):
            for name, model in models.items():
                row = [name, megapixels, kind, str(len(paths)), *compare(model, paths)]
                print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
