"""The child process of `verify`: load an export with its consumer, run it, print the checks as JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ...editor.errors import ClipeditError
from ..consumers.consumer import Consumer
from ..consumers.target import Target, load_consumer, require_no_code
from ..written_for import find_written
from .foreign_code import refuse_unpickling
from .reference import SCALES, Reference, load_reference
from .verify import Check

DISTANCE, SWITCHED_DISTANCE = 1e-4, 1e-5
# Of embeddings of length 1: a consumer that normalises pixels as the model does is within rounding, one whose standard
# deviation is wrong by .02 is not.
NORMALISING = 2e-3
SCALE_TOLERANCE = {"fp32": 1e-5}
# Half of a step between numbers of half precision, at the logarithm of 100.
LOWER_SCALE_TOLERANCE = 5e-3


@torch.no_grad()
def compute_checks(consumer: Consumer, reference: Reference, *, resizing: float) -> list[Check]:
    """Batches of one and of all, twice; the consumer's preprocessing; near the edited model, away from the base.

    Args:
        resizing: The least mean cosine for images that the consumer resized and cropped itself.
    """
    asked: dict[str, tuple[Callable[[Any], Tensor], Any]] = {}
    if consumer.encode_images is not None:
        asked["image"] = (consumer.encode_images, reference.pixels())
    if consumer.embed_texts is not None:
        asked["text"] = (consumer.embed_texts, list(reference.texts))
    expected = {kind: _expected(reference, kind, consumer) for kind in asked}
    found, checks = {}, []
    for kind, (encode, inputs) in asked.items():
        found[kind], compared = _compare(kind, encode, inputs, expected[kind], reference)
        checks += compared
    if consumer.encode_images is not None and consumer.embed_images is not None:
        ways = consumer.encode_images, consumer.embed_images
        checks += _compare_preprocessing(*ways, reference, expected["image"], resizing)
    checks += _compare_scales(consumer, reference)
    if "image" in found:
        agreement = (_classify(found) == _classify(expected)).float().mean()
        name = "zero-shot agreement" if "text" in found else "agreement of the classes"
        checks.append(Check(name, float(agreement), ">=", reference.limits.agreement))
    if all(f"base_{kind}_embedding" in reference.tensors for kind in found):
        checks.append(_distance_to_base(found, expected, reference))
    return checks + compute_switched_checks(consumer, reference)


def compute_switched_checks(consumer: Consumer, reference: Reference) -> list[Check]:
    """Each adapter near its own edited model and away from the base, in which none may leave a trace."""
    if not reference.adapters:
        return []
    encode, pixels, checks = consumer.encode_images, reference.pixels(), []
    # Adapters are of graphs, of which one is always the images'.
    assert encode is not None
    before = encode(pixels)
    for name in reference.adapters:
        checks += [replace(one, name=f"{name}: {one.name}") for one in _compare_switched(consumer, reference, name)]
    after = float((encode(pixels) - before).abs().max())
    return [*checks, Check("base, after the adapters, worst difference", after, "<=", 0.0)]


def _compare_switched(consumer: Consumer, reference: Reference, adapter: str) -> list[Check]:
    switched, wanted = consumer.adapters[adapter], reference.switched(adapter)
    assert switched.embed_texts is not None
    asked = {"image": (switched.encode_images, wanted.pixels()), "text": (switched.embed_texts, list(wanted.texts))}
    expected = {kind: _expected(wanted, kind, switched) for kind in asked}
    found, checks = {}, []
    for kind, (encode, inputs) in asked.items():
        found[kind], compared = _compare(kind, encode, inputs, expected[kind], wanted)
        checks += compared
    return [*checks, _distance_to_base(found, expected, wanted)]


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
    # The same batch twice: a runtime must give the same bits again.
    whole, again = encode(inputs).float(), encode(inputs).float()
    # Batches of one: a batch axis that was traced as a constant fails here.
    single = torch.cat([encode(inputs[i : i + 1]).float() for i in range(len(inputs))])
    # Over the norm: embeddings of different models differ in length.
    scale, limit, checks = expected.norm(dim=1, keepdim=True), reference.limits.cosine, []
    for size, answer in ((len(inputs), whole), (1, single)):
        distance = float(((answer - expected) / scale).abs().max())
        cosine = F.cosine_similarity(answer, expected)
        if reference.options["precision"] == "fp32":
            allowed = SWITCHED_DISTANCE if reference.adapters else DISTANCE
            checks.append(Check(f"{kind}, batch {size}, worst difference / norm", distance, "<=", allowed))
        else:
            checks.append(Check(f"{kind}, batch {size}, mean cosine", float(cosine.mean()), ">=", limit))
        checks.append(Check(f"{kind}, batch {size}, worst cosine", float(cosine.min()), ">=", limit))
    checks.append(Check(f"{kind}, second run, worst difference", float((whole - again).abs().max()), "<=", 0.0))
    return whole, checks


def _compare_preprocessing(
    encode: Callable[[Tensor], Tensor],
    embed: Callable[[list[Image.Image]], Tensor],
    reference: Reference,
    expected: Float[Tensor, "image d_embed"],
    resizing: float,
) -> list[Check]:
    """Images of the model's size need no resizing: all consumers agree. Rules for larger ones differ."""
    images, limit = reference.images(), reference.limits.cosine
    height, width = reference.pixels().shape[2:]
    # Resized beforehand: what differs then is how a consumer normalises pixels, not how it resizes.
    sized = [image.resize((width, height)) for image in images]
    ours = encode(torch.stack([reference.preprocess(image) for image in sized])).float()
    theirs = embed(sized).float()
    worst = float(F.cosine_similarity(theirs, ours).min())
    # Images that need no resizing would only raise the mean.
    rows = [row for row, image in enumerate(images) if image.size != (width, height)] or list(range(len(images)))
    resized = embed([images[row] for row in rows]).float()
    mean = float(F.cosine_similarity(resized, expected[rows]).mean())
    checks = [
        Check("image, normalised by the consumer, worst cosine", worst, ">=", limit),
        Check("image, resized by the consumer, mean cosine", mean, ">=", min(resizing, limit)),
    ]
    if reference.options["precision"] != "fp32":
        return checks
    # The consumer may give unit vectors; a cosine is blind to what a distance shows.
    apart = float((F.normalize(theirs, dim=1) - F.normalize(ours, dim=1)).norm(dim=1).max())
    return [Check("image, normalised by the consumer, worst difference", apart, "<=", NORMALISING), *checks]


