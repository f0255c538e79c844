"""Images in tar shards, as webdataset writes them. A plain local tar is read in place, others from a spool."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
from pathlib import Path
from typing import Any

from ...errors import ImageError
from ...files.locations import Location, is_remote, open_location
from ..decode import SUFFIXES
from ..source import ImageSource
from .blobs import OpenBlob, Spool

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
MAX_SHARD_BYTES = 2**37
_BLOCK = 2**22


def open_tar(location: Location) -> ImageSource:
    """The images of a tar, in its order; other members are passed over.

    Raises:
        ImageError: If it cannot be read, is cut off, or holds no image.
    """
    try:
        if location.path.lower().endswith(".tar") and not is_remote(location.path):
            with Path(location.path).open("rb") as stream:
                return _index(stream, Path(location.path), location, location.size)
        spool = Spool()
        with open_location(location.path) as stream:
            _copy(_decompressed(stream, location.path), spool, location)
        spool.file.flush()
        spool.file.seek(0)
        return _index(spool.file, spool, location, spool.end)
    except (OSError, EOFError, tarfile.TarError, lzma.LZMAError) as error:
        raise ImageError(f"cannot read {location.path}: {error}. Fetch it again.") from None


def _index(stream: Any, file: Path | Spool, location: Location, size: int) -> ImageSource:
    names, places = [], []
    # Uncompressed only: images are read later from where they lie.
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        for member in tar:
            if not _is_image(member):
                continue
            if member.offset_data + member.size > size:
                raise ImageError(f"cannot read {location.path}: it is cut off in {member.name}. Fetch it again.")
            # `tar` run on `.` writes names with `./` before them.
            names.append(f"{location.name}/{member.name.removeprefix('./')}")
            places.append((member.offset_data, member.size))
    if not names:
        raise ImageError(
            f"cannot read images from {location.path}: it holds none. Looked for {', '.join(sorted(SUFFIXES))}."
        )
    stamps = tuple(str(length) for _, length in places)
    return ImageSource(tuple(names), OpenBlob(file, tuple(names), tuple(places)), stamps=stamps)


def _is_image(member: tarfile.TarInfo) -> bool:
    path = Path(member.name)
    # A sparse member's bytes are not where its header says.
    plain = member.isreg() and not member.issparse()
    return plain and path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _decompressed(stream: Any, path: str) -> Any:
    lower = path.lower()
    opened = stream
    if lower.endswith((".gz", ".tgz")):
        opened = gzip.GzipFile(fileobj=stream)
    elif lower.endswith(".bz2"):
        opened = bz2.BZ2File(stream)
    elif lower.endswith(".xz"):
        opened = lzma.LZMAFile(stream)  # noqa: SIM115
    return opened


def _copy(stream: Any, spool: Spool, location: Location) -> None:
    while content := stream.read(_BLOCK):
        spool.append(content)
        # Counted after unpacking: a small file may grow without end.
        if spool.end > MAX_SHARD_BYTES:
            raise ImageError(f"cannot read {location.path}: unpacked it is larger than {MAX_SHARD_BYTES} bytes.")
