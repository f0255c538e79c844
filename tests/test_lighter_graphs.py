"""Pruned, half-precision and 8-bit graphs, programs of `torch.export`: each is run, its cost measured."""

from __future__ import annotations

import collections
import json
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import psutil
import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CLIP

import clipedit
from clipedit import cli
from clipedit.editor.edits.bind import bind_recipe
from clipedit.editor.edits.document import Base, RecipeDocument, Step
from clipedit.editor.images.demo import demo_calibration_source
from clipedit.editor.models.model import Model
from clipedit.editor.towers.build import build_tower
from clipedit.export.graphs.prune import find_constant_heads, prune_heads

pytestmark = pytest.mark.usefixtures("verified_here")

VISION = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 2, "head_width": 8}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
HEADS = ("L2H0", "L2H3", *(f"L3H{head}" for head in range(8)))
Sessions = dict[str, onnxruntime.InferenceSession]


def random_model() -> Model:
    torch.manual_seed(0)
    module = CLIP(24, VISION, TEXT).eval()  # type: ignore[arg-type]
    config = {
        "model_cfg": {"vision_cfg": VISION, "text_cfg": TEXT},
        "preprocess_cfg": {
            "size": 32,
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
            "mode": "RGB",
            "interpolation": "bicubic",
            "resize_mode": "shortest",
            "fill_color": 0,
        },
    }
    return Model("random", None, module, build_tower(module), config)


@pytest.fixture(scope="module")
def total(demo_model: Model, demo_scan: clipedit.Scan) -> Model:
    """Two heads of a layer and all heads of the next are ablated inside the layers."""
    step = Step(operation="mean-ablate", heads=HEADS)
    document = RecipeDocument(schema_version=1, name="t", base=Base(model="demo"), effect="total", steps=(step,))
    return clipedit.apply_recipe(bind_recipe(document, demo_scan, demo_model), demo_model)


@pytest.fixture(scope="module")
def pixels(demo_model: Model) -> torch.Tensor:
    source = demo_calibration_source(5)
    return torch.stack([demo_model.preprocess(source.open(index)) for index in range(5)])


