"""Layouts of published data sets: CelebA, FairFace, CounterAnimal and typographic sets, read into one form.

Which one a folder has is seen by what is in it; the classes and columns have the field's usual defaults.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..choices import Layout
from ..errors import ImageError
from ..files.bounded import read_text
from ..files.tables import MAX_TABLE_BYTES, read_table
from ..files.walk import walk_folder
from .decode import Decoding
from .demo_name import is_demo
from .labelled import load_labelled_images
from .labelled_options import ALL, NUMBERED, LabelledOptions, Purpose
from .listing import MISSING, list_folder, source_of_rows
from .skew import RetrievalSet
from .source import ImageSource, LabelledImages

# What a user names, or what was read from it.
Dataset = str | Path | LabelledImages | RetrievalSet
# Of the images that are measured; as `collect_embeddings` tolerates.
MAX_BAD = 0.01

CELEBA_LABEL, CELEBA_GROUP = "Blond_Hair", "Male"
CELEBA_CLASSES = {"-1": "celebrity with dark hair", "1": "celebrity with blond hair"}
FAIRFACE_ATTRIBUTES = ("gender", "race", "age")
FAIRFACE_QUERIES = tuple(
    f"{word} person"
    for word in (
        "good",
        "evil",
        "smart",
        "dumb",
        "attractive",
        "unattractive",
        "lawful",
        "criminal",
        "friendly",
        "unfriendly",
    )
)
_TYPOGRAPHIC = re.compile(r"label=(?P<label>.+)_text=(?P<text>.+)", re.DOTALL)
_NUMBERED_NAME = re.compile(r"(?P<name>.+)_(?P<number>\d{1,9})", re.DOTALL)


def load_dataset(
    path: str | Path,
    *,
    layout: Layout | None = None,
    label: str | None = None,
    classes: Mapping[str, str] | None = None,
    group_by: Sequence[str] = (),
    split: str | None = None,
    retention: str | None = None,
    purpose: Purpose = "report",
) -> LabelledImages | RetrievalSet:
    """Read a labelled set in any known layout.

    Args:
        layout: By default what `detect_layout` sees.
        label, classes, group_by, split, retention: As for `load_labelled_images`. CelebA: an attribute, words for `1`
            and `-1`, other attributes, `0`, `1` or `2` (training, validation, test). FairFace: `classes` are the
            queries' words, `group_by` the attributes, `split` is `val` by default. The other layouts have no columns.
        purpose: What the images are for: says which split is kept where none is named.

    Raises:
        ImageError: If the folder does not have the layout, or a column, class or split is missing.
    """
    path = Path(path)
    found = layout or detect_layout(path)
    if retention and found not in ("table", "waterbirds"):
        raise ImageError(f"cannot use --retention with {path}: the layout {found} has no columns for it. Leave it out.")
    if found not in ("table", "waterbirds", "folders") and not path.is_dir():
        raise ImageError(f"cannot read {path} as {found}: there is no such folder. Give the folder of the data set.")
    if found == "celeba":
        chosen = split or NUMBERED[purpose]
        return _load_celeba(path, label or CELEBA_LABEL, classes, group_by or (CELEBA_GROUP,), chosen)
    if found == "fairface":
        if label:
            raise ImageError(
                f"cannot use --label with {path}: FairFace measures retrieval, it has queries. Leave it out."
            )
        return _load_fairface(path, classes, group_by or FAIRFACE_ATTRIBUTES, split or "val")
    if found in ("counteranimal", "typographic"):
        if label or group_by or split:
            raise ImageError(f"cannot use columns with {path}: the layout {found} has none. Leave them out.")
        return (_load_counter_animal if found == "counteranimal" else _load_typographic)(path, classes)
    _require_table(path, found)
    columns = {"label": label, "classes": classes, "group_by": group_by, "split": split, "retention": retention}
    return load_labelled_images(path, purpose=purpose, **columns)


def load_selection_set(path: str | Path, **options: Any) -> LabelledImages:
    """As `load_dataset`, for choosing heads: where there are splits, never the one that is reported on.

    Raises:
        ImageError: Also if the set measures retrieval, as FairFace does.
    """
    found = load_dataset(path, purpose="select", **options)
    if isinstance(found, RetrievalSet):
        raise ImageError(f"cannot choose heads on {path}: it has queries, no classes. Give images with classes.")
    _require_present(found.source, path)
    return found


def open_dataset(dataset: Dataset, options: LabelledOptions | None = None, *, purpose: Purpose = "report") -> Dataset:
    """Read what a user names, so that whatever is wrong with it is said before anything is measured.

    Returns:
        `demo` as it is, labelled images, or a set for retrieval; never a path.

    Raises:
        ImageError: As `load_dataset`, and if images are not there.
    """
    options = options or LabelledOptions()
    if is_demo(dataset) or not isinstance(dataset, str | Path):
        return dataset
    found = load_dataset(dataset, purpose=purpose, **options.columns()).read_as(Decoding(options.exif))
    _require_present(found.source, dataset)
    return replace(found, top=options.top) if isinstance(found, RetrievalSet) else found


def _require_present(source: ImageSource, path: str | Path) -> None:
    """Refuse a table of images that are not there: it must not cost a scan to find that out."""
    missing = [
        name for name, stamp in zip(source.names, source.stamps or source.names, strict=True) if stamp == MISSING
    ]
    if len(missing) > MAX_BAD * len(source):
        raise ImageError(
            f"cannot measure on {path}: {len(missing)} of {len(source)} images are not there, such as {missing[0]}. "
            "Correct the paths, which are relative to the table."
        )


def detect_layout(path: Path) -> Layout:
    """The layout of a path, by what is there."""
    if not path.is_dir() or (path / "metadata.csv").is_file():
        return "table"
    if _celeba_file(path, "list_attr_celeba") is not None:
        return "celeba"
    if any(path.glob("fairface_label_*.csv")):
        return "fairface"
    folders = [folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith(".")]
    if folders and all(_subsets(folder) for folder in folders):
        return "counteranimal"
    # Last, since it may have to look at every file.
    named = any(
        _TYPOGRAPHIC.fullmatch(os.path.splitext(os.path.basename(name))[0]) for name, _ in walk_folder(path).files
    )
    return "typographic" if named else "folders"


def _require_table(path: Path, layout: Layout) -> None:
    table = path / "metadata.csv" if path.is_dir() else path
    if layout == "folders" and (table.is_file() or not path.is_dir()):
        raise ImageError(f"cannot read {path} as folders: it is a table of paths. Use --layout table.")
    if layout in ("table", "waterbirds") and path.is_dir() and not table.is_file():
        raise ImageError(
            f"cannot read {path} as {layout}: it has no metadata.csv. Add one, or choose another --layout."
        )
    if layout == "waterbirds" and table.is_file():
        columns = set(_read_rows(table)[0])
        missing = sorted({"img_filename", "y", "split", "place"} - columns)
        if missing:
            raise ImageError(f"cannot read {table} as waterbirds: no column {missing[0]}. Use --layout table.")


def _load_celeba(
    path: Path, label: str, classes: Mapping[str, str] | None, group_by: Sequence[str], split: str
) -> LabelledImages:
    """`img_align_celeba/`, `list_attr_celeba.{txt,csv}` (1 and -1), `list_eval_partition.{txt,csv}` (0, 1, 2)."""
    attributes, partition = (_celeba_file(path, name) for name in ("list_attr_celeba", "list_eval_partition"))
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
    if classes is None and label != CELEBA_LABEL:
        raise ImageError(f"cannot name the classes of {label}: give --classes with lines `1: words` and `-1: words`.")
    names = classes or CELEBA_CLASSES
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


def _load_fairface(path: Path, classes: Mapping[str, str] | None, group_by: Sequence[str], split: str) -> RetrievalSet:
    """`fairface_label_{split}.csv` with `file,age,gender,race`, paths relative to the folder."""
    table = path / f"fairface_label_{split}.csv"
    if not table.is_file():
        there = ", ".join(sorted(found.name for found in path.glob("fairface_label_*.csv"))) or "none"
        raise ImageError(f"cannot read {path} as FairFace: it has no {table.name}, there is {there}. Choose a --split.")
    rows = _read_rows(table)
    for column in ("file", *group_by):
        if column not in rows[0]:
            raise ImageError(f"cannot read {table}: no column {column}, there are {', '.join(rows[0])}.")
    source = source_of_rows([path / row["file"] for row in rows], rows)
    queries = tuple(classes.values()) if classes else FAIRFACE_QUERIES
    return RetrievalSet(source, queries, {name: tuple(row[name] for row in rows) for name in group_by})


def _load_counter_animal(path: Path, classes: Mapping[str, str] | None) -> LabelledImages:
    """`<class>/{common...,counter...}/`: the same animals on usual and on unusual backgrounds."""
    folders = sorted(folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    for folder in folders:
        missing = {"common", "counter"} - {kind for _, kind in _subsets(folder)}
        if missing:
            raise ImageError(f"cannot read {path} as CounterAnimal: {folder.name} has no folder {min(missing)}...")
    source = list_folder(path, labelled=True)
    parts = [Path(name).parts for name in source.names]
    kinds = {(folder.name, inner): kind for folder in folders for inner, kind in _subsets(folder)}
    # An image that lies directly in a class's folder is in neither subset.
    kept = [i for i, names in enumerate(parts) if len(names) > 2 and names[:2] in kinds]
    words = classes or {folder.name: re.sub(r"^\d+[ _-]+", "", folder.name).replace("_", " ") for folder in folders}
    unknown = sorted({parts[i][0] for i in kept} - words.keys())
    if len(folders) < 2 or unknown or not kept:
        found = f"folder {unknown[0]!r} is no class" if unknown else f"{len(folders)} classes, {len(kept)} images"
        raise ImageError(f"cannot read {path} as CounterAnimal: {found}. Two classes with images are needed.")
    order = list(words)
    subsets = tuple(kinds[parts[i][0], parts[i][1]] for i in kept)
    labels = tuple(order.index(parts[i][0]) for i in kept)
    groups = tuple(f"{words[parts[i][0]]} / {kind}" for i, kind in zip(kept, subsets, strict=True))
    return LabelledImages(source.subset(kept), tuple(words.values()), labels, groups, subsets=subsets)


def _load_typographic(path: Path, classes: Mapping[str, str] | None) -> LabelledImages:
    """`label=<x>_text=<y>.*`: an object with another class's name written on it; groups are the objects."""
    source = list_folder(path, labelled=True)
    found = [_TYPOGRAPHIC.fullmatch(Path(name).stem) for name in source.names]
    if None in found:
        wrong = source.names[found.index(None)]
        raise ImageError(
            f"cannot read {path} as typographic: {wrong!r} is not named label=<x>_text=<y>. Rename or remove it."
        )
    named = [(match["label"], match["text"]) for match in found if match]
    known = set(classes) if classes else {label for label, _ in named}
    pairs = list(zip((label for label, _ in named), strip_copies([text for _, text in named], known), strict=True))
    # What is only written counts as a class too: an image may be taken for it.
    names = classes or {name: name.replace("_", " ") for name in sorted({name for pair in pairs for name in pair})}
    unknown = sorted({name for pair in pairs for name in pair} - names.keys())
    if unknown or len(names) < 2:
        raise ImageError(
            f"cannot read {path}: {unknown[0] if unknown else 'a single name'!r} is no class. Add it to --classes."
        )
    order = list(names)
    labels, written = (tuple(order.index(pair[i]) for pair in pairs) for i in (0, 1))
    return LabelledImages(source, tuple(names.values()), labels, tuple(names[x] for x, _ in pairs), written=written)


