"""Drift of stored vectors: an index says by itself whether what it holds looks as the images of a scan did."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..components import ComponentGroup, ComponentId
from ..concepts.concepts import Concept
from ..errors import StatisticsError, VectorError, require_kinds
from ..files.vectors import NpyVectors, ParquetVectors, open_vectors
from ..models.model import Model
from ..scan.scan import Scan
from ..scan.statistics import GroupSums, Statistics, sum_statistics
from .held import Moments, center_moments, compare_concepts, find_concepts, unit_moments
from .monitor import BLOCKS, SEED, DriftReport, Sides, alarm_level, require_enough

NAME, SUFFIXES = "embedding", (".npy", ".parquet")


def monitor_vectors(
    scan: Scan,
    model: Model,
    vectors: str | Path,
    *,
    column: str | None = None,
    concepts: Sequence[str | Concept] = (),
    limit: float = 0.3,
) -> DriftReport:
    """Compare stored embeddings with the images of a scan; no image is read.

    Single heads cannot be seen in an embedding: it is compared whole, at length 1, with the same tests and the same
    rate of false alarms as `monitor`.

    Args:
        model: The scanned model, whose embeddings the vectors are.
        vectors: A `.npy` or `.parquet` file with a vector per row, or a folder of such files; at least 256 rows.
        column: Of Parquet files; by default their only column of vectors.
        concepts: Compared besides, by name or as they are.
        limit: From what a shift or a distance counts, beyond noise.

    Raises:
        StatisticsError: If there are too few vectors, or the scan is of another model.
        VectorError: If a file cannot be read, is of another width, or was carried over to an edited model.
        ConceptError: If a concept is unknown.
    """
    require_kinds("compare vectors with a scan", scan=(scan, Scan), model=(model, Model))
    if model.alignment is not None:
        raise StatisticsError(
            f"cannot monitor vectors of {model.name}: it is read through an aligner, and its own vectors are of "
            "another space. Give the images."
        )
    scan.groups(model)  # Refuses the scan of another model.
    width, wanted = model.tower.d_embed, find_concepts(concepts, model)
    files = [_open(path, column, width, model.name) for path in list_vectors(vectors)]
    require_enough(sum(file.rows for file in files), scan)
    group = ComponentGroup(NAME, (ComponentId(NAME),), width)
    blocks = _sum_blocks(files, width)
    old = unit_moments(scan.statistics, model)
    sides = Sides(_as_statistics(scan.statistics.n, old), blocks, limit, alarm_level(1))
    found = sides.compare(group, torch.eye(width, dtype=torch.float64)[None])[NAME]
    total = sum_statistics(tuple(blocks))
    sums = total.groups[NAME]
    new = center_moments(total.n, sums.u[0], sums.uu[0])
    return DriftReport(total.n, scan.statistics.n, limit, {}, found, compare_concepts(wanted, model, old, new))


def list_vectors(path: str | Path) -> list[Path]:
    """A file, or the files of vectors below a folder.

    Raises:
        VectorError: If there is none.
    """
    path = Path(path)
    if not path.is_dir():
        return [path]
    found = [one for one in sorted(path.rglob("*")) if one.suffix in SUFFIXES and not one.name.startswith(".")]
    if not found:
        raise VectorError(
            f"cannot read vectors from {path}: it holds no .npy and no .parquet file. Give one that does."
        )
    return found


def _open(path: Path, column: str | None, width: int, model: str) -> NpyVectors | ParquetVectors:
    # A folder may hold both kinds, and only Parquet has columns.
    file = open_vectors(path, column=column if path.suffix == ".parquet" else None)
    if file.width != width:
        raise VectorError(
            f"cannot monitor {path}: its vectors are {file.width} wide, {model} gives {width}. Give embeddings of that "
            "model."
        )
    mark = file.mark()
    if mark is not None:
        raise VectorError(
            f"cannot monitor {path}: it is marked as carried over by recipe {mark.get('recipe')}, and the scan is of "
            "the unedited model. Give the vectors from before, or a scan of the edited model."
        )
    return file


def _sum_blocks(files: Sequence[NpyVectors | ParquetVectors], width: int) -> list[Statistics]:
    """Sums over random parts of the rows: how much they differ says how much chance does."""
    generator = np.random.default_rng(SEED)
    counts, totals = [0] * BLOCKS, [torch.zeros(width).double() for _ in range(BLOCKS)]
    squares = [torch.zeros(width, width).double() for _ in range(BLOCKS)]
    for rows in _read(files):
        # Rows of an index may be in any order, by date or by class: a part must not be a stretch of them.
        part = torch.from_numpy(generator.integers(0, BLOCKS, len(rows)))
        for block in range(BLOCKS):
            own = rows[part == block]
            counts[block] += len(own)
            totals[block] += own.sum(0)
            squares[block] += own.T @ own
    return [_as_sums(*sums) for sums in zip(counts, totals, squares, strict=True)]


def _read(files: Sequence[NpyVectors | ParquetVectors]) -> Iterator[Float[Tensor, "row d_embed"]]:
    for file in files:
        for chunk in file.chunks():
            yield F.normalize(chunk, dim=1)


def _as_statistics(count: int, moments: Moments) -> Statistics:
    mean, covariance = moments
    return _as_sums(count, count * mean, count * (covariance + mean[:, None] * mean))


def _as_sums(count: int, total: Float[Tensor, " d_embed"], squares: Float[Tensor, "d_embed d_embed"]) -> Statistics:
    """Sums of vectors as statistics of one component; of `g` only the column that counts is there."""
    ones = torch.full((1, 1), float(count), dtype=torch.float64)
    return Statistics(count, ones, {NAME: GroupSums(squares[None], total[None, :, None], total[None], total[None])})
