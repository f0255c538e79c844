"""report: one self-contained HTML page on a folder of `remove-heads`. No script, no network, nothing unescaped."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml

from ...editor.components import HeadId
from ...editor.concepts.concepts import Concept, list_concepts, load_concept
from ...editor.concepts.scores import HeadScore, score_heads
from ...editor.concepts.textspan import text_span
from ...editor.edits.apply import apply_recipe
from ...editor.edits.document import require_recipe_file
from ...editor.edits.recipe import Recipe, load_recipe
from ...editor.files.bounded import load_json
from ...editor.files.inputs import REPORT_NAME as VERIFICATION_NAME
from ...editor.files.whole import staged_file
from ...editor.images.demo_name import DEMO, is_demo
from ...editor.images.listing import list_images
from ...editor.images.source import ImageSource
from ...editor.images.texts import load_texts
from ...editor.load import SCAN_NAME, apply_aligner, load_aligned, load_model
from ...editor.measure.certificate import describe_certificate, read_certificate
from ...editor.measure.readable import describe_readable, find_readable
from ...editor.measure.verdict import describe_doubts, read_verdict
from ...editor.models.hub.repository import BASE_FOLDER
from ...editor.models.model import Model
from ...editor.scan.scan import Scan, load_scan
from ...editor.scan.tally import Progress
from .head_cards import PICTURED, HeadCard, build_cards
from .head_pictures import Edit, Pictures, collect_pictures
from .report_figures import build_measures, describe_edit, describe_result

NAME, TEXTS, MOST_BYTES = "report.html", 8, 5_000_000
MODEL_FILES = ("open_clip_config.json", "config.json", BASE_FOLDER)


def write_report(
    folder: str | Path,
    *,
    base: Model | None = None,
    edited: Model | None = None,
    images: str | Path | ImageSource | None = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write the report of a folder that `remove-heads`, `apply`, `export` or `demo` wrote.

    Args:
        base: The unedited model; by default the one that the folder's scan or recipe names is loaded.
        edited: The model that the folder holds; by default it is loaded.
        images: Where to look for the images that excite heads most; by default the demo's for the demo model, else
            none.
        out: By default `report.html` in the folder.

    Raises:
        RecipeError, ModelError, StatisticsError: If the folder's files cannot be read.
        ExportError: If the folder holds no recipe, or the file cannot be written.
    """
    folder = Path(folder)
    path = require_recipe_file(folder)
    recipe = load_recipe(path)
    scan = find_scan(folder, recipe)
    base = base or load_base(recipe, scan)
    given = images if images is not None else DEMO if is_demo(base.name) else None
    decoding = base.decoding(scan.exif if scan else "upright", scan.decode if scan else "scaled")
    source = list_images(given).read_as(decoding) if given is not None else None
    # What other consumers read was verified to compute what the recipe gives: only our own folders are loaded.
    own = path.parent == folder and any((folder / name).exists() for name in MODEL_FILES)
    edited = edited or (load_model(str(folder)) if own else apply_recipe(recipe, base))
    if own and base.lent is not None:
        # An image tower alone is read with the words of its CLIP, edited too.
        edited = apply_aligner(edited, base.lent.path, clip=base.lent.clip)
    edit = Edit(recipe, base, edited, scan, source)
    return render_report(edit, read_checks(folder), Path(out) if out else folder / NAME, progress=progress)


def find_scan(folder: Path, recipe: Recipe | None) -> Scan | None:
    """The scan in a folder; else the one beside it, if the recipe was bound to that."""
    if (folder / SCAN_NAME).is_file():
        return load_scan(folder / SCAN_NAME)
    beside, calibration = folder.absolute().parent / SCAN_NAME, recipe.document.calibration if recipe else None
    found = load_scan(beside) if beside.is_file() and calibration else None
    # A scan of other images would tell of heads what this edit was not made from.
    return found if found and calibration and found.fingerprint == calibration.fingerprint else None


def load_base(recipe: Recipe | None, scan: Scan | None) -> Model:
    """The unedited model, which a scan names, or else a recipe.

    Raises:
        ModelError: If it cannot be loaded.
    """
    if scan is None:
        assert recipe is not None
        return load_model(recipe.document.base.model, recipe.document.base.pretrained)
    # The scan knows the aligner that the base was read through; the recipe does not.
    return load_aligned(scan.model_name, scan.pretrained, aligner=scan.aligner)


