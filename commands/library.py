"""What is shipped and what is supported: concepts, recipes, models."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ..editor.errors import PluginError, nearest_names
from ..editor.images.demo_name import DEMO
from ..editor.plugins import PLUGIN_WORDS
from .checks import concepts_folder
from .console import out_console, print_json, print_table, printable, progress, say_next, write_line
from .options import JsonOption, ModelOption
from .running.shared import take_shared
from .running.voice import say

concepts_app = typer.Typer(no_args_is_help=True, help="The concepts that can be removed.")
recipes_app = typer.Typer(no_args_is_help=True, help="The shipped recipes: published lists of heads.")

RecipeArgument = Annotated[str, typer.Argument(help="A shipped recipe's name, a file or a folder.")]


@concepts_app.command("list")
@take_shared
def concepts_list(model: ModelOption = DEMO, as_json: JsonOption = False) -> None:
    """List the concepts of the library and of a model's own folder."""
    from ..editor.concepts.concepts import list_concepts, load_concept

    folder = concepts_folder(model)
    found = [load_concept(name, folder) for name in list_concepts(folder)]
    if as_json:
        print_json([{"name": c.name, "texts": len(c.texts), "description": c.description} for c in found])
        return
    print_table(["concept", "texts", "description"], [[c.name, str(len(c.texts)), c.description] for c in found])


@concepts_app.command("show")
@take_shared
def concepts_show(name: str, model: ModelOption = DEMO) -> None:
    """Print the texts of a concept."""
    from ..editor.concepts.concepts import load_concept

    for text in load_concept(name, concepts_folder(model)).texts:
        out_console.print(printable(text), markup=False, highlight=False)


@recipes_app.command("list")
@take_shared
def recipes_list(as_json: JsonOption = False) -> None:
    """List the shipped recipes."""
    from ..editor.edits.document import list_recipes, load_document

    found = [load_document(path)[0] for path in list_recipes().values()]
    if as_json:
        print_json([{**document.model_dump(mode="json"), "heads": document.heads} for document in found])
        return
    rows = [[found.name, found.base.model, str(len(found.heads)), found.description] for found in found]
    print_table(["recipe", "model", "heads", "description"], rows)
    say_next("with your own images", "clipedit apply RECIPE --model NAME --pretrained TAG --images DIR -o repaired")


@recipes_app.command("show")
@take_shared
def recipes_show(recipe: RecipeArgument) -> None:
    """Print a recipe."""
    from ..editor.edits.document import format_document, load_document

    document, _ = load_document(recipe)
    out_console.print(format_document(document), markup=False, highlight=False, soft_wrap=True, end="")


@recipes_app.command("check")
@take_shared
def recipes_check(
    recipe: RecipeArgument,
    model: Annotated[str | None, typer.Option("--model", help="An architecture; by default the recipe's own.")] = None,
) -> None:
    """Check a recipe's heads and effect against an architecture; no weights are needed."""
    from ..editor.edits.document import load_document

    document, _ = load_document(recipe)
    from ..editor.edits.bind import check_document
    from ..editor.models.architecture import load_architecture

    architecture = load_architecture(model or document.base.model).with_tower(document.tower)
    check_document(document, architecture)
    fits = f"{document.name} fits {architecture.name}: {len(document.heads)} heads, all of them there"
    out_console.print(printable(fits), markup=False)


def models(
    names: Annotated[
        list[str] | None, typer.Argument(help="Names or patterns (`ViT-B-*`) of open_clip and timm.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables of the README.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what can be edited, and why not what cannot.

    One model of every family, or those you name.
    """
    from ..editor.models.supported import describe_models, render_markdown

    with progress() as follow:
        rows = describe_models(names or (), progress=follow("models"))
    if as_json:
        print_json([{**vars(row), "effects": list(row.effects)} for row in rows])
    elif markdown:
        # As it is: a console would wrap the table's lines.
        sys.stdout.write(render_markdown(rows))
    else:
        cells = [[row.family, row.library, row.model, row.heads, row.reason or ", ".join(row.effects)] for row in rows]
        print_table(["family", "library", "model", "layers x heads", "effects, or why not"], cells)


def plugins(
    kind: Annotated[
        str | None, typer.Argument(help="`layout`, `operation`, `selector`, `target` or `tower`; by default all.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List what installed packages add, and load it.

    Says of each plugin whether it can be used, and why not.
    """
    if kind is not None and kind not in PLUGIN_WORDS:
        raise PluginError(f"cannot list plugins: unknown kind {kind!r}. {nearest_names(kind, PLUGIN_WORDS)}")
    from ..export.plugins import check_plugins

    found = check_plugins(kind)
    if as_json:
        print_json([vars(one) for one in found])
    elif found:
        rows = [[one.kind, one.name, one.package, one.reason or "can be used"] for one in found]
        print_table(["kind", "name", "package", "state"], rows)
    else:
        say("no plugins are installed")


def schema(
    name: Annotated[
        str | None,
        typer.Argument(help="`recipe`, `concept`, or what a command prints with --json; by default all names."),
    ] = None,
) -> None:
    """Print the JSON Schema of a file, or of what a command prints with --json."""
    from .tables.outputs import NAMES, make_schema

    if name is None:
        write_line("\n".join(NAMES))
    else:
        print_json(make_schema(name))
