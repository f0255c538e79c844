"""segment: masks from heatmaps, and how good they are by the protocol of the decomposition paper.

A heatmap is measured against the mean over all classes, clipped at zero, and cut at its own mean (Gandelsman et al.,
ICLR 2024, section 5.2); that is the reading `contrast`, see `editor/look/readings.py` for others. The figures are those
of Chefer et al., 2021: pixel accuracy, mean of foreground's and background's intersection over union, and average
precision).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from ..choices import Exif, Reading
from ..components import HeadId
from ..concepts.class_weights import compute_class_weights
from ..concepts.queries import encode_contrast
from ..errors import ConceptError, ImageError
from ..files.whole import staged_folder
from ..images.decode import Decoding, open_image
from ..images.demo import demo_masked_images
from ..images.demo_name import is_demo
from ..images.listing import list_folder, list_images
from ..images.masks import match_masks
from ..images.source import ImageSource, MaskedImages
from ..measure.table import write_csv
from ..models.model import Model
from ..scan.tally import MAX_BAD, Progress, Tally
from .pictures import encode_image_file
from .presence import LEAST_PRESENCE, Presence
from .readings import combine_shares, require_texts, weights_of
from .spatial import compute_seen, compute_token_shares, last_heads
from .view import find_view

MAX_STEM_BYTES = 200


@dataclass(frozen=True)
class Segmented:
    """How many images were segmented, unreadable ones left out, and in how many of them each text was found."""

    images: int
    found: Mapping[str, int]


def segment_folder(
    model: Model,
    images: str | Path | ImageSource,
    out: Path,
    *,
    texts: Sequence[str],
    against: Sequence[str] | None = None,
    reading: Reading = "contrast",
    weights: Mapping[HeadId, float] | None = None,
    least: float = LEAST_PRESENCE,
    exif: Exif = "upright",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Segmented:
    """Write one mask per image, 0 or 255, in the original's size; with several texts in one folder per text.

    `scores.csv` says beside them how well each text fits each image. Where it fits too little, the mask is empty:
    heads point somewhere for any text, also for what is not there.

    Args:
        reading: Of `evidence` there is one mask an image, whatever the number of texts.
        weights: Of heads, as `weigh_heads` gives them; by default all heads of the last four layers weigh the same.
        least: The share of a general pool's texts that must fit the image less; 0 cuts something out of every image.
        exif: Photos, and so their masks, are upright as their EXIF says, or as they are stored.

    Raises:
        ConceptError: If a text is empty or too long, or evidence is asked for of one.
        ImageError: If more than one in a hundred images cannot be read.
    """
    require_texts(reading, texts)
    source = list_images(images).read_as(Decoding(exif))
    reader = _Reader(model, encode_contrast(model, texts, against), reading, weights)
    presence = Presence(model, texts)
    tally, rows = Tally(len(source), MAX_BAD, progress), []
    with staged_folder(out, overwrite=overwrite) as folder:
        for index, name in enumerate(source.names):
            try:
                seen = reader.read(source.open(index))
            except ImageError as error:
                tally.count(1, [(name, str(error))])
                continue
            scores = presence.measure(seen.embedding).tolist()
            # Evidence is of all texts at once: there is something if any of them is found.
            wanted = [(max(scores), "")] if reading == "evidence" else list(zip(scores, texts, strict=True))
            for number, (score, text) in enumerate(wanted):
                inner = folder / folder_name(number, text) if len(wanted) > 1 else folder
                path = inner / f"{index:05d}-{_short_stem(name)}.png"
                path.parent.mkdir(exist_ok=True)
                mask = cut(seen.map(number)) & (score >= least)
                path.write_bytes(encode_image_file(mask.astype(np.uint8) * 255, "PNG"))
            rows += [_score_row(name, text, score, least) for score, text in zip(scores, texts, strict=True)]
            tally.count(1, [])
        write_csv(folder / "scores.csv", rows)
    found = {text: sum(row["text"] == text and row["found"] == "yes" for row in rows) for text in texts}
    return Segmented(len(source) - len(tally.bad), found)


def _score_row(name: str, text: str, score: float, least: float) -> dict[str, str]:
    # A name that is not UTF-8 is written as Python escapes it.
    plain = os.fsencode(name).decode("utf-8", "backslashreplace")
    return {"image": plain, "text": text, "score": f"{score:.3f}", "found": "yes" if score >= least else "no"}


@dataclass(frozen=True)
class _Seen:
    """One image: from a text's number to its map on the original's pixels, and the image's embedding."""

    map: Callable[[int], Float[np.ndarray, "height width"]]
    embedding: Float[Tensor, " d_embed"]


