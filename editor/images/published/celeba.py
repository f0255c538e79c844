"""CelebA: faces with forty attributes, 1 and -1, and a file that says which part each image is in."""

from __future__ import annotations

from pathlib import Path

from ...errors import ImageError
from ..labelled_options import ALL, NUMBERED
from ..listing import source_of_rows
from ..source import LabelledImages
from .asked import Asked, read_lines, read_rows

CELEBA_LABEL, CELEBA_GROUP = "Blond_Hair", "Male"
CELEBA_CLASSES = {"-1": "celebrity with dark hair", "1": "celebrity with blond hair"}


def load_celeba(path: Path, asked: Asked) -> LabelledImages:
    """`img_align_celeba/`, `list_attr_celeba.{txt,csv}` (1 and -1), `list_eval_partition.{txt,csv}` (0, 1, 2).

    Raises:
        ImageError: If a file, an attribute or the part is missing.
    """
    label, group_by = asked.label or CELEBA_LABEL, asked.group_by or (CELEBA_GROUP,)
    split = asked.split or NUMBERED[asked.purpose]
    attributes, partition = (celeba_file(path, name) for name in ("list_attr_celeba", "list_eval_partition"))
    if attributes is None or partition is None:
        missing = "list_attr_celeba" if attributes is None else "list_eval_partition"
        raise ImageError(f"cannot read {path} as CelebA: it has no {missing}.txt or .csv. Add it.")
    parts = _read_celeba(partition)
    if len(parts[0]) < 2:
        raise ImageError(
            f"cannot read {partition}: it has one column, an image and its part are needed. Fetch it again."
        )
    splits = {next(iter(row.values())): list(row.values())[1] for row in parts}
    rows = _read_celeba(attributes)
    for column in (label, *group_by):
        if column not in rows[0]:
            raise ImageError(
                f"cannot read {attributes}: no attribute {column}, there are {', '.join(list(rows[0])[1:])}."
            )
    if asked.classes is None and label != CELEBA_LABEL:
        raise ImageError(f"cannot name the classes of {label}: give --classes with lines `1: words` and `-1: words`.")
    names = asked.classes or CELEBA_CLASSES
    # File names are in the first column, whatever it is called.
    first = next(iter(rows[0]))
    kept = [row for row in rows if split in (splits.get(row[first]), ALL)]
    if not kept:
        raise ImageError(
            f"cannot use {path}: no image is in split {split}, there are {', '.join(sorted(set(splits.values())))}."
        )
    unknown = sorted({row[label] for row in kept} - names.keys())
    if unknown:
        raise ImageError(f"cannot read {attributes}: {label} {unknown[0]!r} is no class. Attributes are 1 and -1.")
    images = path / "img_align_celeba"
    inner = images / "img_align_celeba"  # As the archive of one mirror unpacks.
    source = source_of_rows([(inner if inner.is_dir() else images) / row[first] for row in kept], kept)
    order = list(names)
    groups = tuple(" / ".join([names[row[label]], *(f"{c} {row[c]}" for c in group_by)]) for row in kept)
    labels = tuple(order.index(row[label]) for row in kept)
    return LabelledImages(source, tuple(names.values()), labels, groups, split=None if split == ALL else split)


def celeba_file(path: Path, stem: str) -> Path | None:
    """A file of CelebA in either of its forms."""
    return next((path / f"{stem}{end}" for end in (".txt", ".csv") if (path / f"{stem}{end}").is_file()), None)


def _read_celeba(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV, or of the original text files: a count, names of attributes, a line per image; or no heading."""
    if path.suffix == ".csv":
        return read_rows(path)
    lines = [line.split() for line in read_lines(path)]
    headed = len(lines) > 2 and len(lines[0]) == 1
    names = ["image_id", *lines[1]] if headed else ["image_id", "partition"]
    rows = lines[2:] if headed else lines
    wrong = next((i for i, row in enumerate(rows) if len(row) != len(names)), None)
    if wrong is not None or not rows:
        raise ImageError(
            f"cannot read {path}: row {(wrong or 0) + 1} does not have {len(names)} columns. Fetch it again."
        )
    return [dict(zip(names, row, strict=True)) for row in rows]
