"""The reference: what the edited model in memory answers on a few real images and texts, kept beside the export."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ...editor.components import take_rows
from ...editor.edits.direct import as_stored, compute_recipe_embeddings, encode_before_and_after
from ...editor.errors import ImageError, ModelError, VerificationError
from ...editor.files.tensors import load_tensors
from ...editor.files.whole import is_plain_name, save_tensors
from ...editor.images.decode import Decoding
from ...editor.images.demo import example_source
from ...editor.images.listing import list_images
from ...editor.images.source import ImageSource
from ...editor.measure.thresholds import ThresholdShift, compute_threshold_shift
from ...editor.models.model import Model
from ...editor.models.preprocessing import build_preprocess
from ...editor.scan.sample import Sample
from ..graphs.adapters import Adapter
from ..graphs.precision import FORCED, LIMITS, Limits
from .odd_images import compose_odd_images, has_odd_images
from .verify import REFERENCE_NAME

KIND = "clipedit-reference-1"
SWITCHED = ("image_embedding", "text_embedding")
SCALES = ("logit_scale", "logit_bias")
_IMAGE = re.compile("image_[0-9]{1,6}")
IMAGES, IMAGES_LOWER, IMAGES_SHIFT, SAMPLE_SHIFT = 8, 32, 32, 128
TEXTS = (
    "a photo of a bird",
    "a photo of a circle",
    "a city street",
    "the ocean",
    "something red",
    "written text",
    "a person",
    "a forest in winter",
)


@dataclass(frozen=True)
class Reference:
    """Inputs and expected answers. `tensors`: `image_N` uint8 `[height, width, 3]`, `tokens`, and the embeddings
    `image_embedding` (of a classifier, logits), `text_embedding`, and of the unedited model `base_image_embedding` (of
    the first images), `base_text_embedding`; `shift_before`, `shift_after` are those of more images, by both models;
    `logit_scale` and `logit_bias`, where the model has them; `adapter.NAME.image_embedding` and `.text_embedding` of
    edits that the export can switch to.
    `config`: as `Model.config`. `options`: what was asked for, `precision` among it.
    """

    target: str
    config: Mapping[str, Any]
    texts: tuple[str, ...]
    tensors: dict[str, Tensor]
    options: dict[str, Any]

    @property
    def limits(self) -> Limits:
        """What the export may cost in its precision."""
        return FORCED if self.options.get("forced") else LIMITS[self.options["precision"]]

    @property
    def adapters(self) -> Sequence[str]:
        """The edits that the export can switch to."""
        return self.options.get("switchable", ())

    def switched(self, adapter: str) -> Reference:
        """What is expected with an adapter: the edited model's answers, and those of the base to be away from."""
        base = {f"base_{kind}": self.tensors[kind] for kind in SWITCHED}
        own = {kind: self.tensors[_switched_name(adapter, kind)] for kind in SWITCHED}
        return replace(self, tensors={**self.tensors, **base, **own})

    def images(self) -> list[Image.Image]:
        """The images, in order."""
        names = [name for name in self.tensors if _IMAGE.fullmatch(name)]
        # By number, not by letters: image_10 comes after image_2.
        names.sort(key=lambda name: int(name[6:]))
        return [Image.fromarray(self.tensors[name].numpy()) for name in names]

    def preprocess(self, image: Image.Image) -> Tensor:
        """Pixels `[3, height, width]`, by the model's own preprocessing."""
        return build_preprocess(self.config)(image)

    def pixels(self) -> Float[Tensor, "image 3 height width"]:
        """All images, preprocessed."""
        return torch.stack([self.preprocess(image) for image in self.images()])

    def threshold_shift(self) -> list[ThresholdShift]:
        """How cosines moved from the unedited to the edited model; nothing where the unedited one was not at hand."""
        if "shift_before" not in self.tensors or "base_text_embedding" not in self.tensors:
            return []
        images = self.tensors["shift_before"], self.tensors["shift_after"]
        texts = self.tensors["base_text_embedding"], self.tensors["text_embedding"]
        return compute_threshold_shift(*images, *texts, quantiles=(0.5, 0.9, 0.95))