@pytest.fixture(scope="module")
def pruned_folder(total: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pruned") / "out"
    clipedit.export_model(total, out, target="onnx", prune=True)
    return out


def open_graphs(folder: Path) -> Sessions:
    return {
        name: onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
        for name in ("visual", "textual")
    }


def test_a_pruned_graph_gives_the_same_embeddings_with_fewer_weights(
    pruned_folder: Path, total: Model, demo_model: Model, pixels: torch.Tensor
) -> None:
    graph = onnx.load(pruned_folder / "visual.onnx").graph
    operations = collections.Counter(node.op_type for node in graph.node)
    # One softmax a layer with heads, and the norm before the attention that is gone has gone with it.
    assert operations["Softmax"] == 3 and operations["LayerNormalization"] == 2 * 4 + 2 - 1
    sizes = [int(np.prod(tensor.dims)) for tensor in graph.initializer]
    full = sum(parameter.numel() for parameter in demo_model.module.visual.parameters())
    # A head has 3 * 16 rows and 16 columns of width 128, and 3 * 16 biases.
    assert abs(full - len(HEADS) * (4 * 16 * 128 + 48) - sum(sizes)) < 0.01 * full
    (found,) = open_graphs(pruned_folder)["visual"].run(None, {"image": pixels.numpy()})
    expected = total.encode_image(pixels)
    assert (torch.from_numpy(found) - expected).norm() / expected.norm() < 1e-5
    assert (demo_model.encode_image(pixels) - expected).norm() / expected.norm() > 0.01
    report = json.loads((pruned_folder / "verification.json").read_text())
    assert report["pruned"] == list(HEADS) and report["precision"] == "fp32"


def test_pruning_leaves_the_model_itself_alone(total: Model, pixels: torch.Tensor, pruned_folder: Path) -> None:
    assert pruned_folder.is_dir()
    assert find_constant_heads(total.module) == {
        "visual.transformer.resblocks.2.attn": [0, 3],
        "visual.transformer.resblocks.3.attn": list(range(8)),
    }
    assert type(total.module.visual.transformer.resblocks[3].attn) is torch.nn.MultiheadAttention
    assert torch.isfinite(total.encode_image(pixels)).all()


def test_where_no_head_is_constant_pruning_says_what_would_make_it_so(
    demo_model: Model, demo_scan: clipedit.Scan, total: Model, tmp_path: Path
) -> None:
    for effect, why in (("distilled", "no head of it writes a constant"), ("direct", "its edit is direct")):
        recipe = clipedit.make_recipe(demo_scan, demo_model, concept="location", effect=effect)  # type: ignore[arg-type]
        edited = clipedit.apply_recipe(recipe, demo_model)
        with pytest.raises(clipedit.ExportError, match=f"{why}.*edit with --effect total"):
            clipedit.export_model(edited, tmp_path / "out", target="onnx", prune=True)
    with pytest.raises(clipedit.ExportError, match=r"cannot use --prune with open-clip.*--target onnx"):
        clipedit.export_model(total, tmp_path / "out", target="open-clip", prune=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("emptied", [[1, 3], [0, 1, 2, 3]])
def test_the_attention_of_timm_is_pruned_too(emptied: list[int]) -> None:
    from timm.layers.attention import Attention

    torch.manual_seed(0)
    attention = Attention(32, num_heads=4, qkv_bias=True, qk_norm=True, norm_layer=torch.nn.LayerNorm).eval()
    with torch.no_grad():
        attention.proj.weight.unflatten(1, (4, 8))[:, emptied] = 0
    block = torch.nn.ModuleDict({"attn": attention})
    assert find_constant_heads(block) == {"attn": emptied}
    tokens = torch.randn(2, 5, 32)
    pruned = prune_heads(block)["attn"]  # type: ignore[index]
    assert torch.allclose(pruned(tokens), attention(tokens), atol=1e-6)
    kept = 4 - len(emptied)
    weights = sum(parameter.numel() for parameter in pruned.parameters())
    assert weights == 32 + (kept * 8 * (4 * 32 + 3) + 4 * 8 if kept else 0)
    assert attention.num_heads == 4 and attention.qkv.weight.shape == (96, 32)


def test_half_precision_takes_and_gives_float32_at_half_the_size(
    total: Model, pixels: torch.Tensor, pruned_folder: Path, tmp_path: Path
) -> None:
    checks = clipedit.export_model(total, tmp_path / "out", target="onnx", precision="fp16", prune=True)
    assert "image, batch 35, mean cosine" in {check.name for check in checks}
    for name in ("visual.onnx", "textual.onnx"):
        assert (tmp_path / "out" / name).stat().st_size < 0.6 * (pruned_folder / name).stat().st_size
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    session = onnxruntime.InferenceSession(tmp_path / "out" / "visual.onnx", options, ["CPUExecutionProvider"])
    assert [value.type for value in (*session.get_inputs(), *session.get_outputs())] == ["tensor(float)"] * 2
    (found,) = session.run(None, {"image": pixels.numpy()})
    assert F.cosine_similarity(torch.from_numpy(found), total.encode_image(pixels)).min() > 0.9999


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_8_bit_graphs_stay_near_and_their_cost_is_written_down(
    total: Model, pixels: torch.Tensor, pruned_folder: Path, tmp_path: Path, kind: str
) -> None:
    calibration = demo_calibration_source(256) if kind == "static" else None
    clipedit.export_model(total, tmp_path / "out", target="onnx", precision="int8", prune=True, calibration=calibration)
    report = json.loads((tmp_path / "out" / "verification.json").read_text())
    assert report["precision"] == "int8" and report["quantisation"] == kind and report["pruned"] == list(HEADS)
    figures = {check["name"]: check["figure"] for check in report["checks"]}
    assert 0.95 < figures["image, batch 35, worst cosine"] <= figures["image, batch 35, mean cosine"] < 0.99999
    assert {"text, batch 1, worst cosine", "zero-shot agreement"} <= figures.keys()
    for name in ("visual.onnx", "textual.onnx"):
        assert (tmp_path / "out" / name).stat().st_size < 0.45 * (pruned_folder / name).stat().st_size
    graph = onnx.load(tmp_path / "out" / "visual.onnx").graph
    types = {node.op_type for node in graph.node}
    assert ("MatMulInteger" if kind == "dynamic" else "DequantizeLinear") in types and "ConvInteger" not in types
    (found,) = open_graphs(tmp_path / "out")["visual"].run(None, {"image": pixels.numpy()})
    assert F.cosine_similarity(torch.from_numpy(found), total.encode_image(pixels)).min() > 0.95


def test_8_bits_that_cost_too_much_are_refused_unless_forced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    model = random_model()
    with torch.no_grad():
        for block in model.module.visual.transformer.resblocks:
            # The same function, but one row of every column is so large that 8 bits hold nothing else.
            for norm, weight in ((block.ln_1, block.attn.in_proj_weight), (block.ln_2, block.mlp.c_fc.weight)):
                norm.weight[0] /= 1e4
                norm.bias[0] /= 1e4
                weight[:, 0] *= 1e4
    with pytest.raises(
        clipedit.VerificationError, match=r"int8 costs too much here\. Use another --precision, or --force"
    ):
        clipedit.export_model(model, tmp_path / "out", target="onnx", precision="int8")
    assert not list(tmp_path.iterdir())
    clipedit.export_model(model, tmp_path / "out", target="onnx", precision="int8", force=True)
    assert json.loads((tmp_path / "out" / "verification.json").read_text())["forced"] is True
    monkeypatch.setattr(sys, "argv", ["clipedit", "verify", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    assert "needs >= -1" in capfd.readouterr().out


def test_only_8_bits_are_calibrated(total: Model, tmp_path: Path) -> None:
    with pytest.raises(clipedit.ExportError, match=r"cannot calibrate fp16.*Add --precision int8"):
        clipedit.export_model(
            total, tmp_path / "o", target="onnx", precision="fp16", calibration=demo_calibration_source(4)
        )
    with pytest.raises(clipedit.ImageError, match="there is no such folder"):
        clipedit.export_model(total, tmp_path / "o", target="onnx", precision="int8", calibration=tmp_path / "none")


def test_a_direct_edit_is_a_program_that_runs_without_clipedit(
    demo_model: Model, demo_scan: clipedit.Scan, pixels: torch.Tensor, tmp_path: Path
) -> None:
    recipe = clipedit.make_recipe(demo_scan, demo_model, concept="location", effect="direct")
    direct = clipedit.apply_recipe(recipe, demo_model)
    checks = clipedit.export_model(direct, tmp_path / "out", target="torch-export")
    assert all(check.holds for check in checks) and any("distance to the unedited" in check.name for check in checks)
    program = torch.export.load(tmp_path / "out" / "visual.pt2").module()
    for batch in (1, 3, 5):
        found, expected = program(pixels[:batch]), direct.encode_image(pixels[:batch])
        assert (found - expected).norm() / expected.norm() < 1e-5
        assert (demo_model.encode_image(pixels[:batch]) - expected).norm() / expected.norm() > 0.01


def hammer(session: onnxruntime.InferenceSession, batches: list[np.ndarray], seconds: float) -> tuple[int, int, float]:
    """Four threads on one session: runs, answers unlike the single-thread one, growth of memory in bytes."""
    expected = [session.run(None, {"image": batch})[0] for batch in batches]
    wrong, runs, memory = [0] * 4, [0] * 4, psutil.Process()
    stop = time.monotonic() + seconds

    def work(thread: int) -> None:
        while time.monotonic() < stop or runs[thread] < len(batches):
            which = (runs[thread] + thread) % len(batches)
            (found,) = session.run(None, {"image": batches[which]})
            wrong[thread] += not np.array_equal(found, expected[which])
            runs[thread] += 1

    # The first round fills the allocator's pools, for every thread.
    for _ in range(2):
        before = memory.memory_info().rss
        threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stop = time.monotonic() + seconds
    return sum(runs), sum(wrong), memory.memory_info().rss - before


@pytest.mark.parametrize("seconds", [2.5, pytest.param(60.0, marks=pytest.mark.slow)])
def test_four_threads_share_a_session_and_every_answer_is_the_single_thread_one(
    pruned_folder: Path, seconds: float
) -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(pruned_folder / "visual.onnx", options, ["CPUExecutionProvider"])
    generator = np.random.default_rng(0)
    batches = [generator.standard_normal((size, 3, 64, 64), dtype=np.float32) for size in (1, 2, 4, 8)]
    runs, wrong, growth = hammer(session, batches, seconds)
    assert runs >= 32 and wrong == 0 and growth < 20e6, (runs, wrong, growth)
