"""Everything that the page needs, as plain data and one run of bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ....editor.components import Features
from ....editor.concepts.textspan import HeadLabel
from .concepts import Held, Projection, Watched
from .labelled import Labelled
from .sheet import Sheet
from .terms import COARSE, FINE, HeadParts, Lengths, Terms, pack_lengths, pack_terms


@dataclass
class Blob:
    """Arrays one after the other, each where its numbers are aligned; `places` says where."""

    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    chunks: list[bytes] = field(default_factory=list)
    size: int = 0

    def add(self, name: str, values: np.ndarray) -> None:
        """Take an array in the byte order of browsers."""
        data = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()
        padding = -len(data) % 8
        self.places[name] = (self.size, values.size)
        self.chunks.append(data + b"\0" * padding)
        self.size += len(data) + padding

    def add_terms(self, name: str, terms: Terms) -> None:
        """Readings and what heads add to them."""
        self.add(f"{name}.base", terms.base)
        self.add(f"{name}.terms", terms.terms)
        self.add(f"{name}.scales", terms.scales)


@dataclass(frozen=True)
class Packed:
    """What goes into a page.

    Attributes:
        facts: Plain data.
        data: The bytes that `facts["places"]` says the places in.
        sheet: Thumbnails; None without labelled images.
    """

    facts: dict[str, Any]
    data: bytes
    sheet: Sheet | None


def pack_heads(parts: HeadParts, labels: Mapping[str, Sequence[HeadLabel]]) -> list[dict[str, Any]]:
    """The heads, with what their texts say."""
    return [
        {
            "name": str(head),
            "layer": head.layer,
            "head": head.head,
            "texts": [[label.text, round(label.variance_share, 4)] for label in labels.get(str(head), ())],
        }
        for head in parts.heads
    ]


def pack_held(held: Sequence[Held]) -> list[dict[str, Any]]:
    """Concepts, and what each head holds of them."""
    return [
        {
            "name": one.name,
            "because": one.judgement.because,
            "scores": _round(one.scores),
            "gains": _round(one.gains),
        }
        for one in held
    ]


def pack_projections(projections: Sequence[Projection], span: Float[Tensor, "d_embed span"]) -> list[dict[str, Any]]:
    """Steps, and each basis in coordinates of the span of all: a row for every direction."""
    return [
        {
            "name": one.name,
            "step": one.step.model_dump(mode="json", exclude_defaults=True),
            "rows": (one.basis.T @ span).tolist(),
        }
        for one in projections
    ]


def pack_labelled(
    blob: Blob, parts: HeadParts, labelled: Labelled, span: Float[Tensor, "d_embed span"]
) -> dict[str, Any]:
    """Scores of all classes, then the coordinates in the span."""
    weights = torch.cat([question.weights for question in labelled.questions])
    blob.add_terms("labelled", pack_terms(parts, labelled.features, torch.cat([weights, span.T]), kind=FINE))
    questions, first = [], 0
    for question in labelled.questions:
        questions.append(
            {
                "name": question.name,
                "classes": question.classes,
                "first": first,
                "span": (question.weights @ span).tolist(),
                "right": question.right,
            }
        )
        first += len(question.classes)
    return {
        "images": len(labelled.strata),
        "total": labelled.total,
        "names": labelled.source.names,
        "measure": labelled.measure,
        "readings": len(weights) + span.shape[1],
        "spanFirst": len(weights),
        "questions": questions,
        "figures": [
            {
                "key": figure.key,
                "title": figure.title,
                "question": figure.question,
                "tasks": [[{"images": cell.images, "among": cell.among} for cell in task] for task in figure.tasks],
            }
            for figure in labelled.figures
        ],
        "groups": [{"name": name, "images": images} for name, images in labelled.groups.items()],
        "strata": np.unique(labelled.strata, return_inverse=True)[1].tolist(),
        "readable": labelled.readable,
        "kept": labelled.kept,
    }


def pack_plain(
    blob: Blob,
    parts: HeadParts,
    features: Features,
    watched: Sequence[Watched],
    span: Float[Tensor, "d_embed span"],
) -> dict[str, Any]:
    """Images without labels: watched directions, coordinates in the span, and lengths."""
    rows = torch.cat([one.directions for one in watched])
    blob.add_terms("plain", pack_terms(parts, features, torch.cat([rows, span.T]), kind=COARSE))
    lengths: Lengths = pack_lengths(parts, features)
    blob.add("plain.lengths", lengths.terms)
    blob.add("plain.lengthScales", lengths.scales)
    named, first = [], 0
    for one in watched:
        count = len(one.directions)
        named.append(
            {
                "name": one.name,
                "first": first,
                "count": count,
                "span": (one.directions @ span).tolist(),
            }
        )
        first += count
    return {
        "images": len(features.embedding),
        "readings": len(rows) + span.shape[1],
        "spanFirst": len(rows),
        "watched": named,
    }


def _round(values: Sequence[float]) -> list[float]:
    return [round(value, 5) for value in values]
