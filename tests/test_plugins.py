"""Plugins: the example package adds one of each kind; broken ones are named and left out, all else works."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models._hub import save_config_for_hf

import clipedit
from clipedit.editor import plugins
from clipedit.editor.components import HeadId
from clipedit.editor.edits.document import Base, RecipeDocument, Step, load_document
from clipedit.editor.files.whole import save_tensors
from clipedit.editor.images.layouts import detect_layout, load_dataset
from clipedit.editor.images.source import LabelledImages
from clipedit.editor.plugins import LAYOUT, OPERATION, PLUGINS_VARIABLE, SELECTOR, find_plugins
from clipedit.editor.towers.build import build_tower
from clipedit.export.targets.registry import load_target, target_names

EXAMPLE = Path(__file__).parents[1] / "examples" / "plugin"
NAMED = "clipedit-example 0.1.0"


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, installed by pip into a folder of its own."""
    source, folder = tmp_path_factory.mktemp("source") / "plugin", tmp_path_factory.mktemp("site")
    shutil.copytree(EXAMPLE, source)  # pip builds where the sources are.
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--target", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(source)], check=True, capture_output=True)
    return folder


def forget() -> None:
    """As a process that has just begun: nothing is known of plugins."""
    for name in ("odd", "odd_exit"):
        sys.modules.pop(name, None)
    for cached in (plugins.find_plugins, plugins.load_plugin, plugins._leave_out):
        cached.cache_clear()


