"""Segmentation and heatmaps of the demo world, whose renderer gives true masks, beside the papers' baselines.

    python benchmarks/segmentation.py --images 512 --seed 9005     # reported; --seed 7005 to look at while developing

Prints Markdown. Raw attention: the class token's attention in the last layer, mean of heads. Rollout: Abnar and
Zuidema, 2020. GradCAM: captum's, at the last block's input tokens, towards the class that the model predicts. None has
a choice to make on the data; all are cut at their mean, as the decomposition is. `contrast, all heads` is the protocol
of the papers; `by score` weighs heads by their score for shapes minus that for places (texts, and 1,024 unlabelled
calibration images).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from captum.attr import LayerGradCam

from clipedit.demo import world
from clipedit.editor.concepts.class_weights import DEFAULT_TEMPLATES, compute_class_weights
from clipedit.editor.concepts.queries import encode_contrast
from clipedit.editor.images.demo import SHAPES, demo_calibration_source, demo_masked_images
from clipedit.editor.load import load_model
from clipedit.editor.look.readings import READINGS, weigh_heads
from clipedit.editor.look.segment import evaluate_segmentation, score_heatmaps
from clipedit.editor.look.spatial import draw_heatmaps
from clipedit.editor.look.view import find_view
from clipedit.editor.models.model import Model
from clipedit.editor.scan.scan import scan


@torch.no_grad()
def attentions(model: Model, pixels: torch.Tensor) -> list[torch.Tensor]:
    """Attention of every layer `[head, query, token]` for one image."""
    found, stream = [], model.module.visual._embeds(pixels)
    for block in model.module.visual.transformer.resblocks:
        found.append(model.tower._project(block, stream, None).attention(slice(None))[0])
        stream = block(stream)
    return found


def raw_attention(model: Model, pixels: torch.Tensor) -> torch.Tensor:
    return attentions(model, pixels)[-1].mean(0)[0, 1:]


def rollout(model: Model, pixels: torch.Tensor) -> torch.Tensor:
    total = None
    for attention in attentions(model, pixels):
        mixed = attention.mean(0) + torch.eye(attention.shape[1])
        mixed = mixed / mixed.sum(1, keepdim=True)
        total = mixed if total is None else mixed @ total
    return total[0, 1:]


class Channels(torch.nn.Module):
    """The last block, with its input laid out as channels x tokens on the way: the layout captum averages over."""

    def __init__(self, block: torch.nn.Module):
        super().__init__()
        self.block, self.layout = block, torch.nn.Identity()

    def forward(self, stream: torch.Tensor, *arguments: object, **options: object) -> torch.Tensor:
        return self.block(self.layout(stream.mT).mT, *arguments, **options)


def grad_cam(model: Model, pixels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    blocks = model.module.visual.transformer.resblocks
    wrapped, plain = Channels(blocks[-1]), blocks[-1]
    blocks[-1] = wrapped
    try:
        with torch.enable_grad():
            given = pixels.clone().requires_grad_()

            def forward(batch: torch.Tensor) -> torch.Tensor:
                return F.normalize(model.module.encode_image(batch), dim=1) @ weights.T

            chosen = int(forward(given).argmax())
            cam = LayerGradCam(forward, wrapped.layout).attribute(given, target=chosen, relu_attributions=True)
    finally:
        blocks[-1] = plain
    return cam.detach()[0, 0, 1:]


def heatmaps(name: str, model: Model, data: object, weights: torch.Tensor) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for index in range(len(data.source)):
        image = data.source.open(index)
        pixels = model.preprocess(image)[None]
        given = (model, pixels, weights) if name == "GradCAM" else (model, pixels)
        cells = BASELINES[name](*given).reshape(model.module.visual.grid_size).double().numpy()
        yield find_view(model.preprocess, image.size).project(cells), data.mask(index)


BASELINES = {"raw attention": raw_attention, "attention rollout": rollout, "GradCAM": grad_cam}


def mass(model: Model, count: int, seed: int) -> None:
    """Share of the positive mass of heatmaps that falls on the object, beside the object's share of the area."""
    scenes = world.draw_balanced_scenes(count, seed)
    data = demo_masked_images(count, seed)
    kinds = {
        "shape": lambda s: f"a photo of a {s.shape}",
        "color": lambda s: f"a {s.color} object",
        "place": lambda s: f"a photo of the {s.place}",
    }
    print("\n| text of the image's own | positive mass on the object | the object's area |\n|---|---|---|")
    for kind, form in kinds.items():
        found, area = [], []
        for index, scene in enumerate(scenes):
            text = form(scene)
            (one,) = draw_heatmaps(model, data.source.open(index), [text], encode_contrast(model, [text]))
            positive, mask = one.values.clip(0), data.mask(index) > 0
            found.append(float((positive * mask).sum() / positive.sum()))
            area.append(float(mask.mean()))
        print(f"| {kind} | {np.mean(found):.3f} | {np.mean(area):.3f} |", flush=True)


def show(name: str, row: dict[str, float]) -> None:
    print(f"| {name} | {row['pixel_accuracy']:.3f} | {row['mean_iou']:.3f} | {row['mean_ap']:.3f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--seed", type=int, default=9_005)
    options = parser.parse_args()
    model, data = load_model("demo"), demo_masked_images(options.images, options.seed)
    weights = compute_class_weights(model, SHAPES, DEFAULT_TEMPLATES)
    print("| method | pixel accuracy | mIoU | mAP |\n|---|---|---|---|")
    scanned = scan(model, demo_calibration_source(1024), workers=0)
    weighed = {"all heads": None, "by score": weigh_heads(scanned, model, concept="shape", keep="location")}
    for name, chosen in weighed.items():
        for reading in READINGS:
            row = evaluate_segmentation(
                model, data, classes=SHAPES, templates=DEFAULT_TEMPLATES, reading=reading, weights=chosen
            )
            show(f"decomposition, {reading}, {name}", row)
    for name in BASELINES:
        show(name, score_heatmaps(heatmaps(name, model, data, weights)))
    show("nothing is object", score_heatmaps((np.ones((64, 64)), data.mask(i)) for i in range(len(data.source))))
    mass(model, min(128, options.images), options.seed)


if __name__ == "__main__":
    main()
