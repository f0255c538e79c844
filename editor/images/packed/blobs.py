"""Encoded images at known places of one file: a tar shard as it is, or a temporary file that a stream was copied to.

Nothing is unpacked into files of its own, and memory does not grow with the shard.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ...errors import ImageError
from ..decode import UPRIGHT, Decoding, read_image

MAX_IMAGE_BYTES = 2**30


class Spool:
    """A temporary file without a name, private to this process and those it forks; gone when the last of them is."""

    def __init__(self) -> None:
        # TMPDIR says where; it must hold the shards that are read at a time.
        self.file: Any = tempfile.TemporaryFile()  # noqa: SIM115
        self.end = 0

    def append(self, content: bytes) -> tuple[int, int]:
        """Where the content now lies: offset and length."""
        self.file.write(content)
        self.end += len(content)
        return self.end - len(content), len(content)

    def __del__(self) -> None:
        self.file.close()


@dataclass(frozen=True)
class OpenBlob:
    """Opens the images that lie at `places` (offset, length) of a file or a spool; `names` are for messages."""

    file: Path | Spool
    names: tuple[str, ...]
    places: tuple[tuple[int, int], ...]
    decoding: Decoding = UPRIGHT

    def __call__(self, index: int) -> Image.Image:
        offset, length = self.places[index]
        if not 0 < length <= MAX_IMAGE_BYTES:
            raise ImageError(
                f"cannot read {self.names[index]}: it has {length} bytes, 1 to {MAX_IMAGE_BYTES} are read."
            )
        try:
            content = _read_at(self.file, offset, length)
        except OSError as error:
            raise ImageError(f"cannot read {self.names[index]}: {error.strerror or error}.") from None
        return read_image(io.BytesIO(content), self.names[index], self.decoding)

    def subset(self, indices: Sequence[int]) -> OpenBlob:
        names, places = tuple(self.names[i] for i in indices), tuple(self.places[i] for i in indices)
        return OpenBlob(self.file, names, places, self.decoding)

    def read_as(self, decoding: Decoding) -> OpenBlob:
        return replace(self, decoding=decoding)


def _read_at(file: Path | Spool, offset: int, length: int) -> bytes:
    if isinstance(file, Path):
        with file.open("rb") as stream:
            stream.seek(offset)
            return stream.read(length)
    # What was appended may still be in Python's buffer, which a read by descriptor does not see.
    file.file.flush()
    if hasattr(os, "pread"):  # Forked readers share the position, so they must not move it.
        return os.pread(file.file.fileno(), length, offset)
    file.file.seek(offset)
    return file.file.read(length)