@pytest.fixture
def visible(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    """What puts a folder of packages on the path, for this process and those that it starts."""

    def show(folder: Path) -> None:
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.setenv("PYTHONPATH", str(folder), prepend=":")
        forget()

    forget()
    yield show
    monkeypatch.undo()
    forget()


@pytest.fixture
def installed(built: Path, visible: Callable[[Path], None]) -> Path:
    visible(built)
    return built


def write_package(folder: Path, entries: dict[str, dict[str, str]], code: str = "", name: str = "odd") -> None:
    """A package without a build: metadata as `pip install` leaves it, and one module."""
    described = folder / f"{name}-1.0.dist-info"
    described.mkdir(parents=True)
    (described / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"[clipedit.{group}]\n" + "".join(f"{key} = {value}\n" for key, value in one.items())
             for group, one in entries.items()]  # fmt: skip
    (described / "entry_points.txt").write_text("\n".join(lines))
    (folder / f"{name}.py").write_text(code)


# What the example adds.


def test_the_command_lists_all_five(run, installed: Path) -> None:  # type: ignore[no-untyped-def]
    rows = json.loads(run("plugins", "--json").out)
    assert [(row["kind"], row["name"], row["package"], row["reason"]) for row in rows] == [
        ("layout", "sidecars", NAMED, None),
        ("operation", "amplify", NAMED, None),
        ("selector", "one-layer", NAMED, None),
        ("target", "open-clip-zip", NAMED, None),
        ("tower", "timm-beit", NAMED, None),
    ]
    said = run("plugins", "target").out
    assert "open-clip-zip" in said and "can be used" in said and "amplify" not in said
    assert run("plugins", "targte").err.strip().endswith("unknown kind 'targte'. Did you mean target?")


@pytest.mark.parametrize(
    ("command", "names"), [("remove-heads", ("amplify", "one-layer", "sidecars")), ("export", ("open-clip-zip",))]
)
def test_the_help_of_a_command_names_them(run, installed: Path, command: str, names: tuple[str, ...]) -> None:  # type: ignore[no-untyped-def]
    said = "".join(run(command, "--help").out.replace("│", "").split())
    assert all(name in said for name in names)


@pytest.mark.parametrize("factor", [-1.0, 0.0, 1.0, 2.0])
def test_amplify_multiplies_what_is_said_along_the_directions(installed: Path, factor: float) -> None:
    from clipedit.editor.edits.operations import OperationInput, find_operation

    readouts = torch.randn(3, 12, 5, dtype=torch.float64)
    directions = torch.linalg.qr(torch.randn(12, 2, dtype=torch.float64))[0]
    given = OperationInput(readouts, directions, factor)
    maps, keep_mean = find_operation("amplify")(given)
    seen = directions.T @ readouts  # [head, concept, k]
    assert keep_mean
    torch.testing.assert_close(seen @ maps, factor * seen)
    if factor == 0:
        torch.testing.assert_close(maps, find_operation("project-out")(given)[0])


def amplified(**step: Any) -> RecipeDocument:
    one = Step(operation="amplify", heads=("L3H1",), concept="location", factor=0.0, **step)
    return RecipeDocument(schema_version=1, name="quiet", base=Base(model="demo"), effect="distilled", steps=(one,))


def test_a_bound_recipe_says_whose_operation_it_has_and_needs_it_no_more(
    installed: Path,
    demo_model: clipedit.Model,
    small_demo_scan: clipedit.Scan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bound = clipedit.bind_recipe(amplified(), small_demo_scan, demo_model)
    assert bound.document.plugins == {"amplify": NAMED}
    bound.save(tmp_path / "bound.yaml")
    unbound = (tmp_path / "bound.yaml").read_text().split("tensors:")[0] + f"plugins:\n  amplify: {NAMED}\n"
    (tmp_path / "unbound.yaml").write_text(unbound)
    (tmp_path / "by-hand.yaml").write_text(unbound.split("plugins:")[0])
    monkeypatch.setenv(PLUGINS_VARIABLE, "")
    forget()
    loaded = clipedit.load_recipe(tmp_path / "bound.yaml")
    again = clipedit.apply_recipe(loaded, demo_model).module.state_dict()
    expected = clipedit.apply_recipe(bound, demo_model).module.state_dict()
    assert all(torch.equal(again[name], expected[name]) for name in expected)
    with pytest.raises(
        clipedit.RecipeError, match=f"steps.0.operation: the plugin {NAMED}, which has the operation amp"
    ):
        load_document(tmp_path / "unbound.yaml")
    with pytest.raises(clipedit.RecipeError, match="'leace'; no plugin that is installed has the operation amplify"):
        load_document(tmp_path / "by-hand.yaml")
    with pytest.raises(clipedit.RecipeError, match="no operation 'amplify': is the plugin that has it installed"):
        clipedit.bind_recipe(loaded.document, small_demo_scan, demo_model)


def test_one_layer_takes_heads_of_one_layer(
    installed: Path, demo_model: clipedit.Model, small_demo_scan: clipedit.Scan
) -> None:
    options = {"concept": "location", "operation": "amplify", "factor": 0.0, "output_strength": 0.0}
    recipe = clipedit.select_recipe(small_demo_scan, demo_model, select="one-layer", heads=3, **options)
    assert len(recipe.steps[0].heads) == 3 and recipe.steps[0].operation == "amplify"
    assert len({HeadId.parse(head).layer for head in recipe.heads}) == 1


def write_sidecars(folder: Path, count: int = 12, **odd: Any) -> Path:
    folder.mkdir()
    for index in range(count):
        pixels = np.random.default_rng(index).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:03}.png")
        row = {"label": ("cat", "dog")[index % 2], "place": ("sea", "wood")[index // 2 % 2], "n": index}
        (folder / f"{index:03}.json").write_text(json.dumps(row | (odd if index == 5 else {})))
    return folder


def test_sidecars_are_seen_and_read(installed: Path, tmp_path: Path) -> None:
    folder = write_sidecars(tmp_path / "set")
    assert detect_layout(folder) == "sidecars"
    found = load_dataset(folder)
    assert isinstance(found, LabelledImages) and found.classes == ("cat", "dog") and found.labels == (0, 1) * 6
    assert found.groups[:4] == ("cat / place sea", "dog / place sea", "cat / place wood", "dog / place wood")
    by_n = load_dataset(folder, label="n", layout="sidecars")
    assert isinstance(by_n, LabelledImages) and len(by_n.classes) == 12
    # Folders of others are not its own.
    shutil.copytree(folder, tmp_path / "plain", ignore=shutil.ignore_patterns("*.json"))
    assert detect_layout(tmp_path / "plain") == "folders"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "003.json").unlink(), "003.json: .*No such file"),
        (lambda folder: (folder / "003.json").write_text("[1]"), "003.json: it holds no object"),
        (lambda folder: (folder / "003.json").write_text("{"), "003.json: "),
        (
            lambda folder: (folder / "003.json").write_text('{"label": "cat"}'),
            "003.png differs from 000.png in n, place",
        ),
    ],
)
def test_sidecars_that_cannot_be_read_are_named(
    installed: Path, tmp_path: Path, spoil: Callable[[Path], Any], said: str
) -> None:
    folder = write_sidecars(tmp_path / "set")
    spoil(folder)
    with pytest.raises(clipedit.ImageError, match=said):
        load_dataset(folder)


