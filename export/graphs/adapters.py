"""Adapters: one graph that answers as the base and, with an adapter file, as any of several edited models.

The tensors that an edit changes are initializers of the graph that are inputs too, so that a run may bring others (ONNX
Runtime 1.20 and later). An adapter holds those of one recipe; every other weight is shared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...editor.edits.apply import apply_recipe
from ...editor.edits.document import RecipeDocument, split_named_recipe
from ...editor.edits.recipe import Recipe, load_recipe
from ...editor.errors import ExportError
from ...editor.files.whole import is_plain_name
from ...editor.load import load_model
from ...editor.models.model import Model
from ...editor.switch import find_changed

SUFFIX, TEXTUAL_SUFFIX = ".onnx_adapter", ".textual.onnx_adapter"
# What servers of such a folder call the answers without an adapter.
BASE_NAME = "base"
# What ONNX Runtime's format asks for; it compares neither with the graph.
_VERSION = 1

# A path may be `NAME=RECIPE`.
Recipes = Sequence[Recipe | str | Path]


@dataclass(frozen=True)
class Adapter:
    """One edit of the base that a graph can switch to.

    Attributes:
        edited: The base with the recipe applied; all tensors that the recipe leaves alone are the base's own.
    """

    name: str
    recipe: Recipe
    edited: Model

    def tensors(self, base: Model) -> dict[str, Tensor]:
        """The tensors that differ from the base's, by the model's names."""
        return {name: parameter.detach() for name, parameter in find_changed(self.edited, base).items()}


class Switchable(nn.Module):
    """An encoder some of whose tensors are inputs of its own: tracing cannot take them for constants."""

    def __init__(self, encoder: nn.Module, names: Sequence[str]):
        super().__init__()
        self.encoder, self.names = encoder, tuple(names)

    def forward(self, inputs: Tensor, *tensors: Tensor) -> Tensor:
        return torch.func.functional_call(self.encoder, dict(zip(self.names, tensors, strict=True)), (inputs,))


def open_adapters(model: Model, given: Recipes) -> tuple[Model, tuple[Adapter, ...]]:
    """The base that a graph is written of, and its adapters.

    Args:
        given: Recipes of this model; none stands for the recipe of an edited model, whose base is then what is written.

    Raises:
        ExportError: If there is no recipe, or one cannot be switched to: it is unbound, of another base, or `direct`.
    """
    if not given:
        model, given = _split_edited(model)
    recipes = [_open_recipe(one) for one in given]
    _require_names([recipe.document.name for recipe in recipes])
    for recipe in recipes:
        require_switchable(recipe, model)
    return model, tuple(Adapter(recipe.document.name, recipe, apply_recipe(recipe, model)) for recipe in recipes)


def require_switchable(recipe: Recipe, model: Model) -> None:
    """Refuse a recipe that no other tensors of this model carry.

    Raises:
        ExportError: With the reason.
    """
    reason = _find_obstacle(recipe, model)
    if reason is not None:
        raise ExportError(f"cannot switch {model.name} to {recipe.document.name}: {reason}")


def adapter_files(folder: Path, name: str) -> tuple[Path, Path]:
    """The files of an adapter: for the image graph, and for the text graph; one is missing where nothing changes."""
    return folder / f"{name}{SUFFIX}", folder / f"{name}{TEXTUAL_SUFFIX}"


def write_adapters(base: Model, folder: Path, adapters: Sequence[Adapter]) -> None:
    """Write the files of each adapter: only the tensors that its recipe changes."""
    for adapter in adapters:
        tensors = adapter.tensors(base)
        images = {name: tensor for name, tensor in tensors.items() if name.startswith("visual.")}
        texts = {name: tensor for name, tensor in tensors.items() if name not in images}
        for path, held in zip(adapter_files(folder, adapter.name), (images, texts), strict=True):
            if held:
                _write_adapter(path, held)


def switched_names(encoder: nn.Module, base: Model, adapters: Sequence[Adapter]) -> dict[str, str]:
    """The tensors of an encoder that some adapter changes: the model's name of each, and the encoder's."""
    own = {id(tensor): name for name, tensor in encoder.named_parameters()}
    changed = {name for adapter in adapters for name in adapter.tensors(base)}
    named = {name: own.get(id(tensor)) for name, tensor in base.module.named_parameters() if name in changed}
    return {name: inner for name, inner in sorted(named.items()) if inner is not None}


def describe_adapters(folder: Path, names: Sequence[str], graphs: tuple[str, str]) -> dict[str, dict[str, str]]:
    """By adapter, the file that goes with each graph."""
    return {
        name: {
            graph: path.name for graph, path in zip(graphs, adapter_files(folder, name), strict=True) if path.is_file()
        }
        for name in names
    }


def _split_edited(model: Model) -> tuple[Model, list[Recipe]]:
    recipe = model.recipe
    if recipe is None:
        raise ExportError(
            f"cannot make {model.name} switchable: it is not edited, and no recipe was given. Name recipes, or give an "
            "edited folder."
        )
    base = recipe.document.base
    return model.base or load_model(base.model, base.pretrained), [recipe]


def _open_recipe(given: Recipe | str | Path) -> Recipe:
    if isinstance(given, Recipe):
        return given
    name, path = split_named_recipe(given)
    recipe = load_recipe(path)
    if name is None:
        return recipe
    return replace(recipe, document=recipe.document.model_copy(update={"name": name}))


def _require_names(names: Sequence[str]) -> None:
    """Names are those of files: plain, and different on systems that know no capital letters too."""
    wrong = next((name for name in names if not is_plain_name(name)), None)
    if wrong is not None:
        raise ExportError(f"cannot write an adapter {wrong!r}: it is no name of a file. Give one as NAME=RECIPE.")
    if any(name.lower() == BASE_NAME for name in names):
        raise ExportError(
            f"cannot write an adapter {BASE_NAME!r}: so the answers without one are called. Give another NAME=RECIPE."
        )
    files = [file.name.lower() for name in names for file in adapter_files(Path(), name)]
    double = next((name for name in names if files.count(f"{name}{SUFFIX}".lower()) > 1), None)
    if double is not None:
        raise ExportError(f"cannot write two adapters {double!r}. Give each a name of its own, as NAME=RECIPE.")


def _find_obstacle(recipe: Recipe, model: Model) -> str | None:
    document = recipe.document
    if not recipe.is_bound:
        return "its recipe is unbound, its means are not known. Apply it once, and give the folder that this writes."
    if document.effect == "direct":
        return (
            "its edit is direct, which adds operations to the graph and changes no tensor. Make it again with --effect "
            "distilled or total."
        )
    return _find_other_base(document, model)


def _find_other_base(document: RecipeDocument, model: Model) -> str | None:
    wanted, found = document.base.weights_hash, model.weights_hash
    if model.readout_edit is not None:
        return f"{model.name} carries a direct edit already. Give its base."
    if wanted == found:
        return None
    return (
        f"its recipe was made for weights {(wanted or 'unknown')[:12]} ({document.base.model}), these are "
        f"{found[:12]}. Give that base."
    )


def _write_adapter(path: Path, tensors: Mapping[str, Tensor]) -> None:
    import onnxruntime

    # NumPy owns the memory that the file is written from: it must stay until then.
    arrays: dict[str, Any] = {name: np.ascontiguousarray(tensor.cpu().numpy()) for name, tensor in tensors.items()}
    adapter = onnxruntime.AdapterFormat()
    adapter.set_adapter_version(_VERSION)
    adapter.set_model_version(_VERSION)
    adapter.set_parameters({name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()})
    adapter.export_adapter(str(path))  # pyright: ignore[reportArgumentType]


def load_adapter_recipes(folder: Path, names: Sequence[str]) -> list[Recipe]:
    """The recipes of adapters, as `save_adapter_recipes` left them.

    Raises:
        ExportError: If a name leads elsewhere.
        RecipeError: If one cannot be read.
    """
    _require_names(names)
    return [load_recipe(folder / f"{name}.yaml") for name in names]


def save_adapter_recipes(folder: Path, adapters: Sequence[Adapter]) -> None:
    """Write the recipe of every adapter, under the adapter's name."""
    for adapter in adapters:
        folder.mkdir(exist_ok=True)
        adapter.recipe.save(folder / f"{adapter.name}.yaml")
