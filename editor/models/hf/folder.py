"""Hugging Face folders of CLIP, SigLIP and their towers as open_clip modules, tensor by tensor, without network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from open_clip import CLIP, CustomTextCLIP
from open_clip.model import CLIPVisionCfg, _build_text_tower, _build_vision_tower
from open_clip.timm_model import TimmModel
from timm.models import VisionTransformer
from torch import Tensor, nn

from ...choices import Side
from ...errors import ModelError
from ...files.bounded import load_json
from ...files.checkpoint import pick_model, read_state, read_tensors
from ...files.tensors import reading_weights
from ...files.whole import find_beside
from ..config_bounds import require_modest_config
from ..fitting import POSITIONS
from ..hub.repository import WEIGHT_NAMES
from .config import (
    convert_clip_config,
    convert_siglip_config,
    read_sections,
    siglip_trunk_arguments,
)
from .kinds import (
    PROJECTIONS,
    FolderKind,
    ImageTowerAlone,
    TextTowerAlone,
    folder_names,
    is_known_kind,
    read_kind,
    whole_config,
)
from .names import SameTensors, convert_from_hf
from .preprocessing import convert_preprocessing

CONFIG_NAME, PIPELINE_NAME = "config.json", "model_index.json"
CLIP_VOCABULARY = 49408
_SMALLEST_TIMM = "test_vit"


class HfModel(NamedTuple):
    """An open_clip module in eval mode, its open_clip configuration, the dtypes that its tensors have on disk, and the
    towers that the folder holds.
    """

    module: nn.Module
    config: dict[str, Any]
    storage_dtypes: dict[str, torch.dtype]
    towers: tuple[Side, ...]


def is_hf_folder(folder: Path) -> bool:
    """Whether a folder's `config.json` is one of transformers for a CLIP, a SigLIP or one of their towers.

    Raises:
        ModelError: If it is a whole pipeline of diffusers, naming the folder inside.
    """
    if (folder / PIPELINE_NAME).is_file() and not (folder / CONFIG_NAME).is_file():
        inside = next((path for path in sorted(folder.glob("text_encoder*")) if (path / CONFIG_NAME).is_file()), None)
        hint = f"Give its text encoder: `--model {inside} --tower text`" if inside else "It has no text encoder of CLIP"
        raise ModelError(f"cannot load {folder}: it is a pipeline of diffusers. {hint}.")
    try:
        config = load_json(folder / CONFIG_NAME)
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and is_known_kind(config)


def load_hf_folder(folder: Path, *, device: str = "cpu") -> HfModel:
    """Read a folder with `config.json`, weights and preprocessing.

    Raises:
        ModelError: If a file is missing or damaged, or the model is of another kind.
    """
    with reading_weights(f"hf:{folder}"):
        return _load(folder, device)


def read_names(folder: Path, stored: Iterable[str]) -> list[SameTensors]:
    """The names of a folder's tensors, beside open_clip's; `stored` are those that its files have."""
    config = _read_json(folder / CONFIG_NAME)
    vision, text = read_sections(whole_config(config))
    return folder_names(read_kind(config), (vision["num_hidden_layers"], text["num_hidden_layers"]), stored)


def _load(folder: Path, device: str) -> HfModel:
    if not folder.is_dir():
        raise ModelError(
            f"cannot load hf:{folder}: no such folder. Give one that `save_pretrained` wrote, or a clone of it."
        )
    config = _read_json(folder / CONFIG_NAME)
    kind, whole = read_kind(config), whole_config(config)
    vision, text = read_sections(whole)
    # Before the weights are read: a field that cannot be used is said at once.
    preprocessing = {}
    if "image" in kind.towers:
        preprocessing = read_preprocessing(folder, {**config, "model_type": whole["model_type"]}, vision["image_size"])
    model_config = _describe(kind, whole)
    require_modest_config(model_config, _weight_bytes(folder), f"hf:{folder}")
    # CLIP's own vocabulary comes with open_clip; any other tokenizer is read from the folder.
    if "text" in kind.towers and (kind.family != "clip" or text["vocab_size"] != CLIP_VOCABULARY):
        model_config["text_cfg"]["hf_tokenizer_name"] = str(_find_tokenizer(folder))
    stored = _read_state(folder)
    projected = not kind.is_alone or kind.family != "clip" or bool(set(stored) & set(PROJECTIONS))
    if not projected:
        # The pooled output is then the embedding.
        model_config["embed_dim"] = (vision if kind.towers == ("image",) else text)["hidden_size"]
        if kind.towers == ("text",):
            model_config["text_cfg"]["proj_type"] = "none"
    names = folder_names(kind, (vision["num_hidden_layers"], text["num_hidden_layers"]), stored)
    state = convert_from_hf(stored, names)
    module = _build(kind, model_config, whole, projected=projected)
    _fill(module, state, folder)
    found = {"model_cfg": model_config, "preprocess_cfg": preprocessing}
    dtypes = {name: tensor.dtype for name, tensor in state.items()}
    return HfModel(module.eval().to(device), found, dtypes, kind.towers)


def _describe(kind: FolderKind, whole: Mapping[str, Any]) -> dict[str, Any]:
    """open_clip's `model_cfg`; of a tower alone without a section for the other one."""
    clip = kind.family == "clip"
    found = convert_clip_config(whole) if clip else convert_siglip_config(whole)
    if "image" not in kind.towers:
        return {key: value for key, value in found.items() if key != "vision_cfg"}
    found = found if clip else _name_trunk(found, whole)
    return found if "text" in kind.towers else {key: value for key, value in found.items() if key != "text_cfg"}


