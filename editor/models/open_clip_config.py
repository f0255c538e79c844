"""The configuration file of an open_clip folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from open_clip.transform import PreprocessCfg

from ..errors import ModelError
from ..files.bounded import load_json

CONFIG_NAME = "open_clip_config.json"


def read_open_clip_config(folder: Path) -> dict[str, Any]:
    """`{"model_cfg", "preprocess_cfg"}`, what the file leaves out filled in as open_clip does.

    Raises:
        ModelError: If the file is missing or is not one of open_clip's.
    """
    path = folder / CONFIG_NAME
    try:
        config = load_json(path)
    except FileNotFoundError:
        raise ModelError(
            f"cannot load {folder}: it has no {CONFIG_NAME}. Give an open_clip folder, or hf:{folder} if it is a "
            "Hugging Face one."
        ) from None
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path}: {error}.") from None
    model_config = config.get("model_cfg") if isinstance(config, dict) else None
    if not isinstance(model_config, dict) or not {"vision_cfg", "text_cfg"} <= model_config.keys():
        raise ModelError(f"cannot read {path}: it needs `model_cfg` with `vision_cfg` and `text_cfg`.")
    if not all(isinstance(model_config[key], dict) for key in ("vision_cfg", "text_cfg")):
        raise ModelError(f"cannot read {path}: `vision_cfg` and `text_cfg` must be objects.")
    if not isinstance(config.get("preprocess_cfg", {}), dict):
        raise ModelError(f"cannot read {path}: `preprocess_cfg` must be an object.")
    require_no_remote_code(config, str(path))
    defaults = {**PreprocessCfg().__dict__, "size": config["model_cfg"]["vision_cfg"].get("image_size", 224)}
    return {"model_cfg": config["model_cfg"], "preprocess_cfg": {**defaults, **config.get("preprocess_cfg", {})}}


def require_no_remote_code(config: Any, origin: str) -> None:
    """Refuse a configuration that asks a library to run code which lies beside the weights, or on the hub.

    Raises:
        ModelError: Naming the key.
    """
    # Level by level and not recursive: the file may come from anybody.
    level = [config]
    while level:
        asking = next((value for value in level if isinstance(value, dict) and "trust_remote_code" in value), None)
        if asking is not None:
            raise ModelError(
                f"cannot use {origin}: `trust_remote_code` asks to run code that comes with it. Remove the key."
            )
        level = [
            inner
            for value in level
            if isinstance(value, dict | list)
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
