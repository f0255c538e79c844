"""A model: an open_clip or timm module with its preprocessing, tokenizer and tower."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from ..choices import Decode, Exif, Side
from ..errors import ModelError
from ..files.cache import find_cache
from ..files.checkpoint import hash_model
from ..files.tensors import hash_state, round_to_storage
from ..images.decode import Decoding
from ..images.source import ImageSource
from ..towers.build import build_text_tower, build_tower, has_images
from ..towers.tower import Tower
from ..towers.vit.open_clip_text import OpenClipText
from ..towers.vit.text_context import embed_tokens
from .identity import hash_text_side
from .preprocessing import FOLLOWS, build_preprocess, drop_rules, find_resized_side
from .timm import require_linear_classifier
from .tokenizer import load_tokenizer

HF_PREFIX = "hf:"
MAX_TEXT_LISTS = 16
# Shorter lists are encoded in less time than the weights are hashed.
KEPT_TEXTS = 16
# What is left of a JPEG that is decoded smaller, over what resizing makes of it: less would show in the embedding.
LEFT = 2


@dataclass(frozen=True)
class Alignment:
    """What an aligned model is made of: the model, the CLIP whose texts it is read with, and the aligner's file."""

    own: Model
    clip: Model
    path: str
    digest: str


@dataclass(frozen=True)
class Lent:
    """What a CLIP lends its own image tower that lies alone: texts, and the projection into their space.

    Attributes:
        own: The tower alone. clip: The CLIP that it came from.
        path: How that CLIP was named. digest: SHA-256 of the tensors that are lent.
        names: Those tensors, which no file of the tower holds.
    """

    own: Model
    clip: Model
    path: str
    digest: str
    names: frozenset[str]


