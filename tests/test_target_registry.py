"""A target is one file: what tables, help and verification know of it comes from there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import clipedit
from clipedit.editor.images.demo_name import demo_folder
from clipedit.export.targets.registry import load_target, render_targets_markdown, target_names
from clipedit.export.written_for import find_written

ROOT = Path(__file__).parents[1]
TOY = '''
"""Target `nested`: an open_clip folder inside the folder."""

from __future__ import annotations

from pathlib import Path

from ...editor.models.model import Model
from ...editor.load import load_model
from ..consumers.consumer import Consumer, build_own_consumer
from ..consumers.target import Target, TargetRow
from ..graphs.profile import Profile
from ..verify.reference import Reference
from .open_clip import write_open_clip_folder

CARD = """\\
```python
import clipedit

print(clipedit.load_model("model").encode_text(["a photo of a circle"]))
```
"""


def write_nested(model: Model, folder: Path, profile: Profile) -> None:
    """Write the folder `model`."""
    (folder / "model").mkdir()
    write_open_clip_folder(model, folder / "model")


def _load(folder: Path, reference: Reference, profile: Profile) -> Consumer:
    return build_own_consumer(load_model(str(folder / "model")))


TARGET = Target(
    Profile(target="nested"),
    write=write_nested,
    load=_load,
    card=CARD,
    row=TargetRow("`model/`", "`clipedit.load_model`"),
)
'''


def test_the_page_has_the_table_that_the_targets_make() -> None:
    page = (ROOT / "docs" / "targets.md").read_text()
    table = re.search(r"<!-- targets:begin -->\n(.*?)<!-- targets:end -->", page, re.DOTALL)
    assert table is not None and table[1] == render_targets_markdown()


def test_the_help_of_export_names_every_target(run) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = run("export", "--help")
    said = re.sub(r"[\s│|]+", "", out)
    assert code == 0 and len(target_names()) >= 11
    assert all(f"`{name}`" in said for name in target_names())


@pytest.mark.parametrize("name", target_names())
def test_a_target_bears_the_name_of_its_file_and_reads_what_it_wrote(name: str) -> None:
    target = load_target(name)
    assert target.name == name and target.row is not None
    assert find_written(name, target.profile.precisions[-1]).profile.precision == target.profile.precisions[-1]
    assert bool(target.card) == (name != "timm")  # Models without texts have no card.


@pytest.mark.parametrize("name", target_names())
def test_nothing_about_a_target_stands_outside_its_file(name: str) -> None:
    """Its name in quotes: advice in prose may name it. `apply` writes two of them, and a record names packages."""
    files = {path.name: path.read_text() for path in (ROOT / "export").rglob("*.py")}
    found = {file for file, text in files.items() if f'"{name}"' in text}
    assert found - {"edited_folder.py", "record.py"} == {f"{name.replace('-', '_')}.py"}


def test_names_and_wrong_names_need_no_torch() -> None:
    code = (
        "import sys; from clipedit.export.targets.registry import require_target, spell_target_names\n"
        "print(spell_target_names())\ntry: require_target('imich')\n"
        "except Exception as error: print(error)\n"
        "print(sorted({'torch', 'onnx', 'numpy'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert said == [
        f"{', '.join(f'`{name}`' for name in target_names()[:-1])} or `{target_names()[-1]}`.",
        "unknown target 'imich'. Did you mean immich?",
        "[]",
    ]


def test_a_folder_of_an_unknown_target_is_refused() -> None:
    with pytest.raises(clipedit.VerificationError, match="its target 'onxn' is unknown. Did you mean onnx"):
        find_written("onxn")
    assert find_written("clipedit").row is None


def test_one_file_makes_a_target_that_is_listed_written_and_verified(tmp_path: Path) -> None:
    package = tmp_path / "clipedit"
    package.mkdir()
    for path in ROOT.iterdir():
        if path.name != "export":
            (package / path.name).symlink_to(path)
    shutil.copytree(ROOT / "export", package / "export")
    (package / "export" / "targets" / "nested.py").write_text(TOY)

    def run(*arguments: object) -> str:
        code = "import sys; from clipedit.cli import main; sys.exit(main())"
        command = [sys.executable, "-c", code, *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "COLUMNS": "200"}
        answer = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert answer.returncode == 0, answer.stderr
        return answer.stdout

    out = tmp_path / "out"
    assert "`nested`" in run("export", "--help")
    checks = json.loads(run("export", demo_folder(), "--target", "nested", "-o", out, "--json"))["checks"]
    assert checks and (out / "model" / "open_clip_model.safetensors").is_file()
    assert 'load_model("model")' in (out / "README.md").read_text()
    report = json.loads((out / "verification.json").read_text())
    assert report["target"] == "nested" and report["runtime"].startswith("clipedit ")
