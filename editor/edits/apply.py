"""apply: a bound recipe and a base to an edited model, in memory or file to file."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor

from ..components import HeadId
from ..errors import RecipeError, require_kinds
from ..files.checkpoint import copy_model, hash_model, model_reader
from ..files.tensors import ReadTensor
from ..images.demo_name import DEMO
from ..models.architecture import load_architecture
from ..models.hub.repository import BASE_FOLDER
from ..models.identity import describe_function, find_function_difference
from ..models.loaders import WEIGHTS_NAME, find_checkpoint, has_config, pretrained_tags
from ..models.model import Model
from ..models.open_clip_config import CONFIG_NAME as OPEN_CLIP_CONFIG_NAME
from ..models.open_clip_config import read_open_clip_config
from ..models.timm import TIMM_WEIGHTS_NAME, describe_timm_folder, is_timm_folder
from ..scan.scan import Scan
from .bind import bind_recipe, check_heads
from .direct import direct_edit
from .document import RecipeDocument
from .recipe import Recipe, bound_heads, require_bound

_COMPANIONS = frozenset({".json", ".txt", ".model", ".md"})
HF_CONFIG_NAME = "config.json"
_NOT_OF_THE_BASE = ("verification.json", "README.md")


def apply_recipe(recipe: Recipe, model: Model, *, scan: Scan | None = None, force: bool = False) -> Model:
    """The edited model; the given one does not change.

    Args:
        scan: Needed by unbound recipes: their means and refits come from it.
        force: Apply a bound recipe to other weights than it was made for.

    Raises:
        RecipeError: If the recipe is unbound and there is no scan, names heads that the model lacks, or was made for
            other weights.
    """
    require_kinds("apply a recipe", recipe=(recipe, Recipe), model=(model, Model))
    if scan is not None:
        require_kinds("apply a recipe", scan=(scan, Scan))
    if not recipe.is_bound and scan:
        recipe = bind_recipe(recipe.document, scan, model.with_tower(recipe.document.tower))
    model = model.editable
    if model.readout_edit is not None:
        raise RecipeError(f"cannot apply a recipe to {model.name}: it carries a direct edit already. Give its base.")
    # The caller gets back the side that was given, whichever tower the recipe edits.
    side, model = model.side, model.with_tower(recipe.document.tower)
    check_heads(recipe.document, model)
    if recipe.document.tower == "text" and recipe.document.effect == "direct":
        raise RecipeError(
            f"cannot apply recipe {recipe.document.name}: text encoders carry no direct edit, only weights. "
            "Use --effect distilled or total."
        )
    check_base(recipe, model.weights_hash, model.name, force=force, config=model.config)
    state = model.module.state_dict()
    with _fitting(recipe, model.name):
        tensors = compute_edited_tensors(recipe, lambda name: state[name])
        require_fit(tensors, lambda name: state[name].shape)
        edit = direct_edit(recipe, model.tower) if recipe.document.effect == "direct" else None
        edited = model.with_tensors(tensors, readout_edit=edit, applied=_rebase(recipe, model.weights_hash))
    return edited.with_tower(side)


@contextmanager
def _fitting(recipe: Recipe, base: str) -> Iterator[None]:
    """Arithmetic on tensors of other sizes than the model's raises its own kinds of errors.

    Raises:
        RecipeError: Naming recipe and base.
    """
    try:
        yield
    except (RuntimeError, KeyError, ValueError, IndexError, AttributeError) as error:
        raise RecipeError(
            f"cannot apply recipe {recipe.document.name} to {base}: its tensors are not of this model ({error}). Give "
            "its base."
        ) from error


def require_fit(tensors: Mapping[str, Tensor], shape: Callable[[str], Sequence[int]]) -> None:
    """Refuse edited tensors of other shapes than the base's.

    Raises:
        ValueError: Naming the first.
    """
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != tuple(shape(name)):
            raise ValueError(f"{name} is {tuple(shape(name))}, the edit's {tuple(tensor.shape)}")


def rewrite_checkpoint(recipe: Recipe, base: Path, folder: Path, *, force: bool = False) -> None:
    """Apply a bound recipe to a folder or a safetensors file, file to file, into an existing folder; no model is
    loaded.

    Only the touched tensors are computed; every other byte of the weights is copied, and so are the base's other files.
    The recipe is written beside them. A `direct` edit leaves the base in a folder of its own, `base`, so that no loader
    mistakes it for the edited model.

    Raises:
        RecipeError: If the recipe is unbound or was made for other weights.
    """
    require_bound(recipe)
    source = base if base.is_file() else find_checkpoint(base)
    found = hash_model(source)
    check_base(recipe, found, str(base), force=force, config=_read_config(base, source))
    direct = recipe.document.effect == "direct"
    inner = folder / BASE_FOLDER if direct else folder
    inner.mkdir(exist_ok=True)
    weights_name = TIMM_WEIGHTS_NAME if is_timm_folder(base) else WEIGHTS_NAME
    with _fitting(recipe, str(base)):
        tensors = {} if direct else compute_edited_tensors(recipe, model_reader(source))
    copy_model(source, inner / weights_name, tensors)
    if base.is_dir():
        copy_companions(base, inner, left_out=() if is_timm_folder(base) else (HF_CONFIG_NAME,))
    _rebase(recipe, found).save(folder / "recipe.yaml")


def _read_config(base: Path, source: Path) -> dict[str, Any] | None:
    """The configuration of a base, which its function depends on beside the weights; None where there is none.

    Raises:
        RecipeError: If it is a folder of Hugging Face, whose tensors have other names and shapes.
    """
    folder = base if base.is_dir() else base.parent
    # Of several checkpoints in a folder the configuration may be of another one.
    if folder != base and not (has_config(folder) and find_checkpoint(folder) == source):
        return None
    if (folder / OPEN_CLIP_CONFIG_NAME).is_file():
        return read_open_clip_config(folder)
    if is_timm_folder(folder):
        return describe_timm_folder(folder)
    if base.is_dir() and (base / HF_CONFIG_NAME).is_file():
        raise RecipeError(f"cannot apply a recipe to {base} as it lies: it is a Hugging Face folder. Give hf:{base}.")
    return None


def _rebase(recipe: Recipe, weights_hash: str) -> Recipe:
    """A forced recipe belongs to the base that it was forced on."""
    section = recipe.document.base.model_copy(update={"weights_hash": weights_hash})
    return replace(recipe, document=recipe.document.model_copy(update={"base": section}))


def copy_companions(base: Path, inner: Path, *, left_out: Collection[str] = ()) -> None:
    """Configuration, tokenizer, texts and concepts; never other weights, which would be the unedited ones.

    Args:
        left_out: Names of files that would speak of other weights, where a folder is read by two libraries.
    """
    for path in sorted(base.iterdir()):
        plain = path.is_file() and path.suffix in _COMPANIONS and not path.name.startswith(".")
        if plain and path.name not in (*_NOT_OF_THE_BASE, *left_out) and not path.name.endswith(".index.json"):
            shutil.copyfile(path, inner / path.name)
    for path in sorted((base / "concepts").glob("*.yaml")):
        (inner / "concepts").mkdir(exist_ok=True)
        shutil.copyfile(path, inner / "concepts" / path.name)


def check_base(
    recipe: Recipe, weights_hash: str, name: str, *, force: bool, config: Mapping[str, Any] | None = None
) -> None:
    """Refuse another base than the recipe was made for: other weights, or the same ones under another configuration.

    Args:
        config: The base's, as `Model.config`; without it only weights are compared.

    Raises:
        RecipeError: Unless `force` is set.
    """
    expected_function = recipe.document.base.function
    if config is not None and expected_function is not None and not force:
        difference = find_function_difference(expected_function, describe_function(config))
        if difference and recipe.document.base.weights_hash == weights_hash:
            raise RecipeError(
                f"cannot apply recipe {recipe.document.name} to {name}: the weights are the same, but {difference}. "
                "Give the base that it was made for, or --force."
            )
    expected = recipe.document.base.weights_hash
    if expected is not None and expected != weights_hash and not force:
        raise RecipeError(
            f"cannot apply recipe {recipe.document.name} to {name}: it was made for weights {expected[:12]} "
            f"({recipe.document.base.model}), these are {weights_hash[:12]}. Give that base, or --force."
        )


def check_origin(document: RecipeDocument, model: Model, *, force: bool) -> None:
    """Refuse the heads of one model on another: the same names would be other heads.

    Says nothing where either side does not say what it is.

    Raises:
        RecipeError: If the architecture or the tag of the weights differs, unless `force` is set.
    """
    base = document.base
    if force or base.model not in [*open_clip.list_models(), DEMO]:
        return
    wanted, found = load_architecture(base.model).tower.heads_per_layer, model.tower.heads_per_layer
    other_tag = (
        base.pretrained and model.pretrained in pretrained_tags(base.model) and model.pretrained != base.pretrained
    )
    if wanted != found or other_tag:
        theirs, ours = (f" ({tag})" if tag else "" for tag in (base.pretrained, model.pretrained))
        raise RecipeError(
            f"cannot apply recipe {document.name} to {model.name}: it names heads of {base.model}{theirs}, "
            f"{len(wanted)} layers of {wanted[-1]}; this model has {len(found)} of {found[-1]}{ours}. "
            "Give that model, or --force."
        )


def compute_edited_tensors(recipe: Recipe, read: ReadTensor) -> dict[str, Tensor]:
    """The checkpoint tensors that a bound recipe changes, by name, float64; `read` gives a base's tensor by name."""
    tensors = require_bound(recipe)
    found: dict[str, Tensor] = {}

    # Heads of one layer share a tensor: each starts from what the one before it made.
    def current(name: str) -> Tensor:
        return found[name] if name in found else read(name).double().cpu()

    if recipe.document.effect == "distilled":
        found |= {k.removeprefix("folded."): v.double() for k, v in tensors.items() if k.startswith("folded.")}
    if recipe.document.effect == "total":
        for head in bound_heads(recipe):
            found |= _fold_head(head, tensors, recipe.names, current)
        found |= fold_projection("output", tensors, recipe.names, current)
    # The output's map is in the refitted readout of `distilled`, and `direct` keeps it out of the weights.
    return found | fold_projection("texts", tensors, recipe.names, current)


