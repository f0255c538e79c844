"""The configuration file of an open_clip folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from open_clip.transform import PreprocessCfg

from .errors import ModelError

CONFIG_NAME = "open_clip_config.json"


def read_open_clip_config(folder: Path) -> dict[str, Any]:
    """`{"model_cfg", "preprocess_cfg"}`, what the file leaves out filled in as open_clip does.

    Raises:
        ModelError: If the file is missing or is not one of open_clip's.
    """
    path = folder / CONFIG_NAME
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"cannot load {folder}: it has no {CONFIG_NAME}. Give an open_clip folder, or hf:{folder} if it is a Hugging Face one."
        ) from None
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path}: {error}.") from None
    model_config = config.get("model_cfg") if isinstance(config, dict) else None
    if not isinstance(model_config, dict) or not {"vision_cfg", "text_cfg"} <= model_config.keys():
        raise ModelError(f"cannot read {path}: it needs `model_cfg` with `vision_cfg` and `text_cfg`.")
    defaults = {**PreprocessCfg().__dict__, "size": config["model_cfg"]["vision_cfg"].get("image_size", 224)}
    return {"model_cfg": config["model_cfg"], "preprocess_cfg": {**defaults, **config.get("preprocess_cfg", {})}}