BEIT = {
    "relative positions": {"use_rel_pos_bias": True, "use_abs_pos_emb": False, "init_values": 0.1},
    "shared positions": {"use_shared_rel_pos_bias": True, "use_rel_pos_bias": False, "use_abs_pos_emb": True},
    "both, no biases": {"use_rel_pos_bias": True, "use_shared_rel_pos_bias": True, "qkv_bias": False},
    "class token": {"use_rel_pos_bias": True, "global_pool": "token", "use_fc_norm": False, "num_classes": 0},
}
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 4, "num_classes": 5}


def tiny_beit(**options: Any) -> Any:
    torch.manual_seed(0)
    module = timm.create_model("beit_base_patch16_224", **{**SMALL, **options}).eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim <= 1 or "bias_table" in name or "pos_embed" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return module


@pytest.mark.parametrize("name", BEIT)
def test_contributions_of_a_beit_sum_to_its_representation(installed: Path, name: str, check_token_shares) -> None:  # type: ignore[no-untyped-def]
    from clipedit.editor.models.model import Model

    module = tiny_beit(**BEIT[name])
    tower, pixels = build_tower(module), torch.rand(2, 3, 32, 32)
    assert tower.title == "timm BEiT" and tower.heads_per_layer == (4, 4, 4)
    parts = clipedit.decompose(model := Model("beit", None, module, tower, {}), pixels)
    total = parts.contributions.double().sum(1) + parts.constant.double()
    expected = module.forward_head(module.forward_features(pixels), pre_logits=True).double()
    assert float(((total - expected).norm() / expected.norm()).detach()) < 1e-5
    check_token_shares(model, pixels)


def test_a_beit_is_refused_without_the_plugin() -> None:
    forget()
    with pytest.raises(clipedit.ModelError, match="no tower knows the blocks of a Beit"):
        build_tower(tiny_beit())


def test_the_same_model_gives_the_same_zip(installed: Path, demo_model: clipedit.Model, tmp_path: Path) -> None:
    target = load_target("open-clip-zip")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        target.write(demo_model, tmp_path / name, target.profile)
    assert (tmp_path / "one" / "model.zip").read_bytes() == (tmp_path / "two" / "model.zip").read_bytes()
    assert target_names()[-1] == "open-clip-zip"


