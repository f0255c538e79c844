"""The tokenizer of a model: open_clip's own, one that lies in the model's folder, or one of the hub."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import open_clip
from open_clip.tokenizer import HFTokenizer
from torch import Tensor

from ..errors import ModelError
from .hub.reach import reaching_hub
from .hub.repository import TOKENIZER_NAMES, is_hub_name
from .open_clip_config import CONFIG_NAME

_CONTEXT = 77


def load_tokenizer(name: str, folder: Path | None, text_config: Mapping[str, Any]) -> Callable[[list[str]], Tensor]:
    """Texts to tokens `[text, context]`, of a model of this name, folder and open_clip's `text_cfg`.

    Raises:
        ModelError: If it cannot be read, or is neither in the cache nor to be had.
    """
    if not _named_tokenizer(text_config):
        return open_clip.SimpleTokenizer(context_length=text_config.get("context_length", _CONTEXT))
    try:
        return _load_hf_tokenizer(name, folder, text_config)
    except ModelError:
        raise
    except Exception as error:  # Missing packages, files and network each raise their own kind.
        raise ModelError(
            f"cannot load the tokenizer of {name}: {error}. It is a Hugging Face one: `pip install transformers`."
        ) from error


def _load_hf_tokenizer(name: str, folder: Path | None, text_config: Mapping[str, Any]) -> Callable[[list[str]], Tensor]:
    if folder is not None and not (folder / CONFIG_NAME).is_file():
        # `get_tokenizer` reads open_clip's configuration, which such a folder does not have. In a pipeline of diffusers
        # the tokenizer lies beside it.
        named = _named_tokenizer(text_config)
        return _build(named if Path(named).is_dir() else str(folder), text_config)
    # A repository may name the tokenizer of another one and hold none.
    elsewhere = (
        is_hub_name(name) and folder is not None and not any((folder / one).is_file() for one in TOKENIZER_NAMES)
    )
    if folder is not None and not elsewhere:
        return open_clip.get_tokenizer(f"local-dir:{folder}")
    with reaching_hub(f"the tokenizer of {name}", "Fetch it where there is a network, and copy the cache."):
        return _build(_named_tokenizer(text_config), text_config) if elsewhere else open_clip.get_tokenizer(name)


def _named_tokenizer(text_config: Mapping[str, Any]) -> str:
    return text_config.get("hf_tokenizer_name") or text_config.get("hf_model_name") or ""


def _build(source: str, text_config: Mapping[str, Any]) -> HFTokenizer:
    options = text_config.get("tokenizer_kwargs") or {}
    mode = text_config.get("tokenizer_mode")
    return HFTokenizer(source, text_config.get("context_length", _CONTEXT), tokenizer_mode=mode, **options)
