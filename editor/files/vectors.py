"""Files of stored embeddings, NumPy or Parquet: read in chunks and rewritten in the same form, in constant memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import ExportError, VectorError
from .carried import name_metadata, read_metadata, read_sidecar, write_sidecar
from .inputs import require_vectors_file
from .whole import staged_file

CHUNK_ROWS = 4_096
Rewrite = Callable[[Float[Tensor, "row d_embed"]], Float[Tensor, "row d_embed"]]


@dataclass(frozen=True)
class NpyVectors:
    """A `.npy` file: one array `[row, d_embed]` of floats."""

    path: Path
    rows: int
    width: int
    dtype: np.dtype
    start: int

    def chunks(self) -> Iterator[Tensor]:
        """The rows in order, float64."""
        for first in range(0, self.rows, CHUNK_ROWS):
            count = min(CHUNK_ROWS, self.rows - first)
            offset = self.start + first * self.width * self.dtype.itemsize
            flat = np.fromfile(self.path, self.dtype, count * self.width, offset=offset)
            yield _checked(flat.reshape(count, self.width), first, self.path)

    def mark(self) -> dict[str, str] | None:
        """What the file was carried over with, if it was (`editor/files/carried.py`)."""
        return read_sidecar(self.path)

    def rewrite(self, out: Path, function: Rewrite, mark: Mapping[str, str]) -> None:
        """Write the rewritten rows to another file, in the same dtype, and a mark beside it; it is whole or absent."""
        with staged_file(out) as temporary, temporary.open("wb") as stream:
            described = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.rows, self.width)}
            np.lib.format.write_array_header_1_0(stream, described)
            for chunk in self.chunks():
                stream.write(function(chunk).numpy().astype(self.dtype).tobytes())
        # Once the file has its name: the mark holds what the file is known by.
        write_sidecar(out, mark)


@dataclass(frozen=True)
class ParquetVectors:
    """A Parquet file with a column of lists of floats; all other columns are kept as they are."""

    path: Path
    rows: int
    width: int
    column: str

    def chunks(self) -> Iterator[Tensor]:
        """The rows in order, float64."""
        first = 0
        for batch in _batches(_open_parquet(self.path), self.path, CHUNK_ROWS, columns=[self.column]):
            yield self._vectors(batch, first)
            first += len(batch)

    def mark(self) -> dict[str, str] | None:
        """What the column was carried over with, if it was (`editor/files/carried.py`)."""
        return read_metadata(_open_parquet(self.path).schema_arrow.metadata, self.column)

    def rewrite(self, out: Path, function: Rewrite, mark: Mapping[str, str]) -> None:
        """Write the rewritten rows to another file, column types and metadata as they are, and a mark in the metadata.

        It is whole or absent.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        source, first = _open_parquet(self.path), 0
        schema = source.schema_arrow
        noted = {name_metadata(self.column): json.dumps(dict(mark)).encode()}
        schema = schema.with_metadata({**(schema.metadata or {}), **noted})
        at = schema.get_field_index(self.column)
        kind = schema.field(at).type
        with staged_file(out) as temporary, pq.ParquetWriter(temporary, schema) as writer:
            for batch in _batches(source, self.path, CHUNK_ROWS):
                found = function(self._vectors(batch, first)).numpy().astype(kind.value_type.to_pandas_dtype())
                # Lists of any length are built from their offsets, lists of a fixed size have none.
                offsets = [] if pa.types.is_fixed_size_list(kind) else [np.arange(len(batch) + 1) * self.width]
                flat = pa.array(found.ravel(), kind.value_type)
                columns = batch.columns
                columns[at] = type(batch.columns[at]).from_arrays(*map(pa.array, offsets), flat, type=kind)
                writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
                first += len(batch)

    def _vectors(self, batch: Any, first: int) -> Tensor:
        lists = batch.column(self.column)
        lengths = lists.value_lengths().to_numpy(zero_copy_only=False)
        # A missing list has the length NaN, which equals nothing.
        wrong = np.flatnonzero(~(lengths == self.width))
        if len(wrong):
            raise VectorError(
                f"cannot read vectors from {self.path}: row {first + wrong[0]} is not {self.width} wide as the first "
                "is. Give every row a vector of one width."
            )
        # `flatten` and not `values`, which for a slice are those of the whole array.
        flat = lists.flatten().to_numpy(zero_copy_only=False)
        return _checked(flat.reshape(len(batch), self.width), first, self.path)


