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
from ..files.tensors import read_header
from .config_bounds import require_modest_count, require_modest_sizes

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
    if not Path(pretrained).is_file():
        return timm.create_model(f"{name}.{pretrained}", pretrained=True)
    options: dict[str, Any] = {}
    if Path(pretrained).suffix == ".safetensors":
        header = read_header(Path(pretrained))
        # Where the head has more layers than the classifier, that one is `head.fc`.
        shapes = [header[key].shape for key in ("head.weight", "head.fc.weight") if key in header]
        options["num_classes"] = shapes[0][0] if shapes else 0
    return timm.create_model(name, checkpoint_path=pretrained, **options)


def create_timm_from_folder(folder: Path, weight_bytes: int) -> nn.Module:
    """A module with a folder's weights.

    Raises:
        ModelError: If its configuration describes a much larger model than its weights are.
    """
    config = load_json(folder / TIMM_CONFIG_NAME)
    require_modest_sizes(config, str(folder))
    # Built without memory first: only the module tells how many parameters the configuration means.
    with torch.device("meta"):
        described: Any = timm.create_model(config["architecture"], **config.get("model_args") or {})
    require_modest_count(sum(tensor.numel() for tensor in described.parameters()), weight_bytes, str(folder))
    return timm.create_model(f"local-dir:{folder}", pretrained=True)


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
