"""Images kept as bytes in Parquet files and in the Arrow files of Hugging Face datasets on disk."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ImageError
from ...files.locations import Location, open_location
from ..source import ImageSource
from .blobs import MAX_IMAGE_BYTES, OpenBlob, Spool

PARQUET_SUFFIXES, ARROW_SUFFIXES = (".parquet",), (".arrow",)
IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes", "image_bytes", "content", "data")
NAME_COLUMNS = ("__key__", "key", "id", "filename", "file_name", "path")
STATUS_COLUMN, FETCHED = "status", "success"
# Types of single values that have a spelling of their own.
_VALUES = ("int", "uint", "bool", "halffloat", "float", "double", "dictionary<values=string", "string_view")
# Rows that are in memory at a time: each of them holds a whole encoded image.
ROWS = 64


def holds_images(location: Location) -> bool:
    """Whether a Parquet file has a column of bytes that may be images; others only describe images.

    Raises:
        ImageError: If the file is no Parquet.
    """
    with open_file(location) as table:
        return any(kind_of(field.type) == "image" for field in table.schema_arrow)


def list_columns(location: Location) -> list[str]:
    """The names of a Parquet file's columns.

    Raises:
        ImageError: If the file is no Parquet.
    """
    with open_file(location) as table:
        return list(table.schema_arrow.names)


def cut_parquet(location: Location, rows: int) -> list[tuple[int, int, int]]:
    """Runs of row groups with up to `rows` rows (one group at least): first group, last group, rows.

    Raises:
        ImageError: If the file is no Parquet or holds no column of images.
    """
    with open_file(location) as table:
        # Refused while units are listed, not when one of them is opened.
        find_columns(table.schema_arrow, location)
        counts = [table.metadata.row_group(i).num_rows for i in range(table.metadata.num_row_groups)]
    runs: list[tuple[int, int, int]] = []
    for group, count in enumerate(counts):
        if runs and runs[-1][2] + count <= rows:
            runs[-1] = (runs[-1][0], group, runs[-1][2] + count)
        else:
            runs.append((group, group, count))
    # Row groups may be empty, but a source is not.
    return [run for run in runs if run[2]]


def open_parquet(location: Location, first: int, last: int) -> ImageSource:
    """The images of some row groups, copied to a spool: readers then take them in any order.

    Raises:
        ImageError: If the file is damaged or holds no column of images.
    """
    with open_file(location) as table:
        columns = find_columns(table.schema_arrow, location)
        batches = table.iter_batches(batch_size=ROWS, row_groups=list(range(first, last + 1)), columns=columns.present)
        return _spool(batches, columns, location, f"{location.name}#{first}")


def open_arrow(location: Location) -> ImageSource:
    """The images of an Arrow file, as `datasets` keeps them.

    Raises:
        ImageError: If the file is damaged or holds no column of images.
    """
    pa = _arrow(location)
    with _reading(location), open_location(location.path) as stream:
        # Arrow's file format starts with these letters; the stream format, which `datasets` writes, has none.
        magic = stream.read(6)
        stream.seek(0)
        reader = pa.ipc.open_file(stream) if magic == b"ARROW1" else pa.ipc.open_stream(stream)
        columns = find_columns(reader.schema, location)
        batches = (
            (reader.get_batch(i) for i in range(reader.num_record_batches)) if magic == b"ARROW1" else iter(reader)
        )
        return _spool((batch.select(columns.present) for batch in batches), columns, location, location.name)


@dataclass(frozen=True)
class _Columns:
    """What is read of a table: its images, and their names and whether they were fetched if columns say it."""

    image: str
    name: str | None = None
    status: str | None = None

    @property
    def present(self) -> list[str]:
        return [column for column in (self.image, self.name, self.status) if column]


def find_columns(schema: Any, location: Location) -> _Columns:
    """The column of images (bytes, or a struct with `bytes` as `datasets` writes), and what says more of them.

    Raises:
        ImageError: If there is none.
    """
    kinds = {field.name: kind_of(field.type) for field in schema}
    images = [name for name, kind in kinds.items() if kind == "image"]
    named = next((name for name in IMAGE_COLUMNS if name in images), None)
    if named is None and len(images) != 1:
        raise ImageError(
            f"cannot read images from {location.path}: {len(images)} of its columns {', '.join(kinds)} hold bytes, one "
            f"called {', '.join(IMAGE_COLUMNS)} is needed. Rename it."
        )
    key = next((name for name in NAME_COLUMNS if kinds.get(name) == "text"), None)
    return _Columns(named or images[0], key, STATUS_COLUMN if kinds.get(STATUS_COLUMN) == "text" else None)


def kind_of(found: Any) -> str:
    """What a column of an Arrow type may hold: `image` (bytes), `text`, a single `value`, or `other`."""
    text = str(found)
    inside = {found.field(i).name for i in range(found.num_fields)} if text.startswith("struct") else set()
    if text.startswith(("binary", "large_binary", "fixed_size_binary")) or "bytes" in inside:
        return "image"
    if text in ("string", "large_string"):
        return "text"
    return "value" if text.startswith(_VALUES) else "other"


def _spool(batches: Iterator[Any], columns: _Columns, location: Location, label: str) -> ImageSource:
    spool, names, places, rows = Spool(), [], [], 0
    for batch in batches:
        for value, key, status in _read_rows(batch, columns):
            rows += 1
            # img2dataset keeps a row of what it could not fetch: nobody expects an image there.
            if value is None and status not in (None, FETCHED):
                continue
            name = key or (value.get("path") if isinstance(value, dict) else None)
            names.append(f"{label}/{rows - 1}{f':{name}' if name else ''}")
            places.append(spool.append(read_content(value, location)))
    spool.file.flush()
    if not names:
        raise ImageError(f"cannot read images from {location.path}: {rows or 'no'} rows, none with an image.")
    if rows > len(names):
        lost = rows - len(names)
        warnings.warn(
            f"in {location.path} passed over {lost} rows whose {columns.status} is no {FETCHED}", stacklevel=2
        )
    stamps = tuple(str(length) for _, length in places)
    return ImageSource(tuple(names), OpenBlob(spool, tuple(names), tuple(places)), stamps=stamps)


def _read_rows(batch: Any, columns: _Columns) -> Iterator[tuple[Any, Any, Any]]:
    """Image, name and status of each row."""
    wanted = (columns.image, columns.name, columns.status)
    read = [batch.column(column).to_pylist() if column else [None] * batch.num_rows for column in wanted]
    return zip(read[0], read[1], read[2], strict=True)


def read_content(value: Any, location: Location) -> bytes:
    """The image's bytes; nothing where there are none, which is then reported as an unreadable image."""
    if not isinstance(value, dict):
        return value or b""
    if value.get("bytes") is not None:
        return value["bytes"]
    beside = Path(location.path).parent / (value.get("path") or "")
    # A path comes with the data: it must not lead to other files of this machine.
    inside = beside.is_file() and beside.resolve().is_relative_to(Path(location.path).parent.resolve())
    return beside.read_bytes() if inside and beside.stat().st_size <= MAX_IMAGE_BYTES else b""


@contextmanager
def open_file(location: Location) -> Iterator[Any]:
    """A Parquet file of pyarrow.

    Raises:
        ImageError: If pyarrow is not installed, or the file cannot be read.
    """
    pq = _arrow(location, parquet=True)
    with _reading(location), open_location(location.path) as stream, pq.ParquetFile(stream) as table:
        yield table


@contextmanager
def _reading(location: Location) -> Iterator[None]:
    try:
        yield
    except ImageError:
        raise
    except Exception as error:  # pyarrow raises its own kinds, and plain ones, on damaged files.
        raise ImageError(
            f"cannot read {location.path}: {str(error).splitlines()[0].rstrip('.')}. Fetch it again."
        ) from None


def _arrow(location: Location, *, parquet: bool = False) -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise ImageError(
            f'cannot read {location.path}: pyarrow is not installed. Run `pip install "clipedit[parquet]"`.'
        ) from None
    return pyarrow.parquet if parquet else pyarrow
