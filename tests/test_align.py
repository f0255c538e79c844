"""An aligner turns a model's own space into a CLIP's; a rotated CLIP, whose answer is known, gets its texts back."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import clipedit
from clipedit.editor.images.demo import demo_calibration_source
from clipedit.editor.load import apply_aligner
from clipedit.editor.models.aligner import Aligner, compute_aligned, compute_orthogonality, fit_shared_map, load_aligner
from clipedit.editor.models.decompose import decompose
from clipedit.editor.scan import align as align_module
from clipedit.editor.scan.align import align
from clipedit.editor.scan.align_options import AlignOptions

pytestmark = pytest.mark.training


@pytest.fixture(scope="module")
def rotated(demo_model: clipedit.Model) -> clipedit.Model:
    """The demo CLIP with its embedding turned by a random rotation: another space, the same heads."""
    turn = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(3)))[0]
    return demo_model.with_tensors({"visual.proj": demo_model.module.visual.proj.detach() @ turn})


@pytest.fixture(scope="module")
def aligner(rotated: clipedit.Model, demo_model: clipedit.Model) -> Aligner:
    return align(rotated, demo_model, demo_calibration_source(288), options=AlignOptions(epochs=1))


@pytest.fixture(scope="module")
def aligned(rotated: clipedit.Model, demo_model: clipedit.Model, aligner: Aligner) -> clipedit.Model:
    return apply_aligner(rotated, aligner, clip=demo_model)


@pytest.fixture(scope="module")
def aligned_scan(aligned: clipedit.Model) -> clipedit.Scan:
    return clipedit.scan(aligned, demo_calibration_source(192), layers=range(4), mlps=True, workers=0)


def test_the_best_orthogonal_map_undoes_a_rotation() -> None:
    generator = torch.Generator().manual_seed(0)
    own = torch.randn(200, 12, generator=generator) + 3
    turn = torch.linalg.qr(torch.randn(12, 12, generator=generator))[0][:8]
    found, bias = fit_shared_map(own, (own - own.mean(0)) @ turn.T)
    assert found.shape == (8, 12) and compute_orthogonality(found[None]).item() < 1e-8
    cosine = F.cosine_similarity(own @ found.T + bias, (own - own.mean(0)) @ turn.T)
    assert cosine.mean() > 0.9


def test_orthogonality_is_zero_for_orthonormal_rows_and_one_for_nothing() -> None:
    rows = torch.linalg.qr(torch.randn(9, 4))[0].T
    assert compute_orthogonality(rows[None]).item() < 1e-10
    assert compute_orthogonality(rows.T[None]).item() < 1e-10
    assert compute_orthogonality(torch.zeros(1, 4, 9)).item() == pytest.approx(1.0)


def test_a_rotated_clip_is_aligned(aligner: Aligner) -> None:
    report = aligner.report
    assert report["cosine"] > 0.99 > report["cosine_of_mean"]
    assert report["cosine_centred"] > 0.98 and report["worst_orthogonality"] < 0.01
    assert aligner.described["images"] == {"training": 259, "held_out": 29}


def test_aligned_contributions_and_the_bias_sum_to_the_aligned_embedding(
    rotated: clipedit.Model, aligned: clipedit.Model, aligner: Aligner
) -> None:
    pixels = torch.randn(3, 3, 64, 64)
    parts, own = decompose(aligned, pixels), decompose(rotated, pixels)
    whole = parts.contributions.sum(1) + parts.constant
    assert (whole - aligned.encode_image(pixels)).norm() < 1e-5 * whole.norm()
    expected = compute_aligned(own.contributions, aligner.maps, aligner.bias)
    assert (whole - expected).norm() < 1e-5 * whole.norm()
    assert [str(part) for part in parts.components] == [str(part) for part in own.components]


def test_token_shares_of_an_aligned_model_sum_to_its_heads_contributions(
    aligned: clipedit.Model, check_token_shares
) -> None:  # type: ignore[no-untyped-def]
    assert check_token_shares(aligned, torch.randn(3, 3, 64, 64)).grid == (8, 8)


def test_a_rotated_clip_sees_a_text_where_the_clip_sees_it(demo_model: clipedit.Model, aligned: clipedit.Model) -> None:
    for index in range(4):
        image = demo_calibration_source(4).open(index)
        expected, found = (clipedit.heatmap(model, image, text="a red circle") for model in (demo_model, aligned))
        assert np.corrcoef(expected.cells.ravel(), found.cells.ravel())[0, 1] > 0.9


def test_an_aligned_model_has_the_labels_and_scores_of_the_clip(
    demo_model: clipedit.Model, aligned: clipedit.Model, aligned_scan: clipedit.Scan
) -> None:
    plain = clipedit.scan(demo_model, demo_calibration_source(192), layers=range(4), mlps=True, workers=0)
    texts = ["a photo of the ocean", "a red object", "a circle", "a striped thing", "a photo of the city", "a star"]
    expected, found = (
        clipedit.text_span(s, m, texts=texts, texts_per_head=1)
        for s, m in ((plain, demo_model), (aligned_scan, aligned))
    )
    same = sum(expected[head][0].text == found[head][0].text for head in expected)
    assert same >= 28
    scores = {row.component: row.concept for row in clipedit.score_heads(plain, demo_model, concept="location")}
    aligned_scores = {
        row.component: row.concept for row in clipedit.score_heads(aligned_scan, aligned, concept="location")
    }
    assert max(abs(scores[name] - aligned_scores[name]) for name in scores) < 0.03


def test_covariance_shares_of_an_aligned_model_sum_to_one(aligned: clipedit.Model, aligned_scan: clipedit.Scan) -> None:
    from clipedit.editor.concepts.concepts import load_concept
    from clipedit.editor.concepts.directions import concept_directions

    scores = clipedit.score_heads(aligned_scan, aligned, concept="location")
    basis = concept_directions(load_concept("location", aligned.folder), aligned)
    read = aligned.tower.readout() @ basis
    statistics = aligned_scan.statistics
    total = torch.einsum("dc,de,ec->", read, statistics.final_covariance(), read)
    constant = (basis.T @ aligned.tower.constant()) @ (statistics.inverse_norm_final_covariance() @ read) / total
    assert sum(row.concept for row in scores) + constant.item() == pytest.approx(1.0, abs=1e-5)


def test_an_edit_chosen_in_the_joint_space_is_made_to_the_model_itself(
    rotated: clipedit.Model, aligned: clipedit.Model, aligned_scan: clipedit.Scan
) -> None:
    from clipedit.editor.edits.direct import (
        compute_direct_embeddings,
        compute_distilled_embeddings,
        compute_edited_readouts,
    )
    from clipedit.editor.scan.collect import collect_features

    recipe = clipedit.make_recipe(aligned_scan, aligned, concept="location", heads=4, output_strength=0.0)
    edited = clipedit.apply_recipe(recipe, aligned)
    assert edited.alignment is None and recipe.document.base.weights_hash == rotated.weights_hash
    before, after = rotated.module.state_dict(), edited.module.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        "visual.proj",
        "visual.ln_post.bias",
    }
    features, _ = collect_features(rotated, demo_calibration_source(64), layers=range(4))
    direct = compute_direct_embeddings(recipe, compute_edited_readouts(recipe, rotated.tower), features)
    distilled = compute_distilled_embeddings(recipe, rotated.tower, features)
    assert F.cosine_similarity(direct, distilled).min() > 0.95
    nothing = clipedit.make_recipe(aligned_scan, aligned, concept="location", heads=0, output_strength=0.0)
    assert torch.equal(clipedit.apply_recipe(nothing, aligned).module.visual.proj, rotated.module.visual.proj)


def test_an_interrupted_run_goes_on_to_the_same_bits(
    rotated: clipedit.Model, demo_model: clipedit.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(align_module, "STATE_EVERY", 4)
    options, state = AlignOptions(epochs=2, batch_size=64), tmp_path / "state"
    whole = align(rotated, demo_model, demo_calibration_source(256), options=options)

    def stop(done: int, total: int) -> None:
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        align(rotated, demo_model, demo_calibration_source(256), options=options, state_path=state, progress=stop)
    other = dataclasses.replace(options, penalty=0.5)
    with pytest.raises(clipedit.AlignmentError, match="its options was"):
        align(rotated, demo_model, demo_calibration_source(256), options=other, state_path=state, resume=True)
    resumed = align(rotated, demo_model, demo_calibration_source(256), options=options, state_path=state, resume=True)
    assert torch.equal(resumed.maps, whole.maps) and torch.equal(resumed.bias, whole.bias)
    assert not list(tmp_path.iterdir())


def test_training_stops_when_the_loss_does_not_fall(rotated: clipedit.Model, demo_model: clipedit.Model) -> None:
    steps: list[int] = []
    options = AlignOptions(batch_size=32, epochs=40, patience=3, learning_rate=1e-2, shared_map=True)
    align(rotated, demo_model, demo_calibration_source(256), options=options, progress=lambda d, t: steps.append(d))
    assert len(steps) < 40 * 8


def test_an_aligner_survives_the_disk(aligner: Aligner, tmp_path: Path) -> None:
    aligner.save(tmp_path / "a")
    aligner.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    read = load_aligner(tmp_path / "a")
    assert torch.equal(read.maps, aligner.maps) and read.digest == aligner.digest
    assert read.report == aligner.report and read.base == aligner.base


def test_a_scan_remembers_its_aligner(
    rotated: clipedit.Model, aligned: clipedit.Model, aligned_scan: clipedit.Scan, aligner: Aligner, tmp_path: Path
) -> None:
    aligned_scan.save(tmp_path / "scan")
    read = clipedit.load_scan(tmp_path / "scan")
    assert read.aligner_digest == aligner.digest
    assert clipedit.score_heads(read, aligned, concept="location")
    with pytest.raises(clipedit.StatisticsError, match="it was made through memory, the model is read through none"):
        clipedit.score_heads(read, rotated, concept="location")
    with pytest.raises(clipedit.StatisticsError, match="aligner_digest is"):
        read.merge(clipedit.scan(rotated, demo_calibration_source(8), layers=range(4), mlps=True))


def test_what_cannot_be_aligned_is_refused(
    rotated: clipedit.Model, demo_model: clipedit.Model, aligned: clipedit.Model, aligner: Aligner, tmp_path: Path
) -> None:
    with pytest.raises(clipedit.AlignmentError, match="cannot align on 255 images: at least 256 are needed"):
        align(rotated, demo_model, demo_calibration_source(255))
    with pytest.raises(clipedit.AlignmentError, match="no such file. Make it with `clipedit align MODEL --to CLIP"):
        apply_aligner(rotated, tmp_path / "missing", clip=demo_model)
    (tmp_path / "text").write_text("no aligner")
    with pytest.raises(clipedit.AlignmentError, match="as safetensors"):
        load_aligner(tmp_path / "text")
    with pytest.raises(clipedit.AlignmentError, match="made for the model demo with weights .*, these are"):
        apply_aligner(demo_model, aligner, clip=demo_model)
    with pytest.raises(clipedit.AlignmentError, match="made for the CLIP demo with weights"):
        apply_aligner(rotated, aligner, clip=rotated)
    for changes in (
        {"maps": aligner.maps[:, :32], "bias": aligner.bias[:32]},
        {"maps": aligner.maps[:, :, :32]},
        {"maps": aligner.maps[:5]},
    ):
        with pytest.raises(clipedit.AlignmentError, match=r"needed are 41 \(or one\) of 64 to 64"):
            apply_aligner(rotated, dataclasses.replace(aligner, **changes), clip=demo_model)
    with pytest.raises(clipedit.AlignmentError, match="it is aligned or directly edited already"):
        apply_aligner(aligned, aligner, clip=demo_model)
    with pytest.raises(clipedit.AlignmentError, match="cannot resume: there is no"):
        align(rotated, demo_model, demo_calibration_source(256), state_path=tmp_path / "none", resume=True)
