"""Rows of Parquet files: their columns as cells of a table, and the images of the rows that are wanted.

Cells are read without the images beside them, and images a few rows at a time: a file is never whole in memory.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ...errors import ImageError
from ...files.bounded import parse_json
from ...files.locations import Location
from ...files.tables import spell_cell
from .blobs import OpenBlob, Spool
from .parquet import ROWS, find_columns, kind_of, open_file, read_content

_CELLS = 4_096
# Where `datasets` keeps what a schema alone does not say of its columns.
_FEATURES = b"huggingface"
# Of each class its words, in the order of the classes' numbers.
Words = Mapping[str, str]


@dataclass(frozen=True)
class RowFile:
    """A Parquet file, its images unread.

    Attributes:
        rows: The cells of each row by column, as a table of texts has them; what is no single value is left out.
        image: The column of images; None where there is none.
        names: What each image is called.
        classes: Of columns that number classes, the names of these with their words.
    """

    location: Location
    rows: tuple[dict[str, str], ...]
    image: str | None
    names: tuple[str, ...]
    classes: Mapping[str, Words]


def read_cells(location: Location) -> RowFile:
    """The rows of a Parquet file, its images unread.

    Raises:
        ImageError: If it is no Parquet, several columns may be images, or a number stands for no class.
    """
    with open_file(location) as table:
        schema = table.schema_arrow
        kinds = {field.name: kind_of(field.type) for field in schema}
        columns = find_columns(schema, location) if "image" in kinds.values() else None
        image = columns.image if columns else None
        cells = [name for name, kind in kinds.items() if kind in ("text", "value")]
        classes = _read_classes(schema.metadata or {})
        # The path alone of a struct that holds an image: read as a leaf, it comes without the bytes.
        leaf = [f"{image}.path"] if image and _has_path(schema.field(image).type) else []
        rows, keys = [], []
        for batch in table.iter_batches(batch_size=_CELLS, columns=[*cells, *leaf]):
            spelled = [_spell(batch.column(name), name, classes.get(name), location) for name in cells]
            rows += [dict(zip(cells, values, strict=True)) for values in zip(*spelled, strict=True)]
            keys += [(value or {}).get("path") for value in batch.column(image).to_pylist()] if leaf else []
    keys = [row[columns.name] for row in rows] if columns and columns.name else keys or [None] * len(rows)
    names = tuple(f"{location.name}/{row}{f':{key}' if key else ''}" for row, key in enumerate(keys))
    return RowFile(location, tuple(rows), image, names, classes)


def _has_path(found: Any) -> bool:
    return str(found).startswith("struct") and found.get_field_index("path") >= 0


def _read_classes(metadata: Mapping[bytes, bytes]) -> dict[str, Words]:
    """The columns that are `ClassLabel` to `datasets`."""
    try:
        features = parse_json(metadata[_FEATURES])["info"]["features"]
        named = {column: feature["names"] for column, feature in features.items() if _is_class_label(feature)}
    except (KeyError, TypeError, AttributeError, ValueError):  # Not of `datasets`, or of one that wrote otherwise.
        return {}
    return {column: _word(names) for column, names in named.items()}


def _is_class_label(feature: Any) -> bool:
    names = feature.get("names") if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None
    return isinstance(names, list) and all(isinstance(name, str) and name for name in names)


def _word(names: Sequence[str]) -> Words:
    """Names with blanks for underscores, as names of folders are read; as they are where two would be one."""
    words = [name.replace("_", " ") for name in names]
    return dict(zip(names, words if len(set(words)) == len(words) else names, strict=True))


def _spell(column: Any, name: str, words: Words | None, location: Location) -> list[str]:
    """The cells of a column, numbers of classes as their words."""
    values = column.to_pylist()
    if words is None:
        return [spell_cell(value) for value in values]
    known = list(words.values())
    wrong = next((value for value in values if not _is_number(value, len(known))), None)
    if wrong is not None:
        raise ImageError(
            f"cannot read {location.path}: {name} is {wrong!r}, which is none of its {len(known)} classes. Fetch it "
            "again."
        )
    # -1 is how `datasets` says that a class is not told.
    return ["" if value is None or value < 0 else known[value] for value in values]


def _is_number(value: Any, classes: int) -> bool:
    return value is None or (isinstance(value, int) and -1 <= value < classes)


@dataclass(frozen=True)
class OpenRows:
    """Opens images by row, those of one file behind those of another; `starts` has each one's first row.

    A part is copied to a spool when it is cut, in one pass over the row groups that hold it: what nobody asks for is
    not read. One image alone costs the rows before it in its group.
    """

    files: tuple[RowFile, ...]
    starts: tuple[int, ...]

    def __call__(self, index: int) -> Image.Image:
        return self.subset([index])(0)

    def subset(self, indices: Sequence[int]) -> OpenBlob:
        spool, places, wanted = Spool(), {}, sorted(set(indices))
        for file, start in zip(self.files, self.starts, strict=True):
            first, last = (bisect.bisect_left(wanted, row) for row in (start, start + len(file.rows)))
            for row, content in _read_images(file, [index - start for index in wanted[first:last]]):
                places[start + row] = spool.append(content)
        spool.file.flush()
        names = [name for file in self.files for name in file.names]
        return OpenBlob(spool, tuple(names[index] for index in indices), tuple(places[index] for index in indices))


def join_rows(files: Sequence[RowFile]) -> OpenRows:
    """What opens the images of several files."""
    starts = itertools.accumulate((len(file.rows) for file in files[:-1]), initial=0)
    return OpenRows(tuple(files), tuple(starts))


def _read_images(file: RowFile, wanted: Sequence[int]) -> Iterator[tuple[int, bytes]]:
    """The bytes of the images of some rows, which are in rising order, each with its row."""
    if not wanted:
        return
    left = set(wanted)
    with open_file(file.location) as table:
        counts = [table.metadata.row_group(group).num_rows for group in range(table.metadata.num_row_groups)]
        starts = list(itertools.accumulate(counts, initial=0))
        groups = sorted({bisect.bisect_right(starts, row) - 1 for row in wanted})
        rows = itertools.chain.from_iterable(range(starts[group], starts[group + 1]) for group in groups)
        for batch in table.iter_batches(batch_size=ROWS, row_groups=groups, columns=[file.image]):
            images = batch.column(0)
            for place, row in enumerate(itertools.islice(rows, batch.num_rows)):
                if row in left:
                    yield row, read_content(images[place].as_py(), file.location)
