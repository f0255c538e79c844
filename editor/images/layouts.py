"""Layouts of published data sets: CelebA, FairFace, CounterAnimal and typographic sets, read into one form.

Which one a folder has is seen by what is in it; the classes and columns have the field's usual defaults.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..choices import Exif, Layout
from ..errors import ImageError, PluginError, nearest_names
from ..files.walk import walk_folder
from ..plugins import LAYOUT, ask_plugin, find_plugins, load_plugin, load_usable, why_no_function
from .decode import Decoding
from .demo import SHAPES
from .demo_name import is_demo
from .labelled import load_labelled_images
from .labelled_options import DEFAULT_TEMPLATES, LabelledOptions, Purpose, is_split
from .listing import METADATA_NAMES, MISSING, find_metadata
from .packed.parquet import PARQUET_SUFFIXES
from .published.animals import find_halves, load_counter_animal
from .published.asked import Asked, read_rows
from .published.captions import CaptionSet
from .published.celeba import celeba_file, load_celeba
from .published.clip_benchmark import find_webdataset, load_webdataset
from .published.faces import is_utkface, load_fairface, load_utkface
from .published.hub_parquet import is_parquet, load_parquet
from .published.imagenet9 import find_imagenet9, load_imagenet9
from .published.nested import find_spawrious, is_spuco, is_urban_cars, load_spawrious, load_spuco, load_urban_cars
from .published.subpop import find_subpop, load_subpop
from .published.sugarcrepe import find_sugarcrepe, load_sugarcrepe
from .published.typographic import TYPOGRAPHIC, find_scam, is_scam, load_scam, load_typographic
from .skew import RetrievalSet
from .source import ImageSource, LabelledImages

# What a user names, or what was read from it.
Dataset = str | Path | LabelledImages | RetrievalSet | CaptionSet
# Of the images that are measured; as `collect_embeddings` tolerates.
MAX_BAD = 0.01
# What a set is read into: images with classes, with neutral queries, or with captions.
Read = LabelledImages | RetrievalSet | CaptionSet
# Each layout of a published data set, and what reads it.
_READERS: Mapping[str, Callable[[Path, Asked], Read]] = {
    "celeba": load_celeba,
    "fairface": load_fairface,
    "counteranimal": load_counter_animal,
    "typographic": load_typographic,
    "webdataset": load_webdataset,
    "subpopbench": load_subpop,
    "scam": load_scam,
    "utkface": load_utkface,
    "spawrious": load_spawrious,
    "urbancars": load_urban_cars,
    "spuco": load_spuco,
    "imagenet9": load_imagenet9,
    "sugarcrepe": load_sugarcrepe,
    "parquet": load_parquet,
}
# Those that may be one file, of which the last are told from others by what is in it; all others are folders.
_TABLES = ("subpopbench", "scam", "sugarcrepe")
_FILES = ("table", "waterbirds", "folders", "parquet", *_TABLES)
# Those whose readers refuse a second task themselves, or have columns for it.
_RETENTION = ("table", "waterbirds", "parquet", *_TABLES, "utkface", "spawrious", "urbancars", "spuco")


def load_dataset(
    path: str | Path,
    *,
    layout: Layout | str | None = None,
    label: str | None = None,
    classes: Mapping[str, str] | None = None,
    group_by: Sequence[str] = (),
    split: str | None = None,
    retention: str | None = None,
    purpose: Purpose = "report",
) -> Read:
    """Read a labelled set in any known layout.

    Args:
        layout: By default what `detect_layout` sees.
        label, classes, group_by, split, retention: As for `load_labelled_images`. CelebA: an attribute, words for `1`
            and `-1`, other attributes, `0`, `1` or `2` (training, validation, test). FairFace: `classes` are the
            queries' words, `group_by` the attributes, `split` is `val` by default. What other published sets have is
            said by their readers in `editor/images/published/`.
        purpose: What the images are for: says which split is kept where none is named.

    Raises:
        ImageError: If the folder does not have the layout, or a column, class or split is missing.
        PluginError: If the layout is a plugin's that cannot be used.
    """
    path = Path(path)
    found = layout or detect_layout(path)
    asked = Asked(label, classes, tuple(group_by), split, retention, purpose)
    if found not in LAYOUT.own:
        return _read_by_plugin(found, path, asked)
    if retention and found not in _RETENTION:
        raise ImageError(f"cannot use --retention with {path}: the layout {found} has no columns for it. Leave it out.")
    if found not in _FILES and not path.is_dir():
        raise ImageError(f"cannot read {path} as {found}: there is no such folder. Give the folder of the data set.")
    if found in _READERS:
        return _READERS[found](path, asked)
    columns = {"label": label, "classes": classes, "group_by": group_by, "split": split, "retention": retention}
    return load_labelled_images(_find_table(path, found), purpose=purpose, **columns)


def why_no_layout(loaded: Any) -> str | None:
    """What a plugin's layout lacks: `is_there(path)` sees whether a path has it, and `read(path, asked)` reads it."""
    lacking = next((name for name in ("is_there", "read") if not hasattr(loaded, name)), None)
    if lacking is not None:
        return f"it has no {lacking}"
    return why_no_function(loaded.is_there) or why_no_function(loaded.read)


