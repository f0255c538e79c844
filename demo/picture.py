"""The demo's picture: images the repair put right, and the worst groups before and after, as one SVG."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ..editor.images.source import ImageSource
from . import world

EXAMPLES = 4
_COLORS = {"before": "#9aa3ad", "control": "#c9ced4", "output_projection": "#e3b368", "after": "#2f7d5b"}
_NAMES = {
    "before": "unedited",
    "control": "random heads, same projection",
    "output_projection": "texts projected out, no heads",
    "after": "heads removed, texts projected out",
}


def choose_examples(
    source: ImageSource,
    before: Float[Tensor, "image class"],
    after: Float[Tensor, "image class"],
) -> list[tuple[int, str, str]]:
    """Images in held-out places that were wrong before and are right after, one a place: index, wrong and right shape.

    The wrong answer is the shape that is usually seen in that place.
    """
    wrong, right = before.argmax(1), after.argmax(1)
    found: dict[str, tuple[int, str, str]] = {}
    margin = (before.amax(1) - before.gather(1, right[:, None])[:, 0]).argsort(descending=True)
    for index in margin.tolist():
        row = source.attributes[index]
        fooled = world.SHAPES[int(wrong[index])]
        place = row["place"]
        repaired = world.SHAPES[int(right[index])] == row["shape"] != fooled
        if repaired and place not in world.LISTED_PLACES and place not in found and world.USUAL_PLACE[fooled] == place:
            found[place] = (index, fooled, row["shape"])
    return list(found.values())[:EXAMPLES]


def draw_picture(
    rows: Mapping[str, Mapping[str, float]], source: ImageSource, examples: Sequence[tuple[int, str, str]]
) -> str:
    """An SVG of 880 x 300: examples on the left, bars on the right. It reads on light and on dark pages."""
    parts = [_example(source.open(index), wrong, right, at) for at, (index, wrong, right) in enumerate(examples)]
    bars = [
        _bars(title, {name: rows[name][key] for name in _COLORS}, top)
        for title, key, top in (
            ("worst group, places in the concept's texts", "worst_group_listed", 24),
            ("worst group, places nobody listed", "worst_group_held_out", 158),
        )
    ]
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 880 300" width="880" height="300" role="img" '
        'font-family="system-ui, sans-serif" font-size="13">\n'
        "<title>Zero-shot shape accuracy before and after removing the location heads</title>\n"
        '<rect width="880" height="300" rx="8" fill="#ffffff"/>\n' + "\n".join([*parts, *bars]) + "\n</svg>\n"
    )


def _example(image: Image.Image, wrong: str, right: str, at: int) -> str:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    data = base64.b64encode(stream.getvalue()).decode()
    x, y = 20 + at % 2 * 200, 30 + at // 2 * 142
    return (
        f'<image x="{x}" y="{y}" width="96" height="96" href="data:image/png;base64,{data}"/>'
        f'<text x="{x + 104}" y="{y + 36}" fill="#6a737d">before</text>'
        f'<text x="{x + 104}" y="{y + 53}" fill="#b3261e" font-weight="600">{escape(wrong)}</text>'
        f'<text x="{x + 104}" y="{y + 74}" fill="#6a737d">after</text>'
        f'<text x="{x + 104}" y="{y + 91}" fill="#2f7d5b" font-weight="600">{escape(right)}</text>'
    )


def _bars(title: str, values: Mapping[str, float], top: int) -> str:
    parts = [f'<text x="430" y="{top + 4}" fill="#24292f" font-weight="600">{escape(title)}</text>']
    for row, (name, value) in enumerate(values.items()):
        y = top + 14 + row * 26
        parts.append(f'<text x="632" y="{y + 14}" text-anchor="end" fill="#24292f">{escape(_NAMES[name])}</text>')
        parts.append(f'<rect x="640" y="{y}" width="{180 * value:.1f}" height="19" rx="2" fill="{_COLORS[name]}"/>')
        parts.append(f'<text x="{646 + 180 * value:.1f}" y="{y + 14}" fill="#24292f">{value:.0%}</text>')
    return "".join(parts)


def shape_similarity(embeddings: Float[Tensor, "image d_embed"], weights: Mapping[str, Tensor]) -> Tensor:
    """Similarities to the shapes' class weights, relative to the embedding's norm."""
    return torch.nn.functional.normalize(embeddings, dim=1) @ weights["shape"].T
