"""Loaders: from a name, a folder or a checkpoint to a model as its files hold it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.factory import _find_checkpoint_in_dir
from torch import nn

from ..errors import ModelError, nearest_names
from ..files.checkpoint import SAFE_SUFFIX, read_model_header, read_state
from ..files.tensors import reading_weights, stored_dtype
from ..images.demo_name import DEMO, demo_folder, is_demo
from ..towers.build import build_tower
from .config_bounds import require_modest_config, require_modest_sizes
from .fitting import name_architecture, quiet, shapes_of
from .hf.folder import is_hf_folder, load_hf_folder
from .hub.reach import reaching_hub
from .hub.repository import is_hub_name
from .identity import find_size_difference
from .model import HF_PREFIX, Model
from .open_clip_config import CONFIG_NAME, read_open_clip_config
from .preprocessing import require_preprocess
from .timm import (
    create_timm,
    create_timm_from_folder,
    describe_timm,
    is_timm_folder,
    is_timm_name,
    require_whole_patches,
    timm_tags,
)
from .weights import Undrawn, find_rewritable, load_open_clip_weights, read_weights

WEIGHTS_NAME = "open_clip_model.safetensors"
_WITHOUT_HUB = "Fetch it where there is a network, and give the file: `--pretrained FILE`; or copy the cache."


def load_plain_model(name: str, pretrained: str | None = None, *, device: str = "cpu") -> Model:
    """As `editor.load.load_model`, of a model that carries no direct edit and whose recipe nobody asks for.

    Raises:
        ModelError: If the model is unknown, cannot be read, holds NaN, or has no tower.
    """
    if pretrained is not None and (is_demo(name) or name.startswith(HF_PREFIX) or Path(name).is_dir()):
        raise ModelError(
            f"cannot load {name} with pretrained {pretrained!r}: it is a folder that holds its own weights. Leave one "
            "out."
        )
    if is_demo(name):
        return _load_folder(demo_folder(), DEMO, device)
    if name.startswith(HF_PREFIX):
        return _load_hf(Path(name.removeprefix(HF_PREFIX)), device)
    if Path(name).is_dir():
        return _load_folder(Path(name), name, device)
    if Path(name).is_file():
        raise ModelError(describe_checkpoint(Path(name)))
    if name in open_clip.list_models():
        return _load_named(name, pretrained, device)
    if is_timm_name(name):
        architecture, _, tag = name.partition(".")
        return _load_timm(architecture, pretrained or tag or None, device)
    raise ModelError(
        f"cannot load model {name!r}: it is neither `demo`, nor a folder, nor a name of open_clip or timm, nor "
        "`hf-hub:ORG/NAME`. "
        f"{nearest_names(name, [*open_clip.list_models(), DEMO])}"
    )


def find_checkpoint(folder: Path) -> Path:
    """The weights file that open_clip would read from a folder.

    Raises:
        ModelError: If there is none.
    """
    found = _find_checkpoint_in_dir(folder)
    if found is None:
        # open_clip looks for other suffixes only.
        other = next((f", and {path.name} is not looked for: rename it to x.pth" for path in folder.glob("*.pt")), "")
        raise ModelError(f"cannot load {folder}: it holds no weights{other}. Add {WEIGHTS_NAME}.")
    return Path(found)


def describe_checkpoint(path: Path) -> str:
    """Why a file alone is no model, and which architectures its tensors fit."""
    with reading_weights(str(path)):
        advice = name_architecture(shapes_of(read_state(path)))
    beside = f" Or give its folder, which has a configuration: `--model {path.parent}`." * has_config(path.parent)
    # What Hugging Face wrote is read with the folder's config.json only.
    named = f" Name it: `--model NAME --pretrained {path}`." * (HF_PREFIX not in advice)
    return f"cannot load {path}: a checkpoint does not say its architecture. {advice}{named}{beside}"


def has_config(folder: Path) -> bool:
    """Whether a folder has a configuration that says what its weights are."""
    return (folder / CONFIG_NAME).is_file() or is_timm_folder(folder)


def lasting_name(name: str) -> str:
    """Names that are paths are stored so that they hold from any working directory."""
    return str(Path(name).resolve()) if Path(name).exists() and not is_demo(name) else name


def needs_weights(name: str) -> bool:
    """Whether a name stands for an architecture only, so that weights must be named too."""
    if is_demo(name) or is_hub_name(name) or Path(name).is_dir():
        return False
    return name in open_clip.list_models() or (is_timm_name(name) and "." not in name)


def pretrained_tags(name: str) -> list[str]:
    """The tags open_clip or timm knows for a model."""
    return open_clip.list_pretrained_tags_by_model(name) if name in open_clip.list_models() else timm_tags(name)


def _load_folder(folder: Path, name: str, device: str) -> Model:
    if not (folder / CONFIG_NAME).is_file() and is_hf_folder(folder):
        return _load_hf(folder, device)
    with reading_weights(str(folder)):
        if not (folder / CONFIG_NAME).is_file() and is_timm_folder(folder):
            checkpoint = find_checkpoint(folder)
            module = create_timm_from_folder(folder, checkpoint).to(device)
            config = describe_timm(module, folder)
            require_whole_patches(module, config["preprocess_cfg"]["size"])
        else:
            config = read_open_clip_config(folder)
            # Before anything is built: a file of others may ask for any amount of memory.
            require_modest_sizes(config, str(folder))
            checkpoint = find_checkpoint(folder)
            require_modest_config(config["model_cfg"], checkpoint.stat().st_size, str(folder))
            weights = read_weights(checkpoint)
            module = _create_empty(f"local-dir:{folder}", device)
            load_open_clip_weights(module, weights, checkpoint, str(folder / CONFIG_NAME))
        require_preprocess(config, getattr(getattr(module, "visual", None), "image_size", None))
        return _finish(module, name, None, config, checkpoint)


def _load_hf(folder: Path, device: str) -> Model:
    name = f"{HF_PREFIX}{folder.resolve()}"
    module, config, dtypes, towers = load_hf_folder(folder, device=device)
    if "image" in towers:
        with reading_weights(name):
            require_preprocess(config)
    model = _finish(module, name, None, config, None)
    return replace(model, folder=folder, storage_dtypes=dtypes, hf_towers=towers)


def _load_timm(name: str, pretrained: str | None, device: str) -> Model:
    checkpoint = _find_file_or_tag(name, pretrained, timm_tags(name))
    fetched = pretrained is not None and checkpoint is None
    with reading_weights(f"{name} ({pretrained})"), _fetching(f"{name} ({pretrained})", fetched):
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
    if checkpoint is not None:
        return _load_named_file(name, str(pretrained), device)
    module = _create(name, pretrained, device, origin=f"{name} ({pretrained})")
    preprocess = dict(open_clip.get_model_preprocess_cfg(module))
    config = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": preprocess}
    if pretrained and (open_clip.get_pretrained_cfg(name, pretrained) or {}).get("quick_gelu"):
        # As `_create` built it: a folder that is written from this configuration has to say so.
        config["model_cfg"]["quick_gelu"] = True
    return _finish(module, name, pretrained, config, None)


def _load_named_file(name: str, pretrained: str, device: str) -> Model:
    """A checkpoint file of an architecture; a configuration beside it says how it was trained."""
    checkpoint = Path(pretrained)
    with reading_weights(f"{name} ({checkpoint})"):
        weights, beside = read_weights(checkpoint), read_config_beside(checkpoint, name)
        module = _create_empty(f"local-dir:{checkpoint.parent}" if beside else name, device)
        load_open_clip_weights(module, weights, checkpoint, name)
    preprocess = dict(open_clip.get_model_preprocess_cfg(module))
    config = beside or {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": preprocess}
    return _finish(module, name, pretrained, config, checkpoint)


def read_config_beside(checkpoint: Path, name: str) -> dict[str, Any] | None:
    """The configuration in a checkpoint's folder, if it is of the named architecture; one that is not is warned of.

    Activation, norms, pooling and preprocessing are taken from it: the name alone does not say them.
    """
    path = checkpoint.parent / CONFIG_NAME
    if not path.is_file():
        return None
    config = read_open_clip_config(checkpoint.parent)
    difference = find_size_difference(config["model_cfg"], open_clip.get_model_config(name) or {})
    if difference is None:
        return config
    warnings.warn(f"{path} is not used: it is not of {name} ({difference}).", stacklevel=2)
    return None


@contextmanager
def _fetching(what: str, needed: bool) -> Iterator[None]:
    """Inside, weights may come from the hub; nothing is asked of it where none are needed."""
    with reaching_hub(what, _WITHOUT_HUB) if needed else nullcontext():
        yield


def _create_empty(name: str, device: str) -> nn.Module:
    """A module whose weights come from a file: none are fetched, and none are drawn."""
    config = open_clip.get_model_config(name) or {}
    with Undrawn(), quiet(), _fetching(f"the text tower of {name}", "hf_model_name" in config.get("text_cfg", {})):
        return open_clip.create_model(name, device=device, load_weights=False, pretrained_text=False)


def _create(name: str, pretrained: str | None, device: str, *, origin: str) -> nn.Module:
    # OpenAI's weights were trained with QuickGELU, which the architecture's own configuration does not say.
    quick_gelu = bool(pretrained and (open_clip.get_pretrained_cfg(name, pretrained) or {}).get("quick_gelu"))
    with reading_weights(origin), _fetching(origin, pretrained is not None):
        module = open_clip.create_model(
            name, pretrained=pretrained, device=device, force_quick_gelu=quick_gelu, weights_only=True
        )
    return module


def _finish(
    module: nn.Module, name: str, pretrained: str | None, config: Mapping[str, Any], checkpoint: Path | None
) -> Model:
    module.eval()
    for tensor_name, tensor in module.state_dict().items():
        # One number says it of nearly all; only a sum that overflows says less.
        if not (torch.isfinite(tensor.sum()) or torch.isfinite(tensor).all()):
            raise ModelError(f"cannot use {name}: tensor {tensor_name} holds NaN or infinity. Fetch the weights again.")
    dtypes = {}
    if checkpoint is not None and checkpoint.suffix == SAFE_SUFFIX:
        dtypes = {key: stored_dtype(entry) for key, entry in read_model_header(checkpoint).items()}
    # Only safetensors can be hashed as stored, and copied with some tensors replaced; what cannot is written anew.
    safe = checkpoint if find_rewritable(checkpoint, module) else None
    # A checkpoint file that was named may lie anywhere: what is beside it is not the model's.
    folder = checkpoint.parent if checkpoint is not None and pretrained is None else None
    return Model(name, pretrained, module, build_tower(module), config, safe, folder, dtypes)
