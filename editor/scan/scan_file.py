"""A scan written to a file: in one pass, or unit by unit, so that what is interrupted goes on and several workers
share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ImageError
from ..files.whole import require_free_file
from ..images.listing import list_images
from ..images.units import WorkUnit, list_units
from ..models.model import Model
from .by_units import scan_units
from .features import compute_features_bytes, features_path
from .partials import partials_folder
from .scan import Scan, choose_layers, scan
from .tally import Progress


@dataclass(frozen=True)
class ScanFile:
    """What was written: the scan, or one worker's partial scans.

    Attributes:
        scan: None where only a shard was scanned.
        what: What was scanned, such as `images` or `items of 12 units`.
        folder: Where partial scans are.
        shard: Which shard that was, `(i, N)`.
        done: How many of `units` have a partial scan.
    """

    path: Path
    scan: Scan | None
    what: str
    folder: Path
    shard: tuple[int, int] | None = None
    done: int = 0
    units: int = 0


def scan_to_file(
    model: Model,
    images: str,
    out: Path,
    *,
    unit_size: int | None = None,
    shard: tuple[int, int] | None = None,
    resume: bool = True,
    keep_features: bool = False,
    overwrite: bool = False,
    engine: Any = None,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda message: None,
    **options: Any,
) -> ScanFile:
    """Scan, and write the scan.

    Args:
        unit_size: Images per work unit; 0 for one pass. By default what `list_units` takes.
        shard: `(i, N)`: only the units of worker `i` of `N`; `merge_partials` sums them.
        keep_features: Also write every image's features, beside the scan.
        say: Told what is reused, and how large the features will be.
        options: Of `scan`.

    Raises:
        ImageError: If there are no images, too many cannot be read, or units failed.
        ExportError: If `out` is not free.
    """
    require_free_file(out, overwrite=overwrite)
    # Features are one file over all images, written in one pass.
    units = list_units(images, 0 if keep_features else unit_size, texts=model.side == "text")
    if len(units) > 1 or shard or engine is not None:
        found = {"shard": shard, "resume": resume, "engine": engine, "progress": progress, "say": say}
        return _scan_in_units(model, units, out, **found, **options)
    kept = features_path(out) if keep_features else None
    if kept is not None:
        say(_describe_features(kept, model, images, options.get("layers"), options.get("mlps", False)))
    result = scan(model, units[0].open(), keep_features=kept, progress=progress, **options)
    result.save(out)
    return ScanFile(out, result, "images" if model.side == "image" else "texts", partials_folder(out))


def _scan_in_units(
    model: Model, units: list[WorkUnit], out: Path, *, shard: tuple[int, int] | None, **options: Any
) -> ScanFile:
    folder = partials_folder(out)
    found = scan_units(model, units, folder, shard=shard or (0, 1), **options)
    if found.failed:
        name, reason = next(iter(found.failed.items()))
        raise ImageError(
            f"cannot finish the scan: {len(found.failed)} units failed, such as {name}: {reason} "
            "Run the same command again: only they are computed; "
            f"or leave them out: clipedit merge {folder} -o {out} --allow-missing"
        )
    if shard is not None:
        return ScanFile(out, None, "units", folder, shard, len(found.files), len(units))
    # What the caller leaves out keeps the default of `merge`.
    allowed = {"max_bad": options["max_bad"]} if "max_bad" in options else {}
    merged = found.merge(**allowed)
    merged.save(out)
    # Only now that their sum is on disk.
    found.remove()
    return ScanFile(out, merged, f"items of {len(units)} units", folder, None, len(units), len(units))


def _describe_features(path: Path, model: Model, images: str, layers: Sequence[int] | None, mlps: bool) -> str:
    count = len(list_images(images))
    size = compute_features_bytes(model, model.tower.groups(choose_layers(model, layers), mlps=mlps), count)
    return f"features of {count} images will take {size / 1e6:.1f} MB in {path}"