@dataclass(frozen=True)
class Model:
    """A CLIP, or a vision transformer of timm. Embeddings are unnormalised, in the joint image-text space, float32.

    timm models have no text tower; their embedding is the representation before the classifier
    (`editor/towers/ends/timm_trunk.py`).

    Attributes:
        name, pretrained: What `load_model` was given; enough to load the model again.
        module: The live module, in eval mode; its tower reads the parameters at call time.
        config: `{"model_cfg", "preprocess_cfg"}` as in an open_clip folder; `timm_cfg` in place of `model_cfg` for timm
            models.
        checkpoint: The safetensors file the weights came from, if they came from one unchanged.
        folder: The folder the model was read from: it may hold a tokenizer, concepts and texts of its own.
        storage_dtypes: The dtype that each tensor has on disk.
        readout_edit: A `direct` edit: a function of the tower and pixels that gives the edited embeddings.
        base: The model that this one was edited from.
        applied: The bound recipe that it was edited with, if that was done in memory; see `recipe`.
        read_recipe: For a model that came edited: reads the recipe that whoever wrote its folder left there.
        hf_towers: The towers of the Hugging Face folder that it was read from; empty for all others.
        lent: What the CLIP lends whose image tower this is, if it was named; `module` then holds it.
        alignment: Where the texts come from, if this model is read through an aligner; `tower` then reads it so too.
    """

    name: str
    pretrained: str | None
    module: Any
    tower: Tower
    config: Mapping[str, Any]
    checkpoint: Path | None = None
    folder: Path | None = None
    storage_dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    readout_edit: Callable[[Tower, Tensor], Tensor] | None = None
    base: Model | None = None
    applied: Any = None
    read_recipe: Callable[[], Any] | None = None
    alignment: Alignment | None = None
    hf_towers: tuple[Side, ...] = ()
    lent: Lent | None = None

    def __repr__(self) -> str:
        towers = [f"{len(list(run))} layers of {heads} heads" for heads, run in groupby(self.tower.heads_per_layer)]
        kind = "text tower" if self.side == "text" else "image tower"
        facts = [" + ".join(towers), f"{self.tower.d_embed} dimensions", str(self.device)]
        if self.alignment is not None:
            facts.append(f"read through an aligner to {self.alignment.clip.name}")
        if self.lent is not None:
            facts.append(f"with the texts of {self.lent.clip.name}")
        if self.applied is not None:
            facts.append(f"edited by {self.applied.document.name}")
        name = self.name if self.pretrained is None else f"{self.name} {self.pretrained}"
        return f"<Model {name}, {kind}: {', '.join(facts)}>"

    @property
    def editable(self) -> Model:
        """What edits are made to: this model, or the one that was aligned."""
        return self.alignment.own if self.alignment else self

    @property
    def texts_from(self) -> Alignment | Lent | None:
        """The other model that gives the texts, by an aligner or because this is its image tower."""
        return self.alignment or self.lent

    @property
    def bare(self) -> Model:
        """The model as its own files hold it, without what a CLIP lends it."""
        return self.lent.own if self.lent else self

    def why_not(self, effect: str) -> str | None:
        """Why an edit cannot enter by `distilled`, `total` or `direct`, or None: what the module or its files lack."""
        lacking = self.lent is not None and bool(self.lent.names) and effect == "distilled"
        return "its last projection is the CLIP's, not its own" if lacking else self.tower.why_not(effect)

    @property
    def as_shipped(self) -> Model:
        """The same model under open_clip's rules of resizing: those who read what is written of it follow them."""
        return replace(self, config=drop_rules(self.config)) if FOLLOWS in self.config["preprocess_cfg"] else self

    @property
    def image_size(self) -> int:
        """Height in pixels of what `encode_image` takes; nearly always the width too, see `image_shape`."""
        return self.image_shape[0]

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        size = self.config["preprocess_cfg"]["size"]
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    @cached_property
    def preprocess(self) -> Callable[[Image.Image], Tensor]:
        """PIL image to pixels `[3, height, width]`: the model's own resize, crop and normalisation."""
        return build_preprocess(self.config)

    def decoding(self, exif: Exif, decode: Decode) -> Decoding:
        """How files are decoded for this model; `scaled` leaves at least twice the pixels that resizing makes."""
        # A text tower alone has no size of images.
        scaled = decode == "scaled" and self.has_images
        return Decoding(exif, LEFT * find_resized_side(self.config) if scaled else None)

    @cached_property
    def tokenizer(self) -> Callable[[list[str]], Tensor]:
        """Texts to tokens `[text, context]`; loaded at the first use.

        Raises:
            ModelError: If the model has no text tower, or its tokenizer cannot be read.
        """
        if not self.has_texts:
            raise ModelError(f"cannot encode texts with {self.name}: it has no text tower. {self._advise_on_texts()}")
        if self.texts_from is not None:
            return self.texts_from.clip.tokenizer
        return load_tokenizer(self.name, self.folder, self.config["model_cfg"]["text_cfg"])

    def _advise_on_texts(self) -> str:
        if self.is_alone:
            return "Name the CLIP whose image tower it is: `--aligner hf:FOLDER` or `--aligner NAME:PRETRAINED`."
        return "Align it to a CLIP (`clipedit align`), or choose heads by labels and no concept: `--select frontier`."

    @cached_property
    def recipe(self) -> Any:
        """The `Recipe` that this model was edited with, in memory or by who wrote its folder; None if there is none."""
        return self.read_recipe() if self.read_recipe is not None else self.applied

    @property
    def has_texts(self) -> bool:
        """Whether there is a text tower, its own or that of a CLIP."""
        return self.texts_from is not None or hasattr(self.module, "encode_text")

    @property
    def has_images(self) -> bool:
        """Whether there is an image tower."""
        return has_images(self.module)

    @property
    def is_alone(self) -> bool:
        """Whether it is one tower of a CLIP in a folder of its own: programs that read it see its layers."""
        return len(self.hf_towers) == 1

    @property
    def side(self) -> Side:
        """Which tower the stages see: that of the images, or `text`."""
        return "text" if isinstance(self.tower, OpenClipText) else "image"

    def with_tower(self, side: Side) -> Model:
        """The same model, seen from its image or its text tower: scans, scores and edits are of that one.

        Raises:
            ModelError: If there is no such tower, or the text tower cannot be decomposed, with the reason.
        """
        if side == self.side:
            return self
        if side == "text":
            return replace(self, tower=build_text_tower(self.module, self.name))
        if not self.has_images:
            raise ModelError(f"cannot see images with {self.name}: it is a text tower alone. Add --tower text.")
        return replace(self, tower=build_tower(self.module))

    def prepare(self, source: ImageSource) -> Callable[[Any], Tensor]:
        """What makes one input of an item of a source: `preprocess`, or the tokenizer for a source of texts."""
        return (lambda text: self.tokenizer([text])[0]) if source.holds_texts else self.preprocess

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.module.parameters()).device

    @cached_property
    def weights_hash(self) -> str:
        """SHA-256 over the sorted `(tensor name, dtype, shape, bytes)` of the checkpoint as stored."""
        return hash_model(self.checkpoint) if self.checkpoint else hash_state(self.stored_state())

    @torch.no_grad()
    def encode_image(self, pixels: Float[Tensor, "image 3 height width"]) -> Float[Tensor, "image d_embed"]:
        """Embeddings of preprocessed pixels, unnormalised."""
        pixels = pixels.to(self.device)
        if self.readout_edit is not None:
            return self.readout_edit(self.tower, pixels).float()
        # A model that is seen from its text tower still has images embedded by the other one.
        return self.with_tower("image").tower.embed(pixels).float()

    @torch.no_grad()
    def encode_text(self, texts: list[str]) -> Float[Tensor, "text d_embed"]:
        """Embeddings of texts, unnormalised; texts longer than the context are cut.

        Raises:
            ModelError: If the model has no text tower.
        """
        if self.texts_from is not None:
            return self.texts_from.clip.encode_text(texts)
        # Selection, directions and report ask for the same lists; in other batches the last bits would differ.
        key = tuple(texts)
        if key not in self._texts:
            self._texts[key] = self._recall_texts(self.tokenizer(texts))
            if len(self._texts) > MAX_TEXT_LISTS:
                # Dictionaries keep the order of insertion: the oldest list goes.
                del self._texts[next(iter(self._texts))]
        # A copy, so that no caller changes what is kept.
        return self._texts[key].clone()

    @cached_property
    def _texts(self) -> dict[tuple[str, ...], Tensor]:
        return {}

    def _recall_texts(self, tokens: Tensor) -> Float[Tensor, "text d_embed"]:
        """As `encode_tokens`; long lists are kept on disk, by what they depend on."""
        cache = find_cache() if len(tokens) >= KEPT_TEXTS else None
        if cache is None:
            return self.encode_tokens(tokens)
        # Token ids stand for the texts and the tokenizer; whole lists, since batches decide the last bits.
        key = hashlib.sha256(f"{self._text_identity}\0{hash_state({'tokens': tokens})}".encode()).hexdigest()
        return cache.recall(key, lambda: self.encode_tokens(tokens)).to(self.device)

    @cached_property
    def _text_identity(self) -> str:
        return hash_text_side(self.module.state_dict(), self.config, self.device.type)

    @torch.no_grad()
    def encode_tokens(self, tokens: Tensor) -> Float[Tensor, "text d_embed"]:
        """Embeddings of token ids `[text, context]`, unnormalised."""
        return embed_tokens(self.module, tokens, self.device)

    @torch.no_grad()
    def classify(self, pixels: Float[Tensor, "image 3 height width"]) -> Float[Tensor, "image class"]:
        """Logits of the classifier in a timm checkpoint.

        Raises:
            ModelError: If there is none.
        """
        classifier = require_linear_classifier(self.module, self.name)
        if self.readout_edit is not None:
            # MaxViT's `_tf` models have a layer more between the representation and the classifier.
            between = getattr(self.module.head, "pre_logits", nn.Identity())
            return classifier(between(self.encode_image(pixels))).float()
        return self.module(pixels.to(self.device)).float()

    def stored_state(self) -> dict[str, Tensor]:
        """The weights in their dtype on disk; what is lent is in no file."""
        lent = self.lent.names if self.lent else frozenset()
        state = {name: tensor for name, tensor in self.module.state_dict().items() if name not in lent}
        return {name: tensor.to(self.storage_dtypes.get(name, tensor.dtype)) for name, tensor in state.items()}

    def with_tensors(self, tensors: Mapping[str, Tensor], **changes: Any) -> Model:
        """A model with some tensors replaced; all others are shared with this one, which does not change."""
        shared = {id(tensor): tensor for tensor in [*self.module.parameters(), *self.module.buffers()]}
        # deepcopy takes what its memo holds for copied already: modules are copied, these tensors are not.
        module = copy.deepcopy(self.module, shared)
        for name, tensor in tensors.items():
            path, _, leaf = name.rpartition(".")
            owner = module.get_submodule(path)
            old = getattr(owner, leaf)
            # Rounded as on disk first: the model in memory is the one that ships.
            stored = round_to_storage(name, tensor, self.storage_dtypes.get(name, old.dtype))
            setattr(owner, leaf, nn.Parameter(stored.to(old.dtype).to(old.device), requires_grad=old.requires_grad))
        # What is changed in memory was not edited by a recipe of the folder.
        return replace(
            self,
            module=module,
            tower=type(self.tower)(module),
            checkpoint=None,
            base=self,
            read_recipe=None,
            **changes,
        )
