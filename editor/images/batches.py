"""Images in batches: read and preprocessed ahead, the unreadable ones named."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import ImageError
from .source import ImageSource

# Seconds of reading from which on processes that read ahead are started.
WORTH_WORKERS = 2.0


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
        self.kept: dict[int, tuple[int, Tensor | str]] = {}

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[int, Tensor | str]:
        if index in self.kept:
            return self.kept.pop(index)
        try:
            return index, self.preprocess(self.source.open(index))
        # Given back and not raised: a single bad image must not end the loader.
        except ImageError as error:
            return index, str(error)

    def takes_longer_than(self, seconds: float) -> bool:
        """Whether reading all would, by each of the first two; they are kept, and not read again."""
        # Two: the first one of a process waits for imports too.
        return len(self) > 1 and all(len(self) * self._time(index) > seconds for index in range(2))

    def _time(self, index: int) -> float:
        started = time.perf_counter()
        self.kept[index] = self[index]
        return time.perf_counter() - started


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
        workers: Processes that read ahead; by default one per processor, at most 8, and none where reading all images
            takes no longer than starting them.
    """
    images = _PreprocessedImages(source, preprocess)
    if workers is None:
        # By time and not by number: ten photos of a camera take longer than a thousand thumbnails.
        workers = min(8, os.cpu_count() or 1) if images.takes_longer_than(WORTH_WORKERS) else 0
    if "fork" not in multiprocessing.get_all_start_methods():
        workers = 0  # Sources hold functions, which other start methods cannot send.
    loader = DataLoader(
        images,
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
