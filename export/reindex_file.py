"""Stored embeddings carried over with a recipe's files: what stands beside it is found, and fidelity measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..editor.edits.recipe import Recipe, load_recipe
from ..editor.images.demo_name import is_demo
from ..editor.images.listing import list_images
from ..editor.measure.fidelity import Fidelity
from ..editor.measure.reindex import compute_embedding_map, measure_fidelity, reindex_vectors
from ..editor.models.model import Model
from ..editor.scan.scan import Scan, load_scan
from ..editor.scan.tally import Progress
from .inputs import demo_test_images


def load_inputs(
    recipe: Path, scan: Path | None, model: str | None, pretrained: str | None
) -> tuple[Recipe, Scan, tuple[str, str | None]]:
    """A recipe, the scan beside it unless another is given, and the name and weights of its base unless others are."""
    bound = load_recipe(recipe)
    base = bound.document.base
    beside = (recipe if recipe.is_dir() else recipe.parent) / "scan.safetensors"
    return bound, load_scan(scan or beside), (model, pretrained) if model else (base.model, base.pretrained)


def reindex_file(
    vectors: Path,
    out: Path,
    recipe: Recipe,
    scan: Scan,
    model: Model,
    *,
    images: str | None = None,
    say: Callable[[str], None] = lambda message: None,
    progress: Progress | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Map a file of stored embeddings, and measure the map on held-out images: for the demo model on its test images.

    Args:
        say: Told if there are no images to measure on.
        options: Of `reindex_vectors`.

    Returns:
        `rows`, and `fidelity`: of embeddings as stored, reindexed and, for comparison, distilled.
    """
    mapping = compute_embedding_map(recipe, scan, model)
    # First: it refuses what cannot be mapped, before any image is read.
    rows = reindex_vectors(mapping, vectors, out, **options)
    if images is None and not is_demo(model.name):
        say("fidelity not measured: add --images DIR, a few hundred images that the scan did not see.")
        return {"rows": rows, "fidelity": {}}
    source = list_images(images) if images else demo_test_images()
    found = measure_fidelity(mapping, recipe, scan, model, source, progress=progress)
    return {"rows": rows, "fidelity": _plain(found)}


def _plain(found: Mapping[str, Fidelity]) -> dict[str, dict[str, float]]:
    return {name: {key: value for key, value in asdict(row).items() if key != "images"} for name, row in found.items()}
