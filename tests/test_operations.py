"""The theorem of every operation, and what each refuses."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from sklearn.linear_model import LogisticRegression

import clipedit
from clipedit.editor.components import Features
from clipedit.editor.concepts.concepts import load_concept
from clipedit.editor.concepts.directions import compute_mean_differences, concept_directions
from clipedit.editor.edits.bind import bind_recipe
from clipedit.editor.edits.direct import compute_recipe_embeddings
from clipedit.editor.edits.document import Base, RecipeDocument, Step
from clipedit.editor.edits.held_out import compute_fidelity
from clipedit.editor.edits.operations import OperationInput, identity_map, keep_only, project_out
from clipedit.editor.edits.recipe import Recipe, bound_heads, load_recipe
from clipedit.editor.edits.singular import load_weights, score_directions
from clipedit.editor.images.demo import demo_calibration_source
from clipedit.editor.measure.fidelity import measure_fidelity
from clipedit.editor.scan.collect import LabelledEmbeddings, collect_features
from clipedit.editor.select.plan import compute_span_angle
from clipedit.editor.towers.vit.open_clip_attention import residual_readout, value_output_weights
from clipedit.export.edited_folder import apply_to_folder

HEADS = ("L3H1", "L2H3")
DIRECTED = {
    "texts": Step(operation="project-out", heads=HEADS, concept="location"),
    "pca": Step(operation="project-out", heads=HEADS, along="pca", directions=3),
    "labels": Step(operation="project-out", heads=HEADS, along="labels", directions=3),
    "text-span": Step(operation="project-out", heads=HEADS, along="text-span", concept="location"),
}


def document(*steps: Step, effect: str = "direct") -> RecipeDocument:
    return RecipeDocument(schema_version=1, name="test", base=Base(model="demo"), effect=effect, steps=steps)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def scan(demo_model: clipedit.Model) -> clipedit.Scan:
    source = demo_calibration_source(256)
    return clipedit.scan(demo_model, source, mlps=True, self_attention=True, workers=0, batch_size=128)


@pytest.fixture(scope="module")
def features(demo_model: clipedit.Model) -> Features:
    parts = ["L3.mlp", "L3H1.self", "L0.bias", "L0.mlp", "L1.bias", "L1.mlp"]
    return collect_features(demo_model, demo_calibration_source(256), layers=range(4), parts=parts)[0]


@pytest.fixture(scope="module")
def labelled(features: Features) -> LabelledEmbeddings:
    names = demo_calibration_source(256).names
    places = sorted({name.split("_")[3] for name in names})
    return LabelledEmbeddings(
        features.final, features.embedding, torch.tensor([places.index(name.split("_")[3]) for name in names])
    )


def contributions(recipe: Recipe, model: clipedit.Model, features: Features, name: str) -> tuple[torch.Tensor, ...]:
    """A head's contributions before and after, float64, and its readout."""
    head = clipedit.HeadId.parse(name)
    groups = model.tower.groups([head.layer], mlps=False)
    readout = model.tower.compute_readouts(groups)[f"L{head.layer}.heads"][head.head]
    u = features.groups[f"L{head.layer}.heads"][:, head.head].double()
    assert recipe.tensors is not None
    edited = u @ recipe.tensors[f"heads.{name}.map"].double().T + recipe.tensors[f"heads.{name}.offset"].double()
    return u @ readout.T, edited @ readout.T, readout


@pytest.mark.parametrize("along", list(DIRECTED))
def test_projecting_out_leaves_no_variance_along_its_directions(
    demo_model: clipedit.Model, scan: clipedit.Scan, features: Features, labelled: LabelledEmbeddings, along: str
) -> None:
    from clipedit.editor.edits.step_directions import head_directions, step_directions

    step = DIRECTED[along]
    recipe = bind_recipe(document(step), scan, demo_model, labelled=labelled)
    before, after, readout = contributions(recipe, demo_model, features, "L3H1")
    if along in ("pca", "text-span"):
        basis = head_directions(step, clipedit.HeadId(3, 1), readout, scan, demo_model)
    else:
        basis = step_directions(step, demo_model, labelled)
    assert basis is not None and basis.shape[1] > 0
    assert torch.allclose(basis.T @ basis, torch.eye(basis.shape[1]).double(), atol=1e-8)
    variance = [float((part @ basis).var(0).sum()) for part in (before, after)]
    assert variance[1] < 1e-9 * variance[0]
    assert float(after.var(0).sum()) > 0.01 * float(before.var(0).sum())
    assert torch.allclose(before.mean(0), after.mean(0), atol=1e-2)


