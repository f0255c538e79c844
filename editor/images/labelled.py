"""Labelled images: the layouts people have, read into one form.

Waterbirds (`metadata.csv` with `img_filename,y,split,place`), a CSV of paths and attributes, or one folder per class.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import ImageError
from ..files.bounded import read_text
from .demo import test_source
from .demo_name import is_demo
from .listing import PATH_COLUMNS, list_images, read_csv_source
from .source import ImageSource, LabelledImages

LABEL_COLUMNS = ("label", "class", "y", "shape")
WATERBIRDS = {"0": "landbird", "1": "waterbird"}


def load_labelled_images(
    path: str | Path,
    *,
    label: str | None = None,
    classes: Mapping[str, str] | None = None,
    group_by: Sequence[str] = (),
    split: str | None = None,
) -> LabelledImages:
    """Read a labelled set.

    Args:
        path: A folder with `metadata.csv`, a CSV, or a folder that holds one folder per class.
        label: The column of classes; by default the first there is of label, class, y, shape.
        classes: From a column's values to the words used in prompts; by default the values themselves.
        group_by: Columns that make groups together with the class. By default `place` if there is one, else none.
        split: Keep rows whose `split` column has this value. Waterbirds keeps its test split, `2`, by default.

    Raises:
        ImageError: If a column is missing, a value has no class, or nothing is left.
    """
    path = Path(path)
    table = path / "metadata.csv" if (path / "metadata.csv").is_file() else path
    if table.is_dir() or not table.exists():
        if label or group_by or split:
            raise ImageError(f"cannot use columns with {path}: it has no metadata.csv, its folders are the classes.")
        return _from_class_folders(path, classes)
    source = read_csv_source(table)
    rows = source.attributes
    column = label or next((name for name in LABEL_COLUMNS if name in rows[0]), None)
    if column is None or column not in rows[0]:
        raise ImageError(
            f"cannot read labels from {table}: no column {column or ' or '.join(LABEL_COLUMNS)}, "
            f"there are {', '.join(rows[0])}. Name one with --label."
        )
    waterbirds = {"img_filename", "y", "place"} <= rows[0].keys()
    split = "2" if waterbirds and split is None and "split" in rows[0] else split
    kept = [i for i, row in enumerate(rows) if split is None or row.get("split") == split]
    if not kept:
        raise ImageError(f"cannot use {table}: no row has split {split}.")
    names = classes or (
        WATERBIRDS if waterbirds and column == "y" else {value: value for value in sorted({r[column] for r in rows})}
    )
    columns = list(group_by) or (["place"] if "place" in rows[0] else [])
    for name in columns:
        if name not in rows[0]:
            raise ImageError(f"cannot group by {name}: {table} has {', '.join(rows[0])}. Correct --group-by.")
    unknown = sorted({rows[i][column] for i in kept} - names.keys())
    if unknown:
        raise ImageError(f"cannot read labels from {table}: {column} {unknown[0]!r} is no class. Add it to --classes.")
    order = list(names)
    return LabelledImages(
        source.subset(kept),
        tuple(names[key] for key in order),
        tuple(order.index(rows[i][column]) for i in kept),
        tuple(" / ".join([names[rows[i][column]], *(f"{c} {rows[i][c]}" for c in columns)]) for i in kept),
    )


def load_attributes(path: str | Path) -> ImageSource:
    """Images with the columns of their CSV, or `metadata.csv` of their folder; `demo` is the embedded world's test
    split.

    Raises:
        ImageError: If there is no such table.
    """
    if is_demo(path):
        return test_source()
    path = Path(path)
    table = path / "metadata.csv" if path.is_dir() else path
    if not table.is_file():
        raise ImageError(
            f"cannot read labels from {path}: there is no {table}. Give a CSV, or a folder with metadata.csv."
        )
    return read_csv_source(table)


def load_classes(path: Path) -> dict[str, str]:
    """A file with one class per line: `value: words for the prompt`, or only the words.

    Raises:
        ImageError: If it cannot be read or is empty.
    """
    lines = load_lines(path)
    return {key.strip(): (words.strip() or key.strip()) for key, _, words in (line.partition(":") for line in lines)}


def load_lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty.

    Raises:
        ImageError: If it cannot be read or has none.
    """
    try:
        lines = [line.strip() for line in read_text(Path(path)).splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise ImageError(f"cannot read {path}: {error}.") from None
    if not lines:
        raise ImageError(f"cannot use {path}: it is empty. Write one entry a line.")
    return lines


def write_metadata(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Write `metadata.csv`, columns as in the first row."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _from_class_folders(path: Path, classes: Mapping[str, str] | None) -> LabelledImages:
    source = list_images(path)
    folders = [Path(name).parts[0] if len(Path(name).parts) > 1 else "" for name in source.names]
    names = classes or {name: name.replace("_", " ") for name in sorted(set(folders))}
    if "" in folders or len(names) < 2:
        raise ImageError(
            f"cannot read labels from {path}: give one folder per class, or a metadata.csv with {PATH_COLUMNS[0]} and "
            "label."
        )
    unknown = sorted(set(folders) - names.keys())
    if unknown:
        raise ImageError(f"cannot read labels from {path}: folder {unknown[0]!r} is no class. Add it to --classes.")
    order = list(names)
    words = tuple(names[key] for key in order)
    labels = tuple(order.index(folder) for folder in folders)
    return LabelledImages(source, words, labels, tuple(words[i] for i in labels))
