"""Inputs that must be there. Nothing here needs torch: a misspelt path is refused before anything heavy is loaded."""

from __future__ import annotations

from pathlib import Path

from ..errors import AlignmentError, ConceptError, ImageError, StatisticsError


def require_scan_file(path: Path) -> None:
    """Refuse a scan that is not there.

    Raises:
        StatisticsError: With how one is made.
    """
    if not path.is_file():
        raise StatisticsError(
            f"cannot read the scan {path}: no such file. Make it with `clipedit scan IMAGES -o {path}`."
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
