"""Scanning beside a plain forward pass, every family in one run: `OMP_NUM_THREADS=2 python benchmarks/families.py`.

Needs a quiet machine. Ratios of interleaved runs on one batch of pixels (medians, after a warm-up), random weights at
real size: the forward pass with hooks or by-products, contraction and the statistics, over `encode_image`. Decoding and
preprocessing, the same on both sides, are left out: with them the ratio comes nearer to one.
"""

from __future__ import annotations

import argparse
import logging
import statistics

import timm
import torch
from timing import interleaved

import clipedit
from clipedit.editor.components import ComponentGroup
from clipedit.editor.models.model import Model
from clipedit.editor.scan.statistics import add_features, empty_statistics
from clipedit.editor.towers.build import build_tower

# Family, name, whether all layers are scanned too.
FAMILIES = [
    ("CLIP ViT", "ViT-B-16", False),
    ("SigLIP", "ViT-B-16-SigLIP", False),
    ("CoCa", "coca_ViT-B-32", False),
    ("EVA02-CLIP", "EVA02-B-16", False),
    ("MobileCLIP-B", "MobileCLIP-B", False),
    ("PE-Core", "PE-Core-B-16", False),
    ("DeiT, DINO, AugReg", "deit_base_patch16_224", False),
    ("DINOv2", "vit_base_patch14_dinov2", False),
    ("DINOv3", "vit_base_patch16_dinov3", False),
    ("CLIP over Swin", "swin_base_patch4_window7_224", True),
    ("Swin", "timm/swin_base_patch4_window7_224", True),
    ("MaxViT", "maxvit_small_tf_224", True),
    ("CoAtNet", "coatnet_0_rw_224", True),
]
BOUND, BOUND_ALL = 1.15, 1.25


def random_model(name: str) -> clipedit.Model:
    """Random weights: speed does not depend on them. Where open_clip has the name too, timm's stands alone here."""
    if not name.startswith("timm/"):
        return clipedit.load_model(name)
    module = timm.create_model(name.removeprefix("timm/")).eval()
    return Model(
        name, None, module, build_tower(module), {"preprocess_cfg": {"size": module.default_cfg["input_size"][-2:]}}
    )


def measure(model: clipedit.Model, groups: list[ComponentGroup], batch: int, rounds: int) -> list[float]:
    pixels = torch.randn(batch, 3, *model.image_shape)
    sums = [empty_statistics(groups, model.tower.d_model)]

    def scan() -> None:
        sums[0] = add_features(sums[0], model.tower.collect_features(pixels, groups))

    return interleaved(scan, lambda: model.encode_image(pixels), rounds)


def report(family: str, model: clipedit.Model, layers: range, *, batch: int, rounds: int) -> None:
    groups = model.tower.groups(layers, mlps=False)
    ratios = measure(model, groups, batch, rounds)
    whole = len(layers) == model.tower.n_layers
    bound = BOUND_ALL if whole else BOUND
    median = statistics.median(ratios)
    scanned = f"all {len(layers)}" if whole else f"last {len(layers)}"
    print(
        f"| {family} | `{model.name}` | {scanned} | {median:.3f} | {min(ratios):.3f}-{max(ratios):.3f} | {bound} | "
        f"{'yes' if median <= bound else 'no'} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--only", default="", help="Part of the name of the families to measure.")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # open_clip says that the weights are random
    torch.set_num_threads(2)
    torch.manual_seed(0)
    print(
        "| family | model | layers scanned | median of scan / forward | range | bound | holds "
        "|\n|---|---|---|---|---|---|---|"
    )
    for family, name, whole in FAMILIES:
        if options.only.lower() not in f"{family} {name}".lower():
            continue
        model = random_model(name)
        n_layers = model.tower.n_layers
        report(family, model, range(n_layers - 4, n_layers), batch=options.batch, rounds=options.rounds)
        if whole:
            report(family, model, range(n_layers), batch=options.batch, rounds=options.rounds)


if __name__ == "__main__":
    main()
