"""The history of an edited folder: undone to the byte, once and twice; what was tampered with is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import clipedit
from clipedit.editor.files.digests import digest_file, digest_state
from clipedit.editor.files.tensors import copy_with_tensors, read_header, tensor_reader
from clipedit.editor.images.demo import demo_calibration_source
from clipedit.export.edited_folder import apply_to_folder, write_edited_model
from clipedit.export.history.undo import read_chain, undo_edit

pytestmark = pytest.mark.usefixtures("verified_here")

WEIGHTS = "open_clip_model.safetensors"
KEPT = ("open_clip_config.json", "tokenizer.json", "recipe.yaml", "recipe.safetensors")


@pytest.fixture(scope="module")
def edits(demo_model: clipedit.Model, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The demo's folder; edited once; the edited one edited again."""
    root = tmp_path_factory.mktemp("history")
    scanned = clipedit.scan(demo_model, demo_calibration_source(256), workers=0)
    recipes = [
        clipedit.make_recipe(scanned, demo_model, concept="location", heads=4, output_strength=0.5),
        clipedit.make_recipe(scanned, demo_model, concept="color", heads=2, output_strength=0.0, effect="total"),
    ]
    assert demo_model.folder is not None
    folders = [demo_model.folder, root / "once", root / "twice"]
    for recipe, base, out in zip(recipes, folders, folders[1:], strict=False):
        apply_to_folder(recipe, base, out, force=True)
    return folders


def same(first: Path, second: Path) -> bool:
    names = [WEIGHTS, *(name for name in KEPT if (first / name).exists() or (second / name).exists())]
    return all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


def test_undone_once_and_twice_the_bytes_are_those_before(edits: list[Path], tmp_path: Path) -> None:
    base, once, twice = edits
    assert not same(base, once) and not same(once, twice)
    assert undo_edit(twice, tmp_path / "a").name == "remove-color"
    assert same(tmp_path / "a", once)
    assert undo_edit(tmp_path / "a", tmp_path / "b").name == "remove-location"
    # The demo's own folder has no recipe, and nothing of the two edits is left.
    assert same(tmp_path / "b", base) and not (tmp_path / "b" / "history").exists()
    model, found = clipedit.load_model(tmp_path / "b"), clipedit.load_model("demo")
    pixels = torch.rand(1, 3, 64, 64)
    assert torch.equal(model.encode_image(pixels), found.encode_image(pixels))
    with pytest.raises(clipedit.ModelError, match="it has no history/"):
        undo_edit(tmp_path / "b", tmp_path / "c")


def test_what_is_kept_is_small(edits: list[Path]) -> None:
    whole = (edits[2] / WEIGHTS).stat().st_size
    assert sum(path.stat().st_size for path in (edits[2] / "history").rglob("replaced.safetensors")) < whole / 4


def test_the_log_says_the_chain(run, edits: list[Path]) -> None:  # type: ignore[no-untyped-def]
    said = json.loads(run("log", edits[2], "--json").out)
    first, second = said["edits"]
    assert [first["recipe"], second["recipe"]] == ["remove-location", "remove-color"]
    assert [first["effect"], second["effect"]] == ["distilled", "total"] and len(second["heads"]) == 2
    assert said["base"]["model"] == "demo" and said["base"]["weights_hash"] == first["base"] != second["base"]
    assert first["replaced"] == ["visual.ln_post.bias", "visual.proj"]
    assert all("attn" in name for name in second["replaced"])
    assert said["changed"] == [] == second["changed_before"]
    printed = run("log", edits[2])
    assert printed.code == 0 and "remove-color" in printed.out and "nothing else was changed" in printed.err


def copy(folder: Path, out: Path) -> Path:
    return Path(shutil.copytree(folder, out))


def tamper_with_a_tensor(folder: Path) -> str:
    name = "visual.ln_post.weight"
    read = tensor_reader(folder / WEIGHTS)
    copy_with_tensors(folder / WEIGHTS, folder / WEIGHTS, {name: read(name) + 1})
    return name


def tamper_with_the_configuration(folder: Path) -> str:
    path = folder / "open_clip_config.json"
    path.write_text(path.read_text() + "\n")
    return path.name


def tamper_with_the_recipe(folder: Path) -> str:
    path = folder / "recipe.yaml"
    path.write_text(path.read_text() + "description: other\n")
    return path.name


def tamper_with_what_is_kept(folder: Path) -> str:
    kept = folder / "history" / "2" / "replaced.safetensors"
    name = next(iter(read_header(kept)))
    copy_with_tensors(kept, kept, {name: tensor_reader(kept)(name) + 1})
    return name