def test_main_components_are_those_of_the_contributions(
    demo_model: clipedit.Model, scan: clipedit.Scan, features: Features
) -> None:
    from clipedit.editor.edits.step_directions import head_directions

    recipe = bind_recipe(document(DIRECTED["pca"]), scan, demo_model)
    before, _, readout = contributions(recipe, demo_model, features, "L3H1")
    basis = head_directions(DIRECTED["pca"], clipedit.HeadId(3, 1), readout, scan, demo_model)
    scaled = before / features.embedding.double().norm(dim=1, keepdim=True)
    scaled = scaled - scaled.mean(0)
    spectrum = torch.linalg.svdvals(scaled).square()
    assert float((scaled @ basis).square().sum()) == pytest.approx(float(spectrum[:3].sum()), rel=1e-3)


def test_keep_only_is_the_complement_of_project_out(
    demo_model: clipedit.Model, scan: clipedit.Scan, features: Features
) -> None:
    readouts, directions = torch.randn(2, 24, 8).double(), torch.linalg.qr(torch.randn(24, 3).double())[0]
    given = OperationInput(readouts, directions)
    kept, removed = keep_only(given)[0], project_out(given)[0]
    assert torch.allclose(kept + removed, torch.eye(8).double()) and torch.allclose(
        kept @ removed, kept * 0, atol=1e-10
    )
    rows = []
    for operation in ("keep-only", "project-out"):
        step = Step(operation=operation, heads=("L3H1",), concept="location")  # type: ignore[arg-type]
        rows.append(contributions(bind_recipe(document(step), scan, demo_model), demo_model, features, "L3H1"))
    mean = scan.statistics.mean_features("L3.heads")[1] @ rows[0][2].T
    assert torch.allclose(rows[0][1] + rows[1][1], rows[0][0] + mean, atol=1e-4)


@pytest.mark.parametrize("operation", [keep_only, project_out])
def test_a_projection_twice_is_a_projection_once(operation) -> None:  # type: ignore[no-untyped-def]
    given = OperationInput(torch.randn(2, 24, 8).double(), torch.linalg.qr(torch.randn(24, 3).double())[0])
    maps, keep_mean = operation(given)
    mean = torch.randn(2, 8).double()
    once = identity_map(2, 8).then(maps, keep_mean, mean)
    twice = once.then(maps, keep_mean, mean)
    assert torch.allclose(once.map, twice.map) and torch.allclose(once.offset, twice.offset)


@pytest.mark.parametrize("effect", ["distilled", "total"])
def test_weights_of_one_change_no_byte(
    demo_model: clipedit.Model, scan: clipedit.Scan, tmp_path: Path, effect: str
) -> None:
    step = Step(operation="reweight", heads=HEADS, weights={head: (1.0,) * 16 for head in HEADS})
    recipe = bind_recipe(document(step, effect=effect), scan, demo_model)
    assert demo_model.folder is not None
    apply_to_folder(recipe, demo_model.folder, tmp_path / "out")
    written = tmp_path / "out" / "open_clip_model.safetensors"
    assert written.read_bytes() == (demo_model.folder / "open_clip_model.safetensors").read_bytes()


def test_a_weight_scales_its_singular_direction_alone(demo_model: clipedit.Model, scan: clipedit.Scan) -> None:
    tower = demo_model.tower
    output, value = (part[1] for part in value_output_weights(tower, 3))  # type: ignore[arg-type]
    left, singular, right = torch.linalg.svd(output @ value, full_matrices=False)
    left, singular, right = left[:, :16], singular[:16], right[:16]
    weights = [1.0] * 16
    weights[2], weights[5] = 0.0, 0.25
    step = Step(operation="reweight", heads=("L3H1",), weights={"L3H1": tuple(weights)})
    recipe = bind_recipe(document(step), scan, demo_model)
    assert recipe.tensors is not None
    maps = recipe.tensors["heads.L3H1.map"].double()
    expected = (left * singular * torch.tensor(weights).double()) @ right
    assert torch.allclose(output @ maps @ value, expected, atol=1e-4)
    groups = tower.groups([3], mlps=False)
    readout = tower.compute_readouts(groups)["L3.heads"][1]
    assert torch.allclose(residual_readout(tower) @ output, readout, atol=1e-8)  # type: ignore[arg-type]


