"""The theorems of the edits, and recipes that give the same bytes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import clipedit
from clipedit.editor.components import HeadId
from clipedit.editor.concepts.concepts import load_concept
from clipedit.editor.concepts.directions import concept_directions
from clipedit.editor.edits.bind import bind_recipe
from clipedit.editor.edits.direct import compute_recipe_embeddings
from clipedit.editor.edits.document import Base, RecipeDocument, Step
from clipedit.editor.edits.operations import AffineMap, OperationInput, identity_map, project_out, with_strength
from clipedit.editor.edits.recipe import Recipe
from clipedit.editor.edits.refit import compute_distilled_readout
from clipedit.editor.files.tensors import hash_checkpoint, hash_state, read_header
from clipedit.editor.images.demo import demo_calibration_source, render_source
from clipedit.editor.scan.collect import collect_features
from clipedit.export.edited_folder import apply_to_folder, write_edited_model

pytestmark = pytest.mark.usefixtures("verified_here")

TEST_PIXELS = torch.randn(16, 3, 64, 64, generator=torch.Generator().manual_seed(3))


def document(*steps: Step, effect: str = "distilled") -> RecipeDocument:
    return RecipeDocument(schema_version=1, name="test", base=Base(model="demo"), effect=effect, steps=steps)  # type: ignore[arg-type]


@pytest.mark.parametrize("effect", ["distilled", "total", "direct"])
def test_an_empty_recipe_changes_no_byte(
    demo_model: clipedit.Model, demo_scan: clipedit.Scan, tmp_path: Path, effect: str
) -> None:
    recipe = bind_recipe(document(effect=effect), demo_scan, demo_model)
    assert demo_model.folder is not None
    apply_to_folder(recipe, demo_model.folder, tmp_path / "out")
    (written,) = (tmp_path / "out").rglob("open_clip_model.safetensors")
    assert written.read_bytes() == (demo_model.folder / "open_clip_model.safetensors").read_bytes()


@pytest.mark.parametrize("effect", ["distilled", "total"])
def test_scaling_by_one_changes_no_byte(
    demo_model: clipedit.Model, demo_scan: clipedit.Scan, tmp_path: Path, effect: str
) -> None:
    step = Step(operation="scale", heads=("L3H1", "L2H0"), factor=1.0)
    recipe = bind_recipe(document(step, effect=effect), demo_scan, demo_model)
    assert demo_model.folder is not None
    apply_to_folder(recipe, demo_model.folder, tmp_path / "out")
    written = tmp_path / "out" / "open_clip_model.safetensors"
    assert written.read_bytes() == (demo_model.folder / "open_clip_model.safetensors").read_bytes()


@pytest.mark.parametrize("effect", ["distilled", "total", "direct"])
def test_the_same_recipe_gives_the_same_bytes_from_disk_and_in_memory(
    demo_model: clipedit.Model, demo_scan: clipedit.Scan, tmp_path: Path, effect: str
) -> None:
    recipe = clipedit.make_recipe(demo_scan, demo_model, concept="location", effect=effect)  # type: ignore[arg-type]
    write_edited_model(recipe, demo_model, tmp_path / "first")
    loaded = clipedit.load_recipe(tmp_path / "first")
    assert demo_model.folder is not None
    apply_to_folder(loaded, demo_model.folder, tmp_path / "second")
    for path in (tmp_path / "second").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "first" / path.relative_to(tmp_path / "second")).read_bytes(), path
    again = clipedit.load_model(str(tmp_path / "second"))
    expected = clipedit.apply_recipe(loaded, demo_model).encode_image(TEST_PIXELS)
    assert torch.equal(again.encode_image(TEST_PIXELS), expected)
    assert not torch.allclose(expected, demo_model.encode_image(TEST_PIXELS), atol=1e-2)


@pytest.mark.parametrize("effect", ["distilled", "total"])
def test_unnamed_tensors_stay_bit_identical(
    demo_model: clipedit.Model, demo_scan: clipedit.Scan, tmp_path: Path, effect: str
) -> None:
    from safetensors.torch import load_file

    recipe = clipedit.make_recipe(demo_scan, demo_model, concept="location", effect=effect)  # type: ignore[arg-type]
    assert demo_model.folder is not None
    apply_to_folder(recipe, demo_model.folder, tmp_path / "out")
    before = load_file(demo_model.folder / "open_clip_model.safetensors")
    after = load_file(tmp_path / "out" / "open_clip_model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    layers = {HeadId.parse(head).layer for head in recipe.heads}
    prefix = "visual.transformer.resblocks"
    folded = {f"{prefix}.{i}.attn.out_proj.{leaf}" for i in layers for leaf in ("weight", "bias")}
    expected = {"visual.proj", "visual.ln_post.bias"} if effect == "distilled" else folded | {"visual.proj"}
    assert changed == expected
    assert {name: tensor.dtype for name, tensor in before.items()} == {n: t.dtype for n, t in after.items()}


def test_total_edits_equal_edits_made_by_hooks_on_the_live_model(
    demo_model: clipedit.Model, demo_scan: clipedit.Scan
) -> None:
    step = Step(operation="project-out", heads=("L1H2", "L3H0", "L3H5"), concept="location", strength=0.7)
    recipe = bind_recipe(document(step, effect="total"), demo_scan, demo_model)
    assert recipe.tensors is not None
    model = dataclasses.replace(demo_model, storage_dtypes={})
    edited = clipedit.apply_recipe(recipe, model, force=True)
    tower = model.tower
    original = tower._head_values  # type: ignore[attr-defined]
    layers = {id(block): layer for layer, block in enumerate(model.module.visual.transformer.resblocks)}

    def hooked(block, stream, **options):  # type: ignore[no-untyped-def]
        values = original(block, stream, **options).clone()
        for head in (HeadId.parse(name) for name in recipe.heads):
            if head.layer == layers[id(block)]:
                maps = recipe.tensors[f"heads.{head}.map"]
                values[:, :, head.head] = (
                    values[:, :, head.head] @ maps.T + recipe.tensors[f"heads.{head}.value_offset"]
                )
        return values

    tower._head_values = hooked  # type: ignore[attr-defined, method-assign]
    expected = tower.collect_features(TEST_PIXELS, []).embedding
    tower._head_values = original  # type: ignore[attr-defined, method-assign]
    assert (edited.encode_image(TEST_PIXELS) - expected).norm() / expected.norm() < 1e-5


def test_projecting_out_leaves_no_variance_along_the_concept(
    demo_model: clipedit.Model, demo_scan: clipedit.Scan
) -> None:
    basis = concept_directions(load_concept("location", demo_model.folder), demo_model)
    step = Step(operation="project-out", heads=("L3H1",), concept="location")
    recipe = bind_recipe(document(step, effect="direct"), demo_scan, demo_model)
    features, _ = collect_features(demo_model, demo_calibration_source(256), layers=[3])
    readout = demo_model.tower.compute_readouts(demo_model.tower.groups([3], mlps=False))["L3.heads"][1].float()
    assert recipe.tensors is not None
    before = features.groups["L3.heads"][:, 1]
    after = before @ recipe.tensors["heads.L3H1.map"].T + recipe.tensors["heads.L3H1.offset"]
    variance = [float((u @ readout.T @ basis.float()).var(0).sum()) for u in (before, after)]
    assert variance[1] < 1e-9 * variance[0]
    other = [float((u @ readout.T).var(0).sum()) for u in (before, after)]
    assert other[1] > 0


def test_a_projection_applied_twice_is_applied_once() -> None:
    readouts, directions = torch.randn(2, 24, 8).double(), torch.linalg.qr(torch.randn(24, 3).double())[0]
    maps, keep_mean = project_out(OperationInput(readouts, directions))
    mean = torch.randn(2, 8).double()
    once = identity_map(2, 8).then(maps, keep_mean, mean)
    twice = once.then(maps, keep_mean, mean)
    assert torch.allclose(once.map, twice.map) and torch.allclose(once.offset, twice.offset)
    assert torch.allclose(torch.einsum("hkl,hl->hk", once.map, mean) + once.offset, mean)


def test_strength_goes_from_nothing_to_everything() -> None:
    maps = torch.randn(1, 5, 5).double()
    assert torch.equal(with_strength(maps, 0.0), torch.eye(5).double()[None])
    assert torch.allclose(with_strength(maps, 1.0), maps)


def test_distilled_is_the_least_squares_fit_to_the_direct_edit(
    demo_model: clipedit.Model, demo_scan: clipedit.Scan
) -> None:
    recipe = bind_recipe(
        document(Step(operation="mean-ablate", heads=("L3H1", "L2H4", "L1H7")), effect="direct"), demo_scan, demo_model
    )
    assert recipe.tensors is not None
    edits = {
        HeadId.parse(head): AffineMap(
            recipe.tensors[f"heads.{head}.map"][None].double(), recipe.tensors[f"heads.{head}.offset"][None].double()
        )
        for head in recipe.heads
    }
    refit = compute_distilled_readout(demo_scan, demo_model, edits)
    readout, bias = refit.readout, refit.bias
    features, _ = collect_features(demo_model, demo_calibration_source(1024), layers=[1, 2, 3], batch_size=32)
    wanted = compute_recipe_embeddings(recipe, demo_model, features).double()
    norm = features.embedding.double().norm(dim=1, keepdim=True)
    gram = demo_scan.statistics.gg[:-1, :-1]
    ridge = (refit.ridge * gram.trace() / len(gram)).sqrt() * torch.eye(len(gram)).double()
    design = torch.cat([torch.cat([features.final.double(), torch.ones(len(norm), 1).double()], 1) / norm, ridge])
    target = torch.cat([(wanted - features.embedding) / norm, torch.zeros(len(gram), wanted.shape[1]).double()])
    expected = torch.linalg.lstsq(design, target, driver="gelsd").solution
    change = torch.cat([readout - demo_model.tower.readout(), bias[None]])
    assert (change - expected).norm() / expected.norm() < 1e-4


def test_the_folded_readout_gives_the_refitted_embedding(demo_model: clipedit.Model) -> None:
    tower = demo_model.tower
    readout = tower.readout() + 0.05 * torch.randn(tower.d_model, tower.d_embed).double()
    bias = torch.randn(tower.d_embed).double()
    folded = tower.fold_readout(readout, bias)
    final = tower.collect_features(TEST_PIXELS, []).final
    expected = final.double() @ readout + bias
    assert (tower.embed_final(final.double(), folded) - expected).norm() / expected.norm() < 1e-10
    module = demo_model.with_tensors({k: v.float() for k, v in folded.items()})
    module_output = module.module.encode_image(TEST_PIXELS)
    assert (module_output - expected).norm() / expected.norm() < 2e-3  # weights are rounded to fp16


def test_mean_ablation_removes_a_head_and_keeps_its_mean(demo_model: clipedit.Model, demo_scan: clipedit.Scan) -> None:
    recipe = bind_recipe(
        document(Step(operation="mean-ablate", heads=("L3H1",)), effect="direct"), demo_scan, demo_model
    )
    parts = clipedit.decompose(demo_model, TEST_PIXELS)
    index = [str(identity) for identity in parts.components].index("L3H1")
    readout = demo_model.tower.compute_readouts(demo_model.tower.groups([3], mlps=False))["L3.heads"][1]
    mean = readout @ demo_scan.statistics.mean_features("L3.heads")[1]
    expected = parts.embedding - parts.contributions[:, index] + mean.float()
    found = clipedit.apply_recipe(recipe, demo_model).encode_image(TEST_PIXELS)
    assert (found - expected).norm() / expected.norm() < 1e-5


def test_projecting_the_texts_out_changes_the_text_tower_only(
    demo_model: clipedit.Model, demo_scan: clipedit.Scan
) -> None:
    step = Step(operation="project-out", target="texts", concept="location")
    edited = clipedit.apply_recipe(bind_recipe(document(step), demo_scan, demo_model), demo_model)
    assert torch.equal(edited.encode_image(TEST_PIXELS), demo_model.encode_image(TEST_PIXELS))
    basis = concept_directions(load_concept("location", demo_model.folder), demo_model).float()
    left = (edited.encode_text(["a photo of the ocean", "a circle"]) @ basis).norm()
    assert left < 0.02 * (demo_model.encode_text(["a photo of the ocean", "a circle"]) @ basis).norm()


def test_scores_of_all_components_and_the_constant_sum_to_one(
    demo_model: clipedit.Model, demo_scan: clipedit.Scan
) -> None:
    statistics, tower = demo_scan.statistics, demo_model.tower
    scores = clipedit.score_heads(demo_scan, demo_model, concept="location")
    basis = concept_directions(load_concept("location", demo_model.folder), demo_model)
    read = tower.readout() @ basis
    constant = (tower.constant() @ basis) @ (statistics.inverse_norm_final_covariance() @ read)
    total = torch.einsum("dc,de,ec->", read, statistics.final_covariance(), read)
    assert abs(sum(row.concept for row in scores) + float(constant / total) - 1) < 1e-4


def test_correlation_is_the_other_measure(demo_model: clipedit.Model, demo_scan: clipedit.Scan) -> None:
    scores = clipedit.score_heads(demo_scan, demo_model, concept="location", measure="correlation")
    assert all(-1.0001 <= row.concept <= 1.0001 for row in scores)
    assert [row.score for row in scores] == sorted((row.score for row in scores), reverse=True)


def test_the_weight_hash_of_a_file_is_that_of_its_tensors(demo_model: clipedit.Model) -> None:
    assert demo_model.checkpoint is not None
    assert hash_checkpoint(demo_model.checkpoint) == hash_state(demo_model.stored_state()) == demo_model.weights_hash
    assert read_header(demo_model.checkpoint)["visual.proj"].shape == (128, 64)


def test_another_base_is_refused_unless_forced(
    demo_model: clipedit.Model, demo_scan: clipedit.Scan, tmp_path: Path
) -> None:
    recipe = clipedit.make_recipe(demo_scan, demo_model, concept="location")
    edited = clipedit.apply_recipe(recipe, demo_model)
    with pytest.raises(clipedit.RecipeError, match="it was made for weights .* or --force"):
        clipedit.apply_recipe(recipe, edited)
    assert clipedit.apply_recipe(recipe, edited, force=True) is not None
    write_edited_model(recipe, demo_model, tmp_path / "edited")
    with pytest.raises(clipedit.RecipeError, match="it was made for weights"):
        apply_to_folder(recipe, tmp_path / "edited", tmp_path / "twice")
    assert not (tmp_path / "twice").exists()


def test_the_given_model_does_not_change(demo_model: clipedit.Model, demo_scan: clipedit.Scan) -> None:
    before = demo_model.encode_image(TEST_PIXELS)
    clipedit.apply_recipe(clipedit.make_recipe(demo_scan, demo_model, concept="location"), demo_model)
    assert torch.equal(before, demo_model.encode_image(TEST_PIXELS))


def test_an_unbound_recipe_takes_its_means_from_a_scan(demo_model: clipedit.Model, demo_scan: clipedit.Scan) -> None:
    unbound = Recipe(document(Step(operation="mean-ablate", heads=("L3H1",))))
    with pytest.raises(clipedit.RecipeError, match="unbound, its means are not known"):
        clipedit.apply_recipe(unbound, demo_model)
    edited = clipedit.apply_recipe(unbound, demo_model, scan=demo_scan)
    assert F.cosine_similarity(edited.encode_image(TEST_PIXELS), demo_model.encode_image(TEST_PIXELS)).min() < 0.9999


def test_fidelity_of_the_default_recipe_on_held_out_images(
    demo_model: clipedit.Model, demo_scan: clipedit.Scan
) -> None:
    from clipedit.demo import world

    held_out = render_source(world.draw_balanced_scenes(512, seed=77))
    features, _ = collect_features(demo_model, held_out, layers=range(4), batch_size=128)
    distilled, direct = (
        compute_recipe_embeddings(
            clipedit.make_recipe(demo_scan, demo_model, concept="location", effect=effect), demo_model, features
        )
        for effect in ("distilled", "direct")
    )
    cosine = F.cosine_similarity(distilled, direct)
    assert cosine.mean() > 0.98
