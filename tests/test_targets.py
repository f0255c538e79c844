"""Every target, written from an edited model and loaded by its real consumer; the base is told apart."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_sample_images

import clipedit
from clipedit.editor.choices import WeightPrecision
from clipedit.editor.images.demo import demo_calibration_source
from clipedit.export.consumers.consumer import Consumer
from clipedit.export.consumers.target import load_consumer
from clipedit.export.graphs.onnx_graphs import write_graphs
from clipedit.export.pages.model_card import write_model_card
from clipedit.export.targets.registry import load_target, target_names
from clipedit.export.verify.reference import load_reference, write_reference
from clipedit.export.verify.verify_child import compute_checks

# fastembed asks for CUDA first.
pytestmark = pytest.mark.filterwarnings("ignore:Attempt to set CUDAExecutionProvider")
TEXTS = ["a photo of a circle", "The Ocean,   at night!", "3 dogs & it's 2nd café", "x" * 300]
CLIP_TARGETS = {name: load_target(name) for name in target_names() if name != "timm"}  # Which holds no CLIP.
TARGETS = [
    target for target in CLIP_TARGETS if target not in ("patch", "torch-export")
]  # Those are tested by themselves.
CHECKPOINTS = ("open-clip", "hf", "sentence-transformers")
NORMALISED = ("immich",)
RUNTIMES = {
    "open-clip": "open_clip ",
    "hf": "transformers ",
    "sentence-transformers": "sentence-transformers ",
    "fastembed": "fastembed ",
    "transformers-js": "transformers.js ",
}


@pytest.fixture(scope="module")
def edited(demo_model: clipedit.Model) -> clipedit.Model:
    scanned = clipedit.scan(demo_model, demo_calibration_source(256), workers=0)
    # An edit that is strong on noise too: there the base is to be told apart.
    recipe = clipedit.make_recipe(scanned, demo_model, concept="location", heads=8, output_strength=0.9)
    figures = {"before": {"worst_group": 0.5}, "after": {"worst_group": 0.75}, "control": {"worst_group": 0.51}}
    return clipedit.apply_recipe(recipe.with_measured(figures), demo_model)


@pytest.fixture(scope="module")
def folders(edited: clipedit.Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each target as `export_model` writes it, without the child process."""
    found = {}
    for name, target in CLIP_TARGETS.items():
        found[name] = tmp_path_factory.mktemp("targets") / name
        found[name].mkdir()
        target.write(edited, found[name], target.profile)
        write_model_card(edited, found[name], target)
        write_reference(edited, found[name], target=name)
    return found