class _Reader:
    """Maps of one image after another, in one forward pass each."""

    def __init__(
        self,
        model: Model,
        directions: Float[Tensor, "text d_embed"],
        reading: Reading,
        weights: Mapping[HeadId, float] | None,
    ):
        self.model, self.directions = model, directions
        self.reading: Reading = reading
        carrying = [head for head, weight in (weights or {}).items() if weight > 0]
        self.heads = last_heads(model) if weights is None else tuple(sorted(carrying))
        if not self.heads:
            raise ConceptError("cannot segment by weighted heads: no head has a positive score. Leave out --concept.")
        self.weights = weights_of(self.heads, weights)
        # Readouts do not depend on the image: pushed down once for the whole folder.
        self.seen = compute_seen(model, directions, self.heads)

    def read(self, image: Image.Image) -> _Seen:
        """What the heads see in one image."""
        shares = compute_token_shares(
            self.model, self.model.preprocess(image)[None], self.directions, heads=self.heads, seen=self.seen
        )
        cells = combine_shares(shares.on_image()[0], self.reading, self.weights).double().numpy()
        view = find_view(self.model.preprocess, image.size)
        # Projected on demand: of many classes, usually one is wanted at the size of the original.
        return _Seen(lambda text: view.project(cells[..., text]), shares.embedding[0])


def _short_stem(name: str) -> str:
    """The stem of a file's name, so short that a number and a suffix have room beside it."""
    # By bytes, which is what file systems count; a letter that is cut in two is left out.
    return os.fsencode(Path(name).stem)[:MAX_STEM_BYTES].decode("utf-8", "ignore")


def folder_name(number: int, text: str) -> str:
    """A name that any file system takes: `2-a-red-circle`."""
    plain = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in text.lower())
    return f"{number}-{plain.strip('-')[:48]}"


