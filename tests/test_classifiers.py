"""Classifiers without texts: aligned to a CLIP, repaired, and measured by their own head."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import timm
import torch

import clipedit
from clipedit.commands.tables.outputs import make_schema
from clipedit.demo import world
from clipedit.demo.train_classifier import create_classifier, draw_biased_scenes, save_classifier, train_classifier
from clipedit.editor.concepts.class_heads import class_names, classify_by_head
from clipedit.editor.images.demo import render_source
from clipedit.editor.images.labelled import load_labelled_images, write_metadata
from clipedit.editor.measure.linear_head import fit_head

pytestmark = [pytest.mark.training, pytest.mark.usefixtures("verified_here")]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory, demo_model: clipedit.Model) -> Path:
    """The demo CLIP's image tower as a timm classifier, its head trained for three batches."""
    folder = tmp_path_factory.mktemp("classifier") / "model"
    module = create_classifier(demo_model)
    log = train_classifier(module, steps=3, batch=16, learning_rate=1e-3, usual_rate=0.9, seed=0)
    save_classifier(module, folder, log)
    return folder


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """256 biased images of the world in two splits, with labels."""
    folder = tmp_path_factory.mktemp("labelled")
    source = render_source(draw_biased_scenes(np.random.default_rng(0), 256, usual_rate=0.5))
    for index, name in enumerate(source.names):
        source.open(index).save(folder / name)
    splits = ["train" if index < 160 else "test" for index in range(256)]
    write_metadata(
        folder / "metadata.csv", [{**row, "split": s} for row, s in zip(source.attributes, splits, strict=True)]
    )
    return folder


def test_the_trunk_computes_what_the_clip_computes(demo_model: clipedit.Model) -> None:
    pixels = torch.randn(3, 3, 64, 64)
    module = create_classifier(demo_model).eval()
    with torch.no_grad():
        final = module.forward_head(module.forward_features(pixels), pre_logits=True)
    expected = demo_model.encode_image(pixels)
    assert (final @ demo_model.module.visual.proj - expected).norm() < 1e-5 * expected.norm()


def test_a_classifier_is_aligned_repaired_and_stays_an_ordinary_checkpoint(
    run, classifier: Path, labelled: Path, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    aligner, scan, out = tmp_path / "aligner.safetensors", tmp_path / "scan.safetensors", tmp_path / "out"
    code, printed, told = run("align", classifier, "--to", "demo", "--images", labelled, "-o", aligner, "--epochs", "1")
    assert code == 0, told
    assert printed.splitlines()[1].split()[0] == "cosine" and f"wrote {aligner}: 41 maps, from 230 images" in told
    report = clipedit.load_aligner(aligner).report
    assert report["cosine"] > report["cosine_of_mean"] + 0.2
    # What `--json` prints.
    jsonschema.validate(report, make_schema("align"))
    assert run("scan", labelled, "--model", classifier, "--aligner", aligner, "-o", scan)[0] == 0
    labels = json.loads(run("label", scan, "--json")[1])
    assert len(labels) == 32 and all(rows[0]["text"] for rows in labels.values())
    scores = json.loads(run("score", scan, "--concept", "location", "--json")[1])
    assert scores[0]["score"] > 0
    arguments = ("--model", classifier, "--scan", scan, "--heads", "3", "--dataset", labelled, "-o", out, "--json")
    code, printed, told = run("remove-heads", "--concept", "location", *arguments)
    assert code == 0, told
    found = json.loads(printed)
    assert found["measured"].keys() == {"before", "after", "control", "fidelity", "evidence", "choice"}
    before, after = (
        timm.create_model(f"local-dir:{folder}", pretrained=True).state_dict() for folder in (classifier, out)
    )
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"head.weight", "head.bias"}
    code, printed, told = run("evaluate", classifier, out, "--dataset", labelled, "--split", "test", "--json")
    rows = json.loads(printed)
    assert list(rows) == [str(classifier), str(out)] and rows[str(out)].keys() == {
        "overall",
        "worst_group",
        "mean_of_groups",
        "groups",
    }
    read = json.loads(
        run("evaluate", classifier, "--aligner", aligner, "--dataset", labelled, "--split", "test", "--json")[1]
    )
    assert read[str(classifier)]["overall"] > 0.3  # Zero-shot, through the aligner.
    look_through(run, classifier, aligner, labelled, tmp_path)
    code, _, told = run("report", out, "--images", tmp_path / "photos", "-o", tmp_path / "report.html")
    assert code == 0 and (tmp_path / "report.html").read_text().count("data:image/jpeg") >= 4, told
    other = run("label", scan.with_name("none"))
    assert other[0] == 1 and "no such file" in other[2]
    aligner.unlink()
    code, _, told = run("label", scan)
    assert code == 1 and f"cannot read the aligner {aligner}: no such file" in told