def test_the_pool_scores_location_in_location_heads(demo_model: clipedit.Model) -> None:
    basis = concept_directions(load_concept("location", demo_model.folder), demo_model)
    found = {}
    for head in (1, 3):
        output, value = (part[head] for part in value_output_weights(demo_model.tower, 3))  # type: ignore[arg-type]
        left = torch.linalg.svd(output @ value, full_matrices=False)[0][:, :16]
        found[head] = score_directions(demo_model, left, basis)
        assert found[head].shape == (16,) and (found[head] >= 0).all() and (found[head] <= 1).all()
    assert any(score.max() > 0 for score in found.values())


def test_a_file_of_weights_is_read(tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_text("L3H1: [1, 0.5]\n")
    assert load_weights(tmp_path / "w.yaml") == {"L3H1": (1.0, 0.5)}
    (tmp_path / "w.yaml").write_text("L3: [1]\n")
    with pytest.raises(clipedit.RecipeError, match="cannot read weights from .*'L3' is not a head"):
        load_weights(tmp_path / "w.yaml")


@pytest.mark.parametrize("effect", ["direct", "distilled"])
def test_leace_leaves_a_linear_probe_at_chance(
    demo_model: clipedit.Model, scan: clipedit.Scan, features: Features, labelled: LabelledEmbeddings, effect: str
) -> None:
    recipe = bind_recipe(
        document(Step(operation="leace", target="output"), effect=effect), scan, demo_model, labelled=labelled
    )
    after = compute_recipe_embeddings(recipe, demo_model, features)
    most = float(torch.bincount(labelled.labels).max()) / len(labelled.labels)

    def probe(embeddings: torch.Tensor) -> float:
        centred = (embeddings - embeddings.mean(0)) / embeddings.std()
        fitted = LogisticRegression(max_iter=2000).fit(centred.numpy(), labelled.labels.numpy())
        return float(fitted.score(centred.numpy(), labelled.labels.numpy()))

    assert probe(features.embedding) > 0.95
    assert probe(after) <= most + 0.03
    if effect == "direct":
        assert torch.allclose(after.mean(0), features.embedding.mean(0), atol=1e-3)


def test_steps_in_then_follow_on_the_same_heads(demo_model: clipedit.Model, scan: clipedit.Scan) -> None:
    both = Step(operation="project-out", then=("scale",), heads=HEADS, concept="location", factor=0.5)
    apart = (
        Step(operation="project-out", heads=HEADS, concept="location"),
        Step(operation="scale", heads=HEADS, factor=0.5),
    )
    found, expected = (bind_recipe(document(*steps), scan, demo_model).tensors for steps in ((both,), apart))
    assert found is not None and expected is not None
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_an_ablated_mlp_writes_its_mean(demo_model: clipedit.Model, scan: clipedit.Scan, features: Features) -> None:
    recipe = bind_recipe(document(Step(operation="mean-ablate", target="mlps", layers=(3,))), scan, demo_model)
    pixels = torch.stack([demo_model.preprocess(demo_calibration_source(8).open(i)) for i in range(8)])
    parts = clipedit.decompose(demo_model, pixels)
    own = parts.contributions[:, [str(identity) for identity in parts.components].index("L3.mlp")]
    expected = parts.embedding - own + scan.statistics.mean_features("L3.mlp")[0].float()
    assert torch.allclose(clipedit.apply_recipe(recipe, demo_model).encode_image(pixels), expected, atol=1e-4)


def test_ablating_every_layer_leaves_the_embedding_part_alone(
    demo_model: clipedit.Model, scan: clipedit.Scan, features: Features
) -> None:
    recipe = bind_recipe(
        document(Step(operation="mean-ablate", target="layers", layers=(0, 1, 2, 3))), scan, demo_model
    )
    assert len(bound_heads(recipe)) == 32
    pixels = torch.stack([demo_model.preprocess(demo_calibration_source(8).open(i)) for i in range(8)])
    parts = clipedit.decompose(demo_model, pixels)
    own = parts.contributions[:, [str(identity) for identity in parts.components].index("embedding")]
    moved = clipedit.apply_recipe(recipe, demo_model).encode_image(pixels) - own
    assert (moved - moved.mean(0)).abs().max() < 1e-3 * parts.embedding.abs().max()


def test_what_cls_takes_from_itself_is_part_of_the_head(
    demo_model: clipedit.Model, scan: clipedit.Scan, features: Features
) -> None:
    own, whole = features.groups["L3.self"][:, 1], features.groups["L3.heads"][:, 1]
    block = demo_model.module.visual.transformer.resblocks[3]
    seen = {}
    handle = block.register_forward_hook(lambda module, given, out: seen.update(stream=given[0]))
    pixels = torch.stack([demo_model.preprocess(demo_calibration_source(4).open(i)) for i in range(4)])
    demo_model.encode_image(pixels)
    handle.remove()
    normed = block.ln_1(seen["stream"])
    _, weights = block.attn(normed, normed, normed, need_weights=True, average_attn_weights=False)
    value = normed[:, 0] @ block.attn.in_proj_weight[256 + 16 : 256 + 32].T + block.attn.in_proj_bias[272:288]
    expected = (
        weights[:, 1, 0, 0, None] * value * features.groups["L3.bias"][:4, 0] if "L3.bias" in features.groups else None
    )
    assert expected is not None and torch.allclose(own[:4], expected, atol=1e-4)
    assert own.shape == whole.shape
    step = Step(operation="mean-ablate", target="self-attention", layers=(3,))
    recipe = bind_recipe(document(step), scan, demo_model)
    moved = clipedit.apply_recipe(recipe, demo_model).encode_image(pixels) - demo_model.encode_image(pixels)
    assert moved.norm() > 0


def test_distilled_carries_whole_parts(demo_model: clipedit.Model, scan: clipedit.Scan, features: Features) -> None:
    step = Step(operation="mean-ablate", target="layers", layers=(0,))
    rows = [
        compute_recipe_embeddings(bind_recipe(document(step, effect=effect), scan, demo_model), demo_model, features)
        for effect in ("direct", "distilled")
    ]
    assert compute_fidelity(rows[0], rows[1], features.embedding).explained > 0.8


@pytest.mark.parametrize("target", ["mlps", "layers", "self-attention"])
def test_total_refuses_what_weights_cannot_carry(demo_model: clipedit.Model, scan: clipedit.Scan, target: str) -> None:
    step = Step(operation="mean-ablate", target=target, layers=(3,))  # type: ignore[arg-type]
    with pytest.raises(clipedit.RecipeError, match="cannot fold the ablation of L3.* Use --effect direct or distilled"):
        bind_recipe(document(step, effect="total"), scan, demo_model)


def test_total_on_the_last_block_is_direct_up_to_the_last_mlp(
    demo_model: clipedit.Model, scan: clipedit.Scan, features: Features
) -> None:
    step = Step(operation="mean-ablate", heads=("L3H1",))
    pixels = torch.stack([demo_model.preprocess(demo_calibration_source(16).open(i)) for i in range(16)])
    total = clipedit.apply_recipe(bind_recipe(document(step, effect="total"), scan, demo_model), demo_model)
    parts = [clipedit.decompose(model, pixels) for model in (demo_model, total)]
    names = [str(identity) for identity in parts[0].components]
    head, mlp = names.index("L3H1"), names.index("L3.mlp")
    # Frozen sigma: contributions are divided by it, so undo it on both sides with the bias component of a fixed layer.
    bias = names.index("L0.bias")
    scale = (parts[1].contributions[:, bias].norm(dim=1) / parts[0].contributions[:, bias].norm(dim=1))[:, None]
    others = [index for index in range(len(names)) if index not in (head, mlp, names.index("L3.bias"))]
    for index in others:
        assert torch.allclose(parts[1].contributions[:, index], parts[0].contributions[:, index] * scale, atol=2e-3)
    own = parts[1].contributions[:, [head, names.index("L3.bias")]].sum(1)
    own = own / parts[1].contributions[:, bias].norm(
        dim=1, keepdim=True
    )  # Times sigma: what was written is a constant.
    assert (own - own.mean(0)).norm() < 1e-3 * own.norm()


@pytest.mark.parametrize("effect", ["distilled", "total"])
def test_fidelity_is_measured_for_plain_checkpoints(
    demo_model: clipedit.Model, scan: clipedit.Scan, effect: str
) -> None:
    recipe = bind_recipe(document(Step(operation="mean-ablate", heads=HEADS), effect=effect), scan, demo_model)
    found = measure_fidelity(recipe, scan, demo_model, demo_calibration_source(96))
    assert 0 < found.worst_cosine <= found.mean_cosine <= 1 and found.explained <= 1 and found.images == 96
    empty = bind_recipe(document(effect=effect), scan, demo_model)
    same = measure_fidelity(empty, scan, demo_model, demo_calibration_source(32))
    assert same.worst_cosine > 0.9999 and same.explained > 0.9999


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (
            dict(operation="project-out", heads=["L3H1"], along="labels"),
            "no labelled images were given. Add --labelled DIR",
        ),
        (dict(operation="leace", target="output"), "no labelled images were given"),
        (dict(operation="reweight", heads=["L3H1"]), "0 weights are given, it has 16 singular directions"),
        (dict(operation="keep-only", heads=["L3H1"]), "the step names no directions"),
        (
            dict(operation="project-out", heads=["L3H1"], concept="location", directions=17),
            "17 directions of L3H1: the head has 16",
        ),
        (dict(operation="mean-ablate", target="mlps", layers=[7]), "step 1 names layer 7, demo has layers 0-3"),
        (
            dict(operation="keep-only", target="output", concept="location"),
            "only leace, and project-out with a concept",
        ),
    ],
)
def test_steps_say_what_they_lack(demo_model: clipedit.Model, scan: clipedit.Scan, step: dict, message: str) -> None:
    with pytest.raises(clipedit.ClipeditError, match=message):
        bind_recipe(document(Step.model_validate(step)), scan, demo_model)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("{operation: leace, heads: [L3H1]}", "leace acts on the output"),
        ("{operation: mean-ablate, target: mlps}", "`layers` go with a target of mlps"),
        ("{operation: scale, target: mlps, layers: [3]}", "mlps can only be mean-ablated, whole"),
        ("{operation: mean-ablate, heads: [L3H1], along: txts}", "steps.0.along: Input should be 'texts'"),
    ],
)
def test_recipes_refuse_what_makes_no_sense(tmp_path: Path, lines: str, message: str) -> None:
    (tmp_path / "r.yaml").write_text(f"schema_version: 1\nname: r\nbase: {{model: demo}}\nsteps:\n- {lines}\n")
    with pytest.raises(clipedit.RecipeError, match=message):
        load_recipe(tmp_path / "r.yaml")


