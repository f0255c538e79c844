"""The model card: README.md of an export, with code that loads it in its consumer and the answers that it should print.

`huggingface_hub.ModelCard` was looked at and not taken: its data class drops the empty licence field with the note that
asks to fill it in, and its validation asks the Hub over the network. A test holds that it reads the head written here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import torch.nn.functional as F
from PIL import Image

from ... import __version__
from ...editor.edits.document import Base, RecipeDocument
from ...editor.edits.recipe import Recipe
from ...editor.images.demo import example_source
from ...editor.measure.accuracy import GROUP
from ...editor.measure.certificate import describe_certificate, read_certificate
from ...editor.measure.fidelity import describe_fidelity
from ...editor.measure.readable import describe_readable, find_readable
from ...editor.measure.table import MOST_GROUPS, read_details
from ...editor.measure.thresholds import ThresholdShift, format_threshold_shift
from ...editor.measure.verdict import Verdict, describe_doubts, read_verdict
from ...editor.models.model import Model
from ..consumers.target import Target
from ..consumers.text_cleaning import describe_uncleaned
from ..graphs.adapters import adapter_files

# What is kept among a recipe's figures beside the rows of them.
NOT_ROWS = ("frontier", "fidelity", "evidence", "choice", "choices", "configuration")
CARD_NAME, EXAMPLE_NAME, EXAMPLE_TEXT = "README.md", "example.png", "a photo of a circle"
# `push` takes this line out as it fills the field in.
NO_LICENCE = "- The licence field is empty: fill it in before you publish these weights."


class _Verbatim(str):
    """Our own text, which is not escaped."""


_ROWS = {
    "before": "unedited",
    "after": _Verbatim("**edited**"),
    "control": "random heads, same projection",
    "output_projection": "texts projected out, no heads",
}


def write_model_card(
    model: Model,
    folder: Path,
    target: Target,
    *,
    images: int = 0,
    shift: Sequence[ThresholdShift] = (),
) -> None:
    """Write `README.md`, and `example.png` of which it prints the embedding.

    Models without one of the two towers get none. `images` is how many `verification.safetensors` holds, `shift` is how
    thresholds on cosines move. Whatever comes from the recipe or from file names is escaped: it stays text.
    """
    if not (model.has_texts and model.has_images):
        return
    recipe, facts, adapters = model.recipe, target.describe(model), _list_adapters(target, folder)
    height, width = model.image_shape
    # Of the size that the model takes, so that a consumer's way of resizing cannot change what the card prints.
    example = example_source(1).open(0).resize((width, height))
    example.save(folder / EXAMPLE_NAME)
    measured = recipe.document.measured if recipe else None
    rows = _measured_rows(measured)
    loader = jinja2.PackageLoader("clipedit.export.pages", "cards")
    environment = jinja2.Environment(
        loader=loader, finalize=_escape, undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    precision = target.profile.precision
    # The target's part is a template of its own, rendered first and put in as our own text.
    loading = environment.from_string(target.card).render(
        precision=precision,
        **{key: _Verbatim(value) for key, value in facts.items()},
        load_base=_Verbatim(_base_arguments(recipe)),
        # The code switches the image graph: an edit of texts alone has no file for it.
        adapters=[_Verbatim(json.dumps(row.files[0])) for row in adapters if row.changes_images],
    )
    card = environment.get_template("card.md.j2").render(
        target=target.name,
        precision=precision,
        loading=_Verbatim(loading.strip()),
        photos=_Verbatim(target.photos),
        uncleaned=[_Verbatim(line) for line in _list_uncleaned(model, target)],
        images=images,
        version=__version__,
        title=facts["name"].replace("__", " "),
        document=recipe.document if recipe else None,
        adapters=adapters,
        verdict=read_verdict(measured) if recipe else None,
        promises=_list_promises(recipe),
        readable=[describe_readable(one) for one in find_readable(measured)],
        rows=rows,
        groups=_list_groups(measured),
        columns=list(dict.fromkeys(column for row in rows.values() for column in row)),
        # As the code prints them, two spaces included.
        expected=[_Verbatim(line) for line in _expected_lines(model, example)],
        shift=_Verbatim(format_threshold_shift(shift)) if shift else "",
        no_licence=_Verbatim(NO_LICENCE),
    )
    (folder / CARD_NAME).write_text(card, encoding="utf-8")


@dataclass(frozen=True)
class _AdapterRow:
    name: str
    document: RecipeDocument
    verdict: Verdict
    files: list[str]
    size: int
    changes_images: bool


def _list_adapters(target: Target, folder: Path) -> list[_AdapterRow]:
    """What the export can switch to, with the bytes that each edit takes."""
    rows = []
    for adapter in target.profile.adapters:
        images, texts = adapter_files(folder, adapter.name)
        held = [path for path in (images, texts) if path.is_file()]
        document, size = adapter.recipe.document, sum(path.stat().st_size for path in held)
        verdict, names = read_verdict(document.measured), [path.name for path in held]
        rows.append(_AdapterRow(adapter.name, document, verdict, names, size, images.is_file()))
    return rows


def _base_arguments(recipe: Recipe | None) -> str:
    """What `load_model` is given for the base, as Python."""
    base = recipe.document.base if recipe else Base(model="")
    return ", ".join(json.dumps(value) for value in (base.model, base.pretrained) if value is not None)


def _expected_lines(model: Model, example: Image.Image) -> list[str]:
    image = F.normalize(model.encode_image(model.preprocess(example)[None])[0], dim=0)
    text = F.normalize(model.encode_text([EXAMPLE_TEXT])[0], dim=0)
    spelled = [" ".join(f"{x:.4f}" for x in embedding[:4].tolist()) for embedding in (image, text)]
    return [f"image  {spelled[0]}", f"text   {spelled[1]}", f"cosine {float(image @ text):.4f}"]


def _list_uncleaned(model: Model, target: Target) -> list[str]:
    """What a tokenizer in files reads otherwise than open_clip's own, of targets that have one."""
    in_files = any(name.endswith("tokenizer.json") for name in target.profile.sidecars)
    return describe_uncleaned(model) if in_files else []


