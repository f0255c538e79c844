"""Images in batches: read and preprocessed ahead, the unreadable ones named."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import ImageError
from .source import ImageSource


@dataclass(frozen=True)
class Batch:
    """Preprocessed images `[image, 3, height, width]` (or tokens `[text, context]`). `indices` are positions in the
    source; `bad` are those that could not be read, and why.
    """

    pixels: Tensor
    indices: tuple[int, ...]
    bad: tuple[tuple[str, str], ...]

    def pin_memory(self) -> Batch:
        """The batch where a GPU can copy it from without the processor; the loader calls this."""
        return Batch(self.pixels.pin_memory(), self.indices, self.bad)


class _PreprocessedImages(Dataset):
    def __init__(self, source: ImageSource, preprocess: Callable[[Image.Image], Tensor]):
        self.source, self.preprocess = source, preprocess

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[int, Tensor | str]:
        try:
            return index, self.preprocess(self.source.open(index))
        # Given back and not raised: a single bad image must not end the loader.
        except ImageError as error:
            return index, str(error)


def load_batches(
    source: ImageSource,
    preprocess: Callable[[Image.Image], Tensor],
    *,
    batch_size: int,
    workers: int | None = None,
    pinned: bool = False,
) -> Iterator[Batch]:
    """Read and preprocess a source in order, in batches; unreadable images are left out and named.

    Args:
        pinned: Give batches in memory that a GPU copies from by itself.
        workers: Processes that read ahead; by default one less than the processors, at most 8, none for small sources.
    """
    if workers is None:
        workers = min(8, (os.cpu_count() or 1) - 1) if len(source) > 256 else 0
    if "fork" not in multiprocessing.get_all_start_methods():
        workers = 0  # Sources hold functions, which other start methods cannot send.
    loader = DataLoader(
        _PreprocessedImages(source, preprocess),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=lambda items: _collate(items, source),
        multiprocessing_context="fork" if workers else None,
        pin_memory=pinned,
    )
    return iter(loader)


def _collate(items: list[tuple[int, Tensor | str]], source: ImageSource) -> Batch:
    good = [(index, pixels) for index, pixels in items if isinstance(pixels, Tensor)]
    bad = tuple((source.names[index], reason) for index, reason in items if isinstance(reason, str))
    pixels = torch.stack([pixels for _, pixels in good]) if good else torch.empty(0, 3, 0, 0)
    return Batch(pixels, tuple(index for index, _ in good), bad)
