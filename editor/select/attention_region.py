"""The attention-region selector (Dyslexify, ICLR 2026): heads whose readout attends to a region of the image.

The region is a user's mask or box, or, for written words, where a word was overlaid on the user's own images.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor

from ..edits.document import RecipeDocument
from ..errors import ImageError, ModelError
from ..images.decode import open_image
from ..images.masks import match_masks
from ..images.source import ImageSource, LabelledImages
from ..models.model import Model
from ..scan.scan import Scan
from ..towers.vit.open_clip_attention import collect_attention
from ..towers.vit.open_clip_vit import OpenClipViT
from .overlay import PARTS, Box, overlay_word
from .plan import EditPlan, Evidence, require_labelled, write_document
from .tables import TaskTable, load_task, measure_subsets, scanned_heads, subset_rows, tabulate

BATCH = 64
# Of an image's height, words that are tried until they fool: a sixth first.
WORD_PARTS = (PARTS, 4, 3, 2)


@dataclass(frozen=True)
class Regions:
    """Attacked images with the region of each, and images without one.

    Attributes:
        mask: From an image's index and size to a mask of the same size, white in the region.
    """

    attacked: LabelledImages
    clean: LabelledImages
    mask: Callable[[int, tuple[int, int]], Image.Image]


def select_by_attention_region(scan: Scan, model: Model, plan: EditPlan, evidence: Evidence) -> RecipeDocument:
    """Heads in descending order of the attention they pay to the region; one is kept if accuracy with the region rises.

    At most `plan.heads` are kept, and the search stops where accuracy without the region fell by more than
    `evidence.budget` points (both under `direct`).

    Raises:
        ImageError: If labels, masks or boxes are missing, or a group has fewer than five images.
        ModelError: If the architecture gives no attention.
    """
    labelled, found = require_labelled(evidence, "attention-region"), {}
    # Overlaid images are new ones: only the others can be in a cache.
    images = replace(evidence, cached=None)

    def look(task: LabelledImages) -> TaskTable:
        return tabulate(scan, model, plan, load_task(scan, model, task, images))

    if evidence.regions is None:
        clean = look(labelled)
        regions, attacked, found = write_words_that_fool(labelled, clean, look)
    else:
        regions = find_regions(labelled, evidence.regions)
        clean, attacked = look(regions.clean), look(regions.attacked)
    shares = collect_region_shares(scan, model, regions)
    chosen = prune_in_order(shares.argsort(descending=True).tolist(), attacked, clean, plan.heads, evidence.budget)
    document = write_document(plan, [attacked.heads[index] for index in chosen], model)
    return document.model_copy(update={"measured": found or None})


def write_words_that_fool(
    labelled: LabelledImages, clean: TaskTable, look: Callable[[LabelledImages], TaskTable]
) -> tuple[Regions, TaskTable, dict[str, Any]]:
    """Words over the images, as large as it takes for half of the right answers to be lost; else those that cost most.

    Heads that read words cannot be told by words that fool nobody.

    Returns:
        The images, their table, and how many answers were lost, for the recipe's `measured`.
    """
    right, best, lost = _count_right(clean), None, -1
    for parts in WORD_PARTS:
        regions = write_words(labelled, parts)
        attacked = look(regions.attacked)
        if (now := right - _count_right(attacked)) > lost:
            best, lost = (regions, attacked, parts), now
        if 2 * lost >= right:
            break
    assert best is not None
    regions, attacked, parts = best
    if 2 * lost < right:
        warnings.warn(
            f"words written over the images fool the model on {max(lost, 0)} of {right} that it has right, at "
            f"1/{parts} of their height: heads that read words are hardly told by them. Give --regions.",
            stacklevel=2,
        )
    return regions, attacked, {"written_words": {"height": f"1/{parts}", "fooled": lost, "of": right}}


def find_regions(labelled: LabelledImages, given: Path | str) -> Regions:
    """The regions of labelled images: from a folder of masks or a column of boxes.

    Raises:
        ImageError: If there is no such folder or column, or no image has a region, or every image has one.
    """
    mask = _mask_reader(Path(given), labelled) if Path(given).is_dir() else _box_reader(str(given), labelled)
    # Any size will do to see whether there is a region.
    inside = [index for index in range(len(labelled.labels)) if mask(index, (64, 64)).getbbox() is not None]
    outside = sorted(set(range(len(labelled.labels))) - set(inside))
    if not inside or not outside:
        raise ImageError(
            f"cannot select heads by attention-region: {len(inside)} of {len(labelled.labels)} labelled images have a "
            f"region in {given}, both images with one and images without are needed."
        )
    return Regions(subset(labelled, inside), subset(labelled, outside), lambda i, size: mask(inside[i], size))


def collect_region_shares(scan: Scan, model: Model, regions: Regions) -> Float[Tensor, " head"]:
    """Mean share of each scanned head's readout attention that falls on the region, in [0, 1].

    Raises:
        ModelError: If the architecture gives no attention.
    """
    tower = model.tower
    if not isinstance(tower, OpenClipViT):
        raise ModelError(
            f"cannot select heads by attention-region: {model.name} is not an open_clip ViT, whose attention can be "
            "read. Use another --select."
        )
    # In the order of `scanned_heads`: layers, then heads. Every head of a layer is read.
    total, seen = torch.zeros(len(scanned_heads(scan, model))), 0
    for pixels, masks in _masked_batches(model, regions):
        attention = collect_attention(
            tower, pixels.to(model.device), scan.layers
        ).cpu()  # [image, layer, head, row, column]
        # Share of each patch that the region covers: [image, 1, row, column]
        cover = F.adaptive_avg_pool2d(masks, (attention.shape[3], attention.shape[4]))
        # Summed over images, rows and columns: [layer, head] -> [head]
        total += torch.einsum("nlhrc,nrc->lh", attention, cover[:, 0]).flatten()
        seen += len(pixels)
    return total / seen


def prune_in_order(order: Sequence[int], attacked: TaskTable, clean: TaskTable, most: int, budget: float) -> list[int]:
    """Go through heads in order: keep one if it raises attacked accuracy; stop when clean accuracy fell too far."""
    kept: frozenset[int] = frozenset()
    best, least = _accuracy(attacked, kept), _accuracy(clean, kept) - budget / 100 - 1e-9
    for index in order:
        tried = kept | {index}
        if len(tried) > most:
            break
        reached = _accuracy(attacked, tried)
        if reached <= best:
            continue
        # The paper stops here and does not skip: heads that follow attend to the region less.
        if _accuracy(clean, tried) < least:
            break
        kept, best = tried, reached
    return sorted(kept)


def subset(labelled: LabelledImages, indices: Sequence[int]) -> LabelledImages:
    """Some of the labelled images, in the given order."""
    return LabelledImages(
        labelled.source.subset(indices),
        labelled.classes,
        tuple(labelled.labels[index] for index in indices),
        tuple(labelled.groups[index] for index in indices),
    )


def _count_right(table: TaskTable) -> int:
    return int((table.similarity.argmax(1) == table.labels).sum())


def _accuracy(table: TaskTable, chosen: frozenset[int]) -> float:
    return float(measure_subsets(table, subset_rows(table, [chosen]))[1])


def write_words(labelled: LabelledImages, parts: int = PARTS, seed: int = 0) -> Regions:
    """Every image with the name of another class written over it."""

    def attack(index: int) -> tuple[Image.Image, Box]:
        # By image, so that a word and its box are the same whenever the image is opened.
        generator = np.random.default_rng([seed, index])
        # From 1 on: never the image's own class.
        shift = 1 + int(generator.integers(0, len(labelled.classes) - 1))
        word = labelled.classes[(labelled.labels[index] + shift) % len(labelled.classes)]
        return overlay_word(labelled.source.open(index), word, generator, parts)

    source = ImageSource(labelled.source.names, lambda index: attack(index)[0])
    return Regions(
        replace(labelled, source=source), labelled, lambda index, size: _draw_boxes(size, [attack(index)[1]])
    )


def _mask_reader(folder: Path, labelled: LabelledImages) -> Callable[[int, tuple[int, int]], Image.Image]:
    found = match_masks(folder, labelled.source.names)

    def mask(index: int, size: tuple[int, int]) -> Image.Image:
        path = found[index]
        return open_image(Path(path)).convert("L").resize(size) if path else Image.new("L", size)

    return mask


def _box_reader(column: str, labelled: LabelledImages) -> Callable[[int, tuple[int, int]], Image.Image]:
    rows = labelled.source.attributes
    if not rows or column not in rows[0]:
        raise ImageError(
            f"cannot select heads by attention-region: {column} is neither a folder of masks nor a column of the "
            f"labelled images ({', '.join(rows[0]) if rows else 'they have none'}). Correct --regions."
        )

    def mask(index: int, size: tuple[int, int]) -> Image.Image:
        if not rows[index][column].strip():
            return Image.new("L", size)
        opened = labelled.source.open(index)
        return _draw_boxes(opened.size, [parse_box(rows[index][column])]).resize(size)

    return mask


def parse_box(text: str) -> Box:
    """`left top right bottom` in pixels, separated by blanks or commas.

    Raises:
        ImageError: If it is something else.
    """
    try:
        box = Box(*(int(float(number)) for number in text.replace(",", " ").split()))
    except (ValueError, TypeError):
        box = Box(0, 0, 0, 0)
    if box.right <= box.left or box.bottom <= box.top:
        raise ImageError(f"cannot read the box {text!r}: write `left top right bottom` in pixels, as in `10 20 60 40`.")
    return box


def _draw_boxes(size: tuple[int, int], boxes: Sequence[Box]) -> Image.Image:
    mask = Image.new("L", size)
    for box in boxes:
        # Pillow draws the last pixel too; right and bottom of a box lie outside it.
        ImageDraw.Draw(mask).rectangle((box.left, box.top, box.right - 1, box.bottom - 1), fill=255)
    return mask


def _masked_batches(model: Model, regions: Regions) -> Iterator[tuple[Tensor, Float[Tensor, "image 1 height width"]]]:
    """Preprocessed images, and their masks cut and resized as the images are, in [0, 1]."""
    # Masks go through the model's own resizing and cropping; black and white say how it normalises them.
    black, white = (model.preprocess(Image.new("RGB", (64, 64), color)) for color in ("black", "white"))
    source = regions.attacked.source
    for start in range(0, len(source), BATCH):
        images = [source.open(index) for index in range(start, min(start + BATCH, len(source)))]
        masks = [regions.mask(start + at, image.size).convert("RGB") for at, image in enumerate(images)]
        seen = torch.stack([model.preprocess(mask) for mask in masks])
        cover = ((seen - black) / (white - black)).mean(1, keepdim=True).clamp(0, 1)
        yield torch.stack([model.preprocess(image) for image in images]), cover