@pytest.mark.slow
def test_the_whole_path_through_plugins_on_the_command_line(built: Path, tmp_path: Path) -> None:
    """In fresh processes, as a user has it: repair, export, verify, evaluate, and a tower's model."""

    def call(*arguments: object) -> Any:
        environment = {**os.environ, "PYTHONPATH": f"{built}:{os.environ.get('PYTHONPATH', '')}"}
        command = [sys.executable, "-m", "clipedit", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) if "--json" in arguments else done.stdout

    how = ("--select", "one-layer", "--operation", "amplify", "--factor", "0", "--heads", "4")
    made = call("remove-heads", "--concept", "location", *how, "-o", "repaired", "--force", "--json")
    assert made["heads"] and len({head.partition("H")[0] for head in made["heads"]}) == 1
    assert f"amplify: {NAMED}" in (tmp_path / "repaired" / "recipe.yaml").read_text()
    checks = call("export", "repaired", "--target", "open-clip-zip", "-o", "out", "--force", "--json")["checks"]
    assert checks and json.loads((tmp_path / "out" / "verification.json").read_text())["target"] == "open-clip-zip"
    assert all(check["holds"] for check in call("verify", "out", "--json"))
    write_sidecars(tmp_path / "set", 24)
    assert "worst_group" in next(iter(call("evaluate", "demo", "--dataset", "set", "--json").values()))
    (tmp_path / "beit").mkdir()
    module = tiny_beit(use_rel_pos_bias=True)
    config = tmp_path / "beit" / "config.json"
    save_config_for_hf(module, str(config), model_args={**SMALL, "use_rel_pos_bias": True})
    described = json.loads(config.read_text())
    described["pretrained_cfg"]["input_size"] = [3, 32, 32]
    config.write_text(json.dumps(described))
    save_tensors(tmp_path / "beit" / "model.safetensors", module.state_dict(), "format", "pt")
    call("scan", "set", "--model", "beit", "-o", "scan.safetensors")
    assert clipedit.load_scan(tmp_path / "scan.safetensors").statistics.n == 24


# What goes wrong.

BROKEN = {
    "not installed": (
        "missing_module:thing",
        "it cannot be imported (ModuleNotFoundError: No module named 'missing_mod",
    ),
    "no such name": ("odd:nothing", "it cannot be imported (AttributeError: module 'odd' has no attribute 'nothing')"),
    "exits": ("odd_exit:thing", "it cannot be imported (SystemExit: 3)"),
    "wrong type": ("odd:number", "it is of type int, "),
}
KINDS = {"layout": "folder", "operation": "map", "selector": "choice", "target": "file", "tower": "module"}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_plugin_of_each_kind_is_named(run, visible, tmp_path: Path, broken: str) -> None:  # type: ignore[no-untyped-def]
    place, said = BROKEN[broken]
    write_package(tmp_path, {f"{kind}s": {name: place} for kind, name in KINDS.items()}, "number = 1\n")
    (tmp_path / "odd_exit.py").write_text("raise SystemExit(3)\n")
    visible(tmp_path)
    rows = json.loads(run("plugins", "--json").out)
    assert {row["kind"] for row in rows} == set(KINDS)
    for row in rows:
        name = KINDS[row["kind"]]
        missing = "it has no is_there" if broken == "wrong type" and row["kind"] == "layout" else said
        assert row["reason"].startswith(f"cannot use the {row['kind']} {name} of the plugin odd 1.0: {missing}")


