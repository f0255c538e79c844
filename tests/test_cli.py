"""Exact lines and exit codes of the command line, errors included."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import clipedit
from clipedit.editor.images.demo import demo_calibration_source
from clipedit.editor.images.labelled import write_metadata


@pytest.fixture(autouse=True)
def _small_demo_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipedit.editor.images.listing.demo_calibration_source", lambda: demo_calibration_source(64))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    source = demo_calibration_source(48)
    for index in range(48):
        source.open(index).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def recipe_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from clipedit.export.edited_folder import apply_to_folder

    model = clipedit.load_model("demo")
    scanned = clipedit.scan(model, demo_calibration_source(256))
    out = tmp_path_factory.mktemp("recipe") / "edited"
    assert model.folder is not None
    apply_to_folder(clipedit.make_recipe(scanned, model, concept="location"), model.folder, out)
    return out


def test_help_does_not_import_torch() -> None:
    code = "import sys, clipedit.cli; assert 'torch' not in sys.modules and 'onnxruntime' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "clipedit.cli", "--help"], check=True, capture_output=True)
    assert time.perf_counter() - started < 3


@pytest.mark.parametrize(("arguments", "code"), [(["--version"], 0), (["nosuch"], 2), (["log", "missing"], 1)])
def test_the_process_ends_with_the_command_and_does_what_is_left(arguments: list[str], code: int) -> None:
    """What was printed arrives, what was registered is done; and modules are not taken apart one by one."""
    script = (
        "import atexit, sys\nfrom clipedit import cli\n"
        "class Last:\n    def __del__(self): print('taken apart')\n"
        "kept = Last()\natexit.register(print, 'at the end')\n"
        f"sys.argv = ['clipedit', *{arguments!r}]\ncli.run()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert done.stdout.splitlines()[-1] == "at the end" and "taken apart" not in done.stdout
    assert (done.stdout.startswith("clipedit 0.") and not done.stderr) if code == 0 else "rror" in done.stderr


def test_scan_label_score(run, photos: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    scan = tmp_path / "scan.safetensors"
    result = run("scan", photos, "-o", scan)
    assert result.code == 0, result.err
    assert f"wrote {scan}: 48 images, layers 0-3" in result.err
    assert f"clipedit score {scan} --concept location" in result.err
    labels = json.loads(run("label", scan, "--json").out)
    assert len(labels) == 32 and labels["L3H0"][0].keys() == {"text", "variance_share"}
    scores = json.loads(run("score", scan, "--concept", "location", "--json").out)
    assert [row["score"] for row in scores] == sorted((row["score"] for row in scores), reverse=True)
    printed = run("score", scan, "--concept", "location", "--top", "3")
    assert printed.out.splitlines()[0].split() == ["component", "score", "location", "keep"]
    assert len(printed.out.splitlines()) == 4
    assert "texts that explain most of it" in run("label", scan).out
    assert score_against_labels(run, scan, tmp_path).keys() == {"shape", "place"}


def score_against_labels(run, scan: Path, folder: Path) -> dict[str, float]:  # type: ignore[no-untyped-def]
    source = demo_calibration_source(32)
    for index, name in enumerate(source.names):
        source.open(index).save(folder / name)
    write_metadata(folder / "metadata.csv", source.attributes)
    columns = ("--test", folder, "--columns", "shape,location=place")
    printed = run("score", scan, *columns)
    assert printed.out.splitlines()[0].split()[:3] == ["concept", "Spearman", "over"]
    assert "within a head, over 2 concepts: Spearman" in printed.err
    found = json.loads(run("score", scan, "--test", folder, "--columns", "shape,place", "--json").out)
    assert set(found["scores"]["shape"]) == {f"L{layer}H{head}" for layer in range(4) for head in range(8)}
    return found["between"]


def test_remove_heads_on_images_and_evaluate(run, photos: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "out"
    for index, name in enumerate(["red", "blue"]):
        (tmp_path / "labels" / name).mkdir(parents=True)
        shutil.copy(photos / f"{index}.png", tmp_path / "labels" / name)
    model = clipedit.editor.images.demo_name.demo_folder()
    result = run("remove-heads", "--concept", "location", "--model", model, "--images", photos, "-o", out, "--json")
    assert result.code == 0, result.err
    assert set(json.loads(result.out)) == {
        *("verdict", "because", "certificate", "readable", "heads", "notes", "leans", "measured", "out", "checks")
    }
    assert {"open_clip_model.safetensors", "recipe.yaml", "verification.json", "scan.safetensors"} <= set(
        os.listdir(out)
    )
    again = run("remove-heads", "--concept", "location", "--model", model, "--images", photos, "-o", out)
    assert again.code == 1 and "the folder is not empty" in again.err and "--overwrite" in again.err
    assert run("verify", out).code == 0
    second = run("apply", out, "--model", model, "-o", tmp_path / "second")
    assert second.code == 0, second.err
    name = "open_clip_model.safetensors"
    assert (tmp_path / "second" / name).read_bytes() == (out / name).read_bytes()
    scanned = run(
        "remove-heads",
        "--concept",
        "location",
        "--model",
        model,
        "--scan",
        out / "scan.safetensors",
        "--effect",
        "direct",
        "--heads",
        "2",
        "-o",
        tmp_path / "direct",
    )
    assert scanned.code == 0, scanned.err
    assert "base and direct edit" in scanned.err
    rows = json.loads(run("evaluate", out, "--dataset", tmp_path / "labels", "--control", "--json").out)
    assert list(rows) == [str(out), f"{out}, control", f"{out}, output projection"]


def test_evaluate_reads_waterbirds(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    source = demo_calibration_source(24)
    lines = ["img_id,img_filename,y,split,place,place_filename"]
    for index in range(24):
        source.open(index).save(tmp_path / f"{index}.png")
        lines.append(f"{index},{index}.png,{index % 2},{2 if index < 16 else 0},{index // 2 % 2},x")
    (tmp_path / "metadata.csv").write_text("\n".join(lines) + "\n")
    result = run("evaluate", "demo", "--dataset", tmp_path, "--json")
    assert result.code == 0, result.err
    row = json.loads(result.out)["demo"]
    assert set(row) == {"overall", "worst_group", "mean_of_groups", "groups"}
    groups = {one["group"]: one for one in row["groups"]}
    assert sum(one["n"] for one in groups.values()) == 16 and len(groups) == 4
    assert min(one["accuracy"] for one in groups.values()) == row["worst_group"]
    assert all(one["low"] <= one["accuracy"] <= one["high"] for one in groups.values())
    assert 0 <= row["worst_group"] <= row["mean_of_groups"] <= 1
    (tmp_path / "classes.txt").write_text("0: circle\n1: square\n")
    (tmp_path / "templates.txt").write_text("a photo of a {}\n")
    options = ["--classes", tmp_path / "classes.txt", "--templates", tmp_path / "templates.txt", "--group-by", "place"]
    assert run("evaluate", "demo", "--dataset", tmp_path, *options).code == 0
    wrong = run("evaluate", "demo", "--dataset", tmp_path, "--group-by", "plaec")
    assert wrong.code == 1 and "cannot group by plaec" in wrong.err and "Correct --group-by." in wrong.err
    missing = run("evaluate", "demo", "--dataset", tmp_path, "--label", "species")
    assert missing.code == 1 and "no column species" in missing.err


def test_evaluate_reads_a_folder_a_class(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for name in ("circle", "square"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (64, 64), "red").save(tmp_path / name / "a.png")
    row = json.loads(run("evaluate", "demo", "--dataset", tmp_path, "--json").out)["demo"]
    assert row["overall"] == 0.5 and row["worst_group"] == 0.0


def test_concepts(run) -> None:  # type: ignore[no-untyped-def]
    listed = json.loads(run("concepts", "list", "--json").out)
    assert len(listed) >= 12 and all(item["texts"] >= 30 for item in listed)
    shown = run("concepts", "show", "location")
    assert shown.code == 0 and "a photo of the ocean" in shown.out.splitlines()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scan", "no-such-folder"], "cannot read images from no-such-folder: there is no such folder."),
        (["scan", "demo", "--model", "ViT-B-23"], "cannot load model 'ViT-B-23'"),
        (["scan", "demo", "--model", "ViT-B-23"], "Did you mean ViT-B-32"),
        (
            ["scan", "demo", "--model", "ViT-B-32"],
            "cannot load ViT-B-32 without weights. Add --pretrained, one of: openai,",
        ),
        (["scan", "demo", "--model", "ViT-B-32", "--pretrained", "openay"], "Did you mean openai"),
        (["remove-heads", "--concept", "locaton"], "unknown concept 'locaton'. Did you mean location"),
        (["remove-heads", "--concept", "location", "--heads", "99"], "cannot select 99 heads: the scan has 32."),
        (["label", "missing.safetensors"], "cannot read the scan missing.safetensors: no such file."),
        (
            ["score", "missing.safetensors", "--test", "missing"],
            "cannot read labels from missing: there is no missing.",
        ),
        (
            ["ablate-layers", "a.safetensors", "--dataset", "demo", "--plot", "a.txt"],
            "its suffix is not one of .svg, .png",
        ),
        (["apply", "missing.yaml"], "cannot read the recipe missing.yaml: no such file."),
        (["verify", "missing"], "cannot verify missing: there is no such folder."),
        (["export", "demo", "--target", "onx", "-o", "x"], "unknown target 'onx'. Did you mean onnx?"),
        (["evaluate", "demo", "--dataset", "missing"], "there is no such folder"),
        (["concepts", "show", "colour"], "Did you mean color"),
        (["scan", "demo", "--model", "ViT-S-16"], "cannot load ViT-S-16 without weights. Add --pretrained"),
        (["scan", "demo", "--pretrained", "openai"], "it is a folder that holds its own weights"),
    ],
)
def test_wrong_input_is_a_message_and_exit_1(
    run, tmp_path: Path, monkeypatch, arguments: list[str], message: str
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.code == 1
    assert message in result.err
    assert result.err.startswith("error: ") and "Traceback" not in result.err
    assert not result.out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        ["scan"],
        ["no-such-command"],
        ["remove-heads"],
        ["scan", "demo", "--layers", "x"],
        ["score", "scan.safetensors"],
        ["score", "scan.safetensors", "--test", "demo", "--concept", "location"],
        ["evaluate", "demo", "--dataset", "demo", "--group-by", "place"],
    ],
)
def test_wrong_usage_is_exit_2(run, tmp_path: Path, monkeypatch, arguments: list[str]) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.code == 2 and "Traceback" not in result.err


def test_empty_and_bad_image_folders(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "empty").mkdir()
    result = run("scan", tmp_path / "empty", "-o", tmp_path / "s")
    assert result.code == 1 and "it holds no image" in result.err
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"nothing")
    result = run("scan", tmp_path / "bad", "-o", tmp_path / "s")
    assert result.code == 1 and "1 of 1 images cannot be read, 1.0% are tolerated (--max-bad)" in result.err
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("operation: mean-ablate", "operaton: mean-ablate"), "steps.0.operaton is not a known key"),
        (("operation: mean-ablate", "operation: mean-ablat"), "steps.0.operation: Input should be 'mean-ablate'"),
        (("schema_version: 1", "schema_version: 2"), "schema_version: Input should be 1"),
        (("- L", "- X"), "is not a head: write it as L22H5"),
        (("file: recipe", "file: ../recipe"), "must be a file name, without a folder"),
        (("sha256: ", "sha256: 0"), "is not the file that was saved with it"),
        (("steps:", "steps: ["), "cannot read the recipe"),
    ],
)
def test_a_damaged_recipe_is_refused(
    run, recipe_folder: Path, tmp_path: Path, change: tuple[str, str], message: str
) -> None:  # type: ignore[no-untyped-def]
    for name in ("recipe.yaml", "recipe.safetensors"):
        shutil.copy(recipe_folder / name, tmp_path / name)
    text = (tmp_path / "recipe.yaml").read_text()
    assert change[0] in text
    (tmp_path / "recipe.yaml").write_text(text.replace(*change))
    result = run("apply", tmp_path / "recipe.yaml", "-o", tmp_path / "out")
    assert result.code == 1 and message in result.err and "Traceback" not in result.err
    assert not (tmp_path / "out").exists()


def test_a_head_out_of_range_is_refused(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "no-watermark.yaml").write_text(
        "schema_version: 1\nname: no-watermark\nbase: {model: demo}\nsteps:\n"
        "- {operation: mean-ablate, heads: [L3H1]}\n- {operation: mean-ablate, heads: [L25H3]}\n"
    )
    result = run("apply", tmp_path / "no-watermark.yaml", "--images", "demo", "-o", tmp_path / "out")
    assert result.code == 1
    assert (
        "cannot apply recipe no-watermark: step 2 names head L25H3, demo has layers 0-3. Correct `heads` in step 2."
    ) in result.err


def test_another_base_is_refused_unless_forced(run, recipe_folder: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    result = run("apply", recipe_folder, "--model", recipe_folder, "-o", tmp_path / "out")
    assert result.code == 1 and "it was made for weights" in result.err and "--force" in result.err
    assert run("apply", recipe_folder, "--model", recipe_folder, "-o", tmp_path / "out", "--force").code == 0


def test_inputs_are_never_overwritten(run, photos: Path, recipe_folder: Path) -> None:  # type: ignore[no-untyped-def]
    result = run("remove-heads", "--concept", "location", "--images", photos, "-o", photos, "--overwrite")
    assert result.code == 1 and "is read from there" in result.err
    result = run("apply", recipe_folder, "-o", recipe_folder, "--overwrite")
    assert result.code == 1 and "is read from there" in result.err
    assert len(list(photos.iterdir())) == 48


def test_a_scan_is_only_replaced_on_request(run, photos: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "s").write_text("older")
    result = run("scan", photos, "-o", tmp_path / "s")
    assert result.code == 1 and "it exists" in result.err and (tmp_path / "s").read_text() == "older"
    assert run("scan", photos, "-o", tmp_path / "s", "--overwrite").code == 0


def test_a_checkpoint_file_is_edited_without_a_configuration(run, recipe_folder: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    weights = clipedit.editor.images.demo_name.demo_folder() / "open_clip_model.safetensors"
    assert run("apply", recipe_folder, "--model", weights, "-o", tmp_path / "out").code == 0
    written = tmp_path / "out" / weights.name
    assert written.read_bytes() == (recipe_folder / weights.name).read_bytes()


def test_an_export_checks_what_it_starts_from(run, photos: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = clipedit.editor.images.demo_name.demo_folder()
    assert (
        run("remove-heads", "--concept", "location", "--model", folder, "--images", photos, "-o", tmp_path / "out").code
        == 0
    )
    shutil.copy(folder / "open_clip_model.safetensors", tmp_path / "out")
    result = run("export", tmp_path / "out", "--target", "onnx", "-o", tmp_path / "onnx")
    assert result.code == 1 and "does not compute what the edited model computes" in result.err
    assert not (tmp_path / "onnx").exists() and not (tmp_path / "out" / "verification.json").exists()


@pytest.mark.parametrize("kind", ["16-bit.png", "cmyk.jpg", "palette.png", "animated.gif"])
def test_odd_images_are_scanned(run, tmp_path: Path, kind: str) -> None:  # type: ignore[no-untyped-def]
    from sklearn.datasets import load_sample_image

    photograph = Image.fromarray(load_sample_image("china.jpg"))
    make = {
        "16-bit.png": lambda path: Image.fromarray(np.asarray(photograph.convert("L")).astype(np.uint16) * 257).save(
            path
        ),
        "cmyk.jpg": lambda path: photograph.convert("CMYK").save(path),
        "palette.png": lambda path: photograph.quantize(255).save(path),
        "animated.gif": lambda path: photograph.save(path, save_all=True, append_images=[Image.new("RGB", (640, 427))]),
    }
    (tmp_path / "in").mkdir()
    make[kind](tmp_path / "in" / kind)
    result = run("scan", tmp_path / "in", "-o", tmp_path / "s")
    assert result.code == 0 and "1 images, layers 0-3" in result.err, result.err


@pytest.mark.parametrize("kind", ["truncated", "bomb", "thin"])
def test_hostile_images_are_exit_1(run, tmp_path: Path, kind: str) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "bad.png"
    if kind == "truncated":
        Image.effect_noise((200, 200), 50).save(path)
        path.write_bytes(path.read_bytes()[:5000])
    else:
        Image.new("L", (20_000, 20_000) if kind == "bomb" else (20_000, 1)).save(path)
    result = run("scan", tmp_path / "in", "-o", tmp_path / "s")
    assert result.code == 1 and "1 of 1 images cannot be read" in result.err and "bad.png" in result.err, result.err
    assert "Traceback" not in result.err and not (tmp_path / "s").exists()


def test_a_pickle_given_as_a_checkpoint_is_never_executed(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    marker = tmp_path / "executed"
    torch.save({"visual.proj": Payload(marker)}, tmp_path / "w.pt")
    (tmp_path / "empty.pt").write_bytes(b"")
    for name in ("w.pt", "empty.pt"):
        result = run("scan", "demo", "--model", "ViT-S-32", "--pretrained", tmp_path / name, "-o", tmp_path / "s")
        assert result.code == 1 and "cannot load ViT-S-32" in result.err and "Traceback" not in result.err, result.err
    assert not marker.exists()


class Payload:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_a_pickle_posing_as_weights_is_never_executed(run, tmp_path: Path, name: str) -> None:  # type: ignore[no-untyped-def]
    folder, marker = tmp_path / "model", tmp_path / "executed"
    folder.mkdir()
    shutil.copy(clipedit.editor.images.demo_name.demo_folder() / "open_clip_config.json", folder)
    if name.endswith(".bin"):
        torch.save({"visual.proj": Payload(marker)}, folder / name)
    else:
        (folder / name).write_bytes(pickle.dumps(Payload(marker)))
    for arguments in (
        ["scan", "demo", "--model", folder, "-o", tmp_path / "s"],
        ["export", folder, "--target", "onnx", "-o", tmp_path / "o"],
    ):
        result = run(*arguments)
        assert result.code == 1 and "cannot " in result.err and "Traceback" not in result.err, result.err
    assert not marker.exists()


def test_nan_weights_are_refused(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    from safetensors.torch import load_file, save_file

    shutil.copytree(clipedit.editor.images.demo_name.demo_folder(), tmp_path / "model")
    weights = tmp_path / "model" / "open_clip_model.safetensors"
    state = load_file(weights)
    state["visual.proj"][3, 5] = float("nan")
    save_file(state, weights)
    result = run("scan", "demo", "--model", tmp_path / "model", "-o", tmp_path / "s")
    assert result.code == 1 and "tensor visual.proj holds NaN or infinity" in result.err


def test_a_folder_without_weights_is_refused(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    shutil.copy(clipedit.editor.images.demo_name.demo_folder() / "open_clip_config.json", tmp_path)
    result = run("scan", "demo", "--model", tmp_path, "-o", tmp_path / "s")
    assert result.code == 1 and "it holds no weights" in result.err


def test_a_full_disk_leaves_nothing(run, recipe_folder: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for command in (
        ["apply", recipe_folder, "-o", tmp_path / "out"],
        ["export", recipe_folder, "--target", "open-clip", "-o", tmp_path / "out"],
        ["scan", "demo", "-o", tmp_path / "out" / "scan"],
    ):
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))
        try:
            result = run(*command)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert result.code == 1 and "cannot write" in result.err and "Nothing was left" in result.err, result.err
        assert not list(tmp_path.rglob("*.safetensors")) and not (tmp_path / "out" / "scan").exists()
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("moment", ["os.replace", "shutil.copyfile"])
def test_a_kill_while_writing_leaves_no_final_name(recipe_folder: Path, tmp_path: Path, moment: str, run) -> None:  # type: ignore[no-untyped-def]
    code = (
        f"import os, shutil, signal, sys; sys.argv = ['clipedit', 'apply', {str(recipe_folder)!r}, '-o', "
        f"{str(tmp_path / 'out')!r}]\nfrom clipedit import cli\n"
        f"original = {moment}\n"
        f"def killer(*a, **k):\n    original(*a, **k) if {moment == 'shutil.copyfile'} else None\n    "
        f"os.kill(os.getpid(), signal.SIGKILL)\n{moment} = killer\ncli.main()"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert child.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert run("apply", recipe_folder, "-o", tmp_path / "out").code == 0
    expected = (recipe_folder / "open_clip_model.safetensors").read_bytes()
    assert (tmp_path / "out" / "open_clip_model.safetensors").read_bytes() == expected


def test_an_unwritable_folder_is_a_message(run, recipe_folder: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "file").write_text("in the way")
    result = run("apply", recipe_folder, "-o", tmp_path / "file" / "out")
    assert result.code == 1 and "cannot write" in result.err
    result = run("apply", recipe_folder, "-o", tmp_path / "file")
    assert result.code == 1 and "a file of that name exists" in result.err


def test_the_working_directory_is_never_overwritten(run, recipe_folder: Path, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "precious").write_text("keep me")
    monkeypatch.chdir(tmp_path)
    result = run("apply", recipe_folder, "-o", ".", "--overwrite")
    assert result.code == 1 and "working directory" in result.err
    assert (tmp_path / "precious").exists()
