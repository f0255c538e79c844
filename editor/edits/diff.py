"""diff: what changed between two checkpoints, tensor by tensor; memory stays near the largest tensor."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors import safe_open
from torch import Tensor

from ..choices import Side
from ..components import HeadId
from ..errors import ModelError
from ..files.bounded import load_json
from ..files.checkpoint import model_reader, read_model_header
from ..files.tensors import StoredTensor
from ..images.demo_name import demo_folder, is_demo
from ..models.architecture import load_architecture
from ..models.hub.repository import BASE_FOLDER
from ..models.loaders import find_checkpoint, pretrained_tags
from ..models.open_clip_config import CONFIG_NAME
from ..towers.tower import Tower
from .diff_recipe import compare_with_recipe, describe_unexplained, measure_refitted_heads
from .document import describe_step, find_recipe_file
from .recipe import Recipe, load_recipe, require_bound

_CHUNK = 2**20
_COMPANIONS = frozenset({".json", ".txt", ".model"})
_OWN_FILES = frozenset({CONFIG_NAME, "verification.json"})


@dataclass(frozen=True)
class TensorChange:
    """One tensor that differs.

    Attributes:
        part: What the tensor is: `heads of layer 3`, `attention bias of layer 3` (of the text tower: `text heads ...`),
            `readout`, `texts`, or `other`.
        norm: Frobenius norm of the difference; float64.
        relative: `norm` over the norm of the base's tensor; None where that is 0.
        heads: For tensors whose columns belong to heads, the relative change of each changed head, by name; for a
            readout that was refitted, the heads that it was refitted without, and how much of each went.
    """

    name: str
    part: str
    norm: float
    relative: float | None
    heads: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelDiff:
    """What an edited checkpoint has of a base, and what it has not.

    Attributes:
        tensors: How many tensors both have.
        changed: Those whose values differ.
        direct: For a `direct` edit, what the recipe does at the readout: relative norm of `I - B`, by head or `output`.
        others: Everything that no edit does, a sentence each: tensors added, removed, of another dtype or shape, or
            changed where no edit writes, or not as the recipe makes them; other metadata; other configuration or
            tokenizer files.
        heads: The heads that the recipe beside the edited weights names.
        unknown: Why tensors could not be told apart by heads; empty if they could.
        steps: What that recipe does, a phrase for each step.
    """

    tensors: int
    changed: tuple[TensorChange, ...]
    direct: Mapping[str, float]
    others: tuple[str, ...]
    heads: tuple[str, ...]
    unknown: str = ""
    steps: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        return not (self.changed or self.direct or self.others)


def diff_models(
    base: str | Path,
    edited: str | Path,
    *,
    architecture: str | None = None,
    recipe: str | Path | Recipe | None = None,
) -> ModelDiff:
    """Compare two models as they lie on disk, and what differs with what the recipe makes of the base.

    Args:
        base, edited: A folder (also one that clipedit wrote, `direct` edits included), a safetensors file, `demo`, or
            `name:tag` of open_clip.
        architecture: Needed where neither model says what it is (two bare files): an open_clip name.
        recipe: What the edited model was made with; by default the one beside its weights. Without any, weights that
            changed are not accounted for, and `others` says so.

    Raises:
        ModelError: If weights are missing, are not safetensors, or hold NaN.
        RecipeError: If the recipe cannot be read, or is unbound.
    """
    first, second = _Side(str(base)), _Side(str(edited), recipe)
    towers, unknown = _find_towers(architecture, second, first)
    common = [name for name in first.header if name in second.header]
    changed = tuple(
        _name_refitted_heads(change, second.recipe)
        for change in _compare_values(common, first, second, _edit_places(towers))
    )
    others = [*_compare_names(first, second), *_compare_files(first, second)]
    others += [f"{change.name} changed, where no edit writes" for change in changed if change.part == "other"]
    others += _explain(first, second, [change.name for change in changed if change.part != "other"])
    direct = dict(_direct_changes(first, second))
    heads = tuple(second.recipe.heads) if second.recipe else ()
    steps = tuple(map(describe_step, second.recipe.document.steps)) if second.recipe else ()
    return ModelDiff(len(common), changed, direct, tuple(others), heads, unknown, steps)


class _Side:
    """One of the two models: where its weights, configuration and recipe are."""

    def __init__(self, given: str, recipe: str | Path | Recipe | None = None):
        self.given, self.given_recipe = given, recipe
        self.outer = demo_folder() if is_demo(given) else Path(given)
        self.direct = (self.outer / BASE_FOLDER).is_dir()
        self.folder = self.outer / BASE_FOLDER if self.direct else self.outer
        name, _, tag = given.partition(":")
        self.named = name if tag in pretrained_tags(name) and not self.outer.exists() else None
        if self.named:
            cached = open_clip.download_pretrained(open_clip.get_pretrained_cfg(name, tag))
            self.weights = Path(cached)
        else:
            self.weights = find_checkpoint(self.folder) if self.folder.is_dir() else self.folder
        self.header: dict[str, StoredTensor] = read_model_header(self.weights)
        self.read = model_reader(self.weights)

    @cached_property
    def recipe(self) -> Recipe | None:
        """The recipe that was given, or lies beside the weights, or in what `export` keeps to reproduce them."""
        if self.given_recipe is not None:
            given = self.given_recipe
            return given if isinstance(given, Recipe) else load_recipe(given)
        folder = self.outer if self.outer.is_dir() else self.outer.parent
        found = find_recipe_file(folder)
        return load_recipe(found) if found else None

    def direct_tensors(self) -> Mapping[str, Tensor]:
        """The tensors of a `direct` edit; empty for plain models."""
        return (self.recipe.tensors or {}) if self.direct and self.recipe else {}

    @property
    def architecture(self) -> str | None:
        return str(self.folder) if (self.folder / CONFIG_NAME).is_file() else self.named


def _explain(first: _Side, second: _Side, changed: list[str]) -> list[str]:
    """What the recipe does not account for; two copies of one edited model have nothing to explain."""
    recipe = second.recipe
    if recipe is None:
        return [describe_unexplained(changed)] if changed else []
    mine = first.recipe
    if not changed and mine is not None and mine.document.tensors == recipe.document.tensors:
        return []
    require_bound(recipe)
    return list(compare_with_recipe(recipe, first.read, second.read, first.header, changed))


def _name_refitted_heads(change: TensorChange, recipe: Recipe | None) -> TensorChange:
    """A refitted readout concerns the heads that the recipe removes, though none of its columns is theirs."""
    if change.part != "readout" or recipe is None or not recipe.is_bound:
        return change
    return replace(change, heads=measure_refitted_heads(recipe))


def _find_towers(architecture: str | None, *sides: _Side) -> tuple[dict[Side, Tower], str]:
    """The towers that say which tensors edits write; the reason, where there is none."""
    known = [architecture] if architecture else [side.architecture for side in sides if side.architecture]
    if not known:
        return {}, "neither model has a configuration"
    try:
        model = load_architecture(known[0])
    except ModelError as error:
        if architecture:
            raise
        return {}, str(error)
    found: dict[Side, Tower] = {"image": model.tower}
    with contextlib.suppress(ModelError):
        found["text"] = model.with_tower("text").tower
    return found, ""


def _edit_places(towers: Mapping[Side, Tower]) -> dict[str, tuple[str, Tower, int | None]]:
    """What each tensor is that an edit may write, whose it is, and the layer where its columns are heads'."""
    found: dict[str, tuple[str, Tower, int | None]] = {}
    for side, tower in towers.items():
        for key, name in tower.tensor_names().items():
            layer, _, leaf = key.partition(".")
            owner = "text " if side == "text" else ""
            if not layer[1:].isdigit():
                part = "texts" if side == "text" or layer == "texts" else "readout"
                found.setdefault(name, (part, tower, None))
            elif leaf == "weight":
                found[name] = f"{owner}heads of layer {layer[1:]}", tower, int(layer[1:])
            else:
                found[name] = f"{owner}attention bias of layer {layer[1:]}", tower, None
    return found


