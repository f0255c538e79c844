"""Devices: sums stay where the model is, lower precision keeps the scores, batches shrink when memory runs out."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import clipedit
from clipedit import cli
from clipedit.editor.images.batches import Batch
from clipedit.editor.images.demo import demo_calibration_source
from clipedit.editor.models.devices import choose_precision, require_device, sums_device
from clipedit.editor.scan.features import load_features
from clipedit.editor.scan.scanner import Scanner
from clipedit.editor.scan.statistics import Statistics, add_features, empty_statistics
from clipedit.editor.towers.build import build_tower

pytestmark = pytest.mark.usefixtures("one_thread")


class HostTransfers(TorchDispatchMode):
    """Notes every operation that would make the host wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        name, keywords = str(function), keywords or {}
        from_device = any(isinstance(item, torch.Tensor) and item.device.type == "cuda" for item in arguments)
        to_host = str(keywords.get("device", "")) == "cpu"
        if from_device and (to_host or "local_scalar_dense" in name or "nonzero" in name):
            self.found.append(name)
        return function(*arguments, **keywords)


def put_on_fake_gpu(moved: torch.nn.Module) -> torch.nn.Module:
    for owner in moved.modules():
        for name, parameter in list(owner._parameters.items()):
            if parameter is not None:
                fake = torch.empty(parameter.shape, dtype=parameter.dtype, device="cuda")
                owner._parameters[name] = torch.nn.Parameter(fake, requires_grad=False)
        for name, buffer in list(owner._buffers.items()):
            if buffer is not None:
                owner._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda")
    return moved


def test_a_batch_on_a_gpu_never_waits_for_the_host(demo_model: clipedit.Model) -> None:
    module = copy.deepcopy(demo_model.module)
    with FakeTensorMode():
        tower = build_tower(put_on_fake_gpu(module))
        groups = tower.groups([2, 3], mlps=False)
        pixels = torch.empty(4, 3, 64, 64, device="cuda")
        sums = empty_statistics(groups, tower.d_model, "cuda")
        with HostTransfers() as transfers:
            features = tower.collect_features(pixels, groups)
            sums = add_features(sums, features)
        assert not transfers.found
        assert sums.gg.device.type == "cuda" and sums.gg.dtype == torch.float64
        with HostTransfers() as transfers:
            moved = sums.to("cpu")
        assert len(transfers.found) == 1 + 4 * len(groups) and moved.gg.device.type == "cpu"


