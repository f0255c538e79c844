"""What `log` prints of a folder's history."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..console import print_table, say_result

if TYPE_CHECKING:
    from ...export.history.undo import Chain


def print_chain(chain: Chain) -> None:
    """The base, a row for each edit, and whether anything else was changed."""
    base = chain.recipes[0].base
    said = " ".join(filter(None, (base.model, base.pretrained)))
    rows = [["0", f"base: {said}", "", "", "", (base.weights_hash or "")[:12]]]
    for number, (recipe, edit) in enumerate(zip(chain.recipes, chain.edits, strict=True), start=1):
        heads, tensors = ", ".join(recipe.heads), ", ".join(sorted(edit.replaced))
        following = chain.recipes[number].base.weights_hash if number < len(chain.recipes) else None
        rows.append([str(number), recipe.name, recipe.effect, heads, tensors, (following or "")[:12]])
    print_table(["", "recipe", "effect", "heads", "tensors that it replaced", "weights after it"], rows)
    for number, names in enumerate(chain.between, start=1):
        if names:
            say_result(f"between edits {number - 1} and {number} others changed {', '.join(names)}")
    if not chain.changed:
        say_result("nothing else was changed since the last edit")
