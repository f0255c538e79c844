"""A model: an open_clip or timm module with its preprocessing, tokenizer and tower."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import open_clip
import torch
from jaxtyping import Float
from open_clip.factory import _find_checkpoint_in_dir
from open_clip.tokenizer import HFTokenizer
from PIL import Image
from torch import Tensor, nn

from ..components import Decomposition
from ..errors import ModelError, nearest_names
from ..files.tensors import hash_checkpoint, hash_state, read_header, reading_weights, round_to_storage, stored_dtype
from ..images.demo import DEMO, demo_folder, is_demo
from ..images.source import ImageSource
from ..towers.build import build_tower
from ..towers.tower import Tower
from ..towers.vit.open_clip_text import OpenClipText
from .config_bounds import require_modest_config, require_modest_sizes
from .hf_folder import load_hf_folder
from .open_clip_config import CONFIG_NAME, read_open_clip_config
from .preprocessing import build_preprocess, require_preprocess
from .timm import (
    create_timm,
    create_timm_from_folder,
    describe_timm,
    is_timm_folder,
    is_timm_name,
    require_linear_classifier,
    require_whole_patches,
    timm_tags,
)

WEIGHTS_NAME = "open_clip_model.safetensors"
BASE_FOLDER = "base"
HF_PREFIX = "hf:"
MAX_TEXT_LISTS = 16
Side = Literal["image", "text"]


@dataclass(frozen=True)
class Alignment:
    """What an aligned model is made of: the model itself, the CLIP whose texts it is read with, and the aligner's file."""

    own: Model
    clip: Model
    path: str
    digest: str