def test_sums_are_kept_where_float64_is() -> None:
    assert sums_device(torch.device("cuda", 1)) == torch.device("cuda", 1)
    assert sums_device(torch.device("mps")) == sums_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "told"),
    [("cuda", "sees 0 of that kind"), ("mps", "sees 0"), ("gpu", "none of cpu, cuda"), ("cpu:3", "sees 1")],
)
def test_a_device_that_is_not_there_is_refused(name: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(clipedit.ModelError, match=f"cannot use device .*{told}"):
        require_device(name)
    assert require_device("cpu").type == "cpu"


@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp16", marks=pytest.mark.slow)])
def test_lower_precision_keeps_scores(demo_model: clipedit.Model, precision: str) -> None:
    source = demo_calibration_source(16)
    full = clipedit.scan(demo_model, source, layers=[3])
    lower = clipedit.scan(demo_model, source, layers=[3], precision=precision)  # type: ignore[arg-type]
    assert lower.statistics.gg.dtype == torch.float64
    found, expected = lower.statistics.feature_covariance("L3.heads"), full.statistics.feature_covariance("L3.heads")
    assert 1e-6 < (found - expected).norm() / expected.norm() < 0.03
    scores = [clipedit.score_heads(scan, demo_model, concept="location") for scan in (lower, full)]
    by_name = [{score.component: score.score for score in found} for found in scores]
    assert max(abs(by_name[0][name] - by_name[1][name]) for name in by_name[1]) < 0.05


def top_heads(model: clipedit.Model, source: Any, precision: str, **options: Any) -> dict[str, list[str]]:
    scanned = clipedit.scan(model, source, precision=precision, workers=0, **options)  # type: ignore[arg-type]
    scored = {name: clipedit.score_heads(scanned, model, concept=name) for name in ("location", "color")}
    return {name: [str(score.component) for score in scores[:8]] for name, scores in scored.items()}


def test_lower_precision_chooses_the_same_heads(demo_model: clipedit.Model) -> None:
    source = demo_calibration_source(128)
    assert top_heads(demo_model, source, "bf16") == top_heads(demo_model, source, "fp32")


@pytest.mark.slow
def test_lower_precision_chooses_the_same_heads_at_real_size() -> None:
    torch.manual_seed(0)
    model, source = clipedit.load_model("ViT-B-16"), demo_calibration_source(48)
    layers = {"layers": [8, 9, 10, 11]}
    assert top_heads(model, source, "bf16", **layers) == top_heads(model, source, "fp32", **layers)


def test_auto_is_bf16_where_the_device_multiplies_it(
    demo_model: clipedit.Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cpu = torch.device("cpu")
    for known, expected in (
        ({"amx_bf16": True}, "bf16"),
        ({"amx_bf16": False, "avx512_bf16": True}, "bf16"),
        ({"avx512_f": True}, "fp32"),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda known=known: known, raising=False)
        assert choose_precision("auto", cpu) == expected
        clipedit.scan(demo_model, demo_calibration_source(4), precision="auto", workers=0).save(tmp_path / expected)
        assert clipedit.load_scan(tmp_path / expected).precision == expected
    with pytest.raises(clipedit.StatisticsError, match="precision"):
        clipedit.load_scan(tmp_path / "bf16").merge(clipedit.load_scan(tmp_path / "fp32"))
    assert choose_precision("auto", torch.device("mps")) == "fp32"
    assert choose_precision("fp16", cpu) == "fp16"
    for supported, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, s=supported: s)
        assert choose_precision("auto", torch.device("cuda")) == expected


def failing_above(size: int, error: Exception, model: clipedit.Model, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    tried: list[int] = []
    real = model.tower.collect_features

    def collect(pixels: torch.Tensor, groups: Any) -> Any:
        tried.append(len(pixels))
        if len(pixels) > size:
            raise error
        return real(pixels, groups)

    monkeypatch.setattr(model.tower, "collect_features", collect)
    return tried


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_batches_shrink_until_they_fit(
    demo_model: clipedit.Model, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = demo_calibration_source(40)
    whole = clipedit.scan(demo_model, source, layers=[3])
    tried = failing_above(9, error, demo_model, monkeypatch)
    small = clipedit.scan(demo_model, source, layers=[3], batch_size=None, keep_features=tmp_path / "f")
    assert tried == [32, 16, 8, 8, 8, 8, 8] and small.statistics.n == 40
    assert_close(small.statistics, whole.statistics, 1e-5)
    assert len(load_features(tmp_path / "f").row_of) == 40


def test_other_errors_and_fixed_sizes_do_not_shrink(
    demo_model: clipedit.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = demo_calibration_source(8)
    with monkeypatch.context() as patch:
        failing_above(4, torch.OutOfMemoryError("CUDA out of memory."), demo_model, patch)
        with pytest.raises(
            clipedit.ModelError, match="cannot compute batches of 8 images: memory ran out. Give a smaller"
        ):
            clipedit.scan(demo_model, source, layers=[3], batch_size=8)
    with monkeypatch.context() as patch:
        failing_above(0, MemoryError(), demo_model, patch)
        with pytest.raises(clipedit.ModelError, match="cannot compute a single image: memory ran out"):
            clipedit.scan(demo_model, source, layers=[3], batch_size=None)
    with monkeypatch.context() as patch:
        failing_above(4, RuntimeError("shapes do not match"), demo_model, patch)
        with pytest.raises(RuntimeError, match="shapes do not match"):
            clipedit.scan(demo_model, source, layers=[3], batch_size=None)


def test_partials_say_how_they_were_computed(demo_model: clipedit.Model, tmp_path: Path) -> None:
    source = demo_calibration_source(8)
    options: dict[str, Any] = {"unit_size": 4, "layers": [3]}
    found = clipedit.scan_units(demo_model, source, tmp_path / "parts", batch_size=None, precision="bf16", **options)
    unit = clipedit.load_scan(found.files[0]).unit
    assert unit is not None and unit["batch_size"] == "auto" and unit["precision"] == "bf16"
    with pytest.raises(clipedit.StatisticsError, match="has precision bf16, not fp32"):
        clipedit.scan_units(demo_model, source, tmp_path / "parts", batch_size=None, **options)


def test_a_batch_is_pinned_whole() -> None:
    class Pixels:
        def pin_memory(self) -> str:
            return "pinned"

    batch = Batch.__new__(Batch)
    for name, value in (("pixels", Pixels()), ("indices", (0,)), ("bad", (("a", "b"),))):
        object.__setattr__(batch, name, value)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clipedit.editor.images.batches.Batch", lambda *parts: parts)
        assert batch.pin_memory() == ("pinned", (0,), (("a", "b"),))


def test_the_command_line_knows_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("clipedit.editor.images.listing.demo_calibration_source", lambda: demo_calibration_source(16))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["clipedit", "scan", "demo", "-o", str(tmp_path / "s"), *arguments])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, capfd.readouterr().err

    assert run("--device", "cuda")[0] == 1
    assert "Choose another --device" in run("--device", "cuda")[1]
    assert run("--batch-size", "0")[0] == run("--batch-size", "many")[0] == 2
    assert run("--batch-size", "auto", "--precision", "bf16", "--layers", "3")[0] == 0
    assert clipedit.load_scan(tmp_path / "s").statistics.n == 16


@pytest.mark.slow
def test_a_compiled_scan_is_the_same_scan(tmp_path: Path) -> None:
    """In a process of its own: the checks of shapes that the tests install cannot be compiled."""
    for name, flags in (("plain", []), ("compiled", ["--compile"])):
        command = [
            sys.executable,
            "-m",
            "clipedit.cli",
            "scan",
            "demo",
            "-o",
            str(tmp_path / name),
            "--layers",
            "3",
            *flags,
        ]
        subprocess.run(command, check=True, timeout=600)
    found, expected = (clipedit.load_scan(tmp_path / name).statistics for name in ("compiled", "plain"))
    assert_close(found, expected, 1e-5)


def test_scanner_reads_what_it_starts_from(demo_model: clipedit.Model) -> None:
    assert Scanner(demo_model, (3,), batch_size=7).read_size == 7
    assert Scanner(demo_model, (3,), batch_size=None).read_size == 32


def assert_close(found: Statistics, expected: Statistics, tolerance: float) -> None:
    assert found.n == expected.n
    pairs = [(found.gg, expected.gg)]
    for name, sums in expected.groups.items():
        pairs += [(getattr(found.groups[name], part), getattr(sums, part)) for part in ("uu", "ug", "u", "v")]
    for a, b in pairs:
        assert (a - b).norm() <= tolerance * b.norm() + 1e-12
