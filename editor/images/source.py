"""Images: where they are listed, and how one is read safely.

Sources: a folder (searched recursively, so ImageFolder layouts too), a CSV with a column of paths, a list of files, shards
(`editor/images/shards.py`), or `demo` for freshly rendered images of the embedded world.
"""

from __future__ import annotations

import bisect
import csv
import hashlib
import io
import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...demo import world
from ..errors import ImageError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
PATH_COLUMNS = ("filename", "img_filename", "path", "file", "image")
# By content, not by suffix: what else Pillow reads would run Ghostscript, or code that nobody fuzzes.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_PIXELS, MAX_ASPECT, MAX_SCANS = 178_956_970, 100, 40
DEMO_CALIBRATION_SEED, DEMO_CALIBRATION_COUNT = 5_001, 4_096


@runtime_checkable
class CanSubset(Protocol):
    """An `ImageSource.open` that can be cut: the part holds its own images only, so that it is small to send to a worker."""

    def subset(self, indices: Sequence[int]) -> Callable[[int], Image.Image]: ...


@dataclass(frozen=True)
class OpenPath:
    """Opens image files by index."""

    paths: tuple[Path, ...]

    def __call__(self, index: int) -> Image.Image:
        return open_image(self.paths[index])

    def subset(self, indices: Sequence[int]) -> OpenPath:
        return OpenPath(tuple(self.paths[i] for i in indices))


@dataclass(frozen=True)
class ImageSource:
    """Images that can be opened by index, with the attributes of each (the columns of a CSV, or none).

    A source of texts (`editor/images/texts.py`) `holds_texts` in place of images, for text towers.

    `names` are what is printed when an image is bad, `sizes` and `times` fix the fingerprint.
    """

    names: tuple[str, ...]
    open: Callable[[int], Image.Image]
    attributes: tuple[dict[str, str], ...] = ()
    stamps: tuple[str, ...] = field(default=(), repr=False)
    holds_texts: bool = False

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, indices: Sequence[int]) -> ImageSource:
        """Some of the images, in the given order."""
        chosen = list(indices)
        return ImageSource(
            tuple(self.names[i] for i in chosen),
            self.open.subset(chosen) if isinstance(self.open, CanSubset) else lambda i: self.open(chosen[i]),
            tuple(self.attributes[i] for i in chosen) if self.attributes else (),
            tuple(self.stamps[i] for i in chosen) if self.stamps else (),
            self.holds_texts,
        )

    def marks(self) -> list[str]:
        """A short hash an image, of its name and size: says whether two sources share it."""
        stamps = self.stamps or self.names
        pairs = zip(self.names, stamps, strict=True)
        return [hashlib.sha256(os.fsencode(f"{name}\0{stamp}")).hexdigest()[:16] for name, stamp in pairs]

    def fingerprint(self) -> str:
        """SHA-256 over names and sizes: says whether two scans saw the same images."""
        digest = hashlib.sha256()
        for name, stamp in zip(self.names, self.stamps or self.names, strict=True):
            digest.update(os.fsencode(f"{name}\0{stamp}\n"))
        return digest.hexdigest()


def list_images(source: str | Path | ImageSource | Sequence[str | Path]) -> ImageSource:
    """Find the images of a source.

    Raises:
        ImageError: If the folder or file is missing, or holds no image.
    """
    from .shards import list_shards, read_remote_folder  # They read images with this module.

    if isinstance(source, ImageSource):
        return source
    if source == "demo":
        return demo_calibration_source()
    shards = list_shards(source)
    if shards:
        return join_sources([shard.open() for shard in shards])
    if isinstance(source, str | Path):
        return read_remote_folder(str(source)) if "://" in str(source) else _list_local(Path(source))
    return _from_paths([Path(item) for item in source], [str(item) for item in source])


def _list_local(path: Path) -> ImageSource:
    if path.is_dir():
        return _from_folder(path)
    if path.suffix.lower() in (".csv", ".tsv") and path.is_file():
        return read_csv_source(path)
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        return _from_paths([path], [path.name])
    raise ImageError(
        f"cannot read images from {path}: there is no such folder. Give a folder, a CSV with a column of paths, tar or Parquet "
        "shards, or `demo`."
        if not path.exists()
        else f"cannot read images from {path}: it is not a folder, an image or a CSV, nor a shard."
    )


def join_sources(sources: Sequence[ImageSource]) -> ImageSource:
    """One source after the other."""
    if len(sources) == 1:
        return sources[0]
    starts = [0, *itertools.accumulate(len(source) for source in sources)]

    def open_any(index: int) -> Image.Image:
        which = bisect.bisect_right(starts, index) - 1
        return sources[which].open(index - starts[which])

    names = tuple(name for source in sources for name in source.names)
    return ImageSource(names, open_any, stamps=tuple(s for source in sources for s in source.stamps or source.names))