def cut(heat: Float[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """What lies above the mean of the positive part; nothing where the model saw nothing."""
    # NaN, what the crop left out, becomes 0, and so does what speaks against the text.
    clipped = np.nan_to_num(heat).clip(0)
    return clipped > clipped.mean()


def evaluate_segmentation(
    model: Model,
    dataset: MaskedImages,
    *,
    classes: Sequence[str],
    templates: Sequence[str],
    reading: Reading = "contrast",
    weights: Mapping[HeadId, float] | None = None,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Segment every image for the class that the model itself gives it, and compare with the true masks.

    Pixels that the model's crop left out are not counted.

    Args:
        reading: `contrast` is the papers' protocol.
        weights: As for `segment_folder`.

    Returns:
        `pixel_accuracy`, `mean_iou`, `mean_ap`, in [0, 1].

    Raises:
        ConceptError: If evidence is asked for of one class.
        ImageError: If an image or a mask cannot be read.
    """
    require_texts(reading, classes)
    texts = compute_class_weights(model, classes, templates).double()
    reader = _Reader(model, texts - texts.mean(0), reading, weights)

    def pairs() -> Iterable[tuple[np.ndarray, np.ndarray]]:
        for index in range(len(dataset.source)):
            seen = reader.read(dataset.source.open(index))
            yield seen.map(int((seen.embedding.double() @ texts.T).argmax())), dataset.mask(index)
            if progress is not None:
                progress(index + 1, len(dataset.source))

    return score_heatmaps(pairs())


def score_heatmaps(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """The three figures of heatmaps `[height, width]` (NaN: not seen) against masks (1, 0, -1: not known).

    Raises:
        ImageError: If a mask has another size than its heatmap, or there are no images.
    """
    right = labelled = 0
    inter, union, precisions = np.zeros(2), np.zeros(2), []
    for heat, mask in pairs:
        if heat.shape != mask.shape:
            turned = mask.shape == heat.shape[::-1]
            hint = " Drawn on photos as they are stored? --exif ignore reads them so." if turned else ""
            raise ImageError(f"cannot compare with the mask: it is {mask.shape}, the image {heat.shape} pixels.{hint}")
        known = (mask >= 0) & ~np.isnan(heat)
        predicted, true = cut(heat)[known], mask[known] > 0
        right, labelled = right + int((predicted == true).sum()), labelled + int(known.sum())
        for side in (0, 1):
            inter[side] += ((predicted == side) & (true == side)).sum()
            union[side] += ((predicted == side) | (true == side)).sum()
        precisions.append(_mean_precision(np.nan_to_num(heat).clip(0)[known], true))
    if not labelled:
        raise ImageError("cannot measure: no image has a mask. Give a folder with `images` and `masks`.")
    mean_iou = float((inter / np.maximum(union, 1)).mean())
    return {"pixel_accuracy": right / labelled, "mean_iou": mean_iou, "mean_ap": float(np.mean(precisions))}


def _mean_precision(heat: np.ndarray, true: np.ndarray) -> float:
    """Average precision over foreground and background together, as the papers pool both: scores `h` and `1 - h`."""
    scaled = (heat - heat.min()) / (heat.max() - heat.min() or 1.0)
    return compute_average_precision(np.concatenate([1 - scaled, scaled]), np.concatenate([~true, true]))


def compute_average_precision(scores: Float[np.ndarray, " pixel"], true: Bool[np.ndarray, " pixel"]) -> float:
    """Sum of precision times the step in recall over all thresholds; equal scores share one. 0 without positives."""
    if not true.any():
        return 0.0
    order = np.argsort(-scores, kind="stable")
    # The last place of each run of equal scores: a threshold cannot separate them.
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits = np.cumsum(true[order])[last]
    return float((np.diff(hits, prepend=0) * hits / (last + 1)).sum() / hits[-1])


def load_masked_images(path: str | Path) -> MaskedImages:
    """A folder with `images` and `masks` (equal names; non-zero is the object), `gtsegs_ijcv.mat`, or `demo`.

    Raises:
        ImageError: If there is no such layout, or an image has no mask.
    """
    if is_demo(path):
        return demo_masked_images()
    path = Path(path)
    if path.suffix == ".mat":
        return _from_matlab(path)
    if not (path / "images").is_dir() or not (path / "masks").is_dir():
        raise ImageError(
            f"cannot read masks from {path}: it needs the folders `images` and `masks`, or give gtsegs_ijcv.mat."
        )
    source = list_folder(path / "images", labelled=True)
    masks = [file and Path(file) for file in match_masks(path / "masks", source.names)]
    if None in masks:
        missing = source.names[masks.index(None)]
        raise ImageError(
            f"cannot read masks from {path}: {missing} has none. Add masks/{Path(missing).with_suffix('.png')}."
        )

    def mask(index: int) -> np.ndarray:
        found = np.asarray(open_image(masks[index]))  # pyright: ignore[reportArgumentType]
        return (found.max(2) > 0).astype(np.int8)

    return MaskedImages(source, mask)


def _from_matlab(path: Path) -> MaskedImages:
    """ImageNet-Segmentation (Guillaumin et al., 2014): a MATLAB 7.3 file, which is HDF5, of references to arrays."""
    try:
        import h5py
    except ImportError:
        raise ImageError(f"cannot read {path}: h5py is missing. pip install h5py.") from None
    try:
        file: Any = h5py.File(path, "r")
        images, masks = file["value/img"], file["value/gt"]
        count = images.shape[0]
    except (OSError, KeyError, AttributeError) as error:
        raise ImageError(f"cannot read {path}: {error}. Give gtsegs_ijcv.mat as published.") from None

    def read(index: int) -> Image.Image:
        # MATLAB stores columns first, so HDF5 shows the axes in reverse: [channel, column, row].
        return Image.fromarray(np.asarray(file[images[index, 0]]).transpose(2, 1, 0).astype(np.uint8))

    def mask(index: int) -> np.ndarray:
        # A cell array in a cell array: the reference leads to another reference.
        inner = file[masks[index, 0]]
        return (np.asarray(file[inner[0, 0]]).T > 0).astype(np.int8)

    return MaskedImages(ImageSource(tuple(f"{path.name}[{i}]" for i in range(count)), read), mask)