def _read_by_plugin(name: str, path: Path, asked: Asked) -> Read:
    plugin = find_plugins(LAYOUT).get(name)
    if plugin is None:
        raise ImageError(f"cannot read {path} as {name}: no such layout. {nearest_names(name, LAYOUT.names())}")
    found = plugin.call(load_plugin(plugin, why_no_layout).read, path, asked)
    if not isinstance(found, Read):
        raise PluginError(
            f"cannot use {plugin}: it must answer LabelledImages, RetrievalSet or CaptionSet, not "
            f"{type(found).__name__}."
        )
    return found


def load_selection_set(path: str | Path, *, exif: Exif = LabelledOptions.exif, **options: Any) -> LabelledImages:
    """As `load_dataset`, for choosing heads: where there are splits, never the one that is reported on.

    Args:
        exif: As in `LabelledOptions`, for the images and those of the second task.

    Raises:
        ImageError: Also if the set measures retrieval, as FairFace does.
    """
    found = load_dataset(path, purpose="select", **options)
    if not isinstance(found, LabelledImages):
        what = "queries" if isinstance(found, RetrievalSet) else "captions"
        raise ImageError(f"cannot choose heads on {path}: it has {what}, no classes. Give images with classes.")
    _require_present(found.source, path)
    return found.read_as(Decoding(exif))


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
    if isinstance(found, LabelledImages) and found.templates and options.templates != DEFAULT_TEMPLATES:
        # Prompts that were given stand in place of those of the set.
        return replace(found, templates=options.templates)
    return replace(found, top=options.top) if isinstance(found, RetrievalSet) else found


def list_classes(task: Dataset) -> tuple[str, ...]:
    """The texts that a set's images are told apart by: its classes, queries or captions; of the demo its shapes.

    A path is not read: it has none.
    """
    if isinstance(task, CaptionSet):
        return tuple(caption for captions in task.captions for caption in captions)
    if isinstance(task, RetrievalSet):
        return tuple(task.queries)
    if isinstance(task, LabelledImages):
        return tuple(task.classes)
    return SHAPES if is_demo(task) else ()


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


def detect_layout(path: Path) -> Layout | str:
    """The layout of a path, by what is there."""
    is_folder = path.is_dir()
    for name, is_there in _SIGNS.items():
        if (is_folder or name in _TABLES) and is_there(path):
            return name
    for plugin, layout in load_usable(LAYOUT, why_no_layout):
        if ask_plugin(plugin, layout.is_there, path):
            return plugin.name
    if not is_folder:
        return _name_parquet(path) if path.suffix.lower() in PARQUET_SUFFIXES else "table"
    # Walked once for all of them: a folder may hold millions of files.
    files = [name for name, _ in walk_folder(path).files]
    names = [os.path.basename(name) for name in files]
    for name, are_named_so in _NAMED.items():
        if are_named_so(names):
            return name
    return _name_parquet(path) if is_parquet(path, files) else "folders"


def _name_parquet(path: Path) -> Layout:
    return "scam" if is_scam(path) else "parquet"


def _is_table(path: Path) -> bool:
    return (path / METADATA_NAMES[0]).is_file()


def _is_counter_animal(path: Path) -> bool:
    folders = [folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith(".")]
    return bool(folders) and all(find_halves(folder) for folder in folders)


def _is_typographic(names: Sequence[str]) -> bool:
    return any(TYPOGRAPHIC.fullmatch(os.path.splitext(name)[0]) for name in names)


# What is seen first is meant.
_SIGNS: Mapping[Layout, Callable[[Path], object]] = {
    "sugarcrepe": find_sugarcrepe,
    "webdataset": find_webdataset,
    "scam": find_scam,
    "celeba": lambda path: celeba_file(path, "list_attr_celeba") and not _is_table(path),
    "subpopbench": find_subpop,
    "table": _is_table,
    "fairface": lambda path: any(path.glob("fairface_label_*.csv")),
    "imagenet9": find_imagenet9,
    "spawrious": find_spawrious,
    "urbancars": is_urban_cars,
    "spuco": is_spuco,
    "counteranimal": _is_counter_animal,
}
# Seen after all of those, by the names of all files.
_NAMED: Mapping[Layout, Callable[[Sequence[str]], bool]] = {"utkface": is_utkface, "typographic": _is_typographic}


def _find_table(path: Path, layout: str) -> Path:
    """The table that a layout is read from; the folder itself where its folders are the classes or splits with tables.

    Raises:
        ImageError: If the path is not of that layout.
    """
    table = find_metadata(path) if path.is_dir() else path
    if layout == "folders":
        if not path.is_dir() or _is_table(path):
            raise ImageError(f"cannot read {path} as folders: it is a table of paths. Use --layout table.")
        return path
    if table is None and any(find_metadata(folder) for folder in path.iterdir() if is_split(folder.name)):
        return path
    if table is None:
        names = " or ".join(METADATA_NAMES)
        raise ImageError(f"cannot read {path} as {layout}: it has no {names}. Add one, or choose another --layout.")
    if layout == "waterbirds" and table.is_file():
        missing = sorted({"img_filename", "y", "split", "place"} - set(read_rows(table)[0]))
        if missing:
            raise ImageError(f"cannot read {table} as waterbirds: no column {missing[0]}. Use --layout table.")
    return table
