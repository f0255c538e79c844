"""desk: from a scan and labelled images to the page. No label is needed for its other half."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

import torch

from ....editor.components import Features, take_rows
from ....editor.concepts.concepts import Concept, load_concept
from ....editor.concepts.textspan import text_span
from ....editor.edits.bind import bind_recipe
from ....editor.edits.document import RecipeDocument
from ....editor.edits.held_out import estimate_fidelity
from ....editor.edits.recipe import Recipe
from ....editor.errors import ModelError, StatisticsError, require_kinds
from ....editor.files.whole import write_text
from ....editor.images.labelled_options import LabelledOptions
from ....editor.images.layouts import Dataset
from ....editor.images.texts import load_texts
from ....editor.measure.control import DRAWS
from ....editor.measure.verdict import CONTROL_SPREADS, GOALS, KEPT, TOLERATED
from ....editor.models.model import Model
from ....editor.scan.scan import Scan
from ....editor.scan.tally import Progress
from ....editor.select.whose_heads import HeldConcepts
from .concepts import (
    Projection,
    choose_concept,
    choose_watched,
    describe_held,
    find_projections,
    join_span,
    watch,
)
from .heat import draw_heat, pack_heat
from .labelled import Labelled, open_labelled_images
from .pack import Blob, Packed, pack_heads, pack_held, pack_labelled, pack_plain, pack_projections
from .page import render_desk
from .presets import Preset, find_default, output_steps, read_preset, search_front
from .sheet import draw_thumbnails
from .terms import HeadParts, choose_rows, find_parts

COUNT, PLAIN, TEXTS = 1000, 256, 6


@dataclass(frozen=True)
class Desk:
    """A page on which an edit is seen before it is made: one file, without a network."""

    html: str
    facts: dict[str, Any]

    @property
    def size(self) -> int:
        """Bytes of the page."""
        return len(self.html.encode())

    def describe(self) -> str:
        """How much is on it: `1000 of 4096 labelled images x 32 heads`."""
        labelled = self.facts["labelled"]
        images = f"{labelled['images']} of {labelled['total']} labelled images" if labelled else "no labelled images"
        return f"{images} x {len(self.facts['heads'])} heads"

    def save(self, path: str | Path) -> Path:
        """Write the page."""
        write_text(Path(path), self.html)
        return Path(path)

    def _repr_html_(self) -> str:
        framed = escape(self.html)
        return (
            '<iframe title="clipedit desk" sandbox="allow-scripts allow-downloads" style="width:100%;height:900px;'
            f'border:0;border-radius:12px" srcdoc="{framed}"></iframe>'
        )


def desk(
    scan: Scan,
    model: Model,
    *,
    concept: str | Concept | None = None,
    dataset: Dataset | None = None,
    labels: LabelledOptions | None = None,
    recipe: Recipe | None = None,
    count: int = COUNT,
    progress: Progress | None = None,
) -> Desk:
    """Lay out the heads of a model to be switched by hand, with what that changes computed in the page.

    Figures are those of the `direct` effect, exact for any heads and strengths; the page says how near a `distilled`
    recipe comes.

    Args:
        concept: What is to be removed; by default the one that a few heads hold most selectively.
        dataset: Labelled images to measure on: not those that you report on, since whoever plays with an edit chooses
            it by them. Without them the page shows what unlabelled images tell.
        labels: How the dataset is read.
        recipe: An edit to begin with.
        count: At most so many labelled images, each group with its share.

    Raises:
        ModelError: If the model has no texts, is read through an aligner or is a text tower.
        ConceptError, ImageError, StatisticsError: If what was given cannot be used.
    """
    require_kinds("lay out the desk", scan=(scan, Scan), model=(model, Model))
    _require_usable(model)
    known = HeldConcepts(scan, model)
    named = load_concept(concept, model.folder) if isinstance(concept, str) else concept or choose_concept(known)
    effects = [effect for effect in ("distilled", "direct") if model.tower.why_not(effect) is None]
    default = find_default(known, named, effects[0])
    concepts = choose_watched(known, named)
    steps = output_steps([recipe.document if recipe else None, default])
    offered = find_projections(model, effects[0], concepts, steps)
    labelled = None
    if dataset is not None:
        labelled = open_labelled_images(scan, model, dataset, labels, concepts, count=count, progress=progress)
    facts = {
        "model": {"name": model.name, "pretrained": model.pretrained},
        "concept": named.name,
        "effects": effects,
        "fidelity": _estimate(default, scan, model),
        "calibration": scan.statistics.n,
        "rules": {"goals": GOALS, "kept": KEPT, "tolerated": TOLERATED, "spreads": CONTROL_SPREADS, "draws": DRAWS},
        "concepts": pack_held(describe_held(known, concepts)),
    }
    presets = [
        *([read_preset(recipe.document, "recipe", recipe.document.name, offered)] if recipe else []),
        *([read_preset(default, "default", "Default", offered)] if default else []),
    ]
    laid = Laid(known, concepts, offered, [preset for preset in presets if preset is not None], labelled)
    packed = _pack(laid, facts, progress)
    return Desk(render_desk(packed), packed.facts)


@dataclass(frozen=True)
class Laid:
    """What lies on a desk before it is packed."""

    known: HeldConcepts
    concepts: Sequence[Concept]
    offered: Sequence[Projection]
    presets: Sequence[Preset]
    labelled: Labelled | None


def _pack(laid: Laid, facts: dict[str, Any], progress: Progress | None) -> Packed:
    scan, model, labelled = laid.known.scan, laid.known.model, laid.labelled
    parts, blob = find_parts(scan, model), Blob()
    span = join_span(laid.offered, model.tower.d_embed)
    pool = load_texts(model_folder=model.folder)
    labels = text_span(scan, model, texts=pool, texts_per_head=min(TEXTS, model.tower.d_head))
    plain = _plain_features(scan, labelled)
    watched = watch(laid.known, laid.concepts, plain)
    sheet = draw_thumbnails(labelled.source) if labelled else None
    heat = draw_heat(model, labelled, labels, parts.heads, progress=progress) if labelled else {}
    found = {
        "heads": pack_heads(parts, labels),
        "heat": pack_heat(heat),
        "projections": pack_projections(laid.offered, span),
        "span": span.shape[1],
        "presets": [asdict(preset) for preset in laid.presets],
        "front": [asdict(preset) for preset in _search(laid, parts)],
        "plain": pack_plain(blob, parts, plain, watched, span),
        "labelled": pack_labelled(blob, parts, labelled, span) if labelled else None,
        "sheet": {"columns": sheet.columns, "rows": sheet.rows} if sheet else None,
    }
    return Packed(facts | found | {"places": blob.places}, b"".join(blob.chunks), sheet)


def _require_usable(model: Model) -> None:
    if model.side == "text" or model.alignment is not None or not model.has_texts:
        what = "is read through an aligner" if model.alignment is not None else "has no texts"
        what = "is a text tower" if model.side == "text" else what
        raise ModelError(
            f"cannot lay out {model.name}: it {what}, the desk shows image towers with texts of their own. Use "
            "`clipedit score` and `clipedit label`."
        )


def _search(laid: Laid, parts: HeadParts) -> list[Preset]:
    """The front of a search by labels; none without groups to compare."""
    if laid.labelled is None or len(set(laid.labelled.strata)) < 2:
        return []
    default = next((one for one in laid.presets if one.kind == "default"), None)
    return search_front(laid.known, parts, laid.labelled, default, laid.offered)


def _plain_features(scan: Scan, labelled: Labelled | None) -> Features:
    """Images that need no label: the scan's sample, else the labelled ones.

    Raises:
        StatisticsError: If there are neither.
    """
    found = scan.sample.features if scan.sample is not None else labelled.features if labelled else None
    if found is None:
        raise StatisticsError(
            "cannot lay out the desk: the scan has no sample of images. Scan again, or give images with --dataset."
        )
    return take_rows(found, torch.tensor(choose_rows(found, PLAIN)))


def _estimate(default: RecipeDocument | None, scan: Scan, model: Model) -> dict[str, Any] | None:
    """How much of what the direct default edit changes the distilled one reproduces, on images left out."""
    # Nothing is bound for a `direct` edit, which the page reproduces as it is.
    if default is None or default.effect != "distilled":
        return None
    found = estimate_fidelity(bind_recipe(default, scan, model), scan, model)
    return None if found is None else {"explained": found.explained_change, "images": found.images}