@dataclass(frozen=True)
class Model:
    """A CLIP, or a vision transformer of timm. Embeddings are unnormalised, in the joint image-text space, float32.

    timm models have no text tower; their embedding is the representation before the classifier (`editor/towers/ends/timm_trunk.py`).

    Attributes:
        name, pretrained: What `load_model` was given; enough to load the model again.
        module: The live module, in eval mode; its tower reads the parameters at call time.
        config: `{"model_cfg", "preprocess_cfg"}` as in an open_clip folder; `timm_cfg` in place of `model_cfg` for timm models.
        checkpoint: The safetensors file the weights came from, if they came from one unchanged.
        folder: The folder the model was read from: it may hold a tokenizer, concepts and texts of its own.
        storage_dtypes: The dtype that each tensor has on disk.
        readout_edit: A `direct` edit: a function of the tower and pixels that gives the edited embeddings.
        base: The model that this one was edited from.
        applied: The bound recipe that it was edited with, if that was done in memory; see `recipe`.
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
    alignment: Alignment | None = None

    @property
    def editable(self) -> Model:
        """What edits are made to: this model, or the one that was aligned."""
        return self.alignment.own if self.alignment else self

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

    @cached_property
    def tokenizer(self) -> Callable[[list[str]], Tensor]:
        """Texts to tokens `[text, context]`; loaded at the first use.

        Raises:
            ModelError: If the model has no text tower, or its tokenizer cannot be read.
        """
        if not self.has_texts:
            raise ModelError(
                f"cannot encode texts with {self.name}: it has no text tower. Align it to a CLIP: `clipedit align`."
            )
        if self.alignment is not None:
            return self.alignment.clip.tokenizer
        text_config = self.config["model_cfg"]["text_cfg"]
        if not (text_config.get("hf_tokenizer_name") or text_config.get("hf_model_name")):
            return open_clip.SimpleTokenizer(context_length=text_config.get("context_length", 77))
        try:
            if self.name.startswith(HF_PREFIX):
                options = text_config.get("tokenizer_kwargs") or {}
                return HFTokenizer(str(self.folder), text_config["context_length"], **options)
            return open_clip.get_tokenizer(f"local-dir:{self.folder}" if self.folder else self.name)
        except Exception as error:  # Missing packages, files and network each raise their own kind.
            raise ModelError(
                f"cannot load the tokenizer of {self.name}: {error}. It is a Hugging Face one: `pip install transformers`."
            ) from error

    @cached_property
    def recipe(self) -> Any:
        """The `Recipe` that this model was edited with, in memory or by who wrote its folder; None if there is none."""
        from ..edits.recipe import load_recipe

        if self.base is not None or self.folder is None or not (self.folder / "recipe.yaml").is_file():
            return self.applied
        return load_recipe(self.folder)

    @property
    def has_texts(self) -> bool:
        """Whether there is a text tower, its own or that of the CLIP it is aligned to."""
        return self.alignment is not None or hasattr(self.module, "encode_text")

    @property
    def side(self) -> Side:
        """Which tower the stages see: that of the images, or `text`."""
        return "text" if isinstance(self.tower, OpenClipText) else "image"

    def with_tower(self, side: Side) -> Model:
        """The same model, seen from its image or its text tower: scans, scores and edits are of that one.

        Raises:
            ModelError: If the text tower cannot be decomposed, with the reason.
        """
        if side == self.side:
            return self
        reason = OpenClipText.refusal(self.module) if side == "text" else None
        if reason is not None:
            raise ModelError(
                f"cannot decompose the texts of {self.name}: {reason}. Supported: {OpenClipText.supports}."
            )
        return replace(self, tower=OpenClipText(self.module) if side == "text" else build_tower(self.module))

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
        return hash_checkpoint(self.checkpoint) if self.checkpoint else hash_state(self.stored_state())

    @torch.no_grad()
    def encode_image(self, pixels: Float[Tensor, "image 3 height width"]) -> Float[Tensor, "image d_embed"]:
        """Embeddings of preprocessed pixels, unnormalised."""
        pixels = pixels.to(self.device)
        if self.readout_edit is not None:
            return self.readout_edit(self.tower, pixels).float()
        return self.with_tower("image").tower.embed(pixels).float()

    @torch.no_grad()
    def encode_text(self, texts: list[str]) -> Float[Tensor, "text d_embed"]:
        """Embeddings of texts, unnormalised; texts longer than the context are cut.

        Raises:
            ModelError: If the model has no text tower.
        """
        if self.alignment is not None:
            return self.alignment.clip.encode_text(texts)
        # Selection, directions and report ask for the same lists; in other batches the last bits would differ.
        key = tuple(texts)
        if key not in self._texts:
            self._texts[key] = self.encode_tokens(self.tokenizer(texts))
            if len(self._texts) > MAX_TEXT_LISTS:
                del self._texts[next(iter(self._texts))]
        return self._texts[key].clone()

    @cached_property
    def _texts(self) -> dict[tuple[str, ...], Tensor]:
        return {}

    @torch.no_grad()
    def encode_tokens(self, tokens: Tensor) -> Float[Tensor, "text d_embed"]:
        """Embeddings of token ids `[text, context]`, unnormalised."""
        chunks = tokens.to(self.device).split(256)
        return torch.cat([self.module.encode_text(chunk, normalize=False).float() for chunk in chunks])

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
        """The weights in their dtype on disk."""
        state = self.module.state_dict()
        return {name: tensor.to(self.storage_dtypes.get(name, tensor.dtype)) for name, tensor in state.items()}

    def with_tensors(self, tensors: Mapping[str, Tensor], **changes: Any) -> Model:
        """A model with some tensors replaced; all others are shared with this one, which does not change."""
        shared = {id(tensor): tensor for tensor in [*self.module.parameters(), *self.module.buffers()]}
        module = copy.deepcopy(self.module, shared)
        for name, tensor in tensors.items():
            path, _, leaf = name.rpartition(".")
            owner = module.get_submodule(path)
            old = getattr(owner, leaf)
            # Rounded as on disk first: the model in memory is the one that ships.
            stored = round_to_storage(name, tensor, self.storage_dtypes.get(name, old.dtype))
            setattr(owner, leaf, nn.Parameter(stored.to(old.dtype).to(old.device), requires_grad=old.requires_grad))
        return replace(self, module=module, tower=type(self.tower)(module), checkpoint=None, base=self, **changes)


def load_model(name: str, pretrained: str | None = None, *, device: str = "cpu") -> Model:
    """Load a model.

    Args:
        name: `demo`, a folder with `open_clip_config.json` or timm's `config.json` (also one that clipedit wrote), `hf:FOLDER`
            with a Hugging Face `CLIPModel` or `SiglipModel`, or an open_clip or timm name; timm's may carry their tag,
            `vit_base_patch16_224.augreg_in21k`.
        pretrained: A tag of open_clip or timm, or a checkpoint file. None with a name gives random weights.
        device: Where to put the weights.

    Raises:
        ModelError: If the model is unknown, cannot be read, holds NaN, or has no tower.
    """
    if pretrained is not None and (is_demo(name) or name.startswith(HF_PREFIX) or Path(name).is_dir()):
        raise ModelError(
            f"cannot load {name} with pretrained {pretrained!r}: it is a folder that holds its own weights. Leave one out."
        )
    if is_demo(name):
        return _load_folder(demo_folder(), DEMO, device)
    if name.startswith(HF_PREFIX):
        return _load_hf(Path(name.removeprefix(HF_PREFIX)), device)
    if (Path(name) / BASE_FOLDER).is_dir():
        return _load_direct(Path(name), device)
    if Path(name).is_dir():
        return _load_folder(Path(name), name, device)
    if name in open_clip.list_models():
        return _load_named(name, pretrained, device)
    if is_timm_name(name):
        architecture, _, tag = name.partition(".")
        return _load_timm(architecture, pretrained or tag or None, device)
    raise ModelError(
        f"cannot load model {name!r}: it is neither `demo`, nor a folder, nor a name of open_clip or timm. "
        f"{nearest_names(name, [*open_clip.list_models(), DEMO])}"
    )


def find_checkpoint(folder: Path) -> Path:
    """The weights file that open_clip would read from a folder.

    Raises:
        ModelError: If there is none.
    """
    found = _find_checkpoint_in_dir(folder)
    if found is None:
        raise ModelError(f"cannot load {folder}: it holds no weights. Add {WEIGHTS_NAME}.")
    return Path(found)


def needs_weights(name: str) -> bool:
    """Whether a name stands for an architecture only, so that weights must be named too."""
    if is_demo(name) or Path(name).is_dir():
        return False
    return name in open_clip.list_models() or (is_timm_name(name) and "." not in name)


def pretrained_tags(name: str) -> list[str]:
    """The tags open_clip or timm knows for a model."""
    return open_clip.list_pretrained_tags_by_model(name) if name in open_clip.list_models() else timm_tags(name)


@torch.no_grad()
def decompose(model: Model, pixels: Tensor) -> Decomposition:
    """Every component's contribution to the embeddings of a batch of pixels `[image, 3, height, width]`, or of tokens.

    Contributions and the constant sum to `model.encode_image(pixels)`; in the joint space, unnormalised. The array has
    `image x component x d_embed` numbers: for many images use `scan`.
    """
    groups = model.tower.groups(range(model.tower.n_layers), mlps=True)
    features = model.tower.collect_features(pixels.to(model.device), groups)
    readouts = model.tower.compute_readouts(groups)
    parts = [
        torch.einsum("cek,ick->ice", readouts[group.name].to(features.final), features.groups[group.name])
        for group in groups
    ]
    return Decomposition(
        components=[identity for group in groups for identity in group.ids],
        contributions=torch.cat(parts, dim=1),
        constant=model.tower.constant().to(features.final),
        embedding=features.embedding,
    )


def _load_folder(folder: Path, name: str, device: str) -> Model:
    with reading_weights(str(folder)):
        if not (folder / CONFIG_NAME).is_file() and is_timm_folder(folder):
            checkpoint = find_checkpoint(folder)
            module = create_timm_from_folder(folder, checkpoint.stat().st_size).to(device)
            config = describe_timm(module, folder)
            require_whole_patches(module, config["preprocess_cfg"]["size"])
        else:
            config = read_open_clip_config(folder)
            require_modest_sizes(config, str(folder))
            checkpoint = find_checkpoint(folder)
            require_modest_config(config["model_cfg"], checkpoint.stat().st_size, str(folder))
            module = _create(f"local-dir:{folder}", None, device, origin=str(folder))
        require_preprocess(config, getattr(getattr(module, "visual", None), "image_size", None))
        return _finish(module, name, None, config, checkpoint)


def _load_hf(folder: Path, device: str) -> Model:
    name = f"{HF_PREFIX}{folder.resolve()}"
    module, config, dtypes = load_hf_folder(folder, device=device)
    with reading_weights(name):
        require_preprocess(config)
    return replace(_finish(module, name, None, config, None), folder=folder, storage_dtypes=dtypes)


def _load_direct(folder: Path, device: str) -> Model:
    """A folder with a directly edited model: its base, and the recipe beside it."""
    from ..edits.apply import apply_recipe
    from ..edits.recipe import load_recipe

    base = _load_folder(folder / BASE_FOLDER, str(folder / BASE_FOLDER), device)
    return replace(apply_recipe(load_recipe(folder), base), name=str(folder))


def _load_timm(name: str, pretrained: str | None, device: str) -> Model:
    checkpoint = _find_file_or_tag(name, pretrained, timm_tags(name))
    with reading_weights(f"{name} ({pretrained})"):
        module = create_timm(name, pretrained)
    return _finish(module.to(device), name, pretrained, describe_timm(module), checkpoint)


def _find_file_or_tag(name: str, pretrained: str | None, tags: list[str]) -> Path | None:
    """The checkpoint file, or None for a tag."""
    checkpoint = Path(pretrained) if pretrained and Path(pretrained).is_file() else None
    if pretrained and checkpoint is None and pretrained not in tags:
        raise ModelError(
            f"cannot load {name}: {pretrained!r} is neither a file nor a tag. {nearest_names(pretrained, tags)}"
        )
    return checkpoint


def _load_named(name: str, pretrained: str | None, device: str) -> Model:
    checkpoint = _find_file_or_tag(name, pretrained, pretrained_tags(name))
    module = _create(name, pretrained, device, origin=f"{name} ({pretrained})")
    preprocess = dict(open_clip.get_model_preprocess_cfg(module))
    config = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": preprocess}
    if pretrained and (open_clip.get_pretrained_cfg(name, pretrained) or {}).get("quick_gelu"):
        config["model_cfg"]["quick_gelu"] = True
    return _finish(module, name, pretrained, config, checkpoint)


def _create(name: str, pretrained: str | None, device: str, *, origin: str) -> nn.Module:
    quick_gelu = bool(pretrained and (open_clip.get_pretrained_cfg(name, pretrained) or {}).get("quick_gelu"))
    with reading_weights(origin):
        module = open_clip.create_model(
            name, pretrained=pretrained, device=device, force_quick_gelu=quick_gelu, weights_only=True
        )
    return module


def _finish(
    module: nn.Module, name: str, pretrained: str | None, config: Mapping[str, Any], checkpoint: Path | None
) -> Model:
    module.eval()
    for tensor_name, tensor in module.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise ModelError(f"cannot use {name}: tensor {tensor_name} holds NaN or infinity. Fetch the weights again.")
    dtypes = {}
    if checkpoint is not None and checkpoint.suffix == ".safetensors":
        dtypes = {key: stored_dtype(entry) for key, entry in read_header(checkpoint).items()}
    safe = checkpoint if dtypes else None
    folder = checkpoint.parent if checkpoint is not None and pretrained is None else None
    return Model(name, pretrained, module, build_tower(module), config, safe, folder, dtypes)