def render_report(edit: Edit, checks: Mapping[str, Any], out: Path, *, progress: Progress | None = None) -> Path:
    """Write the page.

    Args:
        checks: What `verification.json` holds; empty if nothing was verified.

    Raises:
        ExportError: If the file cannot be written.
    """
    concept = find_concept(edit.recipe, edit.base)
    scores = _score(edit, concept)
    cards, pictures = _collect_cards(edit, scores, progress)
    page = (
        page_environment()
        .get_template("report.html.jinja")
        .render(
            title=f"{edit.base.name} without {concept.name}" if concept else f"{edit.base.name}, edited",
            verdict=read_verdict(edit.recipe.document.measured),
            promises=describe_certificate(read_certificate(edit.recipe.document.measured)),
            seen=describe_doubts(edit.recipe.document.measured),
            readable=[describe_readable(one) for one in find_readable(edit.recipe.document.measured)],
            result=describe_result(edit.recipe.document.measured),
            sentence=describe_edit(edit.recipe, edit.base.name, concept, scores),
            measures=build_measures(edit.recipe.document.measured),
            grid=_layers(cards),
            cards=cards,
            # 1 where all scores are zero, since bars are drawn relative to it.
            strongest=max([abs(card.score) for card in cards] or [0.0]) or 1.0,
            concept=concept,
            thumbnails=pictures.thumbnails,
            checks=checks,
            provenance=_provenance(edit),
            recipe=yaml.safe_dump(
                edit.recipe.document.model_dump(mode="json", exclude_defaults=True, exclude={"measured"}),
                sort_keys=False,
                allow_unicode=True,
                width=100,
            ),
        )
    )
    # Rendered before the file is touched: a failure leaves an older page as it was.
    with staged_file(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return out


def find_concept(recipe: Recipe, base: Model) -> Concept | None:
    """The concept that a recipe removes: that of its steps' texts, else the one its name says."""
    for step in recipe.document.steps:
        # One text has no directions once it is centred.
        if step.texts and len(step.texts) > 1:
            return Concept(name=step.concept or recipe.document.name, texts=step.texts)
    name = next((step.concept for step in recipe.document.steps if step.concept), None)
    name = name or recipe.document.name.removeprefix("remove-")
    return load_concept(name, base.folder) if name in list_concepts(base.folder) else None


def _score(edit: Edit, concept: Concept | None) -> list[HeadScore]:
    if edit.scan is None or concept is None or not edit.base.has_texts:
        return []
    return [row for row in score_heads(edit.scan, edit.base, concept=concept) if "H" in row.component]


def _collect_cards(
    edit: Edit, scores: Sequence[HeadScore], progress: Progress | None
) -> tuple[list[HeadCard], Pictures]:
    """Cards of all scanned heads; those edited, and the next by score, with pictures. None of a model without texts."""
    if edit.scan is None or not edit.base.has_texts:
        return [], Pictures()
    pool = load_texts(model_folder=edit.base.folder)
    labels = text_span(edit.scan, edit.base, texts=pool, texts_per_head=min(TEXTS, edit.base.tower.d_head))
    # Edited heads first, then by score: all of the former get pictures, whatever they cost.
    names = list(dict.fromkeys([*edit.recipe.heads, *(row.component for row in scores), *labels]))
    heads = [HeadId.parse(name) for name in names if name in labels][: max(PICTURED, len(edit.recipe.heads))]
    pictures = collect_pictures(edit, labels, heads, progress=progress)
    return build_cards(edit.recipe, labels, scores, pictures), pictures


def _layers(cards: Sequence[HeadCard]) -> list[list[HeadCard]]:
    """Cards by layer, the last layer first: as a network is drawn."""
    layers = sorted({card.head.layer for card in cards}, reverse=True)
    return [[card for card in cards if card.head.layer == layer] for layer in layers]


def _provenance(edit: Edit) -> dict[str, str]:
    import open_clip
    import torch

    from ... import __version__

    document = edit.recipe.document
    found = {
        "base model": f"{document.base.model} {document.base.pretrained or ''}".strip(),
        "base weights, SHA-256": document.base.weights_hash or "unknown",
        "edited weights, SHA-256": edit.edited.weights_hash,
        "effect": document.effect,
        "made with": f"clipedit {__version__}, open_clip {open_clip.__version__}, torch {torch.__version__}",
    }
    if document.calibration:
        found["calibration images"] = f"{document.calibration.images}"
        found["calibration fingerprint"] = document.calibration.fingerprint
    if document.fold:
        found["distilled constant"] = (
            f"residual {document.fold.residual:.1e} of the solve for the bias, length of the bias "
            f"{document.fold.bias_norm:.3g}"
        )
    if edit.scan:
        found["scanned layers"] = ", ".join(map(str, edit.scan.layers))
    return found


def read_checks(folder: Path) -> dict[str, Any]:
    """What the verification of a folder found; empty where it was not verified."""
    try:
        found = load_json(folder / VERIFICATION_NAME)
        return found if isinstance(found, dict) and isinstance(found.get("checks"), list) else {}
    except (OSError, ValueError):
        return {}


def page_environment() -> jinja2.Environment:
    """Templates of pages; whatever is put into them is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("clipedit.export.pages", "templates"),
        # Texts of recipes and names of files come from anybody.
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    return environment
