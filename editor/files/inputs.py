"""Inputs that must be there. Nothing here needs torch: a misspelt path is refused before anything heavy is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import AlignmentError, ConceptError, ExportError, ImageError, ModelError, StatisticsError, VectorError

# Of an edited folder: what was done to it, and what takes that back.
HISTORY_FOLDER = "history"
# Of an export: what it was made from.
EXPORT_FOLDER = "reproduce"
# Of a folder that was written for use: what was checked of it.
REPORT_NAME = "verification.json"


def require_scan_file(path: Path) -> None:
    """Refuse a scan that is not there.

    Raises:
        StatisticsError: With how one is made.
    """
    if not path.is_file():
        raise StatisticsError(
            f"cannot read the scan {path}: no such file. Make it with `clipedit scan IMAGES -o {path}`."
        )


def list_scan_files(paths: Sequence[str | Path]) -> list[Path]:
    """The scans that are named, and those in the folders that are.

    Raises:
        StatisticsError: If one is not there, or a folder holds none.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            require_scan_file(path)
        inside = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        if not inside:
            raise StatisticsError(f"cannot merge {path}: it holds no partial scan. Make some with `clipedit scan`.")
        found += inside
    return found


def require_weights_path(given: Path) -> None:
    """Refuse weights that are neither there nor named with a tag.

    Raises:
        ModelError: With their name.
    """
    # `name:tag` and hub names are for the libraries that know them.
    if not given.exists() and ":" not in str(given):
        raise ModelError(f"cannot read {given}: no such file.")


def require_history_folder(folder: Path, *, is_empty: bool = False) -> None:
    """Refuse a folder that does not say what was done to it.

    Raises:
        ModelError: With what may be given.
    """
    if not folder.is_dir():
        raise ModelError(f"cannot read the history of {folder}: there is no such folder.")
    if (folder / EXPORT_FOLDER).is_dir():
        raise ModelError(
            f"cannot read the history of {folder}: it is an export, which is made anew and keeps none. Give the folder "
            "that was exported, and export what `apply --undo` makes of it."
        )
    if is_empty or not (folder / HISTORY_FOLDER).is_dir():
        raise ModelError(
            f"cannot read the history of {folder}: it has no {HISTORY_FOLDER}/. Give a folder that `apply` or "
            "`remove-heads` of this version wrote."
        )


def require_verified_folder(folder: Path) -> None:
    """Refuse to push what nobody verified.

    Raises:
        ExportError: With who writes such folders.
    """
    if not (folder / REPORT_NAME).is_file():
        raise ExportError(
            f"cannot push {folder}: it has no {REPORT_NAME}. Give a folder that `clipedit export` or `remove-heads` "
            "wrote."
        )


def require_features_file(path: Path) -> None:
    """Refuse features that are not there.

    Raises:
        StatisticsError: With how they are made.
    """
    if not path.is_file():
        raise StatisticsError(
            f"cannot read features from {path}: no such file. Make it with `clipedit scan IMAGES --keep-features`."
        )


def require_aligner_file(path: Path) -> None:
    """Refuse an aligner that is not there.

    Raises:
        AlignmentError: With how one is made.
    """
    if not path.is_file():
        raise AlignmentError(
            f"cannot read the aligner {path}: no such file. "
            f"Make it with `clipedit align MODEL --to CLIP --images DIR -o {path}`."
        )


def require_aligner_or_clip(path: Path) -> None:
    """As `require_aligner_file`; in its place the CLIP may be named whose image tower the model is."""
    if not path.is_dir() and ":" not in str(path):
        require_aligner_file(path)


def require_images_path(path: Path) -> None:
    """Refuse a folder, a table or a shard of images that is not there.

    Raises:
        ImageError: With what may be given.
    """
    if not path.exists():
        raise ImageError(
            f"cannot read images from {path}: there is no such folder. Give a folder, a CSV with a column of paths, "
            "tar or Parquet shards, or `demo`."
        )


def require_vectors_file(path: Path) -> None:
    """Refuse stored embeddings that are not there.

    Raises:
        VectorError: With what may be given.
    """
    if not path.is_file():
        raise VectorError(f"cannot read vectors from {path}: no such file. Give a .npy or .parquet file.")


def require_image_file(path: Path) -> None:
    """Refuse an image that is not there.

    Raises:
        ImageError: With its name.
    """
    if not path.is_file():
        raise ImageError(f"cannot read {path}: there is no such file.")


def require_query(text: object, image: object) -> None:
    """Refuse two queries, or none.

    Raises:
        ConceptError: If there is not exactly one.
    """
    if (text is None) == (image is None):
        raise ConceptError("cannot search without one query. Give --text or --image, not both.")