def _build(
    kind: FolderKind, model_config: Mapping[str, Any], whole: Mapping[str, Any], *, projected: bool
) -> nn.Module:
    quick, d_embed = model_config.get("quick_gelu", False), model_config["embed_dim"]
    if kind.towers == ("text",):
        return TextTowerAlone(_build_text_tower(d_embed, model_config["text_cfg"], quick))
    if kind.family == "siglip":
        return ImageTowerAlone(_build_trunk(d_embed, whole)) if kind.is_alone else _build_siglip(model_config, whole)
    if not kind.is_alone:
        return CLIP(**model_config)
    visual: Any = _build_vision_tower(d_embed, CLIPVisionCfg(**model_config["vision_cfg"]), quick)
    if not projected:
        # open_clip always makes one.
        visual.proj = None
    return ImageTowerAlone(visual)


def _build_siglip(model_config: Mapping[str, Any], whole: Mapping[str, Any]) -> nn.Module:
    """A small tower first: open_clip can only name timm models, and the real one is not always among them."""
    small = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 32}
    # `custom_text` is for open_clip's factory: it chooses this class, which does not take it.
    arguments = {key: value for key, value in model_config.items() if key != "custom_text"}
    module = CustomTextCLIP(**{**arguments, "vision_cfg": small})
    module.visual = _build_trunk(model_config["embed_dim"], whole)
    return module


def _build_trunk(d_embed: int, whole: Mapping[str, Any]) -> TimmModel:
    trunk = siglip_trunk_arguments(whole)
    # Only the wrapper is kept of this one: its trunk is replaced at once.
    visual = TimmModel(_SMALLEST_TIMM, d_embed, trunk["img_size"], pool="avg", proj="none")
    visual.trunk = VisionTransformer(**trunk, num_classes=0, class_token=False, global_pool="map")
    return visual


