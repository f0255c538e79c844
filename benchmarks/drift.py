"""How often `clipedit monitor` raises an alarm, with and without a drift: `python benchmarks/drift.py`.

Features of demo images are collected once, drawn as calibration and as new images again and again, and compared as the
command compares them. A set raises an alarm when one of its heads does. Quiet sets come from the calibration's own
distribution; limit 0 leaves only the test of noise, whose rate is meant to be 1 %.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from PIL import Image, ImageFilter

import clipedit
from clipedit.demo import world
from clipedit.editor.components import Features
from clipedit.editor.drift.monitor import BLOCKS, compare_statistics
from clipedit.editor.scan.scan import choose_layers
from clipedit.editor.scan.scanner import Scanner
from clipedit.editor.scan.statistics import Statistics, add_features

SEED, CALIBRATION, SIZES, LIMITS = 8_801, 4_096, (256, 512, 1_024, 2_048), (0.3, 0.0)
Draw = Callable[[np.random.Generator], Image.Image]


def draw_quiet(generator: np.random.Generator, **options: float) -> Image.Image:
    return Image.fromarray(world.render(world.draw_captioned_scene(generator, **options)[0]))


def draw_place(generator: np.random.Generator, share: float) -> Image.Image:
    """Some of the images are taken on the beach, whatever they show."""
    scene, _ = world.draw_captioned_scene(generator)
    return Image.fromarray(world.render(replace(scene, place="beach") if generator.random() < share else scene))


DRIFTS: dict[str, Draw] = {
    "none": draw_quiet,
    "usual place 90 % -> 50 %": lambda generator: draw_quiet(generator, usual_rate=0.5),
    "a quarter on the beach": lambda generator: draw_place(generator, 0.25),
    "all on the beach": lambda generator: draw_place(generator, 1.0),
    "blurred by 1 pixel": lambda generator: draw_quiet(generator).filter(ImageFilter.GaussianBlur(1)),
    "grey": lambda generator: draw_quiet(generator).convert("L").convert("RGB"),
}


@torch.no_grad()
def collect(scanner: Scanner, draw: Draw, count: int, seed: int) -> Features:
    """Features of `count` drawn images; values are left out, since no comparison reads them."""
    generator = np.random.default_rng(seed)
    prepare = scanner.model.preprocess
    parts = [
        scanner.collect(torch.stack([prepare(draw(generator)) for _ in range(min(64, count - start))]))
        for start in range(0, count, 64)
    ]
    groups = {name: torch.cat([part.groups[name] for part in parts]) for name in parts[0].groups}
    return Features(groups, {}, torch.cat([p.final for p in parts]), torch.cat([p.embedding for p in parts]))


def sum_rows(scanner: Scanner, features: Features, rows: np.ndarray) -> Statistics:
    groups = {name: values[rows] for name, values in features.groups.items()}
    return add_features(scanner.empty(), Features(groups, {}, features.final[rows], features.embedding[rows]))


def draw_sets(
    scanner: Scanner, pool: Features, new: Features, size: int, counts: tuple[int, int]
) -> Iterator[tuple[Statistics, list[Statistics]]]:
    """Calibration statistics with blocks of new ones; from the same images, none in common."""
    calibrations, sets = counts
    generator = np.random.default_rng(SEED)
    for _ in range(calibrations):
        order = generator.permutation(len(pool.final))
        calibration = sum_rows(scanner, pool, order[:CALIBRATION])
        left = order[CALIBRATION:] if new is pool else np.arange(len(new.final))
        for _ in range(sets):
            rows = generator.choice(left, size, replace=False)
            yield calibration, [sum_rows(scanner, new, rows[start::BLOCKS]) for start in range(BLOCKS)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pool", type=int, default=20_000, help="quiet images; of every drift a quarter as many")
    parser.add_argument("--calibrations", type=int, default=20)
    parser.add_argument("--sets", type=int, default=50, help="of new images for every calibration; of drifts a fifth")
    options = parser.parse_args()
    model = clipedit.load_model("demo")
    scanner = Scanner(model, choose_layers(model, None))
    groups = [group for group in scanner.groups if group.ids[0].kind == "head"]
    pool = collect(scanner, draw_quiet, options.pool, SEED)
    print(f"| drift | limit | {' | '.join(f'{size} images' for size in SIZES)} |\n|---|---|{'---|' * len(SIZES)}")
    for index, (name, draw) in enumerate(DRIFTS.items()):
        quiet = draw is draw_quiet
        new = pool if quiet else collect(scanner, draw, options.pool // 4, SEED + index)
        counts = np.zeros((len(LIMITS), len(SIZES)), int)
        sets = options.sets if quiet else options.sets // 5
        for column, size in enumerate(SIZES):
            for calibration, blocks in draw_sets(scanner, pool, new, size, (options.calibrations, sets)):
                for row, limit in enumerate(LIMITS):
                    heads = compare_statistics(model, groups, calibration, blocks, limit=limit)
                    counts[row, column] += any(head.drifted for head in heads.values())
        for row, limit in enumerate(LIMITS):
            total = options.calibrations * sets
            cells = " | ".join(f"{count / total:.1%} ({count} / {total})" for count in counts[row])
            print(f"| {name} | {limit} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