def _compare_values(
    common: list[str], first: _Side, second: _Side, places: Mapping[str, tuple[str, Tower, int | None]]
) -> Iterator[TensorChange]:
    for name in common:
        if first.header[name].shape != second.header[name].shape:
            continue
        before, after = first.read(name), second.read(name)
        # Bytes first: most tensors are untouched, and this needs no float64 copy of them.
        if before.dtype == after.dtype and torch.equal(_bytes(before), _bytes(after)):
            continue
        norm, relative = _measure(before, after)
        if not math.isfinite(norm):
            raise ModelError(f"cannot compare {name}: it holds NaN or infinity. Fetch the weights again.")
        part, tower, layer = places.get(name, ("other" if places else "unknown", None, None))
        heads = _measure_heads(before, after, layer, tower) if tower and layer is not None else {}
        # Equal values in another dtype are a difference of storage, which `_compare_names` reports.
        if norm > 0:
            yield TensorChange(name, part, norm, relative, heads)


def _measure(before: Tensor, after: Tensor) -> tuple[float, float | None]:
    """`|after - before|`, and the same over `|before|`; float64, a few megabytes at a time."""
    moved = size = 0.0
    for old, new in zip(before.reshape(-1).split(_CHUNK), after.reshape(-1).split(_CHUNK), strict=True):
        moved += float((new.double() - old.double()).square().sum())
        size += float(old.double().square().sum())
    return math.sqrt(moved), math.sqrt(moved / size) if size else None


