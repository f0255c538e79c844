"""What is public, what the distributions hold, and that the README runs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import clipedit
from clipedit.editor.concepts.concepts import Concept, list_concepts
from clipedit.editor.images.texts import load_texts

ROOT = Path(__file__).resolve().parents[1]


def test_all_is_what_is_public() -> None:
    for name in clipedit.__all__:
        assert getattr(clipedit, name) is not None
    tree = ast.parse((ROOT / "__init__.py").read_text())
    typed = {alias.asname for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert set(clipedit.__all__) == typed - {None}
    assert set(dir(clipedit)) == {*clipedit.__all__, "__version__"}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        clipedit.nothing  # noqa: B018


def test_every_concept_has_thirty_texts_of_its_own() -> None:
    found = list_concepts()
    assert len(found) >= 12
    for name, path in found.items():
        concept = Concept.model_validate(yaml.safe_load(path.read_text()))
        assert concept.name == name
        assert len(set(concept.texts)) == len(concept.texts) >= 30


def test_the_general_pool_is_what_its_script_generates() -> None:
    from clipedit.recipes.generate_texts import generate_texts

    pool = load_texts()
    assert len(pool) >= 3_000 and list(pool) == generate_texts()


def test_the_demo_texts_are_what_their_script_generates() -> None:
    from clipedit.demo import texts
    from clipedit.editor.images.demo import LISTED_PLACES
    from clipedit.editor.images.demo_name import demo_folder

    assert list(load_texts(model_folder=demo_folder())) == texts.pool_texts()
    for name, document in texts.concept_documents(LISTED_PLACES).items():
        assert yaml.safe_load((demo_folder() / "concepts" / f"{name}.yaml").read_text()) == document


def test_the_demo_checkpoint_is_small() -> None:
    from clipedit.editor.images.demo_name import demo_folder

    assert (demo_folder() / "open_clip_model.safetensors").stat().st_size < 10e6


def test_imports_point_one_way() -> None:
    order = {"editor": 0, "export": 1, "cli": 2}
    for path in [*ROOT.glob("editor/**/*.py"), *ROOT.glob("export/*.py")]:
        own = order[path.relative_to(ROOT).parts[0]]
        for target in re.findall(r"^\s*from \.+(editor|export|cli)\b", path.read_text(), re.MULTILINE):
            assert order[target] <= own, f"{path} imports {target}"


def test_the_wheel_and_the_sdist_hold_the_data(tmp_path: Path) -> None:
    import shutil

    clone = tmp_path / "clipedit"
    ignored = shutil.ignore_patterns(".git", "build", "*.egg-info", "__pycache__", "clipedit-out*", "clipedit-demo*")
    shutil.copytree(ROOT, clone, ignore=ignored)
    code = (
        "from setuptools import build_meta as b; import os; os.makedirs('dist', exist_ok=True)\n"
        "b.build_wheel('dist'); b.build_sdist('dist')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=clone, check=True, capture_output=True)
    (wheel,), (sdist,) = (clone / "dist").glob("*.whl"), (clone / "dist").glob("*.tar.gz")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("clipedit/")}
    needed = [
        "cli.py",
        "__init__.py",
        "demo/model/open_clip_model.safetensors",
        "demo/model/concepts/location.yaml",
        "demo/model/texts.txt",
        "recipes/concepts/location.yaml",
        "recipes/texts/general.txt",
        "editor/towers/vit/open_clip_vit.py",
        "export/verify/verify_child.py",
    ]
    assert {f"clipedit/{name}" for name in needed} <= inside
    assert not any(name.startswith(("clipedit/tests", "clipedit/benchmarks")) for name in inside)
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {*needed, "README.md", "LICENSE", "tests/test_package.py"} <= names


def readme_blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from clipedit.editor.images.demo import demo_calibration_source

    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    source = demo_calibration_source(64)
    for index in range(64):
        source.open(index).save(tmp_path / "images" / f"{index}.png")
    blocks = readme_blocks("python")
    assert blocks
    space: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), space)
    assert (tmp_path / "repaired-onnx" / "visual.onnx").is_file()


def test_the_commands_of_the_readme_exist() -> None:
    import typer

    from clipedit.cli import app

    known = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    used = set(re.findall(r"^\s*clipedit ([a-z-]+)", "\n".join(readme_blocks("bash")), re.MULTILINE))
    assert used and used <= known
