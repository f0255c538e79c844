"""diff names what an edit changed, and notices everything else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import clipedit
from clipedit import cli
from clipedit.editor.images.demo import demo_calibration_source
from clipedit.editor.images.demo_name import demo_folder
from clipedit.export.edited_folder import apply_to_folder

pytestmark = pytest.mark.usefixtures("verified_here")

WEIGHTS = "open_clip_model.safetensors"
W_O = "visual.transformer.resblocks.{}.attn.out_proj.weight"


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same three heads removed, once an effect."""
    from clipedit.editor.edits.bind import bind_recipe
    from clipedit.editor.edits.document import Base, RecipeDocument, Step

    model = clipedit.load_model("demo")
    scanned = clipedit.scan(model, demo_calibration_source(64), workers=0)
    found = {}
    for effect in ("distilled", "total", "direct"):
        step = Step(operation="mean-ablate", heads=("L3H1", "L3H6", "L1H0"))
        document = RecipeDocument(schema_version=1, name="t", base=Base(model="demo"), effect=effect, steps=(step,))  # type: ignore[arg-type]
        found[effect] = tmp_path_factory.mktemp("edited") / effect
        apply_to_folder(bind_recipe(document, scanned, model), demo_folder(), found[effect])
    return found


def altered(folder: Path, change, **metadata: str) -> Path:  # type: ignore[no-untyped-def]
    """A copy of the demo with its tensors passed through a function."""
    shutil.copytree(demo_folder(), folder)
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt", **metadata})
    return folder


def test_total_edits_are_named_head_by_head(edited: dict[str, Path]) -> None:
    found = clipedit.diff_models("demo", edited["total"])
    by_name = {change.name: change for change in found.changed}
    weights = [W_O.format(layer) for layer in (1, 3)]
    assert set(by_name) == {*weights, *(name.replace("weight", "bias") for name in weights)}
    assert by_name[weights[0]].heads == {"L1H0": 1.0} and by_name[weights[1]].heads == {"L3H1": 1.0, "L3H6": 1.0}
    assert by_name[weights[1]].part == "heads of layer 3"
    assert not found.others and found.heads == ("L1H0", "L3H1", "L3H6")


def test_the_norm_of_a_change_is_that_of_the_difference(edited: dict[str, Path]) -> None:
    before, after = load_file(demo_folder() / WEIGHTS), load_file(edited["distilled"] / WEIGHTS)
    found = clipedit.diff_models(demo_folder() / WEIGHTS, edited["distilled"])
    assert [(change.name, change.part) for change in found.changed] == [
        ("visual.ln_post.bias", "readout"),
        ("visual.proj", "readout"),
    ]
    for change in found.changed:
        old, new = before[change.name].double(), after[change.name].double()
        assert change.norm == pytest.approx(float((new - old).norm()))
        assert change.relative == pytest.approx(float((new - old).norm() / old.norm()))
    assert not found.others


def test_a_refitted_readout_concerns_the_heads_that_it_was_refitted_without(edited: dict[str, Path]) -> None:
    found = clipedit.diff_models("demo", edited["distilled"])
    assert {change.name for change in found.changed} == {"visual.ln_post.bias", "visual.proj"}
    assert all(change.heads == {"L1H0": 1.0, "L3H1": 1.0, "L3H6": 1.0} for change in found.changed)
    assert found.steps == ("mean-ablate L3H1, L3H6, L1H0",)


def forged(edited: Path, folder: Path, change) -> Path:  # type: ignore[no-untyped-def]
    """An edited folder, its recipe beside it, whose weights were changed once more."""
    shutil.copytree(edited, folder)
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def _scale_one_number(tensors: dict[str, torch.Tensor]) -> None:
    tensors["visual.proj"][3, 5] *= 1.05


def _draw_readout(tensors: dict[str, torch.Tensor]) -> None:
    tensors["visual.proj"] = torch.randn_like(tensors["visual.proj"])