def _measure_heads(before: Tensor, after: Tensor, layer: int, tower: Tower) -> dict[str, float | None]:
    """The heads whose columns of `W_O` changed, and by how much, relatively."""
    n_heads = tower.heads_per_layer[layer]
    found = {}
    for head, (old, new) in enumerate(zip(before.chunk(n_heads, 1), after.chunk(n_heads, 1), strict=True)):
        norm, relative = _measure(old, new)
        if norm > 0:
            found[str(HeadId(layer, head))] = relative
    return found


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _compare_names(first: _Side, second: _Side) -> Iterator[str]:
    """Tensors added, removed, or stored otherwise, and other metadata."""
    for name in sorted(first.header.keys() - second.header.keys()):
        yield f"{name} was removed"
    for name in sorted(second.header.keys() - first.header.keys()):
        yield f"{name} was added"
    for name in sorted(first.header.keys() & second.header.keys()):
        old, new = first.header[name], second.header[name]
        if old.dtype != new.dtype:
            yield f"{name} is {new.dtype}, was {old.dtype}"
        if old.shape != new.shape:
            yield f"{name} has shape {list(new.shape)}, had {list(old.shape)}"
    if _metadata(first.weights) != _metadata(second.weights):
        yield f"the metadata is {_metadata(second.weights)}, was {_metadata(first.weights)}"


def _compare_files(first: _Side, second: _Side) -> Iterator[str]:
    """Configuration and tokenizer files of folders."""
    if not first.folder.is_dir() or not second.folder.is_dir():
        return
    for path in sorted(first.folder.iterdir()):
        other = second.folder / path.name
        plain = path.is_file() and path.suffix in _COMPANIONS and not path.name.startswith(".")
        if not plain or path.name in _OWN_FILES:
            continue
        if not other.is_file():
            yield f"{path.name} was removed"
        elif other.read_bytes() != path.read_bytes():
            yield f"{path.name} differs"
    old, new = _flat_config(first.folder), _flat_config(second.folder)
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            yield f"{CONFIG_NAME}: {key} is {new.get(key)}, was {old.get(key)}"


def _flat_config(folder: Path) -> dict[str, Any]:
    """A configuration's values by dotted key."""
    path = folder / CONFIG_NAME
    try:
        nested = load_json(path) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path}: {error}.") from None

    def flatten(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from flatten(inner, f"{prefix}.{key}" if prefix else key)
        else:
            yield prefix, value

    return dict(flatten(nested, ""))


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as stream:
        return dict(stream.metadata() or {})


def _direct_changes(first: _Side, second: _Side) -> Iterator[tuple[str, float]]:
    """What the `direct` edits of the two sides differ in: `|B' - B| / |I|`, 0 where only the mean does."""
    old, new = first.direct_tensors(), second.direct_tensors()
    for name in sorted({key.removesuffix(".map") for key in [*old, *new] if key.endswith(".map")}):
        given = old.get(f"{name}.map", new.get(f"{name}.map"))
        assert given is not None
        # Where one side does not edit a head, its map is the identity and its offset zero.
        eye, zero = torch.eye(len(given)).double(), torch.zeros(len(given)).double()
        moved = [
            float((new.get(f"{name}.{leaf}", plain).double() - old.get(f"{name}.{leaf}", plain).double()).norm())
            for leaf, plain in (("map", eye), ("offset", zero))
        ]
        if any(moved):
            yield name.removeprefix("heads."), moved[0] / float(eye.norm())
