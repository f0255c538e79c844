"""Every command imports what it runs, and nothing that only others need: by the modules loaded, not by seconds."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from PIL import Image

import clipedit

# Each takes from a tenth of a second to seconds to import, and belongs to a few commands only.
HEAVY = ("onnx", "onnxruntime", "onnxscript", "matplotlib", "pandas", "pyarrow", "ray", "sklearn", "scipy", "datasets")
# Of what leads to torch; options and their defaults are read by all.
ROOMS = (
    *("export.repair", "export.write", "export.pages", "export.graphs", "export.verify", "editor.look"),
    *("editor.measure", "editor.select.plan", "editor.select.whose_heads", "editor.scan.on_ray", "demo.pipeline"),
)
# In this order in one process: each may add to what those before it have loaded.
ADDED = {
    "label": set(),
    "score": {"editor.select.plan", "editor.select.whose_heads"},
    "heatmap": {"editor.look"},
}


@pytest.fixture(scope="module")
def loaded(demo_scan: clipedit.Scan, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    folder = tmp_path_factory.mktemp("startup")
    demo_scan.save(folder / "scan.safetensors")
    Image.new("RGB", (64, 64), "red").save(folder / "image.png")
    commands = {
        "label": ["label", "scan.safetensors"],
        "score": ["score", "scan.safetensors", "--concept", "location"],
        "heatmap": ["heatmap", "image.png", "--text", "a red object"],
    }
    script = (
        "import json, sys\nfrom clipedit.cli import main\n"
        f"for name, arguments in {commands!r}.items():\n"
        "    sys.argv = ['clipedit', *arguments]\n"
        "    try:\n        main()\n    except SystemExit as stop:\n        assert not stop.code, name\n"
        "    print('\\nLOADED', json.dumps([name, sorted(sys.modules)]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(line[7:]) for line in done.stdout.splitlines() if line.startswith("LOADED "))


@pytest.mark.parametrize("command", ADDED)
def test_a_command_loads_no_package_that_only_others_need(loaded: dict[str, list[str]], command: str) -> None:
    assert set(HEAVY) & set(loaded[command]) == set()


@pytest.mark.parametrize("command", ADDED)
def test_a_command_loads_no_room_that_only_others_need(loaded: dict[str, list[str]], command: str) -> None:
    allowed = {room for name in list(ADDED)[: list(ADDED).index(command) + 1] for room in ADDED[name]}
    found = {room for room in ROOMS for name in loaded[command] if _is_in(name, room)}
    assert found <= allowed


def _is_in(name: str, room: str) -> bool:
    return name == f"clipedit.{room}" or name.startswith(f"clipedit.{room}.")