def test_what_is_asked_of_everything_leaves_a_broken_plugin_out(visible, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code = (
        "class Layout:\n    is_there = staticmethod(lambda path: 1 / 0)\n    read = is_there\n"
        "class Tower:\n    title = supports = 'odd'\n    refusal = staticmethod(lambda module: 1 / 0)\n"
        "    groups = embed = collect_features = compute_readouts = constant = refusal\n"
        "    readout = why_not = fold_readout = embed_final = tensor_names = refusal\n"
    )
    entries = {"layouts": {"bad": "odd:Layout", "gone": "odd:Gone"}, "towers": {"bad": "odd:Tower", "gone": "odd:Gone"}}
    write_package(tmp_path, entries, code)
    visible(tmp_path)
    write_sidecars(tmp_path / "set")
    with pytest.warns(UserWarning) as told:
        assert detect_layout(tmp_path / "set") == "folders"
        with pytest.raises(clipedit.ModelError, match="no tower knows the blocks of a Beit"):
            build_tower(tiny_beit())
        build_tower(clipedit.load_model("demo").module)
        assert detect_layout(tmp_path / "set") == "folders"  # Once is enough.
    assert [str(one.message) for one in told] == [
        "left out the layout bad of the plugin odd 1.0: ZeroDivisionError: division by zero",
        "left out the layout gone of the plugin odd 1.0: it cannot be imported (AttributeError: module 'odd' has no "
        "attribute 'Gone')",
        "left out the tower bad of the plugin odd 1.0: ZeroDivisionError: division by zero",
        "left out the tower gone of the plugin odd 1.0: it cannot be imported (AttributeError: module 'odd' has no "
        "attribute 'Gone')",
    ]


@pytest.mark.parametrize(
    ("kind", "name", "reason"),
    [
        (OPERATION, "mean-ablate", "clipedit has an operation of that name"),
        (OPERATION, "leace", "clipedit has an operation of that name"),
        (SELECTOR, "frontier", "clipedit has a selector of that name"),
        (LAYOUT, "celeba", "clipedit has a layout of that name"),
        (OPERATION, "Loud", "a name has small letters, digits and single hyphens only"),
        (SELECTOR, "../up", "a name has small letters, digits and single hyphens only"),
    ],
)
def test_names_that_cannot_be_given_are_refused(visible, tmp_path: Path, kind, name: str, reason: str) -> None:  # type: ignore[no-untyped-def]
    write_package(tmp_path, {f"{kind.word}s": {name: "odd:thing", "fine": "odd:thing"}})
    visible(tmp_path)
    with pytest.warns(UserWarning, match=f"left out the {kind.word} {name} of the plugin odd 1.0: {reason}"):
        assert list(find_plugins(kind)) == ["fine"]


def test_a_target_of_clipedits_own_name_is_refused(run, visible, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    write_package(tmp_path, {"targets": {"onnx": "odd:thing"}}, "raise RuntimeError('this runs never')\n")
    visible(tmp_path)
    said = run("export", "--help")
    assert said.code == 0
    assert said.err == "warning: left out the target onnx of the plugin odd 1.0: clipedit has a target of that name\n"
    assert load_target("onnx").name == "onnx"


@pytest.mark.parametrize(
    ("file", "content"),
    [("entry_points.txt", "[clipedit.selectors]\nno sign\n"), ("METADATA", ""), ("METADATA", "\x00")],
)
def test_metadata_that_is_none_takes_no_other_plugin_away(visible, tmp_path: Path, file: str, content: str) -> None:  # type: ignore[no-untyped-def]
    write_package(tmp_path, {"selectors": {"fine": "fine:thing"}}, name="fine")
    write_package(tmp_path, {"selectors": {"odd": "odd:thing"}})
    (tmp_path / "odd-1.0.dist-info" / file).write_text(content)
    visible(tmp_path)
    if file == "METADATA":
        assert {str(one.distribution) for one in find_plugins(SELECTOR).values()} == {"fine 1.0", "unknown"}
        return
    with pytest.warns(UserWarning, match=r"left out the plugins of .*odd-1.0.dist-info: its metadata cannot be read"):
        assert list(find_plugins(SELECTOR)) == ["fine"]


def test_of_two_packages_with_one_name_neither_is_taken(visible, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for package in ("first", "second"):
        write_package(tmp_path, {"selectors": {"same": f"{package}:thing"}}, name=package)
    visible(tmp_path)
    with pytest.warns(
        UserWarning, match="left out the selector same of the plugin (first|second) 1.0: (first|second) "
    ):
        assert not find_plugins(SELECTOR)


def test_the_environment_says_which_packages_are_used(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for said, found in (("", []), ("other", []), ("other, Clipedit_Example", ["one-layer"])):
        monkeypatch.setenv(PLUGINS_VARIABLE, said)
        forget()
        assert list(find_plugins(SELECTOR)) == found


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("None", r"it must answer `\(B, keep_mean\)`"),
        ("(given.readouts, True)", r"of shape \[1, 16, 16\]"),
        ("(given.readouts.mT @ given.readouts * float('nan'), True)", "`B` finite"),
        ("1 / 0", r"odd 1.0 failed \(ZeroDivisionError: division by zero\)"),
    ],
)
def test_what_an_operation_answers_is_checked(
    visible,  # type: ignore[no-untyped-def]
    small_demo_scan: clipedit.Scan,
    tmp_path: Path,
    answer: str,
    said: str,
) -> None:
    write_package(tmp_path, {"operations": {"amplify": "odd:wrong"}}, f"def wrong(given):\n    return {answer}\n")
    visible(tmp_path)
    with pytest.raises(clipedit.PluginError, match=said):
        clipedit.bind_recipe(amplified(), small_demo_scan, clipedit.load_model("demo"))


def test_what_selectors_and_layouts_answer_is_checked(
    visible,  # type: ignore[no-untyped-def]
    demo_model: clipedit.Model,
    small_demo_scan: clipedit.Scan,
    tmp_path: Path,
) -> None:
    code = "def choose(*given):\n    return 3\ndef is_there(path):\n    return False\nread = choose\n"
    write_package(tmp_path, {"selectors": {"three": "odd:choose"}, "layouts": {"three": "odd"}}, code)
    visible(tmp_path)
    with pytest.raises(clipedit.PluginError, match="selector three of the plugin odd 1.0: it must answer a RecipeDocu"):
        clipedit.select_recipe(small_demo_scan, demo_model, select="three", concept="location", heads=2)
    with pytest.raises(
        clipedit.PluginError, match="it must answer LabelledImages, RetrievalSet or CaptionSet, not int"
    ):
        load_dataset(tmp_path, layout="three")
    with pytest.raises(clipedit.ImageError, match="no such layout. Did you mean three"):
        load_dataset(tmp_path, layout="thre")


@pytest.mark.parametrize(
    ("arguments", "hint", "known"),
    [
        (["remove-heads", "--concept", "location", "--operation", "loud"], "--operation", "'mean-ablate', "),
        (["remove-heads", "--concept", "location", "--operation", "leace"], "--operation", "'mean-ablate', "),
        (["remove-heads", "--concept", "location", "--select", "loud"], "--select", "'text-difference', "),
        (["evaluate", "demo", "--layout", "loud"], "--layout", "'table', 'waterbirds', "),
    ],
)
def test_a_name_that_nobody_has_is_wrong_usage(run, arguments: list[str], hint: str, known: str) -> None:  # type: ignore[no-untyped-def]
    said = run(*arguments)
    err = " ".join(said.err.replace("│", "").split())
    assert said.code == 2 and f"Invalid value for '{hint}': {arguments[-1]!r} is not one of {known}" in err


def test_names_of_plugins_need_no_code_of_theirs_and_other_commands_no_names(built: Path) -> None:
    script = (
        "import importlib.metadata, os, sys\nread = []\nold = importlib.metadata.entry_points\n"
        "importlib.metadata.entry_points = lambda **given: read.append(given) or old(**given)\n"
        "from clipedit.cli import main\n"
        "for arguments in (['--help'], ['concepts', 'list'], ['recipes', 'list'], ['export', '--help'],\n"
        "                  ['export', 'demo', '--target', 'nosuch']):\n"
        "    sys.argv = ['clipedit', *arguments]\n"
        "    try:\n        main()\n    except SystemExit:\n        pass\n"
        "    loaded = {'torch', 'clipedit_example'} & set(sys.modules)\n"
        "    print('READ', sorted({one['group'] for one in read}), sorted(loaded))\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{built}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    found = [line for line in done.stdout.splitlines() if line.startswith("READ")]
    assert found == [*["READ [] []"] * 3, *["READ ['clipedit.layouts', 'clipedit.targets'] []"] * 2]