@pytest.fixture(scope="session")
def node_modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """transformers.js from npm, once a machine; only the absence of Node or of a registry is a reason to skip."""
    cache = Path(tmp_path_factory.getbasetemp().parent) / "clipedit-node"
    if not (cache / "node_modules" / "@huggingface" / "transformers").is_dir():
        cache.mkdir(exist_ok=True)
        npm = shutil.which("npm")
        if npm is None or shutil.which("node") is None:
            pytest.skip("TRANSFORMERS.JS IS NOT TESTED: there is no Node")
        # The postinstall of onnxruntime-node only fetches CUDA libraries.
        command = [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", "@huggingface/transformers@4.3.1"]
        answer = subprocess.run(command, cwd=cache, capture_output=True, text=True, timeout=240, check=False)
        if answer.returncode != 0:
            pytest.skip(f"TRANSFORMERS.JS IS NOT TESTED: npm could not install it: {answer.stderr[-300:]}")
    return cache / "node_modules"


@pytest.fixture
def load(folders: dict[str, Path], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    def load_by_name(target: str, folder: Path | None = None) -> Consumer:
        if target == "transformers-js":
            monkeypatch.setenv("NODE_PATH", str(request.getfixturevalue("node_modules")))
        folder = folder or folders[target]
        return load_consumer(load_target(target), folder, load_reference(folder))

    return load_by_name


@pytest.mark.parametrize("target", TARGETS)
@torch.no_grad()
def test_the_consumer_gives_the_edited_embedding_and_the_base_would_not(
    target: str, edited: clipedit.Model, folders: dict[str, Path], load, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    consumer, reference = load(target), load_reference(folders[target])
    assert consumer.runtime.startswith(RUNTIMES.get(target, "onnxruntime"))
    assert ("standing in" in consumer.runtime) == (target in ("immich", "triton"))
    checks = compute_checks(consumer, reference, resizing=load_target(target).profile.resizing)
    assert [check for check in checks if not check.holds] == []
    assert consumer.normalised == (target in NORMALISED)
    pixels = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found, expected = consumer.encode_images(pixels).float(), edited.encode_image(pixels)
    assert F.cosine_similarity(found, expected).min() >= 0.9999
    # The control: the unedited weights in the same files.
    assert edited.base is not None
    wrong = tmp_path / "wrong"
    shutil.copytree(folders[target], wrong)
    _replace_image_weights(edited.base, wrong, target)
    control = load(target, wrong)
    assert F.cosine_similarity(control.encode_images(pixels).float(), expected).max() < 0.99
    failed = [check.name for check in compute_checks(control, reference, resizing=0.0) if not check.holds]
    assert "image, distance to the unedited model" in failed and "image, batch 1, worst cosine" in failed


def _replace_image_weights(base: clipedit.Model, folder: Path, target: str) -> None:
    found = load_target(target)
    if target in CHECKPOINTS:
        name = "open_clip_model.safetensors" if target == "open-clip" else "model.safetensors"
        (path,) = folder.rglob(name)
        plain = folder.parent / "plain"
        plain.mkdir()
        found.write(base, plain, found.profile)
        shutil.copy(next(plain.rglob(path.name)), path)
    else:
        inner = next(folder.glob("*/config.json")).parent if target == "immich" else folder
        write_graphs(base, inner, replace(found.profile, textual=None))


@pytest.mark.parametrize("target", [target for target in TARGETS if target not in ("onnx", "triton")])
@torch.no_grad()
def test_the_tokenizer_in_the_files_is_open_clips(target: str, edited: clipedit.Model, load) -> None:  # type: ignore[no-untyped-def]
    found = load(target).embed_texts(TEXTS).float()
    expected = edited.encode_text(TEXTS)
    assert F.cosine_similarity(found, expected).min() > 0.9999


def test_the_sidecars_are_those_of_the_profile(folders: dict[str, Path]) -> None:
    for target, found in CLIP_TARGETS.items():
        profile = found.profile
        folder = next(folders[target].glob("*/config.json")).parent if target == "immich" else folders[target]
        specs = [spec for spec in (profile.visual, profile.textual) if spec is not None]
        for name in (*profile.sidecars, *(spec.path for spec in specs)):
            assert (folder / name).is_file(), (target, name)
        for spec in specs:
            session = onnxruntime.InferenceSession(folder / spec.path, providers=["CPUExecutionProvider"])
            (given,), (answer,) = session.get_inputs(), session.get_outputs()
            assert (given.name, answer.name) == (spec.input_name, spec.output_name)
            kind = "tensor(float)" if spec is profile.visual else f"tensor({spec.integer})"
            assert (given.type, answer.type) == (kind, "tensor(float)")
            assert isinstance(given.shape[0], str) if spec.batch is None else given.shape[0] == spec.batch
            assert answer.shape[1] == 64


PHOTOS = [Image.fromarray(array) for array in load_sample_images().images]
CROPS = [*PHOTOS, PHOTOS[0].crop((0, 0, 301, 200)), PHOTOS[1].crop((100, 50, 357, 400)), PHOTOS[1].resize((640, 333))]


@pytest.mark.parametrize(
    ("target", "tolerance"),
    [
        ("open-clip", 0.99999),
        ("onnx", 0.99999),
        ("hf", 0.95),
        ("sentence-transformers", 0.95),
        ("fastembed", 0.95),
        ("transformers-js", 0.9),
    ],
)
@torch.no_grad()
def test_photographs_resized_by_the_consumer_give_nearly_the_same(
    target: str, tolerance: float, edited: clipedit.Model, load
) -> None:  # type: ignore[no-untyped-def]
    """`pytest -s` prints the figures: where a margin is odd, some crop one pixel aside."""
    expected = edited.encode_image(torch.stack([edited.preprocess(photo) for photo in CROPS]))
    found = load(target).embed_images(CROPS).float()
    similarity = F.cosine_similarity(found, expected)
    print(f"{target}: mean {similarity.mean():.4f}, worst {similarity.min():.4f}")
    assert similarity.mean() > tolerance
    assert F.cosine_similarity(found, expected.roll(1, 0)).mean() < 0.8


def test_immich_crops_photographs_nearly_alike(edited: clipedit.Model, folders: dict[str, Path]) -> None:
    """Immich resizes and crops by integer division; its config keys are read here as it reads them."""
    (path,) = folders["immich"].glob("*/visual/preprocess_cfg.json")
    config = json.loads(path.read_text())
    size, mode = config["size"][0], config["resize_mode"]
    assert (mode, config["interpolation"]) == ("shortest", "bicubic")
    pixels = []
    for photo in CROPS:
        width, height = photo.size
        shape = (size, int(height / width * size)) if width < height else (int(width / height * size), size)
        left, upper = int(shape[0] / 2 - size / 2), int(shape[1] / 2 - size / 2)
        cropped = photo.resize(shape, Image.Resampling.BICUBIC).crop((left, upper, left + size, upper + size))
        pixels.append(torch.from_numpy((np.asarray(cropped, dtype=np.float32) / 255 - config["mean"]) / config["std"]))
    found = edited.encode_image(torch.stack(pixels).permute(0, 3, 1, 2).float())
    expected = edited.encode_image(torch.stack([edited.preprocess(photo) for photo in CROPS]))
    similarity = F.cosine_similarity(found, expected)
    print(f"immich: mean {similarity.mean():.4f}, worst {similarity.min():.4f}")
    assert similarity.mean() > 0.95


def test_immich_finds_what_it_opens(folders: dict[str, Path]) -> None:
    (inner,) = (path.parent for path in folders["immich"].glob("*/config.json"))
    config = json.loads((inner / "config.json").read_text())
    assert config["text_cfg"]["context_length"] == 32 and config["embed_dim"] == 64
    assert json.loads((inner / "textual" / "tokenizer_config.json").read_text())["pad_token"] == "<|endoftext|>"
    session = onnxruntime.InferenceSession(inner / "textual" / "model.onnx")
    assert [(value.name, value.type, value.shape) for value in session.get_inputs()] == [
        ("text", "tensor(int32)", [1, 32])
    ]
    assert [(value.name, value.shape) for value in session.get_outputs()] == [("embedding", [1, 64])]


def load_triton_schema():  # type: ignore[no-untyped-def]
    """`model_config.proto` as Triton's client ships it; its package imports gRPC, which the schema does not need."""
    import importlib.util
    import warnings

    spec = importlib.util.find_spec("tritonclient")
    assert spec is not None and spec.submodule_search_locations is not None
    path = Path(spec.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    described = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert described is not None and described.loader is not None
    module = importlib.util.module_from_spec(described)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        described.loader.exec_module(module)
    return module


def test_tritons_configuration_is_what_its_schema_and_the_graphs_say(folders: dict[str, Path]) -> None:
    from google.protobuf import text_format

    schema = load_triton_schema()
    for name in ("clip_visual", "clip_textual"):
        config = text_format.Parse((folders["triton"] / name / "config.pbtxt").read_text(), schema.ModelConfig())
        assert config.platform == "onnxruntime_onnx" and config.max_batch_size > 0
        session = onnxruntime.InferenceSession(folders["triton"] / name / "1" / "model.onnx")
        kinds = {"tensor(float)": schema.TYPE_FP32, "tensor(int64)": schema.TYPE_INT64}
        for given, declared in zip(
            session.get_inputs() + session.get_outputs(), [*config.input, *config.output], strict=True
        ):
            assert (declared.name, declared.data_type) == (given.name, kinds[given.type])
            assert list(declared.dims) == given.shape[1:] and isinstance(given.shape[0], str)


def printed(text: str) -> np.ndarray:
    return np.array([float(number) for number in re.findall(r"-?\d+\.\d+", text)])


@pytest.mark.parametrize("target", CLIP_TARGETS)
def test_the_code_of_the_card_prints_the_numbers_of_the_card(
    target: str,
    edited: clipedit.Model,
    folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    card = (folders[target] / "README.md").read_text()
    code = re.findall(r"```(python|js)\n(.*?)```", card, re.DOTALL)[0]
    (expected,) = (printed(block) for block in re.findall(r"```text\n(.*?)```", card, re.DOTALL))
    monkeypatch.chdir(folders[target])
    if code[0] == "js":
        modules = request.getfixturevalue("node_modules")
        (modules.parent / "example.mjs").write_text(code[1])
        answer = subprocess.run(
            ["node", str(modules.parent / "example.mjs")], capture_output=True, text=True, check=False
        )
        assert answer.returncode == 0, answer.stderr
        found = printed(answer.stdout)
    else:
        server = serve(folders[target]) if target == "triton" else contextlib.nullcontext("")
        with contextlib.redirect_stdout(io.StringIO()) as said, server as address:
            monkeypatch.setenv("TRITON_URL", address)
            exec(compile(code[1], f"{target}/README.md", "exec"), {})
        found = printed(said.getvalue())
    assert len(found) == len(expected) == 9
    assert np.abs(found - expected).max() <= 3e-4
    # They are the edited model's numbers, not the base's.
    assert edited.base is not None
    pixels = edited.preprocess(Image.open("example.png"))[None]
    base, after = (F.normalize(model.encode_image(pixels), dim=1)[0, :4].numpy() for model in (edited.base, edited))
    assert np.abs(expected[:4] - after).max() < 1e-4
    assert np.abs(expected[:4] - base).max() > 1e-2


@contextlib.contextmanager
def serve(repository: Path):  # type: ignore[no-untyped-def]
    """Triton's inference protocol in front of a repository's graphs; refuses what config.pbtxt does not say."""
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    from google.protobuf import text_format

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            name = self.path.split("/")[3]
            (tensor,) = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["inputs"]
            config = text_format.Parse(
                (repository / name / "config.pbtxt").read_text(), load_triton_schema().ModelConfig()
            )
            (declared,), (answered,) = config.input, config.output
            kinds = {"FP32": (11, np.float32), "INT64": (9, np.int64)}
            assert (declared.name, list(declared.dims)) == (tensor["name"], tensor["shape"][1:])
            assert declared.data_type == kinds[tensor["datatype"]][0]
            batch = np.array(tensor["data"], dtype=kinds[tensor["datatype"]][1]).reshape(tensor["shape"])
            session = onnxruntime.InferenceSession(repository / name / "1" / "model.onnx")
            (output,) = session.run([answered.name], {declared.name: batch})
            body = {"name": answered.name, "datatype": "FP32", "shape": output.shape, "data": output.ravel().tolist()}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"outputs": [body]}).encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("target", ["hf", "fastembed"])
def test_the_whole_export_is_verified_in_a_child_by_its_consumer(
    target: str, edited: clipedit.Model, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    for index, photo in enumerate(CROPS):
        photo.save(tmp_path / "photos" / f"{index}.png")
    checks = clipedit.export_model(edited, tmp_path / "out", target=target, images=tmp_path / "photos")
    report = json.loads((tmp_path / "out" / "verification.json").read_text())
    assert report["runtime"].startswith("transformers " if target == "hf" else "fastembed ")
    assert len(checks) == len(report["checks"]) == (17 if target == "hf" else 16)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "precision"),
    [
        ("hf", "fp16"),
        ("sentence-transformers", "fp16"),
        ("transformers-js", "fp16"),
        ("transformers-js", "int8"),
        ("fastembed", "int8"),
        ("immich", "int8"),
        ("triton", "fp16"),
    ],
)
def test_lower_precision_is_read_by_the_consumer_too(
    target: str, precision: WeightPrecision, edited: clipedit.Model, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if target == "transformers-js":
            patch.setenv("NODE_PATH", str(request.getfixturevalue("node_modules")))
        checks = clipedit.export_model(edited, tmp_path / "out", target=target, precision=precision)
    assert min(check.figure for check in checks if check.name.endswith("worst cosine")) > 0.99
    runtime = json.loads((tmp_path / "out" / "verification.json").read_text())["runtime"]
    assert ("standing in" in runtime) == (target in ("immich", "triton"))
