"""Every command imports what it runs, and nothing that only others need: by the modules loaded, not by seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import clipedit
from clipedit import cli

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


# Wrong input of every command, in a folder that holds the file `there` only.
WRONG = {
    "demo": ["demo", "-o", "there"],
    "audit": ["audit", "--images", "missing"],
    "remove-heads": ["remove-heads", "--concept", "locaton"],
    "scan": ["scan", "missing"],
    "merge": ["merge", "missing"],
    "merge, empty folder": ["merge", "."],
    "label": ["label", "missing.safetensors"],
    "score": ["score", "missing.safetensors", "--concept", "location"],
    "align": ["align", "x", "--to", "demo", "--images", "missing"],
    "apply": ["apply", "missing.yaml"],
    "diff": ["diff", "missing", "demo"],
    "diff, edited": ["diff", "demo", "missing"],
    "diff, recipe": ["diff", "demo", "demo", "--recipe", "missing.yaml"],
    "log": ["log", "missing"],
    "reindex": ["reindex", "missing.npy", "--recipe", "r.yaml"],
    "reindex, recipe": ["reindex", "there", "--recipe", "missing.yaml"],
    "evaluate": ["evaluate", "demo", "--dataset", "missing"],
    "completeness": ["completeness", "missing", "--dataset", "demo"],
    "ablate-layers": ["ablate-layers", "missing", "--dataset", "demo"],
    "monitor": ["monitor", "missing", "demo"],
    "train-head": ["train-head", "demo", "--dataset", "missing"],
    "heatmap": ["heatmap", "missing.png", "--text", "a"],
    "segment": ["segment", "missing", "--text", "a"],
    "retrieve": ["retrieve", "missing", "--text", "a"],
    "desk": ["desk", "--scan", "missing"],
    "report": ["report", "missing"],
    "report, no recipe": ["report", "."],
    "export": ["export", "demo", "--target", "nosuch"],
    "verify": ["verify", "missing"],
    "push": ["push", "missing", "ours/encoder", "--licence", "mit"],
    "reproduce": ["reproduce", "missing"],
    "plugins": ["plugins", "nosuch"],
    "schema": ["schema", "nosuch"],
    "reproduce, no export": ["reproduce", "."],
}


@pytest.mark.skipif(os.name != "posix", reason="runs are forked")
def test_every_command_refuses_wrong_input_before_it_loads_torch(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("")
    # Each in a fork of one process that has read the command line only.
    script = (
        "import json, os, sys\nfrom clipedit.cli import main\n"
        f"for name, arguments in {WRONG!r}.items():\n"
        "    sys.stdout.flush()\n    pid = os.fork()\n    if pid:\n        os.waitpid(pid, 0)\n        continue\n"
        "    sys.argv, code = ['clipedit', *arguments], 0\n"
        "    try:\n        main()\n    except SystemExit as stop:\n        code = stop.code\n"
        "    heavy = sorted({'torch', 'open_clip', 'onnxruntime'} & set(sys.modules))\n"
        "    print('\\nWRONG', json.dumps([name, [code, heavy]]), flush=True)\n    os._exit(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    found = dict(json.loads(line[6:]) for line in done.stdout.splitlines() if line.startswith("WRONG "))
    assert found == {name: [1, []] for name in WRONG}, done.stderr
    # A command without wrong input has nothing to refuse: `models` lists what there is.
    commands = {name for group in cli.GROUPS.values() for name in group}
    assert commands - {name.split(",")[0] for name in WRONG} <= {"models"}