def _fold_head(
    head: HeadId, tensors: Mapping[str, Tensor], names: Mapping[str, str], current: ReadTensor
) -> dict[str, Tensor]:
    """`W_O[h] <- W_O[h] B` and `b_O <- b_O + W_O[h] offset`."""
    weight_name, bias_name = names[f"L{head.layer}.weight"], names[f"L{head.layer}.bias"]
    # Cloned: `double()` of a float64 tensor is that tensor, and the base must not change.
    weight, bias = current(weight_name).clone(), current(bias_name)
    maps = tensors.get(f"heads.{head}.value_map", tensors[f"heads.{head}.map"]).double()
    offset = tensors[f"heads.{head}.value_offset"].double()
    columns = slice(head.head * len(maps), (head.head + 1) * len(maps))
    # A view: some projections are 1 x 1 convolutions.
    matrix = weight.flatten(1)
    # A copy, because the bias needs `W_O[h]` as it was before the map.
    own = matrix[:, columns].clone()
    matrix[:, columns] = own @ maps
    return {weight_name: weight, bias_name: bias + own @ offset}


def fold_projection(
    target: str, tensors: Mapping[str, Tensor], names: Mapping[str, str], current: ReadTensor
) -> dict[str, Tensor]:
    """`P <- P A^T`, or `W <- A W`, `b <- A b` where the projection is a linear layer; nothing without a map.

    A classifier reads the output itself: it takes `W <- W A`, `b <- b + W c`.
    """
    if f"{target}.map" not in tensors:
        return {}
    maps = tensors[f"{target}.map"].double()
    if target in names:
        return {names[target]: current(names[target]) @ maps.T}
    if target == "output" and "classifier.weight" in names:
        weight, bias = (current(names[f"classifier.{leaf}"]) for leaf in ("weight", "bias"))
        offset = tensors.get("output.offset", torch.zeros(len(maps))).double()
        return {names["classifier.weight"]: weight @ maps, names["classifier.bias"]: bias + weight @ offset}
    keys = [f"{target}.{leaf}" for leaf in ("weight", "bias") if f"{target}.{leaf}" in names]
    return {names[key]: maps @ current(names[key]) for key in keys}
