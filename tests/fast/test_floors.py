"""The house's floors: every import of our own modules, late ones and those for type checkers included, leads down."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import clipedit

ROOT = Path(clipedit.__file__).parent
# From the ground up; names on one line may import one another. A name stands for the module and all that is in it.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("demo.world", "editor.errors", "editor.identities", "editor.components", "editor.notebook", "editor.choices"),
    ("editor.plugins", "editor.plugin_names"),
    ("editor.files",),
    ("editor.towers",),
    ("editor.images",),
    ("editor.models",),
    ("editor.scan",),
    ("editor.concepts",),
    ("editor.edits",),
    ("editor.load", "editor.switch"),
    ("editor.select",),
    ("editor.drift",),
    ("editor.measure",),
    ("editor.look",),
    ("editor.rivals",),
    ("export",),
    ("demo.pipeline", "demo.picture"),
    ("commands",),
    ("cli", "__main__"),
)
ROOMS = {"editor", "export", "commands", "demo"}
# The only files of these that may know the demo: what it stands for, and its name.
PROVIDERS = {"editor.images.demo", "editor.images.demo_name"}
MAX_MODULES, MAX_LINES = 16, 350
# Scripts that train the demo's models: no part of the library leads to them.
SCRIPTS = ("demo.muon", "demo.texts", "demo.train", "demo.train_classifier", "demo.typographic")


@cache
def modules() -> dict[str, Path]:
    """Our modules by dotted name below `clipedit`; a package has the name of its folder."""
    paths = [*ROOT.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))]
    names = {path: path.relative_to(ROOT).with_suffix("").parts for path in sorted(paths)}
    return {".".join(parts).removesuffix("__init__").rstrip("."): path for path, parts in names.items()}


def imports_of(name: str) -> Iterator[tuple[str, bool]]:
    """Each own module that a module imports, and whether a function hides that import."""
    tree = ast.parse(modules()[name].read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    hidden = {id(inner) for function in functions for inner in ast.walk(function)}
    for node in ast.walk(tree):
        for target in _targets(name, node):
            yield target, id(node) in hidden


def _targets(name: str, node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        given = [alias.name.partition(".")[2] for alias in node.names if alias.name.split(".")[0] == "clipedit"]
        yield from given
    if not isinstance(node, ast.ImportFrom):
        return
    if node.level == 0:
        if (node.module or "").split(".")[0] != "clipedit":
            return
        base = (node.module or "").split(".")[1:]
    else:
        here = name.split(".") if name else []
        package = here if modules()[name].name == "__init__.py" else here[:-1]
        base = [*package[: len(package) - (node.level - 1)], *(node.module.split(".") if node.module else [])]
    for alias in node.names:
        # `from .. import x` may name a module or what a package's own file holds.
        whole = ".".join([*base, alias.name])
        yield whole if whole in modules() else ".".join(base)


@cache
def edges() -> frozenset[tuple[str, str, bool]]:
    return frozenset((name, target, late) for name in modules() for target, late in imports_of(name) if target != name)


def floor_of(name: str) -> int:
    """The number of the longest entry of `FLOORS` that holds a module; packages hold a docstring only: the ground."""
    if modules()[name].name == "__init__.py":
        return 0
    found = [
        (len(entry), number)
        for number, floor in enumerate(FLOORS)
        for entry in floor
        if name == entry or name.startswith(f"{entry}.")
    ]
    assert found, f"{name} is on no floor: add it to FLOORS"
    return max(found)[1]


def checked() -> list[str]:
    return [name for name in modules() if name not in SCRIPTS]


def test_every_module_stands_on_a_floor() -> None:
    assert all(floor_of(name) >= 0 for name in checked() if name)


def test_packages_hold_a_docstring_only() -> None:
    # The root alone does more: it finds the public names at their first use.
    packages = [path for name, path in modules().items() if name and path.name == "__init__.py"]
    bodies = {path: ast.parse(path.read_text(encoding="utf-8")).body for path in packages}
    assert [path for path, body in bodies.items() if len(body) > 1] == []


def test_imports_lead_to_the_own_room_or_down() -> None:
    known = set(checked())
    found = {
        (source, target)
        for source, target, _ in edges()
        if source in known and target in known and source and floor_of(target) > floor_of(source)
    }
    assert found == set()


def test_no_files_import_each_other_in_a_circle() -> None:
    assert files_in_circles() == set()


def files_in_circles() -> set[str]:
    """Modules that reach themselves; the root resolves its names late, for users only."""
    out: dict[str, set[str]] = {}
    for source, target, _ in edges():
        if source and target:
            out.setdefault(source, set()).add(target)
    return {name for name in out if name in _reached(name, out)}


def _reached(start: str, out: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    left = list(out.get(start, ()))
    while left:
        name = left.pop()
        if name not in seen:
            seen.add(name)
            left.extend(out.get(name, ()))
    return seen


def test_no_import_of_ours_is_hidden_in_a_function_of_the_editor() -> None:
    found = {(source, target) for source, target, late in edges() if late and source.startswith("editor.")}
    assert found == set()


def test_only_one_file_knows_the_demo() -> None:
    lower = ("editor.", "export.", "commands.", "cli")
    found = {
        (source, target)
        for source, target, _ in edges()
        if source.startswith(lower) and target.split(".")[0] == "demo" and source not in PROVIDERS
    }
    # `demo` is a command of ours: the whole path over the embedded world is below the command line.
    allowed = {
        (source, target)
        for source, target in found
        if target == "demo.pipeline" and source.startswith(("commands.", "cli"))
    }
    assert found <= allowed
    provided = {target for source, target, _ in edges() if source in PROVIDERS and target.split(".")[0] == "demo"}
    assert provided <= {"demo", "demo.world"}


def test_no_folder_holds_more_than_sixteen_modules() -> None:
    folders: dict[str, int] = {}
    for name, path in modules().items():
        if path.name != "__init__.py":
            folder = name.rpartition(".")[0]
            folders[folder] = folders.get(folder, 0) + 1
    assert {folder for folder, count in folders.items() if count > MAX_MODULES} == set()


def test_no_source_file_is_longer_than_three_hundred_and_fifty_lines() -> None:
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in modules().items()}
    assert {name for name, length in lengths.items() if length > MAX_LINES} == set()


def test_layout_is_left_to_the_formatter() -> None:
    own = [*modules().values(), *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    assert sum(path.read_text(encoding="utf-8").count("# fmt: " + "skip") for path in own) <= 5


def test_only_one_file_compares_a_name_with_the_demo() -> None:
    found = {
        name
        for name, path in modules().items()
        if name.startswith(("editor.", "export.", "commands.", "cli"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Compare)
        and any(isinstance(side, ast.Constant) and side.value == "demo" for side in (node.left, *node.comparators))
    }
    assert found == set()
