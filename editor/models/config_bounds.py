"""Sizes that a configuration of others names: a model much larger than the weights beside it is refused before it is
built.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import ModelError

# Beyond the largest published ones, by far.
MOST = {
    "layers": 512,
    "depth": 512,
    "depths": 512,
    "width": 65_536,
    "embed_dim": 65_536,
    "image_size": 4_096,
    "img_size": 4_096,
    "size": 4_096,
    "input_size": 4_096,
    "vocab_size": 4_000_000,
    "context_length": 65_536,
    "heads": 4_096,
    "mlp_ratio": 64,
    "num_classes": 1_000_000,
}
# Weights of a byte a number, and a quarter of what is built for what the estimate does not know.
SPARE_PARAMETERS = 100_000_000


def require_modest_config(model_config: Mapping[str, Any], weight_bytes: int, origin: str) -> None:
    """Refuse open_clip's `model_cfg` if it names sizes that no model has, or far more parameters than there are
    weights.

    Args:
        weight_bytes: Bytes of the weight files beside it.

    Raises:
        ModelError: With the size, or the count.
    """
    require_modest_sizes(model_config, origin)
    count = sum(
        _count(section) for key in ("vision_cfg", "text_cfg") if isinstance(section := model_config.get(key), Mapping)
    )
    require_modest_count(count, weight_bytes, origin)


def require_modest_count(parameters: int | float, weight_bytes: int, origin: str) -> None:
    """Refuse far more parameters than there are weights.

    Raises:
        ModelError: With both.
    """
    if parameters > 2 * weight_bytes + SPARE_PARAMETERS:
        raise ModelError(
            f"cannot load {origin}: its configuration describes {parameters:.2g} parameters, its weights have "
            f"{weight_bytes} bytes. Fetch both again."
        )


def require_modest_sizes(config: Mapping[str, Any], origin: str) -> None:
    """Refuse sizes that no model has, anywhere in a configuration.

    Raises:
        ModelError: With the key.
    """
    for key, value in _sizes(config):
        if key in MOST and not 0 <= value <= MOST[key]:
            raise ModelError(f"cannot load {origin}: its {key} is {value:g}, at most {MOST[key]} is known. Correct it.")


def _sizes(value: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """Every number by the key it stands under; lists of layers as their sum."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _sizes(inner, str(name))
    elif isinstance(value, list) and value and all(isinstance(item, int | float) for item in value):
        # A size of height and width is as large as its larger side; depths of stages add up.
        yield key, max(value) if key.endswith("size") else sum(value)
    elif isinstance(value, list):
        for inner in value:
            yield from _sizes(inner, key)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield key, value


def _count(section: Mapping[str, Any]) -> float:
    """About how many parameters a plain tower has; fewer than it has for others."""
    found: dict[str, float] = {}
    for key, value in _sizes(section):
        found.setdefault(key, value)
    if isinstance(section.get("layers"), list):
        return 0.0  # A ResNet, whose width is that of its first block.
    width, layers = found.get("width", 0), found.get("layers", 0)
    cells = (found.get("image_size", 0) / max(1, found.get("patch_size", 16))) ** 2
    words = found.get("vocab_size", 0) + found.get("context_length", 0)
    # A block has 4 width^2 numbers in q, k, v and the output, and 2 mlp_ratio width^2 in its MLP; words and positions
    # are rows of that width.
    return width * (layers * width * (4 + 2 * found.get("mlp_ratio", 4)) + words + cells)
