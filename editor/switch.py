"""switch: a model that answers as an edited one for a while, with no second model and no copy of its weights."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from .edits.apply import apply_recipe
from .edits.recipe import Recipe
from .errors import RecipeError, require_kinds
from .models.model import Model

Parameters = Mapping[str, nn.Parameter]
_TOLD = ("checkpoint", "applied", "read_recipe")


@dataclass(frozen=True)
class _Edit:
    """The parameters that stand in for a module's own, by name, and the module's own; `base_hash` is of the latter.

    `tells` and `own_tells` are what both models say of where their weights come from.
    """

    edited: Parameters
    own: Parameters
    base_hash: str
    tells: Mapping[str, Any]
    own_tells: Mapping[str, Any]

    def enter(self, model: Model) -> None:
        _set(model.module, self.edited)
        self._forget(model)
        # What is scanned or exported meanwhile is of the edited model, and must say so.
        vars(model).update(self.tells)

    def leave(self, model: Model) -> None:
        _set(model.module, self.own)
        self._forget(model)
        vars(model).update(self.own_tells)
        # Hashing takes seconds on a large model, and switches may be many.
        vars(model)["weights_hash"] = self.base_hash

    def _forget(self, model: Model) -> None:
        """What the model keeps of its weights and its answers to texts is true of one state of them only."""
        texts = any(not name.startswith("visual.") for name in self.edited)
        for kept in ("weights_hash", "recipe", *(("_texts", "_text_identity") if texts else ())):
            vars(model).pop(kept, None)


# One switch at a time in a process: two threads that leave in another order than they came would leave an edit behind.
_LOCK = threading.RLock()
_standing: WeakKeyDictionary[nn.Module, _Edit] = WeakKeyDictionary()


@contextmanager
def switch(model: Model, recipe: Recipe) -> Iterator[Model]:
    """The model itself, which answers as `apply_recipe(recipe, model)` until the block is left.

    The tensors that the recipe changes take the place of the model's own in the live module, so that whatever holds
    `model.module` answers so too; all others are shared, and nothing is copied. On leaving, also by an exception, the
    very tensors from before are back, to the byte. Blocks may be nested: the inner recipe is of the same base, and
    stands in place of the outer one until its block is left.

    Not for threads that use one model at the same time: all of them see the edit, and a second `switch` waits until the
    first is left. Give each thread an `apply_recipe(recipe, model)` of its own, which shares unchanged tensors too.

    Raises:
        RecipeError: As `apply_recipe`; or if the recipe's effect is `direct`, which no weights hold.
    """
    require_kinds("switch a model", model=(model, Model), recipe=(recipe, Recipe))
    if recipe.document.effect == "direct":
        raise RecipeError(
            f"cannot switch {model.name} to {recipe.document.name}: its edit is direct, which no weights hold. Make it "
            "again with --effect distilled or total, or use `apply_recipe`."
        )
    own = model.editable
    with _LOCK, _as_base(own), _as_edited(own, recipe):
        yield model


def find_changed(edited: Model, base: Model) -> dict[str, nn.Parameter]:
    """The parameters in which an edited model differs from its base, by name; all others are the same objects."""
    own = dict(base.module.named_parameters(remove_duplicate=False))
    changed = edited.module.named_parameters(remove_duplicate=False)
    return {name: parameter for name, parameter in changed if parameter is not own[name]}


@contextmanager
def _as_base(model: Model) -> Iterator[None]:
    """Without what an outer block put in place: recipes are of the base."""
    outer = _standing.pop(model.module, None)
    if outer is None:
        yield
        return
    outer.leave(model)
    try:
        yield
    finally:
        outer.enter(model)
        _standing[model.module] = outer


@contextmanager
def _as_edited(model: Model, recipe: Recipe) -> Iterator[None]:
    edited = apply_recipe(recipe, model)
    changed = find_changed(edited, model)
    own = {name: model.module.get_parameter(name) for name in changed}
    tells, own_tells = ({name: vars(one)[name] for name in _TOLD} for one in (edited, model))
    found = _Edit(changed, own, model.weights_hash, tells, own_tells)
    _standing[model.module] = found
    try:
        found.enter(model)
        yield
    finally:
        del _standing[model.module]
        found.leave(model)


def _set(module: nn.Module, parameters: Parameters) -> None:
    for name, parameter in parameters.items():
        path, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(path), leaf, parameter)