def _name_trunk(model_config: dict[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """timm's name for the image tower, if it has one: what open_clip needs to build an exported folder again.

    Some of timm's have the exact GELU where transformers approximates it by tanh: the name stands for the sizes only.
    """
    wanted = siglip_trunk_arguments(config)
    size, patch = wanted["img_size"], wanted["patch_size"]
    for name in timm.list_models(f"vit_*_patch{patch}_siglip_{size}"):
        with torch.device("meta"):
            known: Any = timm.create_model(name, num_classes=0)
        block = known.blocks[0]
        found = (known.embed_dim, len(known.blocks), block.attn.num_heads, block.mlp.fc1.out_features)
        hidden = int(wanted["embed_dim"] * wanted["mlp_ratio"])
        if found == (wanted["embed_dim"], wanted["depth"], wanted["num_heads"], hidden):
            model_config["vision_cfg"]["timm_model_name"] = name
    return model_config


def _fill(module: nn.Module, state: Mapping[str, Tensor], folder: Path) -> None:
    own = module.state_dict()
    wrong = [
        f"{name} is {tuple(tensor.shape)}, not {tuple(own[name].shape)}"
        for name, tensor in state.items()
        if name in own and own[name].shape != tensor.shape
    ]
    wrong += [f"{name} has no place" for name in state if name not in own]
    if wrong:
        resized = all(" is " in said and said.split()[0].endswith(POSITIONS) for said in wrong)
        fix = "They were trained for another image size: set `image_size` to it." if resized else "Fetch both again."
        raise ModelError(f"cannot load hf:{folder}: config.json does not describe the weights ({wrong[0]}). {fix}")
    # All is computed in float32; the types on disk are kept in `HfModel.storage_dtypes`.
    module.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=False)


def find_weights(folder: Path) -> list[Path]:
    """The files that hold the weights: the first of those that transformers looks for, or its shards.

    Raises:
        ModelError: If there are none.
    """
    found = next((folder / name for name in WEIGHT_NAMES if (folder / name).is_file()), None)
    if found is None:
        variants = sorted(path.name for path in folder.glob("model.*.safetensors"))
        hint = f"; {variants[0]} is a variant, rename it" if variants else ""
        raise ModelError(
            f"cannot load hf:{folder}: it has neither {WEIGHT_NAMES[0]} nor {WEIGHT_NAMES[2]}{hint}. Add the weights."
        )
    if found.suffix != ".json":
        return [found]
    # An index comes from others: what it names must lie beside it.
    return [find_beside(found, name) for name in sorted(set(_read_json(found)["weight_map"].values()))]


def _read_state(folder: Path) -> dict[str, Tensor]:
    """The weights, without wrappers' prefixes."""
    files = find_weights(folder)
    if len(files) == 1:
        return read_state(files[0])
    shards = [read_tensors(path) for path in files]
    return pick_model({name: tensor for shard in shards for name, tensor in shard.items()}, str(folder))


def _find_tokenizer(folder: Path) -> Path:
    """Where the tokenizer lies: in the folder, or beside a text encoder in a pipeline of diffusers."""
    beside = folder.parent / folder.name.replace("text_encoder", "tokenizer")
    in_pipeline = (folder.parent / PIPELINE_NAME).is_file() and beside != folder and beside.is_dir()
    return (beside if in_pipeline else folder).resolve()


def _weight_bytes(folder: Path) -> int:
    """Bytes of all files that may hold weights; links are followed, as the hub's cache has them."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (".safetensors", ".bin"))


def read_preprocessing(folder: Path, config: Mapping[str, Any], image_size: int) -> dict[str, Any]:
    """The folder's preprocessing as open_clip's; settings inside `processor_config.json` go before a file of their own,
    as in transformers.

    Raises:
        ModelError: If there is none, or a field cannot be used.
    """
    path = folder / "processor_config.json"
    found = _read_json(path).get("image_processor") if path.is_file() else None
    if found is None:
        path = folder / "preprocessor_config.json"
        # A pipeline of diffusers keeps it beside its image encoder.
        beside = folder.parent / "feature_extractor" / path.name
        if not path.is_file() and (folder.parent / PIPELINE_NAME).is_file() and beside.is_file():
            path = beside
        if not path.is_file():
            raise ModelError(f"cannot load hf:{folder}: it has no {path.name}. Add the one of the model.")
        found = _read_json(path)
    if not isinstance(found, dict):
        raise ModelError(f"cannot read {path}: `image_processor` is no JSON object.")
    return convert_preprocessing(found, config, image_size, path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = load_json(path)
    except FileNotFoundError:
        raise ModelError(
            f"cannot load hf:{path.parent}: it has no {path.name}. Give a folder that `save_pretrained` wrote."
        ) from None
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path}: {error}.") from None
    if not isinstance(found, dict):
        raise ModelError(f"cannot read {path}: it holds no JSON object.")
    return found