@pytest.mark.parametrize(
    "tamper", [tamper_with_a_tensor, tamper_with_the_configuration, tamper_with_the_recipe, tamper_with_what_is_kept]
)
def test_what_was_changed_since_is_named_and_not_undone(run, edits: list[Path], tmp_path: Path, tamper) -> None:  # type: ignore[no-untyped-def]
    folder = copy(edits[2], tmp_path / "folder")
    name = tamper(folder)
    refused = run("apply", "--undo", folder, "-o", tmp_path / "out")
    assert refused.code == 1 and refused.err.startswith("error: cannot undo the edit: ") and name in refused.err
    assert not (tmp_path / "out").exists()
    if tamper is not tamper_with_what_is_kept:
        said = run("log", folder, "--json")
        assert said.code == 1 and json.loads(said.out)["changed"] == [name] and name in said.err


def test_a_change_between_two_edits_is_said(edits: list[Path], tmp_path: Path) -> None:
    folder = copy(edits[1], tmp_path / "folder")
    name = tamper_with_a_tensor(folder)
    apply_to_folder(clipedit.load_recipe(edits[2]), folder, tmp_path / "again", force=True)
    chain = read_chain(tmp_path / "again")
    assert chain.between == ((), (name,)) and chain.changed == ()
    undo_edit(tmp_path / "again", tmp_path / "out")
    assert same(tmp_path / "out", folder)


def test_the_command_line_takes_back_an_edit_in_either_order(run, edits: list[Path], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for number, arguments in enumerate([["--undo", edits[1]], [edits[1], "--undo"]]):
        out = tmp_path / str(number)
        said = run("apply", *arguments, "-o", out)
        assert said.code == 0 and "without recipe remove-location, to the byte" in said.err, said.err
        assert same(out, edits[0])
    missing = run("log", edits[0])
    assert missing.code == 1 and "it has no history/" in missing.err


def test_digests_of_a_file_are_those_of_its_tensors(edits: list[Path], demo_model: clipedit.Model) -> None:
    assert digest_file(edits[0] / WEIGHTS) == digest_state(demo_model.stored_state())


def direct_recipe(model: clipedit.Model) -> clipedit.Recipe:
    scanned = clipedit.scan(model, demo_calibration_source(256), workers=0)
    return clipedit.make_recipe(scanned, model, concept="location", heads=2, output_strength=0.0, effect="direct")


def test_a_direct_edit_leaves_its_base(demo_model: clipedit.Model, edits: list[Path], tmp_path: Path) -> None:
    apply_to_folder(direct_recipe(demo_model), edits[0], tmp_path / "direct")
    assert read_chain(tmp_path / "direct").changed == ()
    undo_edit(tmp_path / "direct", tmp_path / "out")
    assert same(tmp_path / "out", edits[0])


@pytest.mark.slow
def test_what_describes_a_folder_is_no_change_of_it(
    demo_model: clipedit.Model, edits: list[Path], tmp_path: Path
) -> None:
    write_edited_model(direct_recipe(demo_model), demo_model, tmp_path / "direct")
    assert read_chain(tmp_path / "direct").changed == ()
    undo_edit(tmp_path / "direct", tmp_path / "out")
    assert same(tmp_path / "out", edits[0])


@pytest.mark.parametrize("option", [("--force",), ("--effect", "total"), ("--images", "demo")])
def test_options_of_another_task_are_not_silently_left_out(run, tmp_path: Path, option: tuple[str, ...]) -> None:  # type: ignore[no-untyped-def]
    refused = run("apply", "--undo", tmp_path, "-o", tmp_path / "out", *option)
    assert refused.code == 2 and f"goes without {option[0]}" in refused.err


def test_a_history_that_cannot_be_read_names_the_key(run, edits: list[Path], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = copy(edits[1], tmp_path / "folder")
    assert run("log", f"hf:{folder}").code == 0
    for text, reason in (
        ("{", "line 1 column 2"),
        ('{"schema_version": 2}', "schema_version: "),
        ('{"edit": []}', "edit "),
    ):
        (folder / "history" / "log.json").write_text(text)
        said = run("log", folder)
        assert said.code == 1 and "log.json" in said.err and reason in said.err and said.err.count("\n") == 1
    assert "there is no such folder" in run("log", tmp_path / "nowhere").err


def test_an_export_says_whose_history_to_ask(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "reproduce").mkdir()
    for refused in (run("log", tmp_path), run("apply", "--undo", tmp_path, "-o", tmp_path / "out")):
        assert refused.code == 1 and "it is an export" in refused.err and "the folder that was exported" in refused.err