def write_reference(
    model: Model,
    folder: Path,
    *,
    target: str,
    images: ImageSource | str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    adapters: Sequence[Adapter] = (),
    sample: Sample | None = None,
) -> Reference:
    """Answer a few images and texts with the model in memory, and with its base if it was edited.

    A model read from a folder has no base in memory: what its own reference says of the base is taken over, with the
    images that it says it of; they stand before the others.

    Args:
        options: What was asked for beyond the target: `precision`, and what the report should say of it.
        adapters: Edits of the model whose answers are kept beside its own.
        sample: That of the scan that the edit was made from: how its images' cosines shift needs no pass.
    """
    asked = {"precision": "fp32", **(options or {})}
    earlier = _find_earlier(model) if model.base is None else None
    # A text tower alone is shown no images.
    tensors = {}
    if model.has_images:
        tensors = _ask_images(model, images, earlier, adapters, sample, precision=asked["precision"])
    if model.has_texts:
        # Some targets ship no tokenizer: they are asked with these.
        tensors["tokens"] = model.tokenizer(list(TEXTS)).long()
    for prefix, which in (("", model), ("base_", model.base)):
        if which is not None and model.has_texts:
            tensors[f"{prefix}text_embedding"] = which.encode_text(list(TEXTS)).cpu()
    tensors |= {name: torch.tensor([value]) for name, value in read_scales(model.module).items()}
    # What the base answered cannot be computed again without it.
    if earlier is not None:
        tensors |= {name: tensor for name, tensor in earlier.tensors.items() if name.startswith(("base_", "shift_"))}
    described = {"target": target, "config": model.config, "texts": TEXTS, "options": asked}
    save_tensors(folder / REFERENCE_NAME, tensors, KIND, described)
    return Reference(target, dict(model.config), TEXTS, tensors, asked)


def _ask_images(
    model: Model,
    images: ImageSource | str | Path | None,
    earlier: Reference | None,
    adapters: Sequence[Adapter],
    sample: Sample | None,
    *,
    precision: str,
) -> dict[str, Tensor]:
    """Images, and what the model, its base and its adapters' models answer to them."""
    # Lower precision may answer a share of the images otherwise, which eight are too few to tell.
    count = IMAGES if precision == "fp32" else IMAGES_LOWER
    source = _list_shrunk(images, model.image_size) if images is not None else _rendered(IMAGES_SHIFT)
    opened = earlier.images() if earlier else []
    # The base answered the earlier images only: they come first, and those asked for now after them.
    opened += _open_some(source, count, model.image_size)[len(opened) if images is None else 0 :]
    # A wrong resize or crop does not show on square images of the model's size.
    if not has_odd_images(opened, model.image_shape):
        opened += compose_odd_images(opened, model.image_shape)
    pixels = torch.stack([model.preprocess(image) for image in opened])
    tensors = {f"image_{i}": torch.from_numpy(np.array(image)) for i, image in enumerate(opened)}
    for prefix, which in (("", model), ("base_", model.base)):
        if which is not None:
            tensors[f"{prefix}image_embedding"] = answer_images(which, pixels).cpu()
    tensors |= _answer_switched(adapters, pixels)
    if model.base is not None and model.has_texts:
        before, after = _find_shift(model, model.base, source, sample)
        tensors |= {"shift_before": before.cpu(), "shift_after": after.cpu()}
    return tensors


def _find_shift(model: Model, base: Model, source: ImageSource, sample: Sample | None) -> tuple[Tensor, Tensor]:
    """Embeddings by the unedited and by the edited model; at the readout of images from one pass, or from none."""
    recipe = model.applied
    stored = None
    if recipe is not None and recipe.document.effect != "total" and recipe.document.tower == "image":
        stored = as_stored(recipe, model)
    if stored is not None and sample is not None:
        features = take_rows(sample.features, torch.arange(min(len(sample), SAMPLE_SHIFT)))
        return features.embedding, compute_recipe_embeddings(stored, base, features)
    # Opened only here: the sample needs none of them.
    pixels = torch.stack([model.preprocess(image) for image in _open_some(source, IMAGES_SHIFT, model.image_size)])
    if stored is not None:
        return encode_before_and_after(stored, base, pixels)
    return base.encode_image(pixels), model.encode_image(pixels)


def _answer_switched(adapters: Sequence[Adapter], pixels: Tensor) -> dict[str, Tensor]:
    """What each edit answers to the same inputs: none changes preprocessing or tokens."""
    found = {}
    for adapter in adapters:
        answers = answer_images(adapter.edited, pixels), adapter.edited.encode_text(list(TEXTS))
        names = [_switched_name(adapter.name, kind) for kind in SWITCHED]
        found |= {name: answer.cpu() for name, answer in zip(names, answers, strict=True)}
    return found


def _switched_name(adapter: str, kind: str) -> str:
    return f"adapter.{adapter}.{kind}"


def answer_images(model: Model, pixels: Tensor) -> Tensor:
    """What a model's consumer gets of images: embeddings, or of a classifier its logits."""
    # timm gives num_classes 0 to models without a head.
    is_classifier = not model.has_texts and getattr(model.module, "num_classes", 0) > 0
    return model.classify(pixels) if is_classifier else model.encode_image(pixels)