def test_a_scan_without_the_part_is_refused(demo_model: clipedit.Model, demo_scan: clipedit.Scan) -> None:
    step = Step(operation="mean-ablate", target="self-attention", layers=(3,))
    with pytest.raises(clipedit.StatisticsError, match="did not see L3H0.self. Scan with --self-attention"):
        bind_recipe(document(step), demo_scan, demo_model)


def test_a_head_is_not_edited_twice(demo_model: clipedit.Model, scan: clipedit.Scan) -> None:
    steps = (
        Step(operation="mean-ablate", heads=("L3H1",)),
        Step(operation="mean-ablate", target="self-attention", layers=(3,)),
    )
    with pytest.raises(clipedit.RecipeError, match="L3H1 is edited and its self-attention ablated too"):
        bind_recipe(document(*steps), scan, demo_model)


def test_one_class_gives_no_direction() -> None:
    with pytest.raises(clipedit.ConceptError, match="1 classes give 0"):
        compute_mean_differences(torch.randn(10, 4), torch.zeros(10, dtype=torch.long))


def test_a_concept_that_spans_the_core_task_is_warned_of(demo_model: clipedit.Model, scan: clipedit.Scan) -> None:
    basis = torch.linalg.qr(torch.randn(24, 5).double())[0]
    assert compute_span_angle(basis, basis[:, :2]) == pytest.approx(0, abs=1e-3)
    assert compute_span_angle(basis[:, :2], basis[:, 2:]) == pytest.approx(90, abs=1e-3)
    # Nothing of the concept is left then: no head holds more of it than of what is kept.
    nothing = pytest.raises(clipedit.RecipeError, match="holds more of it than nothing")
    with pytest.warns(UserWarning, match=r"the texts of location span the core task: \d degrees between them"), nothing:
        clipedit.make_recipe(scan, demo_model, concept="location", keep="location")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clipedit.make_recipe(scan, demo_model, concept="location", keep="color")