def _list_promises(recipe: Recipe | None) -> list[str]:
    """What was found of the edit beside its figures: the certificate, and how near it comes to the direct one."""
    if recipe is None:
        return []
    measured = recipe.document.measured or {}
    near = describe_fidelity(measured["fidelity"], recipe.document.effect) if "fidelity" in measured else []
    return [*describe_doubts(measured), *describe_certificate(read_certificate(measured)), *near]


def _measured_rows(measured: Mapping[str, Any] | None) -> dict[str, dict[str, float]]:
    """The table of a recipe's figures: rows of numbers only, under the names people read."""
    found = {}
    for name, row in (measured or {}).items():
        if name in NOT_ROWS:
            continue
        numbers = (
            {k: float(v) for k, v in row.items() if isinstance(v, int | float) and math.isfinite(v)}
            if isinstance(row, Mapping)
            else {}
        )
        # Groups have a table of their own, with numbers of images.
        numbers = {key: value for key, value in numbers.items() if not key.startswith(GROUP)}
        if numbers:
            found[_ROWS.get(name, name)] = {key.replace("_", " "): value for key, value in numbers.items()}
    return found


def _list_groups(measured: Mapping[str, Any] | None) -> list[tuple[str, int, str, str]]:
    """The groups that were served worst before the edit: name, n, and both accuracies with their intervals."""
    details = read_details(measured)
    if not {"before", "after"} <= set(details):
        return []
    before, after = details["before"].groups, details["after"].groups
    worst = sorted(set(before) & set(after), key=lambda name: (before[name].value, name))[:MOST_GROUPS]
    return [(name, before[name].n, str(before[name]), str(after[name])) for name in worst]


def _escape(value: Any) -> Any:
    """Text without the characters that Markdown, HTML or YAML act on, on one line."""
    if not isinstance(value, str) or isinstance(value, _Verbatim):
        return value
    return re.sub(r"([\\`*_\[\]<>|#{}$&])", r"\\\1", " ".join(value.split()))
