"""What ResiDual leads by, and what it needs: `python benchmarks/residual.py --split validation MODEL_FOLDER... > FILE`.

ResiDual learns a weight for every principal component of every head from labelled images. Here as it is, with weights
of at most one (it may only take away), with those of at least one, and each of them from labelled images that are
biased as people's are: nine in ten shapes in their usual place, in place of as many in each listed place.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from field import FIGURES
from field_worlds import EVERY
from methods import PLACE_SPLITS, location_of
from rows import print_rows
from selectivity import show
from torch import Tensor

from clipedit.demo import world
from clipedit.editor.edits.refit import compute_distilled_readout
from clipedit.editor.images.demo import SHAPES, labelled_tasks, render_source, test_source, validation_source
from clipedit.editor.images.source import LabelledImages
from clipedit.editor.load import load_model
from clipedit.editor.measure.demo_measure import SHAPE_TEMPLATES, build_demo_measure
from clipedit.editor.rivals.residual import find_components, fit_weights
from clipedit.editor.rivals.setting import Rival, Setting, ship_recipe
from clipedit.editor.scan.collect import collect_features
from clipedit.editor.scan.scan import scan
from clipedit.editor.select.attention_region import subset

IMAGES, LABELLED, SEED = 2_048, 512, 6_101
BOUNDS = {"any weight": (-torch.inf, torch.inf), "at most 1": (-torch.inf, 1.0), "at least 1": (1.0, torch.inf)}
COLUMNS = ["model", "listed places", "split", "labelled images", "weights", *FIGURES, "mean of both"]


def biased(listed: tuple[str, ...]) -> LabelledImages:
    """As many labelled images of listed places, in which nine in ten shapes lie in their usual place."""
    generator, scenes = np.random.default_rng(SEED), []
    while len(scenes) < LABELLED:
        scene = world.draw_captioned_scene(generator)[0]
        scenes += [scene] if scene.place in listed else []
    labels = tuple(SHAPES.index(scene.shape) for scene in scenes)
    return LabelledImages(render_source(scenes), SHAPES, labels, ("",) * len(scenes))


def reweigh(setting: Setting, weights: list[Tensor], low: float, high: float) -> Rival:
    """ResiDual's readout with its weights cut at some bounds."""
    heads, subsets = find_components(setting, setting.known.probe.subsets), setting.known.probe.subsets
    edits = {
        one.head: one.rescale(readout, found.clamp(low, high))
        for one, readout, found in zip(heads, subsets.readouts, weights, strict=True)
    }
    refit = compute_distilled_readout(setting.scan, setting.model, edits)
    return Rival(setting.model.tower.fold_readout(refit.readout, refit.bias))


def write_model(name: str, split: str) -> Iterator[list[str]]:
    model = load_model(name)
    scanned = scan(model, "demo", batch_size=128)
    source = (test_source() if split == "test" else validation_source()).subset(range(IMAGES))
    features, kept = collect_features(model, source, layers=(), batch_size=256)
    for places, listed in PLACE_SPLITS.items():
        measure = build_demo_measure(model, source, listed=listed)
        task = labelled_tasks(listed)[0]
        balanced = subset(task, range(0, len(task.labels), EVERY))
        setting = Setting(model, scanned, location_of(listed), SHAPES, SHAPE_TEMPLATES, task=balanced)
        head = [Path(name).name, places, split]

        def figures(rival: Rival, measure=measure) -> list[str]:
            row = measure(rival.embed(model, features), kept)
            both = (row["worst_group_listed"] + row["worst_group_held_out"]) / 2
            return [*(show(row[key]) for key in FIGURES.values()), show(both)]

        yield [*head, "none", "unedited", *figures(Rival())]
        yield [*head, "none", "clipedit", *figures(ship_recipe(setting.default, setting))]
        for kind, labelled in (("balanced", balanced), ("biased", biased(listed))):
            given = replace(setting, task=labelled)
            heads = find_components(given, setting.known.probe.subsets)
            weights = fit_weights(heads, given.labelled[0], given.class_labels, given.class_weights)
            for bounds, (low, high) in BOUNDS.items():
                yield [*head, kind, bounds, *figures(reweigh(given, weights, low, high))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="`demo`, or folders of models trained with other seeds")
    parser.add_argument("--split", choices=["validation", "test"], default="validation")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print_rows(COLUMNS, (row for name in options.models for row in write_model(name, options.split)))


if __name__ == "__main__":
    main()