def read_csv_source(path: Path) -> ImageSource:
    """A CSV with a header; one column, called filename, img_filename, path, file or image, holds paths beside the CSV.

    Raises:
        ImageError: If no such column exists, or the CSV cannot be read or has no rows.
    """
    try:
        if not path.is_file():
            raise ImageError(f"cannot read {path}: there is no such file.")
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t" if path.suffix.lower() == ".tsv" else ","))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ImageError(f"cannot read {path}: {error}. Give a CSV in UTF-8.") from None
    columns = [key for key in (rows[0] if rows else {}) if key]
    column = next((name for name in PATH_COLUMNS if name in columns), None)
    if column is None:
        raise ImageError(
            f"cannot read images from {path}: its columns are {', '.join(columns) or 'none'}, "
            f"one of {', '.join(PATH_COLUMNS)} is needed."
        )
    names = [row[column] or "" for row in rows]
    attributes = tuple({key: value or "" for key, value in row.items() if key} for row in rows)
    found = _from_paths([path.parent / name for name in names], names)
    return ImageSource(found.names, found.open, attributes, found.stamps)


def source_of_rows(paths: Sequence[Path], rows: Sequence[dict[str, str]]) -> ImageSource:
    """Image files with the attributes of each."""
    found = _from_paths(paths, [str(path) for path in paths])
    return ImageSource(found.names, found.open, tuple(rows), found.stamps)


def render_source(scenes: Sequence[world.Scene]) -> ImageSource:
    """Images of the embedded world, rendered when they are opened."""
    names = tuple(f"{i:05d}_{scene.color}_{scene.shape}_{scene.place}.png" for i, scene in enumerate(scenes))
    attributes = tuple(
        {"filename": name, "shape": scene.shape, "place": scene.place, "color": scene.color, "texture": scene.texture}
        for name, scene in zip(names, scenes, strict=True)
    )
    stamps = tuple(repr(scene) for scene in scenes)
    return ImageSource(names, lambda index: Image.fromarray(world.render(scenes[index])), attributes, stamps)


def demo_calibration_source(count: int = DEMO_CALIBRATION_COUNT) -> ImageSource:
    """Images of the embedded world as users have them: unlabelled, and biased as the training images are."""
    generator = np.random.default_rng(DEMO_CALIBRATION_SEED)
    return render_source([world.draw_captioned_scene(generator)[0] for _ in range(count)])


def open_image(path: Path) -> Image.Image:
    """Read one image file as 8-bit RGB: first frame of animations, 16-bit scaled down, CMYK and palettes converted.

    Raises:
        ImageError: If the file is missing, corrupt, truncated, or larger than `MAX_PIXELS`.
    """
    return read_image(path, str(path))


def read_image(content: Path | io.BytesIO, name: str) -> Image.Image:
    """As `open_image`, from a file or its content; `name` is for messages."""
    try:
        if isinstance(content, Path) and not content.is_file():
            raise ImageError(f"cannot read {name}: there is no such file.")
        with Image.open(content, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(f"cannot read {name}: {image.width} x {image.height} pixels, at most {MAX_PIXELS}.")
            if max(image.size) > MAX_ASPECT * min(image.size):
                # Resizing its short side to the model's would make the long one enormous.
                raise ImageError(
                    f"cannot read {name}: {image.width} x {image.height} is longer than {MAX_ASPECT} to 1."
                )
            _require_few_scans(image, name)
            image.load()
            return _to_rgb(image)
    except ImageError:
        raise
    except Exception as error:  # Decoders raise nearly anything on hostile bytes.
        raise ImageError(f"cannot read {name}: {error or type(error).__name__}.") from None


def _require_few_scans(image: Image.Image, name: str) -> None:
    """A JPEG may go over all its pixels as often as it likes: a small file could take hours."""
    stream: Any = getattr(image, "fp", None)
    if image.format not in ("JPEG", "MPO") or stream is None:
        return
    at = stream.tell()
    stream.seek(0)
    scans = stream.read().count(b"\xff\xda")
    stream.seek(at)
    if scans > MAX_SCANS and scans * image.width * image.height > MAX_PIXELS:
        raise ImageError(f"cannot read {name}: a JPEG of {scans} scans, {MAX_SCANS} are read of so large a one.")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit values at 255.
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def _from_folder(folder: Path) -> ImageSource:
    found = sorted(
        Path(root) / name
        for root, _, names in os.walk(folder)
        for name in names
        if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")
    )
    if not found:
        raise ImageError(
            f"cannot read images from {folder}: it holds no image. Looked for {', '.join(sorted(SUFFIXES))}."
        )
    return _from_paths(found, [str(path.relative_to(folder)) for path in found])


def _from_paths(paths: Sequence[Path], names: Sequence[str]) -> ImageSource:
    stamps = tuple(_stamp(path) for path in paths)
    return ImageSource(tuple(names), OpenPath(tuple(paths)), stamps=stamps)


def _stamp(path: Path) -> str:
    try:
        return str(path.stat().st_size) if path.is_file() else "missing"
    except (OSError, ValueError):  # A name that is too long, or holds what no name can.
        return "missing"


@dataclass(frozen=True)
class Batch:
    """Preprocessed images `[image, 3, height, width]` (or tokens `[text, context]`). `indices` are positions in the source; `bad` are those that could not be read, and why."""

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
