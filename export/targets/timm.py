"""The layout of timm: `config.json` and `model.safetensors`; `timm.create_model("local-dir:FOLDER")` reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from ...editor.errors import ExportError
from ...editor.files.whole import write_text
from ...editor.models.model import Model
from ...editor.models.timm import TIMM_CONFIG_NAME, TIMM_WEIGHTS_NAME
from ..consumers.consumer import Consumer, after_preprocessing
from ..consumers.shipped import Statement, read_said
from ..consumers.target import Target, TargetRow
from ..graphs.profile import Profile, require_plain
from ..verify.reference import Reference

# What a model computes with its weights; the rest of the file says where it comes from.
_COMPUTED = ("architecture", "model_args", "num_classes", "global_pool", "pretrained_cfg")
_PREPROCESSED = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")


def write_timm_folder(state: Mapping[str, Tensor], config: Mapping[str, Any], folder: Path) -> None:
    """Write weights in the dtype they have, and timm's configuration, into an existing folder."""
    # Sorted and contiguous: equal models give equal files, and safetensors takes no views with strides.
    tensors = {name: state[name].detach().cpu().contiguous() for name in sorted(state)}
    save_file(tensors, folder / TIMM_WEIGHTS_NAME, metadata={"format": "pt"})
    write_text(folder / TIMM_CONFIG_NAME, json.dumps(config, indent=2) + "\n")


def _write(model: Model, folder: Path, _: Profile) -> None:
    require_plain(model, "timm")
    if "timm_cfg" not in model.config:
        raise ExportError(f"cannot export {model.name} to timm: it is not a timm model. Use --target open-clip.")
    write_timm_folder(model.stored_state(), model.config["timm_cfg"], folder)


def tell_timm(folder: Path, reference: Reference, inside: str = "") -> Statement:
    """What timm's configuration says of the architecture and of preprocessing."""
    path = f"{inside}/{TIMM_CONFIG_NAME}" if inside else TIMM_CONFIG_NAME
    wanted = {key: value for key, value in reference.config["timm_cfg"].items() if key in _COMPUTED}
    # The rest of it says where the weights came from, and may differ.
    wanted["pretrained_cfg"] = {
        key: value for key, value in wanted.get("pretrained_cfg", {}).items() if key in _PREPROCESSED
    }
    return Statement(path, wanted, read_said(folder / path))


def _load(folder: Path, reference: Reference, profile: Profile) -> Consumer:
    """With the evaluation transform that timm makes from the folder."""
    import timm
    from timm.data.config import resolve_data_config
    from timm.data.transforms_factory import create_transform

    module = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform: Any = create_transform(**resolve_data_config(model=module), is_training=False)
    return Consumer(f"timm {timm.__version__}", module, after_preprocessing(module, transform), None)


TARGET = Target(
    Profile(target="timm", sidecars=(TIMM_CONFIG_NAME,), needs_texts=False),
    write=_write,
    load=_load,
    tell=lambda folder, reference, profile: [tell_timm(folder, reference)],
    card="",
    row=TargetRow(
        "`config.json`, `model.safetensors` of a bare vision transformer, classifier included", "timm `local-dir:`"
    ),
)