PROJ, W_2, W_3 = "visual.proj", W_O.format(2), W_O.format(3)
NOT_MADE, NOT_WRITTEN = "is not what recipe t makes of the base", "changed, which recipe t does not write"
FORGERIES = {
    "a random readout": ("distilled", PROJ, NOT_MADE, _draw_readout),
    "the base's readout": ("distilled", PROJ, NOT_MADE, lambda t: t[PROJ].copy_(base_tensor(PROJ))),
    "one number of the readout": ("distilled", PROJ, NOT_MADE, _scale_one_number),
    "another bias": ("distilled", "visual.ln_post.bias", NOT_MADE, lambda t: t["visual.ln_post.bias"].add_(0.01)),
    "nothing of the edit": ("distilled", PROJ, NOT_MADE, lambda t: t.update(load_file(demo_folder() / WEIGHTS))),
    "a head that no step names": ("total", W_2, NOT_WRITTEN, lambda t: t[W_2][:, :16].zero_()),
    "half of an ablation": ("total", W_3, NOT_MADE, lambda t: t[W_3].copy_(base_tensor(W_3))),
    "the texts' projection": ("total", "text_projection", NOT_WRITTEN, lambda t: t["text_projection"].mul_(1.1)),
}


def base_tensor(name: str) -> torch.Tensor:
    return load_file(demo_folder() / WEIGHTS)[name]


@pytest.mark.parametrize("name", FORGERIES)
def test_what_the_recipe_does_not_make_of_the_base_is_said(name: str, edited: dict[str, Path], tmp_path: Path) -> None:
    effect, tensor, sentence, change = FORGERIES[name]
    found = clipedit.diff_models("demo", forged(edited[effect], tmp_path / "forged", change))
    assert any(other.startswith(f"{tensor} {sentence}") for other in found.others), found.others
    assert not clipedit.diff_models("demo", edited[effect]).others


def test_changes_that_no_recipe_explains_are_said_and_a_recipe_from_elsewhere_explains_them(
    edited: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(edited["total"], tmp_path / "bare", ignore=shutil.ignore_patterns("recipe.*"))
    (other,) = clipedit.diff_models("demo", tmp_path / "bare").others
    assert "and 1 more changed, and no recipe beside the edited weights says how (--recipe" in other
    for recipe in (edited["total"], edited["total"] / "recipe.yaml", clipedit.load_recipe(edited["total"])):
        assert not clipedit.diff_models("demo", tmp_path / "bare", recipe=recipe).others
    assert clipedit.diff_models("demo", tmp_path / "bare", recipe=edited["distilled"]).others


def test_the_weights_file_inside_an_edited_folder_finds_its_recipe(edited: dict[str, Path]) -> None:
    assert not clipedit.diff_models("demo", edited["total"] / WEIGHTS).others
    # A copy of what is compared with itself has nothing to explain.
    assert clipedit.diff_models(edited["total"], edited["total"]).same


def test_an_export_of_an_edited_model_is_explained_by_what_it_keeps_to_be_reproduced(
    edited: dict[str, Path], tmp_path: Path
) -> None:
    from clipedit.export.targets.registry import load_target
    from clipedit.export.verify.record import write_record

    model, target = clipedit.load_model(str(edited["distilled"])), load_target("open-clip")
    (tmp_path / "out").mkdir()
    target.write(model, tmp_path / "out", target.profile)
    write_record(model, tmp_path / "out", target.profile, target.profile.options())
    assert not (tmp_path / "out" / "recipe.yaml").is_file()
    found = clipedit.diff_models("demo", tmp_path / "out")
    assert [other for other in found.others if "visual" in other or "recipe" in other] == [] and len(found.changed) == 2


def test_a_direct_edit_changes_no_tensor_and_is_named_all_the_same(edited: dict[str, Path]) -> None:
    found = clipedit.diff_models("demo", edited["direct"])
    assert not found.changed and not found.others and not found.same
    assert found.direct == {"L1H0": 1.0, "L3H1": 1.0, "L3H6": 1.0}
    assert clipedit.diff_models(edited["direct"], edited["direct"]).same


def test_a_model_is_the_same_as_itself() -> None:
    found = clipedit.diff_models("demo", demo_folder())
    assert found.same and found.tensors == 98


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.update(extra=torch.ones(2)), "extra was added"),
        (lambda t: t.pop("logit_scale"), "logit_scale was removed"),
        (lambda t: t.update({"visual.proj": t["visual.proj"].float()}), "visual.proj is F32, was F16"),
        (lambda t: t.update({"visual.proj": t["visual.proj"][:, :8].clone()}), "has shape [128, 8], had [128, 64]"),
        (lambda t: t["visual.conv1.weight"].mul_(2), "visual.conv1.weight changed, where no edit writes"),
    ],
)
def test_whatever_no_edit_does_is_said(tmp_path: Path, change, sentence: str) -> None:  # type: ignore[no-untyped-def]
    found = clipedit.diff_models("demo", altered(tmp_path / "other", change))
    assert any(sentence in other for other in found.others), found.others


