"""The loading code of real models, offline, with random weights at real size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import clipedit
from clipedit import cli
from clipedit.editor.images.demo import demo_calibration_source

pytestmark = pytest.mark.usefixtures("verified_here")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    source = demo_calibration_source(12)
    for index in range(12):
        source.open(index).resize((300, 200)).save(folder / f"{index}.jpg")
    return folder


def run_path(name: str, photos: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *, graphs: bool) -> None:
    """remove-heads from a checkpoint file, then open_clip and ONNX Runtime (`graphs`) load what it wrote."""
    torch.manual_seed(0)
    module = open_clip.create_model(name, load_weights=False).eval()
    save_file({key: value.contiguous() for key, value in module.state_dict().items()}, folder / "w.safetensors")
    arguments = [
        "remove-heads",
        "--concept",
        "watermark",
        "--keep",
        "objects",
        "--model",
        name,
        "--pretrained",
        folder / "w.safetensors",
        "--images",
        photos,
        "--no-report",
        "--force",
        "-o",
        folder / "out",
    ]
    monkeypatch.setattr(sys, "argv", ["clipedit", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    edited = open_clip.create_model(f"local-dir:{folder / 'out'}").eval()
    size = module.visual.image_size[0]
    pixels = torch.randn(2, 3, size, size)
    with torch.no_grad():
        assert F.cosine_similarity(edited.encode_image(pixels), module.encode_image(pixels)).max() < 0.9999
        tokens = open_clip.get_tokenizer(name)(["a photo of a dog"])
        assert torch.equal(edited.encode_text(tokens), module.encode_text(tokens))
    config = json.loads((folder / "out" / "open_clip_config.json").read_text())
    assert config["preprocess_cfg"]["mean"] == list(open_clip.OPENAI_DATASET_MEAN)
    target = "onnx" if graphs else "open-clip"
    checks = clipedit.export_model(clipedit.load_model(str(folder / "out")), folder / target, target=target)
    assert all(check.holds for check in checks)


def test_a_small_clip_goes_the_whole_path(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_path("ViT-S-32-alt", photos, tmp_path, monkeypatch, graphs=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-L-14"])
def test_a_clip_of_real_size_goes_the_whole_path(
    name: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_path(name, photos, tmp_path, monkeypatch, graphs=True)


# Of the process that repairs, and the largest of those that it starts; upper bounds, since the two are added.
PEAK = (
    "import resource\n"
    "own, started = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))\n"
    "print('PEAK', 1024 * (own + started))"
)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted in kilobytes there")
def test_the_largest_clip_goes_the_whole_path_on_24_gib(photos: Path, tmp_path: Path) -> None:
    weights = tmp_path / "w.safetensors"
    make = (
        "import open_clip\nfrom safetensors.torch import save_file\n"
        "state = open_clip.create_model('ViT-H-14', load_weights=False).state_dict()\n"
        f"save_file({{key: value.contiguous() for key, value in state.items()}}, {str(weights)!r})"
    )
    # In processes of their own: what made the weights takes no memory any more when they are edited.
    subprocess.run([sys.executable, "-c", make], check=True)
    arguments = ["remove-heads", "--concept", "watermark", "--force", "--model", "ViT-H-14", "--pretrained", weights]
    arguments += ["--images", photos, "-o", tmp_path / "out"]
    script = (
        "import sys\nfrom clipedit.cli import main\n"
        f"sys.argv = ['clipedit', *{[str(argument) for argument in arguments]!r}]\n"
        f"try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n{PEAK}"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "report.html").is_file()
    assert int(done.stdout.split("PEAK")[1]) < 24 * 2**30


def test_openai_weights_keep_their_quick_gelu(monkeypatch: pytest.MonkeyPatch) -> None:
    from clipedit.editor.models import loaders as loading

    asked: dict[str, object] = {}
    create = open_clip.factory.create_model

    def create_without_weights(name: str, **options: object) -> torch.nn.Module:
        asked.update(options)
        return create(name, force_quick_gelu=bool(options["force_quick_gelu"]))

    monkeypatch.setattr(loading.open_clip, "create_model", create_without_weights)
    loaded = clipedit.load_model("ViT-B-32", pretrained="openai")
    assert asked["pretrained"] == "openai" and asked["weights_only"] is True
    assert loaded.config["model_cfg"]["quick_gelu"] is True
    assert type(loaded.module.visual.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"
