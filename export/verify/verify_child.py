"""The child process of `verify`: load an export with its consumer, run it, print the checks as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ...editor.errors import ClipeditError
from ..consumers.consumer import Consumer
from ..consumers.target import load_consumer, require_no_code
from ..written_for import find_written
from .foreign_code import refuse_unpickling
from .reference import Reference, load_reference
from .verify import Check

DISTANCE = 1e-4


@torch.no_grad()
def compute_checks(consumer: Consumer, reference: Reference, *, resizing: float) -> list[Check]:
    """Batches of one and of all, twice; the consumer's preprocessing; near the edited model, away from the base.

    Args:
        resizing: The least mean cosine for images that the consumer resized and cropped itself.
    """
    pixels, texts = reference.pixels(), list(reference.texts)
    asked: dict[str, tuple[Callable[[Any], Tensor], Any]] = {"image": (consumer.encode_images, pixels)}
    asked |= {"text": (consumer.embed_texts, texts)} if consumer.embed_texts else {}
    expected = {kind: _expected(reference, kind, consumer) for kind in asked}
    found, checks = {}, []
    for kind, (encode, inputs) in asked.items():
        found[kind], compared = _compare(kind, encode, inputs, expected[kind], reference)
        checks += compared
    checks += _compare_preprocessing(consumer, reference, expected["image"], resizing)
    agreement = (_classify(found) == _classify(expected)).float().mean()
    name = "zero-shot agreement" if "text" in found else "agreement of the classes"
    checks.append(Check(name, float(agreement), ">=", reference.limits.agreement))
    if "base_image_embedding" in reference.tensors:
        checks.append(_distance_to_base(found, expected, reference))
    return checks


def _expected(reference: Reference, kind: str, consumer: Consumer) -> Float[Tensor, "input d_embed"]:
    embeddings = reference.tensors[f"{kind}_embedding"]
    return F.normalize(embeddings, dim=1) if consumer.normalised else embeddings


def _compare(
    kind: str,
    encode: Callable[[Any], Tensor],
    inputs: Sequence[Any] | Tensor,
    expected: Float[Tensor, "input d_embed"],
    reference: Reference,
) -> tuple[Float[Tensor, "input d_embed"], list[Check]]:
    whole, again = encode(inputs).float(), encode(inputs).float()
    single = torch.cat([encode(inputs[i : i + 1]).float() for i in range(len(inputs))])
    scale, limit, checks = expected.norm(dim=1, keepdim=True), reference.limits.cosine, []
    for size, answer in ((len(inputs), whole), (1, single)):
        distance = float(((answer - expected) / scale).abs().max())
        cosine = F.cosine_similarity(answer, expected)
        if reference.options["precision"] == "fp32":
            checks.append(Check(f"{kind}, batch {size}, worst difference / norm", distance, "<=", DISTANCE))
        else:
            checks.append(Check(f"{kind}, batch {size}, mean cosine", float(cosine.mean()), ">=", limit))
        checks.append(Check(f"{kind}, batch {size}, worst cosine", float(cosine.min()), ">=", limit))
    checks.append(Check(f"{kind}, second run, worst difference", float((whole - again).abs().max()), "<=", 0.0))
    return whole, checks


def _compare_preprocessing(
    consumer: Consumer, reference: Reference, expected: Float[Tensor, "image d_embed"], resizing: float
) -> list[Check]:
    """Images of the model's size need no resizing: all consumers agree. Rules for larger ones differ."""
    images, limit = reference.images(), reference.limits.cosine
    height, width = reference.pixels().shape[2:]
    sized = [image.resize((width, height)) for image in images]
    ours = consumer.encode_images(torch.stack([reference.preprocess(image) for image in sized])).float()
    worst = float(F.cosine_similarity(consumer.embed_images(sized).float(), ours).min())
    mean = float(F.cosine_similarity(consumer.embed_images(images).float(), expected).mean())
    return [
        Check("image, normalised by the consumer, worst cosine", worst, ">=", limit),
        Check("image, resized by the consumer, mean cosine", mean, ">=", min(resizing, limit)),
    ]


def _classify(embeddings: dict[str, Tensor]) -> Tensor:
    if "text" not in embeddings:
        return embeddings["image"].argmax(1)
    return (embeddings["image"] @ F.normalize(embeddings["text"], dim=1).T).argmax(1)


def _distance_to_base(found: dict[str, Tensor], expected: dict[str, Tensor], reference: Reference) -> Check:
    """The export must be as far from the base as the edit is: saving the unedited model is the usual mistake."""

    def distance(which: dict[str, Tensor], kind: str) -> float:
        base = F.normalize(reference.tensors[f"base_{kind}_embedding"], dim=1)
        return float((F.normalize(which[kind][: len(base)], dim=1) - base).norm() / base.norm())

    kind = max(found, key=lambda kind: distance(expected, kind))
    return Check(f"{kind}, distance to the unedited model", distance(found, kind), ">=", 0.5 * distance(expected, kind))


def main() -> None:
    """Print one JSON object with the checks of the folder in argument 1; argument 2 says whether it is trusted."""
    folder, trusted = Path(sys.argv[1]), sys.argv[2:] == ["trusted"]
    refuse_unpickling()
    try:
        reference = load_reference(folder)
        target = find_written(reference.target, reference.options["precision"])
        require_no_code(target, folder, trusted=trusted)
        consumer = load_consumer(target, folder, reference)
        checks = compute_checks(consumer, reference, resizing=target.profile.resizing)
    except ClipeditError as error:
        sys.exit(str(error))
    answer = {
        "target": reference.target,
        "runtime": consumer.runtime,
        "options": reference.options,
        "checks": [asdict(check) for check in checks],
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
