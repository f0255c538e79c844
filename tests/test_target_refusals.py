"""What a target cannot hold is refused with the reason, before anything is written."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from unittest import mock

import open_clip
import pytest
import torch

import clipedit
from clipedit.editor.images.demo import demo_calibration_source
from clipedit.editor.images.demo_name import demo_folder
from clipedit.export.consumers.model_name import spell_model_name
from clipedit.export.edited_folder import write_edited_model
from clipedit.export.pages.model_card import write_model_card
from clipedit.export.targets import immich, transformers_js
from clipedit.export.targets.registry import load_target, require_target
from clipedit.export.verify.reference import load_reference, write_reference

pytestmark = pytest.mark.usefixtures("verified_here")


def write_variant(folder: Path, section: str | None = None, **changes: object) -> Path:
    """The demo model under another configuration, with the weights that fit both."""
    shutil.copytree(demo_folder(), folder)
    config = json.loads((folder / "open_clip_config.json").read_text())
    part = config["preprocess_cfg"] if section == "preprocess_cfg" else config["model_cfg"]
    (part[section] if section in ("vision_cfg", "text_cfg") else part).update(changes)
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("target", "section", "changes", "message"),
    [
        ("hf", "vision_cfg", {"pool_type": "avg"}, "the image tower pools by 'avg'"),
        ("transformers-js", "text_cfg", {"no_causal_mask": True}, "reads what follows the end of the text"),
        ("immich", "text_cfg", {"pool_type": "last"}, "the text tower pools by 'last'"),
        ("fastembed", "preprocess_cfg", {"resize_mode": "longest"}, "images are resized by 'longest'"),
    ],
)
def test_models_that_a_target_cannot_hold(
    target: str, section: str, changes: dict, message: str, tmp_path: Path
) -> None:
    model = clipedit.load_model(str(write_variant(tmp_path / "model", section, **changes)))
    with pytest.raises(
        clipedit.ExportError, match=f"cannot export to {target}: .*{message}.*Use --target open-clip or onnx"
    ):
        clipedit.export_model(model, tmp_path / "out", target=target)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_tokenizer_that_is_not_clips_is_refused(tmp_path: Path) -> None:
    model = clipedit.load_model("demo")
    model.__dict__["tokenizer"] = type(
        "HFTokenizer", (), {"__call__": lambda self, texts: torch.zeros(len(texts), 32)}
    )()
    for target in ("hf", "sentence-transformers", "fastembed", "transformers-js", "immich"):
        with pytest.raises(clipedit.ExportError, match="the tokenizer is HFTokenizer"):
            clipedit.export_model(model, tmp_path / "out", target=target)


def test_a_direct_edit_is_refused_where_only_a_checkpoint_fits(
    demo_model: clipedit.Model, demo_scan: clipedit.Scan, tmp_path: Path
) -> None:
    recipe = clipedit.make_recipe(demo_scan, demo_model, concept="location", effect="direct")
    direct = clipedit.apply_recipe(recipe, demo_model)
    for target in ("hf", "sentence-transformers", "open-clip"):
        with pytest.raises(clipedit.ExportError, match=f"cannot export to {target}: .*direct edit.*--target onnx"):
            clipedit.export_model(direct, tmp_path / "out", target=target)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("huggingface", "Known: "),
        ("imich", "immich"),
        ("open_clip", "open-clip"),
        ("transformersjs", "transformers-js"),
    ],
)
def test_the_nearest_targets_are_named(given: str, meant: str) -> None:
    with pytest.raises(clipedit.ExportError, match=f"unknown target '{given}'.*{meant}"):
        require_target(given)


def test_quick_gelu_reaches_transformers(tmp_path: Path) -> None:
    import transformers

    folder = write_variant(tmp_path / "model", quick_gelu=True)
    quick, plain = clipedit.load_model(str(folder)), clipedit.load_model("demo")
    target = load_target("hf")
    (tmp_path / "out").mkdir()
    target.write(quick, tmp_path / "out", target.profile)
    loaded = transformers.CLIPModel.from_pretrained(tmp_path / "out").eval()
    assert loaded.config.vision_config.hidden_act == loaded.config.text_config.hidden_act == "quick_gelu"
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        found = loaded.vision_model(pixel_values=pixels).pooler_output @ loaded.visual_projection.weight.T
    assert (found - quick.encode_image(pixels)).abs().max() < 1e-4
    assert (found - plain.encode_image(pixels)).abs().max() > 5e-3


def test_an_edited_folder_passes_its_base_on_to_what_is_exported_from_it(
    demo_model: clipedit.Model, demo_scan: clipedit.Scan, tmp_path: Path
) -> None:
    recipe = clipedit.make_recipe(demo_scan, demo_model, concept="location")
    write_edited_model(recipe, demo_model, tmp_path / "edited", images=demo_calibration_source(8))
    card = (tmp_path / "edited" / "README.md").read_text()
    assert "local-dir:." in card and f"| recipe | {recipe.document.name} |" in card
    model = clipedit.load_model(str(tmp_path / "edited"))
    assert model.base is None and spell_model_name(model) == "demo"
    (tmp_path / "out").mkdir()
    write_reference(model, tmp_path / "out", target="hf")
    found, earlier = load_reference(tmp_path / "out"), load_reference(tmp_path / "edited")
    for name in ("base_image_embedding", "base_text_embedding", "image_0"):
        assert torch.equal(found.tensors[name], earlier.tensors[name])
    expected = demo_model.encode_image(found.pixels())
    assert torch.allclose(found.tensors["base_image_embedding"], expected, atol=1e-4)
    # Images of the user's and the further ones of lower precision stand behind those that the base has answered.
    own = demo_calibration_source(3)
    for asked, count in ((dict(images=own), 14), (dict(options={"precision": "int8"}), 32)):
        found = write_reference(model, tmp_path / "out", target="onnx", **asked)  # type: ignore[arg-type]
        assert len(found.images()) == count == len(found.tensors["image_embedding"])
        assert torch.allclose(found.tensors["base_image_embedding"], expected, atol=1e-4)
        assert len(found.threshold_shift()) == 6


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_an_edited_folder_is_told_from_its_base_on_images_of_the_users_too(
    demo_model: clipedit.Model, demo_scan: clipedit.Scan, tmp_path: Path, precision: str
) -> None:
    recipe = clipedit.make_recipe(demo_scan, demo_model, concept="location")
    write_edited_model(recipe, demo_model, tmp_path / "edited")
    model = clipedit.load_model(str(tmp_path / "edited"))
    checks = clipedit.export_model(
        model,
        tmp_path / "out",
        target="onnx",
        images=demo_calibration_source(4),
        precision=precision,  # type: ignore[arg-type]
    )
    assert any("distance to the unedited" in check.name for check in checks)
    assert "holds the 15 images" in (tmp_path / "out" / "README.md").read_text()


def test_names_that_users_chose_cannot_leave_the_folder(demo_model: clipedit.Model, tmp_path: Path) -> None:
    model = replace(demo_model, name="../../a b`$(x)`", pretrained="/etc/weights.safetensors")
    assert spell_model_name(model) == "a_b___x____weights"
    write_model_card(model, tmp_path, load_target("immich"))
    assert 'folder = "a_b___x____weights"' in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "spelled", "said"),
    [
        ("ViT-B-32:laion2b_s34b_b79k", "ViT-B-32__laion2b-s34b-b79k", "is on it as `ViT-B-32__laion2b-s34b-b79k`."),
        ("ViT-B-16-quickgelu:openai", "ViT-B-16__openai", "is on it as `ViT-B-16__openai`."),
        ("ViT-L-14:dfn2b", "ViT-L-14-quickgelu__dfn2b", "with 7 numbers, and this one has embeddings of {}. Give it"),
        ("my model", "my_model", "lists no my_model, which has embeddings of {}. Give it the place of one of that"),
    ],
)
def test_immich_says_which_names_of_its_list_fit(
    name: str, spelled: str, said: str, demo_model: clipedit.Model, tmp_path: Path
) -> None:
    name, _, pretrained = name.partition(":")
    length, model = demo_model.tower.d_embed, replace(demo_model, name=name, pretrained=pretrained or None)
    listed = {length: ("ViT-B-32__laion2b-s34b-b79k", "ViT-B-16__openai"), 7: ("ViT-L-14-quickgelu__dfn2b",)}
    with mock.patch.object(immich, "LISTED", listed):
        place = immich.find_place(model)
        write_model_card(model, tmp_path, load_target("immich"))
    assert place.name == spelled and said.format(length) in place.sentence
    assert place.fits == (spelled in listed[length])
    card = (tmp_path / "README.md").read_text()
    assert place.sentence in card and f'folder = "{spelled}"' in card


def test_immich_has_no_place_for_a_length_of_its_own(demo_model: clipedit.Model, tmp_path: Path) -> None:
    target = load_target("immich")
    with pytest.warns(UserWarning, match="lists no demo, which has .*refuses that length; it has 512, 640"):
        target.write(demo_model, tmp_path, target.profile)
    # The lengths are those of open_clip's own configurations.
    names = [(name, length) for length, named in immich.LISTED.items() for name in named]
    configs = [(open_clip.get_model_config(name.split("__")[0]), length) for name, length in names]
    assert all(config is not None and config["embed_dim"] == length for config, length in configs)


NODE_SAYS = {
    """node:internal/modules/cjs/loader:1207
  const err = new Error(message);
              ^

Error: Cannot find module '@huggingface/transformers'
Require stack:
""": (ImportError, "npm install @huggingface/transformers"),
    """node:internal/errors:496
    ErrorCaptureStackTrace(err);
    ^

Error [ERR_MODULE_NOT_FOUND]: Cannot find package '@huggingface/transformers' imported from /x.mjs
""": (ImportError, "npm install @huggingface/transformers"),
    """file:///x.mjs:12
    throw new Error(`no ${name}`);
          ^

TypeError: Cannot read properties of undefined (reading 'from_pretrained')
""": (RuntimeError, "TypeError: Cannot read properties of undefined"),
    "": (RuntimeError, "it ended without an answer"),
}


@pytest.mark.parametrize(("said", "expected"), NODE_SAYS.items())
def test_what_node_says_is_the_error_and_not_a_line_of_source(
    said: str, expected: tuple[type[Exception], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "said").write_text(said)
    node = tmp_path / "node"
    node.write_text(f"#!/bin/sh\ncat {tmp_path / 'said'} >&2\n")
    node.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    kind, message = expected
    with pytest.raises(kind, match=message):
        transformers_js._NodeModel(tmp_path, "fp32")