def _compare_scales(consumer: Consumer, reference: Reference) -> list[Check]:
    """What turns cosines into logits, where the export holds it."""
    wanted = {name: float(reference.tensors[name]) for name in SCALES if name in reference.tensors}
    tolerance = SCALE_TOLERANCE.get(reference.options["precision"], LOWER_SCALE_TOLERANCE)
    found = consumer.scales
    # One that is missing counts as zero: the logarithm of a scale of one, and no bias.
    return [
        Check(f"{name}, difference", abs(found.get(name, 0.0) - value), "<=", tolerance)
        for name, value in wanted.items()
        if found
    ]


def _compare_statements(target: Target, folder: Path, reference: Reference) -> list[Check]:
    """What the files say of preprocessing and sizes: consumers believe them, and an index goes wrong in silence."""
    statements = target.tell(folder, reference, target.profile)
    return [Check(one.describe(), float(len(one.differences())), "<=", 0.0) for one in statements]


def _classify(embeddings: dict[str, Tensor]) -> Tensor:
    if "text" not in embeddings:
        return embeddings["image"].argmax(1)
    return (embeddings["image"] @ F.normalize(embeddings["text"], dim=1).T).argmax(1)


def _distance_to_base(found: dict[str, Tensor], expected: dict[str, Tensor], reference: Reference) -> Check:
    """The export must be as far from the base as the edit is: saving the unedited model is the usual mistake."""

    def distance(which: dict[str, Tensor], kind: str) -> float:
        # Directions only: some consumers normalise. The base may have answered the first images only.
        base = F.normalize(reference.tensors[f"base_{kind}_embedding"], dim=1)
        return float((F.normalize(which[kind][: len(base)], dim=1) - base).norm() / base.norm())

    # An edit may reach one tower only: the kind that it moves most is what can show it.
    kind = max(found, key=lambda kind: distance(expected, kind))
    return Check(f"{kind}, distance to the unedited model", distance(found, kind), ">=", 0.5 * distance(expected, kind))


def run_checks(target: Target, folder: Path, reference: Reference) -> tuple[str, list[Check]]:
    """What ran, and its checks: first of what the files say, and of what the consumer computes only if that is right.

    Sizes that are wrong would end the consumer before it could be said which they are.
    """
    told = _compare_statements(target, folder, reference)
    if not all(check.holds for check in told):
        return "none: what the files say is wrong", told
    consumer = load_consumer(target, folder, reference)
    return consumer.runtime, told + compute_checks(consumer, reference, resizing=target.profile.resizing)


def check_folder(folder: Path, *, trusted: bool) -> dict[str, Any]:
    """The checks of a folder as plain data, beside its target, the consumer's runtime and the options.

    Raises:
        ClipeditError: If it cannot be loaded, or could run code and is not trusted.
    """
    reference = load_reference(folder)
    target = find_written(reference.target, reference.options["precision"])
    require_no_code(target, folder, trusted=trusted)
    runtime, checks = run_checks(target, folder, reference)
    return {
        "target": reference.target,
        "runtime": runtime,
        "options": reference.options,
        "checks": [asdict(check) for check in checks],
    }


def answer_request(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The checks of the `folder` that is asked about, or why there are none, as `refused`."""
    try:
        return check_folder(Path(asked["folder"]), trusted=asked["trusted"])
    except ClipeditError as error:
        return {"refused": str(error)}


def main() -> None:
    """Answer each line of JSON on stdin, which names a `folder` and says whether to trust it, with one on stdout."""
    # Before anything of a folder is read.
    refuse_unpickling()
    answers = os.fdopen(os.dup(1), "w")
    # Consumers print too: what is no answer goes to stderr.
    os.dup2(2, 1)
    for line in sys.stdin:
        print(json.dumps(answer_request(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
