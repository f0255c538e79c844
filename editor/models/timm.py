"""timm models: names with tags, checkpoint files, and folders as timm's own hub lays them out (`config.json`,
`model.safetensors`).

A folder loads in plain timm by `timm.create_model("local-dir:FOLDER", pretrained=True)`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from timm.models._hub import save_config_for_hf
from torch import nn

from ..errors import ModelError
from ..files.bounded import load_json
from ..files.checkpoint import SAFE_SUFFIX, read_layout, read_state
from .config_bounds import require_modest_count, require_modest_sizes
from .weights import NUMPY_SUFFIXES, fill_module

TIMM_CONFIG_NAME, TIMM_WEIGHTS_NAME = "config.json", "model.safetensors"


def is_timm_name(name: str) -> bool:
    """Whether timm has this architecture; a tag may follow, `vit_base_patch16_224.augreg_in21k`."""
    return timm.is_model(name.partition(".")[0])


def is_timm_folder(folder: Path) -> bool:
    """Whether a folder holds timm's `config.json`; one of transformers has no `architecture`."""
    try:
        config = load_json(folder / TIMM_CONFIG_NAME)
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "architecture" in config


def timm_tags(name: str) -> list[str]:
    """The tags that timm has weights for."""
    return [full.partition(".")[2] for full in timm.list_pretrained(f"{name}.*")]


def create_timm(name: str, pretrained: str | None) -> nn.Module:
    """A module of an architecture: random weights, a tag's, or those of a checkpoint file.

    A file decides how many classes there are.
    """
    if pretrained is None:
        return timm.create_model(name)
    path = Path(pretrained)
    if not path.is_file():
        return timm.create_model(f"{name}.{pretrained}", pretrained=True)
    if path.suffix in NUMPY_SUFFIXES:
        return timm.create_model(name, checkpoint_path=pretrained)
    state = read_state(path)
    # Where the head has more layers than the classifier, that one is `head.fc`.
    shapes = [state[key].shape for key in ("head.weight", "head.fc.weight") if key in state]
    module = timm.create_model(name, num_classes=shapes[0][0] if shapes else 0)
    fill_module(module, state, path, name)
    return module


def create_timm_from_folder(folder: Path, checkpoint: Path) -> nn.Module:
    """A module with a folder's weights.

    Raises:
        ModelError: If its configuration describes a much larger model than its weights are, or other tensors.
    """
    config = load_json(folder / TIMM_CONFIG_NAME)
    require_modest_sizes(config, str(folder))
    # Built without memory first: only the module tells how many parameters the configuration means.
    with torch.device("meta"):
        described: Any = timm.create_model(config["architecture"], **config.get("model_args") or {})
    count = sum(tensor.numel() for tensor in described.parameters())
    require_modest_count(count, checkpoint.stat().st_size, str(folder))
    plain = checkpoint.suffix == SAFE_SUFFIX and read_layout(checkpoint).is_plain
    try:
        # Where a classifier is missing timm leaves random what it does not find: only names that it knows go there.
        return timm.create_model(f"local-dir:{folder}", pretrained=True) if plain else _fill_folder(folder, checkpoint)
    except (RuntimeError, KeyError):  # Of another architecture: said by name.
        return _fill_folder(folder, checkpoint)


def _fill_folder(folder: Path, checkpoint: Path) -> nn.Module:
    module: Any = timm.create_model(f"local-dir:{folder}", pretrained=False)
    state = read_state(checkpoint)
    if module.num_classes == 0:
        # As timm does it: a configuration without classes leaves the file's classifier aside.
        state = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    fill_module(module, state, checkpoint, str(folder / TIMM_CONFIG_NAME))
    return module


def require_whole_patches(module: Any, size: Sequence[int]) -> None:
    """Refuse pixels that the first layer cannot cut into its patches.

    Raises:
        ModelError: With both sizes.
    """
    embed = getattr(module, "patch_embed", None)
    patch = getattr(embed, "patch_size", None)
    if (
        patch
        and not getattr(embed, "dynamic_img_pad", False)
        and any(side % step for side, step in zip(size, patch, strict=True))
    ):
        raise ModelError(
            f"cannot load the model: {list(size)} pixels are no whole number of patches of {list(patch)}. Correct "
            "config.json."
        )


def describe_timm(module: nn.Module, folder: Path | None = None) -> dict[str, Any]:
    """A model's configuration: `timm_cfg`, as in the folder if it came from one, and `preprocess_cfg`."""
    data = resolve_data_config(model=module)
    preprocess = {key: data[key] for key in ("mean", "std", "interpolation", "crop_pct", "crop_mode")}
    described = {"preprocess_cfg": {"size": list(data["input_size"][1:]), **preprocess}}
    if folder is not None:
        return {"timm_cfg": load_json(folder / TIMM_CONFIG_NAME), **described}
    # timm gives this configuration only as a file.
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / TIMM_CONFIG_NAME
        save_config_for_hf(module, str(path))
        return {"timm_cfg": load_json(path), **described}


def describe_timm_folder(folder: Path) -> dict[str, Any]:
    """As `describe_timm` of the folder's model, whose weights are not read."""
    config = load_json(folder / TIMM_CONFIG_NAME)
    require_modest_sizes(config, str(folder))
    with torch.device("meta"):
        module = timm.create_model(f"local-dir:{folder}", pretrained=False)
    return describe_timm(module, folder)


def timm_transform(preprocess: Mapping[str, Any]) -> Callable[..., torch.Tensor]:
    """timm's own evaluation transform: resize by `crop_pct`, crop, normalise."""
    options = {key: value for key, value in preprocess.items() if key != "size"}
    made: Any = create_transform(input_size=(3, *preprocess["size"]), is_training=False, **options)
    return made


def require_linear_classifier(module: Any, name: str) -> nn.Linear:
    """The checkpoint's classifier.

    Raises:
        ModelError: If it has none that is one linear layer.
    """
    found = module.get_classifier() if hasattr(module, "get_classifier") else None
    if not isinstance(found, nn.Linear):
        raise ModelError(f"cannot classify with {name}: its checkpoint has no linear classifier.")
    return found
