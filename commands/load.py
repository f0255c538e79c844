"""From options to models: never with random weights, and read through an aligner if there is one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..editor.errors import ModelError

if TYPE_CHECKING:
    from ..editor.choices import Side
    from ..editor.models.model import Model
    from ..editor.scan.scan import Scan


def open_model(
    name: str,
    pretrained: str | None = None,
    aligner: str | Path | None = None,
    *,
    device: str | None = None,
    scan: Path | None = None,
    tower: Side | None = None,
) -> Model:
    """As `load_model`; the aligner is by default that of a scan."""
    from ..editor.load import load_aligned
    from ..editor.models.devices import require_device
    from ..editor.models.loaders import needs_weights, pretrained_tags

    # open_clip would build the architecture with random weights.
    if pretrained is None and needs_weights(name):
        tags = ", ".join(pretrained_tags(name)) or "a checkpoint file (open_clip has no tag for it)"
        raise ModelError(f"cannot load {name} without weights. Add --pretrained, one of: {tags}.")
    placed = {"device": str(require_device(device))} if device else {}
    return load_aligned(name, pretrained, aligner=aligner or aligner_of(scan), tower=tower, **placed)


def open_named(name: str, pretrained: str | None = None, aligner: Path | None = None) -> Model:
    """A model given as one word, `name:pretrained`, where a tag is not an option of its own."""
    from ..editor.load import split_name

    return open_model(*(split_name(name) if pretrained is None else (name, pretrained)), aligner)


def open_all(names: Sequence[str], aligner: Path | None = None) -> dict[str, Model]:
    """Models given as words, by these."""
    return {name: open_named(name, None, aligner) for name in names}


def open_scan(path: Path) -> tuple[Scan, Model]:
    """A scan, and the model that it is of."""
    from ..editor.scan.scan import load_scan

    scanned = load_scan(path)
    return scanned, open_model(scanned.model_name, scanned.pretrained, scanned.aligner, tower=scanned.tower)


def aligner_of(scan: Path | None) -> str | None:
    """The aligner that a scan was made through."""
    from ..editor.scan.scan import load_scan

    return load_scan(scan).aligner if scan is not None else None


def plain_checkpoint(model: str, pretrained: str | None) -> Path | None:
    """A folder or a safetensors file that a recipe can be applied to without loading the model."""
    from ..editor.files.checkpoint import read_layout
    from ..editor.images.demo_name import demo_folder, is_demo
    from ..editor.models.loaders import find_checkpoint, has_config

    if Path(model).is_file() and Path(model).suffix == ".safetensors":
        return Path(model)
    folder = demo_folder() if is_demo(model) else Path(model)
    # With other weights named, the folder's own are not what is edited.
    if pretrained or not has_config(folder):
        return None
    checkpoint = find_checkpoint(folder)
    # Where one tensor of the file is several of the model's, the edit of one has no place there.
    return folder if checkpoint.suffix == ".safetensors" and not read_layout(checkpoint).is_tied else None
