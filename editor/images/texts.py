"""Pools of texts, and texts as a source that is scanned: the text tower's images."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from ... import recipes
from ..errors import ConceptError, ImageError
from ..files.tables import read_lines
from .demo import demo_captions
from .demo_name import is_demo
from .source import ImageSource


def list_texts(source: object) -> ImageSource:
    """The texts of a file, one a line; `demo` stands for captions of the embedded world.

    Raises:
        ImageError: If the source is not a file of texts.
        ConceptError: If the file cannot be read or holds no text.
    """
    if isinstance(source, ImageSource) and source.holds_texts:
        return source
    if is_demo(source):
        return text_source(demo_captions())
    if not isinstance(source, str | Path) or Path(source).is_dir():
        raise ImageError("cannot scan a text tower on images: texts are needed. Give a file with one text per line.")
    return text_source(load_texts(source))


def text_source(texts: tuple[str, ...]) -> ImageSource:
    """A source of given texts; they are their own names."""
    return ImageSource(texts, lambda index: texts[index], holds_texts=True)  # pyright: ignore[reportArgumentType]


MAX_LINES_BYTES = 2**30


def load_texts(path: str | Path | None = None, model_folder: Path | None = None) -> tuple[str, ...]:
    """The pool for TextSpan: a file with one text per line, by default the model's `texts.txt`, else the general pool.

    Raises:
        ConceptError: If the file cannot be read or holds no text.
    """
    general = Path(str(resources.files(recipes) / "texts" / "general.txt"))
    own = model_folder / "texts.txt" if model_folder else general
    chosen = Path(path) if path is not None else own if own.is_file() else general
    try:
        lines = read_lines(chosen, most=MAX_LINES_BYTES)
    except (OSError, ValueError) as error:
        raise ConceptError(f"cannot read texts from {chosen}: {error}.") from None
    texts = tuple(dict.fromkeys(lines))
    if not texts:
        raise ConceptError(f"cannot use {chosen}: it holds no text. Write one text a line.")
    return texts


def load_pools(paths: Sequence[Path] | None = None, model_folder: Path | None = None) -> dict[str, tuple[str, ...]]:
    """Pools of texts by name: the files given, by default the model's own pool, if it has one, and the general one.

    Raises:
        ConceptError: As `load_texts`.
    """
    if paths:
        return {path.stem: load_texts(path) for path in paths}
    # Where the model has no pool of its own, this is the general one again.
    own = load_texts(model_folder=model_folder)
    general = load_texts()
    return {"general": general} if own == general else {"own": own, "general": general}