def look_through(run, classifier: Path, aligner: Path, labelled: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Heatmaps, masks and retrieval, by the texts of the CLIP."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in sorted(labelled.glob("*.png"))[:8]:
        (photos / path.name).write_bytes(path.read_bytes())
    through = ("--model", classifier, "--aligner", aligner)
    first = next(photos.iterdir())
    code, printed, told = run("heatmap", first, "--text", "a circle", *through, "-o", tmp_path / "h.png", "--json")
    assert code == 0, told
    assert np.shape(json.loads(printed)["heatmaps"][0]["cells"]) == (8, 8)
    code, _, told = run("segment", photos, "--text", "a circle", *through, "-o", tmp_path / "masks")
    assert code == 0 and len(list((tmp_path / "masks").glob("*.png"))) == 8, told
    search = (
        "retrieve",
        photos,
        "--index",
        tmp_path / "index.safetensors",
        "--image",
        first,
        "--concept",
        "color",
        "--json",
    )
    code, printed, told = run(*search, *through)
    assert code == 0 and json.loads(printed)["images"][0]["name"] == first.name, told


def test_a_trained_head_is_an_ordinary_classifier_and_is_not_measured_on_its_own_images(
    run, classifier: Path, labelled: Path, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "head"
    code, _, told = run("train-head", classifier, "--dataset", labelled, "--split", "train", "-o", out, "--json")
    assert code == 0, told
    config = json.loads((out / "config.json").read_text())
    assert config["label_names"] == sorted(world.SHAPES) and config["clipedit_head"]["images"] == 160
    rows = json.loads(run("evaluate", out, "--dataset", labelled, "--split", "test", "--json")[1])
    assert rows[str(out)]["overall"] > 0.3
    code, _, told = run("evaluate", out, "--dataset", labelled, "--split", "train")
    assert code == 1 and "160 of the 160 images trained its head. Give another --split." in told
    code, _, told = run("evaluate", out, "--dataset", labelled, "--split", "all")
    assert code == 1 and "160 of the 256 images trained its head" in told
    assert json.loads(run("evaluate", out, "--dataset", labelled, "--json")[1]) == rows  # The test split by default.
    code, _, told = run("train-head", "demo", "--dataset", labelled, "-o", tmp_path / "x")
    assert code == 1 and "it is a CLIP, its texts classify" in told


def test_wrong_input_is_refused_with_its_reason(run, classifier: Path, labelled: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(labelled.glob("*.png"))[:20]:
        (few / path.name).write_bytes(path.read_bytes())
    cases = [
        (("align", classifier, "--to", "demo", "--images", few, "-o", "a"), "cannot align on 20 images: at least 256"),
        (
            ("align", classifier, "--to", classifier, "--images", labelled, "-o", "a"),
            "it has no text tower. Give a CLIP",
        ),
        (
            ("align", classifier, "--to", "demo", "--images", labelled, "-o", "a", "--resume"),
            "cannot resume: there is no",
        ),
        (
            ("scan", labelled, "--model", classifier, "--aligner", "none", "-o", "s"),
            "cannot read the aligner none: no such",
        ),
        (
            ("remove-heads", "--concept", "location", "--model", classifier, "--images", labelled),
            "it has no text tower",
        ),
        (("evaluate", "vit_tiny_patch16_224.x", "--dataset", labelled), "cannot load"),
    ]
    for arguments, message in cases:
        code, printed, told = run(*arguments)
        assert code == 1 and message in told and not printed, (arguments, told)


def test_a_classifier_answers_for_the_classes_it_knows(classifier: Path) -> None:
    model = clipedit.load_model(str(classifier))
    assert class_names(model) == [(shape,) for shape in world.SHAPES]
    pixels = torch.randn(2, 3, 64, 64)
    logits = classify_by_head(model, ("star", "circle"))(model.encode_image(pixels))
    assert torch.allclose(logits, model.classify(pixels)[:, [3, 0]], atol=1e-4)
    with pytest.raises(clipedit.ImageError, match="its classifier has no class 'starr'. Did you mean star"):
        classify_by_head(model, ("starr",))
    with pytest.raises(clipedit.ModelError, match="it has neither texts nor a classifier"):
        classify_by_head(_without_head(model), ("star",))


def _without_head(model: clipedit.Model) -> clipedit.Model:
    module = copy.deepcopy(model.module)
    module.reset_classifier(0)
    return dataclasses.replace(model, module=module)


def test_imagenet_classes_have_ids_and_words() -> None:
    names = class_names(clipedit.load_model("vit_tiny_patch16_224"))
    assert len(names) == 1000 and names[0] == ("n01440764", "tench", "Tinca tinca")


def test_the_fitted_head_is_the_regularised_optimum() -> None:
    from sklearn.linear_model import LogisticRegression

    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(300, 6, generator=generator)
    labels = (inputs[:, :3] + torch.randn(300, 3, generator=generator)).argmax(1)
    weight, bias = fit_head(inputs, labels, 3, decay=1e-2)
    scaled = ((inputs.double() - inputs.double().mean(0)) / inputs.double().std()).numpy()
    reference = LogisticRegression(C=1 / (300 * 1e-2), tol=1e-8, max_iter=1000).fit(scaled, labels.numpy())
    found = (inputs @ weight.T + bias).softmax(1).double()
    assert torch.allclose(found, torch.from_numpy(reference.predict_proba(scaled)), atol=1e-3)


def test_a_head_needs_images_of_every_class(classifier: Path, labelled: Path, tmp_path: Path) -> None:
    from clipedit.export.classifier_folder import train_head_to_folder

    task = load_labelled_images(labelled, split="train")
    few = [index for index, label in enumerate(task.labels) if label != 2][:60]
    part = dataclasses.replace(
        task,
        source=task.source.subset(few),
        labels=tuple(task.labels[i] for i in few),
        groups=tuple(task.groups[i] for i in few),
    )
    with pytest.raises(clipedit.ImageError, match="a class has 0 images, at least 5 are needed"):
        train_head_to_folder(clipedit.load_model(str(classifier)), part, tmp_path / "x")
    assert not (tmp_path / "x").exists()
