"""An architecture without its weights: layers, heads and tensor names, from a name or a folder's configuration."""

from __future__ import annotations

from pathlib import Path

import open_clip
import torch

from ..errors import ModelError, nearest_names
from ..images.demo_name import DEMO, demo_folder, is_demo
from ..towers.build import build_tower
from .fitting import quiet
from .hub.repository import BASE_FOLDER, fetch_repository, is_hub_name
from .model import Model
from .timm import create_timm, is_timm_name


def load_architecture(name: str | Path) -> Model:
    """A model whose parameters are on the `meta` device: shapes and names, no numbers, no memory.

    Args:
        name: An open_clip or timm name, `demo`, or a folder or `hf-hub:ORG/NAME` with `open_clip_config.json` (its
            weights are not read).

    Raises:
        ModelError: If the name is unknown, the configuration cannot be read, or no tower knows the architecture.
    """
    hub = is_hub_name(name)
    folder = (
        fetch_repository(str(name), weights=False).folder if hub else demo_folder() if is_demo(name) else Path(name)
    )
    folder = folder / BASE_FOLDER if (folder / BASE_FOLDER).is_dir() else folder
    known = str(name) in open_clip.list_models()
    if not folder.is_dir() and not known and not is_timm_name(str(name)):
        raise ModelError(
            f"cannot find the architecture {str(name)!r}: it is neither `demo`, nor a folder, nor a name of open_clip "
            f"or timm. {nearest_names(str(name), [*open_clip.list_models(), DEMO])}"
        )
    try:
        with quiet(), torch.device("meta"):
            if folder.is_dir() or known:
                origin = f"local-dir:{folder}" if folder.is_dir() else str(name)
                module = open_clip.create_model(origin, load_weights=False, device="meta")
            else:
                # Without its tag, which names weights.
                module = create_timm(str(name).partition(".")[0], None)
    except Exception as error:  # Configurations of others raise nearly anything.
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"cannot build the architecture {name}: {first_line}.") from error
    return Model(str(name), None, module, build_tower(module), {})