def open_vectors(path: str | Path, *, column: str | None = None) -> NpyVectors | ParquetVectors:
    """Open a file of vectors by its ending; nothing is ever unpickled.

    Args:
        column: Of a Parquet file; by default its only column of lists of floats.

    Raises:
        VectorError: If the file is missing, empty, or holds no vectors of floats.
    """
    path = Path(path)
    require_vectors_file(path)
    if path.suffix == ".npy" and column is None:
        return _open_npy(path)
    if path.suffix == ".parquet":
        return _find_column(path, column)
    found = f"it ends in {path.suffix or 'nothing'}" if column is None else "only Parquet files have columns"
    raise VectorError(f"cannot read vectors from {path}: {found}. Give a .npy file with one array, or a .parquet file.")


def require_free_vectors(out: Path, source: Path, *, overwrite: bool) -> Path:
    """Where mapped vectors go, with the ending of those that are read.

    Raises:
        ExportError: If that is the file that is read, is taken, or has another ending.
    """
    out = out if out.suffix else out.with_suffix(source.suffix)
    if out.resolve() == source.resolve():
        raise ExportError(f"cannot write {out}: the vectors are read from there. Choose another -o.")
    if out.exists() and not overwrite:
        raise ExportError(f"cannot write {out}: it exists. Choose another -o, or add --overwrite.")
    if out.suffix != source.suffix:
        raise ExportError(f"cannot write {out}: the vectors are {source.suffix}. Give -o the same ending.")
    return out


def _open_npy(path: Path) -> NpyVectors:
    try:
        with path.open("rb") as stream:
            version = np.lib.format.read_magic(stream)
            # Version 1 gives the header's length in two bytes, the later ones in four.
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(stream)
            start = stream.tell()
    except Exception as error:  # The header is an expression, though one of literals only.
        reason = str(error) or type(error).__name__
        raise VectorError(f"cannot read vectors from {path}: {reason}. Write it with `numpy.save`.") from None
    if len(shape) != 2 or dtype.kind != "f" or fortran or any(type(side) is not int or side < 1 for side in shape):
        order = ", in Fortran order" if fortran else ""
        raise VectorError(
            f"cannot read vectors from {path}: it holds {dtype} of shape {shape}{order}, floats [row, d_embed] in C "
            "order are needed. Convert it with `numpy.ascontiguousarray` and `numpy.save`."
        )
    size, wanted = path.stat().st_size - start, shape[0] * shape[1] * dtype.itemsize
    if size < wanted:
        raise VectorError(f"cannot read vectors from {path}: it has {size} bytes of {wanted}. Copy the whole file.")
    return NpyVectors(path, shape[0], shape[1], dtype, start)


def _find_column(path: Path, column: str | None) -> ParquetVectors:
    import pyarrow as pa

    source = _open_parquet(path)

    def holds_vectors(field: pa.Field) -> bool:
        kind = field.type
        lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        return lists and pa.types.is_floating(kind.value_type)

    fields = {field.name: holds_vectors(field) for field in source.schema_arrow}
    vectors = [name for name, holds in fields.items() if holds]
    if (column is None and len(vectors) != 1) or (column is not None and column not in vectors):
        raise VectorError(
            f"cannot read vectors from {path}: columns of vectors are {', '.join(vectors) or 'none'} "
            f"(of {', '.join(fields) or 'none'}), {column or 'one'} is needed. Name one with --column."
        )
    name = column or vectors[0]
    # The first row says how wide all have to be.
    first = next(_batches(source, path, 1, columns=[name]), None)
    if first is None or not first.column(0)[0].is_valid or not len(first.column(0)[0]):
        raise VectorError(f"cannot read vectors from {path}: {name} is empty. Give a file with a vector a row.")
    return ParquetVectors(path, source.metadata.num_rows, len(first.column(0)[0]), name)


def _open_parquet(path: Path) -> Any:
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise VectorError(f"cannot read {path}: Parquet needs pyarrow. `pip install 'clipedit[parquet]'`.") from None
    try:
        return pq.ParquetFile(path)
    except Exception as error:  # Its own kinds, and plain ones, on damaged files.
        raise VectorError(f"cannot read vectors from {path}: {error}. Give a Parquet file.") from None


def _batches(source: Any, path: Path, rows: int, **options: Any) -> Iterator[Any]:
    try:
        yield from source.iter_batches(rows, **options)
    except Exception as error:  # Its own kinds, and plain ones, on damaged files.
        raise VectorError(f"cannot read vectors from {path}: {error}. Copy the whole file.") from None


def _checked(rows: np.ndarray, first: int, path: Path) -> Tensor:
    wrong = np.flatnonzero(~np.isfinite(rows).all(1))
    if len(wrong):
        raise VectorError(
            f"cannot use the vectors of {path}: row {first + wrong[0]} holds NaN or infinity. Compute that embedding "
            "again."
        )
    # A copy in any case: Arrow's memory is read-only, and torch wants to write.
    return torch.from_numpy(rows.astype(np.float64))