def _celeba_file(path: Path, stem: str) -> Path | None:
    return next((path / f"{stem}{end}" for end in (".txt", ".csv") if (path / f"{stem}{end}").is_file()), None)


def _read_celeba(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV, or of the original text files: a count, names of attributes, a line per image; or no heading."""
    if path.suffix == ".csv":
        return _read_rows(path)
    lines = [line.split() for line in _read_text(path).split("\n") if line.strip()]
    headed = len(lines) > 2 and len(lines[0]) == 1
    names = ["image_id", *lines[1]] if headed else ["image_id", "partition"]
    rows = lines[2:] if headed else lines
    wrong = next((i for i, row in enumerate(rows) if len(row) != len(names)), None)
    if wrong is not None or not rows:
        raise ImageError(
            f"cannot read {path}: row {(wrong or 0) + 1} does not have {len(names)} columns. Fetch it again."
        )
    return [dict(zip(names, row, strict=True)) for row in rows]


def _read_rows(path: Path) -> list[dict[str, str]]:
    try:
        rows = read_table(path)
    except (OSError, ValueError) as error:
        raise ImageError(f"cannot read {path}: {error}. Give a CSV in UTF-8 with a header.") from None
    if not rows:
        raise ImageError(f"cannot read {path}: it has no rows. Give a CSV with a header.")
    return [{name: value.strip() for name, value in row.items()} for row in rows]


def _read_text(path: Path) -> str:
    try:
        return read_text(path, most=MAX_TABLE_BYTES)
    except (OSError, ValueError) as error:
        raise ImageError(f"cannot read {path}: {error}. Give a text file in UTF-8.") from None


def _subsets(folder: Path) -> list[tuple[str, str]]:
    """The folders of one animal, each with `common` or `counter`."""
    names = [item.name for item in folder.iterdir() if item.is_dir()]
    return [(name, kind) for name in names for kind in ("common", "counter") if name.lower().startswith(kind)]


def strip_copies(texts: Sequence[str], known: Collection[str]) -> list[str]:
    """Written names without the numbers of copies: `dog (2)` and `dog_2` are `dog`, `boeing_747` is a name.

    A number belongs to the name where the name with it is known, and is a copy's where the name without it is. Where
    neither says so, copies count from 0, 1 or 2 on without a gap.
    """
    texts = [re.sub(r"\s*\(\d+\)$", "", text) or text for text in texts]
    plain = set(known) | {text for text in texts if not _NUMBERED_NAME.fullmatch(text)}
    numbers: dict[str, set[int]] = {}
    for match in filter(None, map(_NUMBERED_NAME.fullmatch, texts)):
        numbers.setdefault(match["name"], set()).add(int(match["number"]))

    def strip(text: str) -> str:
        match = _NUMBERED_NAME.fullmatch(text)
        if match is None or text in known:
            return text
        counted = numbers[match["name"]]
        is_count = min(counted) <= 2 and max(counted) - min(counted) < len(counted)
        return match["name"] if match["name"] in plain or is_count else text

    return [strip(text) for text in texts]
