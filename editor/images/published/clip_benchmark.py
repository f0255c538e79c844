"""Webdatasets as CLIP_benchmark reads them: `<split>/nshards.txt` and `<split>/0.tar`, with class names and prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...errors import ImageError
from ...files.bounded import read_text
from ...files.locations import Location, locate_file
from ..labelled_options import ALL, choose_split
from ..packed.tar import open_samples
from ..source import ImageSource, LabelledImages, join_sources
from .asked import Asked
from .captions import CaptionSet

SHARDS, KIND = "nshards.txt", "dataset_type.txt"
CLASSES, TEMPLATES = "classnames.txt", "zeroshot_classification_templates.txt"


def find_webdataset(path: Path) -> Path | None:
    """The folder of the set: the given one, or that above if the given one is a split."""
    if any(path.glob(f"*/{SHARDS}")):
        return path
    return path.parent if (path / SHARDS).is_file() else None


def load_webdataset(path: Path, asked: Asked) -> LabelledImages | CaptionSet:
    """Images with classes, each in a group of its own, or with captions where `dataset_type.txt` says `retrieval`.

    Prompts are those of the set, word by word, as CLIP_benchmark takes them.

    Raises:
        ImageError: If a file or a shard is missing, or an image has no class or no caption.
    """
    root = find_webdataset(path)
    if root is None:
        raise ImageError(f"cannot read {path} as CLIP_benchmark: it has no SPLIT/{SHARDS}. Give the folder of the set.")
    asked.require_no_columns(path, "webdataset", splits=True)
    splits = _choose_splits(path, root, asked)
    kind = _read(root / KIND).strip().lower() if (root / KIND).is_file() else "classification"
    shards = [shard for split in splits for shard in _list_shards(root / split)]
    named = splits[0] if len(splits) == 1 else None
    if kind == "retrieval":
        source, texts = _open(shards, ".txt")
        return CaptionSet(source, tuple(map(_cut_captions, texts, source.names)), named)
    if kind != "classification":
        raise ImageError(
            f"cannot measure on {root}: {KIND} says {kind}, only classification (one class an image) and retrieval are."
        )
    return _label(root, shards, asked, named)


def _choose_splits(path: Path, root: Path, asked: Asked) -> list[str]:
    there = sorted(found.parent.name for found in root.glob(f"*/{SHARDS}"))
    if asked.split == ALL and ALL not in there:
        return there
    # Who names a split's folder means that split.
    inner = path.name if path != root else None
    chosen = asked.split or inner or choose_split(there, asked.purpose) or (there[0] if len(there) == 1 else None)
    if chosen not in there:
        what = f"no split {chosen}" if chosen else "several splits"
        raise ImageError(f"cannot use {root}: it has {what}, there are {', '.join(there)}. Choose a --split.")
    return [chosen]


def _list_shards(folder: Path) -> list[Location]:
    file = folder / SHARDS
    text = _read(file).strip()
    if not text.isdigit() or int(text) < 1:
        raise ImageError(f"cannot read {file}: it says {text[:20]!r}, the number of shards is needed.")
    shards = [folder / f"{number}.tar" for number in range(int(text))]
    missing = next((shard for shard in shards if not shard.is_file()), None)
    if missing is not None:
        raise ImageError(f"cannot read {folder}: {SHARDS} says {text}, but {missing.name} is not there. Fetch it.")
    return [locate_file(f"{folder.name}/{shard.name}", str(shard)) for shard in shards]


def _open(shards: Sequence[Location], part: str) -> tuple[ImageSource, list[str]]:
    opened = [open_samples(shard, part) for shard in shards]
    return join_sources([source for source, _ in opened]), [text for _, texts in opened for text in texts]


def _cut_captions(text: str, name: str) -> tuple[str, ...]:
    captions = tuple(line for line in text.splitlines() if line.strip())
    if not captions:
        raise ImageError(f"cannot use {name}: its .txt holds no caption. Write one a line.")
    return captions


def _label(root: Path, shards: Sequence[Location], asked: Asked, split: str | None) -> LabelledImages:
    words, templates = _read_classes(root, asked), _read_templates(root)
    source, texts = _open(shards, ".cls")
    labels = tuple(_parse_class(text, name, len(words)) for text, name in zip(texts, source.names, strict=True))
    groups = tuple(words[label] for label in labels)
    return LabelledImages(source, words, labels, groups, templates=templates, split=split)


def _read_classes(root: Path, asked: Asked) -> tuple[str, ...]:
    """The words of classes 0, 1 and so on; those that `--classes` names by number or by word are replaced."""
    file = root / CLASSES
    if not file.is_file() and not asked.classes:
        raise ImageError(f"cannot read {root}: it has no {CLASSES}. Add it, one class per line, or give --classes.")
    lines = [line.strip() for line in _read(file).rstrip().split("\n")] if file.is_file() else list(asked.classes or {})
    empty = next((number for number, line in enumerate(lines, start=1) if not line), None)
    if empty is not None or len(lines) < 2:
        what = f"line {empty} is empty" if empty else "two classes are needed"
        raise ImageError(f"cannot read {file}: {what}. Write one class per line.")
    given = asked.classes or {}
    unknown = sorted(set(given) - set(lines) - set(map(str, range(len(lines)))))
    if unknown:
        raise ImageError(f"cannot use --classes: {unknown[0]!r} is no class of {file}, nor a number of one.")
    return tuple(given.get(str(number), given.get(line, line)) for number, line in enumerate(lines))


def _read_templates(root: Path) -> tuple[str, ...]:
    """The set's own prompts, `{c}` spelled as `{}`; empty where it has none."""
    file = root / TEMPLATES
    lines = [line.strip() for line in _read(file).split("\n")] if file.is_file() else []
    wrong = next((number for number, line in enumerate(lines, start=1) if line and "{c}" not in line), None)
    if wrong is not None:
        raise ImageError(f"cannot use {file}: line {wrong} has no {{c}} where the class goes. Correct it.")
    return tuple(line.replace("{c}", "{}") for line in lines if line)


def _parse_class(text: str, name: str, classes: int) -> int:
    text = text.strip()
    if not text.isdigit() or int(text) >= classes:
        raise ImageError(
            f"cannot use {name}: its .cls says {text[:20]!r}, a number from 0 to {classes - 1} is needed: there are "
            f"{classes} lines in {CLASSES}."
        )
    return int(text)


def _read(file: Path) -> str:
    try:
        return read_text(file)
    except (OSError, ValueError) as error:
        raise ImageError(f"cannot read {file}: {error}. Fetch it again.") from None