def read_scales(module: Any) -> dict[str, float]:
    """`logit_scale` and `logit_bias`, as a CLIP keeps them; what a model has not is left out."""
    found = {name: getattr(module, name, None) for name in SCALES}
    return {
        name: float(value.detach()) for name, value in found.items() if isinstance(value, Tensor) and value.numel() == 1
    }


def load_reference(folder: Path) -> Reference:
    """Read the reference of an export.

    Raises:
        VerificationError: If the folder holds none.
    """
    try:
        tensors, described = load_tensors(folder / REFERENCE_NAME, KIND)
        # References of before there were options are of fp32.
        options = {"precision": "fp32", **described.get("options", {})}
        found = Reference(described["target"], described["config"], tuple(described["texts"]), tensors, options)
        _require_whole(found)
        return found
    except (ModelError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise VerificationError(
            f"cannot verify {folder}: {error} Give a folder that `clipedit export` wrote."
        ) from None


def _require_whole(reference: Reference) -> None:
    """What is read of a reference has the types and shapes that it is used with."""
    if not isinstance(reference.target, str) or not isinstance(reference.config, dict):
        raise ValueError("its description is damaged.")
    if reference.options["precision"] not in LIMITS or not all(isinstance(text, str) for text in reference.texts):
        raise ValueError("its options or texts are damaged.")
    images = {name: tensor for name, tensor in reference.tensors.items() if _IMAGE.fullmatch(name)}
    if not (images or "text_embedding" in reference.tensors) or any(
        t.dtype != torch.uint8 or t.ndim != 3 or t.shape[2] != 3 or not t.numel() for t in images.values()
    ):
        raise ValueError("its images are damaged.")
    wanted = {"tokens": len(reference.texts), "text_embedding": len(reference.texts), "image_embedding": len(images)}
    wanted |= _count_switched(reference, wanted)
    for name, tensor in reference.tensors.items():
        kind = name.removeprefix("base_")
        # The base may have answered the first images only.
        fewer = name == "base_image_embedding" and len(tensor) < wanted[kind]
        if kind in wanted and (tensor.ndim != 2 or not (len(tensor) == wanted[kind] or fewer)):
            raise ValueError(f"its {name} is damaged.")
    if any(reference.tensors[name].numel() != 1 for name in SCALES if name in reference.tensors):
        raise ValueError("its logit_scale is damaged.")
    shifts = [reference.tensors[name] for name in ("shift_before", "shift_after") if name in reference.tensors]
    if len(shifts) == 1 or any(shift.ndim != 2 or shift.shape != shifts[0].shape for shift in shifts):
        raise ValueError("its shifts are damaged.")


def _count_switched(reference: Reference, wanted: Mapping[str, int]) -> dict[str, int]:
    """How many answers with each adapter there should be; none may be missing."""
    adapters = reference.adapters
    # Their names are those of files.
    if not all(isinstance(name, str) and is_plain_name(name) for name in adapters):
        raise ValueError("its adapters are damaged.")
    found = {_switched_name(name, kind): wanted[kind] for name in adapters for kind in SWITCHED}
    if not found.keys() <= reference.tensors.keys():
        raise ValueError("answers with its adapters are missing.")
    return found


def _find_earlier(model: Model) -> Reference | None:
    """The reference in the model's folder, if it knows the base and asks the same."""
    if model.folder is None or not (model.folder / REFERENCE_NAME).is_file():
        return None
    # Answers to other texts cannot stand beside answers to these.
    found = load_reference(model.folder)
    known = {"base_image_embedding", "base_text_embedding"} & found.tensors.keys()
    return found if found.texts == TEXTS and known else None


def _list_shrunk(images: ImageSource | str | Path, size: int) -> ImageSource:
    """The images, of files no more pixels than are kept: what is decoded beyond would only be made smaller again."""
    listed = list_images(images)
    return listed if isinstance(images, ImageSource) else listed.read_as(Decoding(enough=_shrunk_side(size)))


def _rendered(count: int) -> ImageSource:
    return example_source(count)


def _open_some(source: ImageSource, count: int, size: int) -> list[Image.Image]:
    """The first images that can be read; bad ones were counted when the source was scanned."""
    opened: list[Image.Image] = []
    for index in range(len(source)):
        if len(opened) < count:
            with contextlib.suppress(ImageError):
                opened.append(_shrink(source.open(index), size))
    # Where no image can be read, the drawn ones always can.
    return opened or _open_some(_rendered(count), count, size)


def _shrink(image: Image.Image, size: int) -> Image.Image:
    """A little more than the model takes on the shorter side: small, and resizing is still exercised."""
    factor = _shrunk_side(size) / min(image.size)
    if factor >= 1:
        return image
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)


def _shrunk_side(size: int) -> int:
    return max(288, round(1.25 * size))
