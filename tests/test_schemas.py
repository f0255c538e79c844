"""`clipedit schema NAME`: real files and real outputs are valid, misspelt ones are not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml

import clipedit
from clipedit import cli
from clipedit.commands.tables.outputs import NAMES, make_schema
from clipedit.editor.images.demo import demo_calibration_source
from clipedit.editor.measure.table import Details, FigureTable, Share
from clipedit.export.edited_folder import apply_to_folder

ROOT = Path(clipedit.__file__).parent


def validate(value: Any, name: str) -> None:
    jsonschema.Draft202012Validator(make_schema(name)).validate(value)


@pytest.mark.parametrize("name", NAMES)
def test_each_is_a_schema(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(make_schema(name))


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "concepts").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_concepts_are_valid(path: Path) -> None:
    plain = yaml.safe_load(path.read_text(encoding="utf-8"))
    validate(plain, "concept")
    for wrong in ({**plain, "txets": []}, {**plain, "name": ""}, {"name": "x"}):
        with pytest.raises(jsonschema.ValidationError):
            validate(wrong, "concept")


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_are_valid(path: Path) -> None:
    plain = yaml.safe_load(path.read_text(encoding="utf-8"))
    validate(plain, "recipe")
    with pytest.raises(jsonschema.ValidationError):
        validate({**plain, "efect": "total"}, "recipe")


@pytest.fixture(scope="module")
def made(demo_model: clipedit.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scan, and a folder that was edited."""
    root = tmp_path_factory.mktemp("made")
    scanned = clipedit.scan(demo_model, demo_calibration_source(256), workers=0)
    scanned.save(root / "scan.safetensors")
    recipe = clipedit.make_recipe(scanned, demo_model, concept="location", heads=8, output_strength=0.9)
    assert demo_model.folder is not None
    apply_to_folder(recipe, demo_model.folder, root / "edited")
    return root


def test_a_recipe_that_was_made_is_valid(made: Path) -> None:
    validate(yaml.safe_load((made / "edited" / "recipe.yaml").read_text(encoding="utf-8")), "recipe")


COMMANDS: dict[str, list[str]] = {
    "audit": ["audit", "--scan", "{made}/scan.safetensors", "--concepts", "location,watermark"],
    "concepts-list": ["concepts", "list"],
    "dry-run": ["remove-heads", "--concept", "location", "--scan", "{made}/scan.safetensors", "--dry-run"],
    "label": ["label", "{made}/scan.safetensors", "--texts-per-head", "2"],
    "log": ["log", "{made}/edited"],
    "models": ["models", "ViT-B-32"],
    "monitor": ["monitor", "{made}/scan.safetensors", "demo"],
    "recipes-list": ["recipes", "list"],
    "retrieve": ["retrieve", "demo", "--text", "a circle", "--concept", "color", "--index", "{made}/index.safetensors"],
    "score": ["score", "{made}/scan.safetensors", "--concept", "location"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_what_a_command_prints_is_valid(run, made: Path, monkeypatch, name: str) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("clipedit.editor.images.listing.demo_calibration_source", lambda: demo_calibration_source(256))
    said = run(*(part.format(made=made) for part in COMMANDS[name]), "--json")
    assert said.code in (0, 4), said.err
    value = json.loads(said.out)
    assert value
    validate(value, name)
    # Closed: a figure that is called otherwise is no longer valid.
    spelled = json.dumps(value)
    key = {"audit": "verdict", "dry-run": "heads", "label": "text", "log": "base", "monitor": "limit"}.get(name)
    key = (
        key
        or {
            "concepts-list": "texts",
            "models": "family",
            "recipes-list": "effect",
            "retrieve": "because",
            "score": "component",
        }[name]
    )
    with pytest.raises(jsonschema.ValidationError):
        validate(json.loads(spelled.replace(f'"{key}":', f'"{key}s":')), name)


def test_the_command_prints_it_without_torch(run) -> None:  # type: ignore[no-untyped-def]
    assert run("schema").out.split() == list(NAMES)
    for name in ("recipe", "score"):
        assert json.loads(run("schema", name).out) == make_schema(name)
    wrong = run("schema", "recip")
    assert wrong.code == 1 and "Did you mean recipe?" in wrong.err
    code = (
        "import sys\nfrom clipedit.cli import main\nsys.argv = ['clipedit', 'schema', 'recipe']\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\nassert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_figures_stand_beside_groups() -> None:
    table = FigureTable("images")
    table.add("before", {"worst_group": 0.5}, Details(groups={"a / b": Share(10, 20)}))
    value = table.report()
    assert value["before"]["groups"]
    validate(value, "evaluate")
    value["before"]["groups"][0]["size"] = 20
    with pytest.raises(jsonschema.ValidationError):
        validate(value, "evaluate")


def commands_with_json(group: Any, *above: str) -> Iterator[str]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands_with_json(command, *above, name)
        elif any("--json" in option.opts for option in command.params):
            yield "-".join((*above, name))


def test_every_command_that_prints_json_has_a_schema_and_no_schema_is_of_none() -> None:
    # Options that make the output of a command another one.
    otherwise = {"dry-run", "evaluate-rivals", "evaluate-suite", "score-test"}
    commands = set(commands_with_json(typer.main.get_command(cli.app)))
    assert len(commands) > 20 and commands | otherwise == set(NAMES) - {"concept", "recipe"}