def test_other_metadata_configuration_and_tokenizer_files_are_said(tmp_path: Path) -> None:
    folder = altered(tmp_path / "other", lambda tensors: None, author="nobody")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["preprocess_cfg"]["mean"] = [0.1, 0.1, 0.1]
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    (folder / "texts.txt").write_text("a cat\n")
    others = clipedit.diff_models("demo", folder).others
    assert any("nobody" in other for other in others) and "texts.txt differs" in others
    assert "open_clip_config.json: preprocess_cfg.mean is [0.1, 0.1, 0.1], was [0.5, 0.5, 0.5]" in others


def test_bare_files_need_an_architecture_for_heads(edited: dict[str, Path]) -> None:
    files = demo_folder() / WEIGHTS, edited["total"] / WEIGHTS
    found = clipedit.diff_models(*files)
    assert {change.part for change in found.changed} == {"unknown"} and "has a configuration" in found.unknown
    named = clipedit.diff_models(*files, architecture="demo")
    assert named.changed == clipedit.diff_models("demo", edited["total"]).changed and not named.unknown


def test_nan_and_pickles_are_refused(tmp_path: Path) -> None:
    broken = altered(tmp_path / "nan", lambda tensors: tensors["visual.proj"].mul_(torch.nan))
    with pytest.raises(clipedit.ModelError, match="cannot compare visual.proj: it holds NaN"):
        clipedit.diff_models("demo", broken)
    torch.save({}, tmp_path / "weights.pt")
    with pytest.raises(clipedit.ModelError, match="only read as safetensors"):
        clipedit.diff_models("demo", tmp_path / "weights.pt")


def test_the_command_exits_with_1_only_if_something_else_changed(
    edited: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    other = altered(tmp_path / "other", lambda tensors: tensors["visual.conv1.weight"].mul_(2))

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["clipedit", "diff", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(stop.value.code or 0), *capfd.readouterr()

    code, out, err = run("demo", edited["total"])
    assert code == 0 and "4 of 98 tensors changed; nothing else changed" in out, err
    assert "L3H1 (100.00%), L3H6" in " ".join(out.split())
    code, _, err = run("demo", other)
    assert code == 1 and err.startswith("error: 1 things changed that the edit does not change")
    answer = json.loads(run("demo", edited["direct"], "--json")[1])
    assert answer["direct"] == {"L1H0": 1.0, "L3H1": 1.0, "L3H6": 1.0} and answer["same"] is False
    code, _, err = run("demo", tmp_path / "nothing")
    assert code == 1 and "no such file" in err


def test_memory_stays_near_the_largest_tensor(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {f"t{i}": torch.randn(2**21, generator=generator) for i in range(24)}  # 24 of 8 MB
    save_file(tensors, tmp_path / "a.safetensors")
    tensors["t5"] += 1
    save_file(tensors, tmp_path / "b.safetensors")
    code = (
        "import resource, sys; from clipedit.editor.edits.diff import diff_models, _measure\nimport torch\n"
        "_measure(torch.ones(4), torch.ones(4)); before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert len(diff_models(sys.argv[1], sys.argv[2]).changed) == 1\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    files = [str(tmp_path / f"{name}.safetensors") for name in "ab"]
    answer = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True, check=True)
    assert int(answer.stdout) / 1024 < 10 * 8
