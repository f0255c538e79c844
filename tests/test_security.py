"""What SECURITY.md claims: files of others run no code, stay in their folder, and cost no more than they should."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pickle
import re
import struct
import sys
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
import yaml
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file

import clipedit
from clipedit import cli
from clipedit.editor.edits.recipe import load_recipe
from clipedit.editor.files import tensors as weights
from clipedit.editor.files.bounded import load_json, load_yaml
from clipedit.editor.files.tensors import hash_checkpoint, read_header
from clipedit.editor.files.vectors import open_vectors
from clipedit.editor.files.whole import find_beside
from clipedit.editor.images import decode
from clipedit.editor.images.decode import Decoding, open_image
from clipedit.editor.images.demo_name import demo_folder
from clipedit.editor.images.listing import list_images, read_csv_source
from clipedit.editor.models.config_bounds import require_modest_config
from clipedit.editor.models.hf.folder import load_hf_folder
from clipedit.export.consumers.target import require_no_code
from clipedit.export.targets.registry import load_target
from clipedit.export.verify.foreign_code import refuse_unpickling
from clipedit.export.verify.verify import verify

ROOT = Path(__file__).parents[1]
SOURCES = [path for folder in ("editor", "export", "demo", "commands") for path in (ROOT / folder).rglob("*.py")] + [
    ROOT / "cli.py"
]


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


# Code.


@pytest.mark.parametrize(
    "forbidden",
    [
        r"\bpickle\.loads?\(",
        r"\byaml\.(full_|unsafe_)?load(_all)?\((?!text, _BoundedLoader)",
        r"\bnp\.load\(",
        r"\bjoblib\b",
        r"\bshelve\b",
        r"shell=True",
        r"\bos\.system\(",
        r"(?<![\w.])(eval|exec)\(",
        r"torch\.load\((?!.*weights_only=True)",
        r"allow_pickle=True",
        r"trust_remote_code=True",
        r"\bmarshal\b",
        r"\bmktemp\(",
    ],
)
def test_nothing_in_the_source_can_run_what_is_in_a_file(forbidden: str) -> None:
    found = [
        f"{path.name}: {line.strip()}"
        for path in SOURCES
        for line in path.read_text().splitlines()
        if re.search(forbidden, line)
    ]
    assert found == []


@pytest.mark.parametrize("name", ["open_clip_pytorch_model.bin", "pytorch_model.bin", "x.pth"])
def test_a_pickle_in_place_of_weights_is_refused_and_not_executed(name: str, tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_bytes((demo_folder() / "open_clip_config.json").read_bytes())
    torch.save({"state_dict": Trap(tmp_path / "pwned")}, tmp_path / name)
    with pytest.raises(clipedit.ModelError, match="pickle that could run code|cannot load"):
        clipedit.load_model(str(tmp_path))
    (tmp_path / "plain.bin").write_bytes(pickle.dumps(Trap(tmp_path / "pwned")))
    with pytest.raises(clipedit.ModelError):
        clipedit.load_model("ViT-B-32", str(tmp_path / "plain.bin"))
    assert not (tmp_path / "pwned").exists()


def test_a_file_of_vectors_with_objects_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.array([[Trap(tmp_path / "pwned")]], object), allow_pickle=True)
    with pytest.raises(clipedit.VectorError, match="it holds object"):
        open_vectors(tmp_path / "v.npy")
    assert not (tmp_path / "pwned").exists()


def test_a_configuration_cannot_ask_for_code_beside_the_weights(tmp_path: Path) -> None:
    for path in demo_folder().glob("open_clip*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] |= {"hf_tokenizer_name": "x", "tokenizer_kwargs": {"trust_remote_code": True}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}))
    (tmp_path / "evil.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'pwned')!r}).touch()\n")
    with pytest.raises(clipedit.ModelError, match="`trust_remote_code` asks to run code"):
        clipedit.load_model(str(tmp_path)).encode_text(["a"])
    assert not (tmp_path / "pwned").exists()


def test_verification_imports_nothing_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("torch", "json", "clipedit", "PIL"):
        (tmp_path / f"{name}.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'pwned')!r}).touch()\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(clipedit.VerificationError, match="Give a folder that `clipedit export` wrote"):
        verify(tmp_path)
    assert not (tmp_path / "pwned").exists()


def test_a_verifying_process_unpickles_no_class(tmp_path: Path) -> None:
    data = pickle.dumps(Trap(tmp_path / "pwned"))
    pid = os.fork()
    if pid == 0:  # A hook stays as long as its process.
        refuse_unpickling()
        try:
            pickle.loads(data)
        except clipedit.VerificationError as error:
            os._exit(7 if "which could run code" in str(error) else 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert not (tmp_path / "pwned").exists()


def test_an_export_that_would_run_code_is_not_loaded_unless_it_is_trusted(tmp_path: Path) -> None:
    with pytest.raises(clipedit.VerificationError, match=r"can run code that is in it\. Add --trust"):
        require_no_code(load_target("torch-export"), tmp_path, trusted=False)
    require_no_code(load_target("torch-export"), tmp_path, trusted=True)
    (tmp_path / "modules.json").write_text(json.dumps([{"type": "evil.Module", "path": "", "name": "0", "idx": 0}]))
    with pytest.raises(clipedit.VerificationError, match=r"modules\.json names evil\.Module"):
        require_no_code(load_target("sentence-transformers"), tmp_path, trusted=False)
    (tmp_path / "modules.json").write_text("[3]")
    with pytest.raises(clipedit.VerificationError, match=r"modules\.json cannot be read"):
        require_no_code(load_target("sentence-transformers"), tmp_path, trusted=False)


def test_node_does_not_look_for_packages_in_the_folder_that_it_verifies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(clipedit.VerificationError, match="Change to another folder"):
        require_no_code(load_target("transformers-js"), tmp_path, trusted=False)


# Text files.

LETTERS = "abcdefgh"
BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{c}: &{c} [{','.join(['*' + b] * 10)}]\n" for b, c in itertools.pairwise(LETTERS)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "more than 100000 values"),
        ("a: &a\n  b: *a\n", "an alias stands for what it is part of"),
        ("[" * 100_000, "deeper than 64|nesting depth"),
        ("{a: " * 10_000, "deeper than 64|nesting depth"),
        ("x: 1" + ":1" * 200_000, "an? int has more than 200 letters"),
        ("x: " + "1" * 10_000, "an? int has more than 200 letters"),
        ("x: !!python/object/apply:os.system [id]", "could not determine a constructor"),
        ("x: 2001-99-99", "month must be in"),
        ("x: !!timestamp zz", "groupdict|timestamp"),
        ("x: !!int ''", "index out of range|invalid literal"),
        ("\x00", "control characters|special characters"),
        ("# " + "x" * 2**22, "at most 4194304 are read"),
    ],
)
def test_yaml_that_would_cost_too_much_is_refused_at_once(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(text)
    begun = time.process_time()
    with pytest.raises(ValueError, match=message):
        load_yaml(tmp_path / "x.yaml")
    assert time.process_time() - begun < 5
    with pytest.raises(clipedit.RecipeError):
        load_recipe(tmp_path / "x.yaml")
    with pytest.raises(clipedit.ConceptError):
        clipedit.editor.concepts.concepts.load_concept(tmp_path / "x.yaml")


def test_yaml_with_plain_aliases_and_merges_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("a: &a {k: 1}\nb: {<<: *a, l: [*a, *a]}\n")
    assert load_yaml(tmp_path / "x.yaml") == yaml.safe_load((tmp_path / "x.yaml").read_text())


@pytest.mark.parametrize("text", ["[" * 100_000, "[" * 65 + "]" * 65, '{"a":' * 5_000, "9" * 5_000])
def test_json_that_is_nested_too_deeply_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"deeper than 64|nesting depth|limit|Expecting"):
        load_json(tmp_path / "x.json")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    for name in ("recipe.yaml", "x.npy", "x.safetensors", "open_clip_config.json", "x.png", "x.csv"):
        os.mkfifo(tmp_path / name)
    reads: list[Callable[[], object]] = [
        lambda: load_recipe(tmp_path),
        lambda: open_vectors(tmp_path / "x.npy"),
        lambda: read_header(tmp_path / "x.safetensors"),
        lambda: clipedit.load_model(str(tmp_path)),
        lambda: open_image(tmp_path / "x.png"),
        lambda: list_images(tmp_path / "x.csv"),
    ]
    for read in reads:
        with pytest.raises(clipedit.ClipeditError):
            read()


@pytest.mark.parametrize(
    "row", ["x" * 200_000, "n" * 5_000, "a\x00b.png", "/dev/zero", "../../../etc/passwd", '"' + "a\n" * 1_000 + '"']
)
def test_a_table_with_odd_paths_is_read_and_its_images_are_refused(row: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"path,label\n{row},1\n")
    try:
        source = read_csv_source(tmp_path / "t.csv")
    except clipedit.ImageError:
        return
    source.fingerprint()
    with pytest.raises(clipedit.ImageError):
        source.open(0)


def test_names_that_are_no_text_can_be_scanned(tmp_path: Path) -> None:
    try:
        Image.new("RGB", (8, 8)).save(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png"))
    except OSError:
        pytest.skip("this file system has text names only")
    source = list_images(tmp_path)
    assert len(source.fingerprint()) == 64 and len(source.marks()) == 1
    assert source.open(0).size == (8, 8)


def test_what_a_file_says_cannot_move_the_cursor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t.csv").write_text("path\n\x1b[2J\u202egnp.png\n")
    monkeypatch.setattr(
        sys, "argv", ["clipedit", "scan", str(tmp_path / "t.csv"), "-o", str(tmp_path / "s.safetensors")]
    )
    with pytest.raises(SystemExit):
        cli.main()
    said = capsys.readouterr().err
    assert "\\x1b[2J\\u202egnp.png" in said and "\x1b" not in said and "\u202e" not in said


# Paths.


def test_a_recipe_names_files_beside_it_only(tmp_path: Path) -> None:
    for name in ("../x", "/etc/passwd", "a/b", "a\\b", "..", "", "C:x", "a\0b"):
        document = {
            "schema_version": 1,
            "name": "n",
            "base": {"model": "demo"},
            "steps": [],
            "tensors": {"file": name, "sha256": "0"},
        }
        (tmp_path / "r.yaml").write_text(yaml.safe_dump(document))
        with pytest.raises(clipedit.RecipeError, match="without a folder"):
            load_recipe(tmp_path / "r.yaml")


def test_a_link_that_leads_out_of_the_folder_is_refused_but_the_hubs_cache_is_read(tmp_path: Path) -> None:
    for folder in ("outside", "recipe", "blobs", "snapshots/1"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "outside" / "secret").write_text("s")
    (tmp_path / "recipe" / "r.yaml").write_text("")
    (tmp_path / "recipe" / "r.safetensors").symlink_to(tmp_path / "outside" / "secret")
    with pytest.raises(ValueError, match="a link that leads out"):
        find_beside(tmp_path / "recipe" / "r.yaml", "r.safetensors")
    for blob, name in (("1a", "r.yaml"), ("2b", "r.safetensors")):
        (tmp_path / "blobs" / blob).write_text(blob)
        (tmp_path / "snapshots" / "1" / name).symlink_to(Path("../../blobs") / blob)
    assert find_beside(tmp_path / "snapshots" / "1" / "r.yaml", "r.safetensors").read_text() == "2b"


def test_a_steps_concept_is_a_name_and_no_file(tmp_path: Path) -> None:
    step = {"operation": "project-out", "heads": ["L3H0"], "concept": "/home/me/secrets.yaml"}
    (tmp_path / "r.yaml").write_text(
        yaml.safe_dump({"schema_version": 1, "name": "n", "base": {"model": "demo"}, "steps": [step]})
    )
    with pytest.raises(clipedit.RecipeError, match="must be the name of a concept, not a file"):
        load_recipe(tmp_path / "r.yaml")


def test_an_index_of_weights_names_files_beside_it_only(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    save_file({"x": torch.ones(1)}, tmp_path / "out.safetensors")
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "clip"}))
    (tmp_path / "model" / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"x": "../out.safetensors"}})
    )
    (tmp_path / "model" / "preprocessor_config.json").write_text("{}")
    save_file({"x": torch.zeros(100_000_000, dtype=torch.int8)}, tmp_path / "model" / "other.safetensors")
    with pytest.raises(clipedit.ModelError, match="is not the name of a file beside"):
        load_hf_folder(tmp_path / "model")


# Safetensors.


def write_header(path: Path, header: Any, data: bytes = b"\0" * 16, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(start: int, end: int, shape: list[int] | None = None) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [(end - start) // 4] if shape is None else shape, "data_offsets": [start, end]}


BY_US = {
    "a header longer than the file": (b"{}", 2**62),
    "a header longer than what is read": (b"{}", weights.MAX_HEADER_BYTES + 1),
    "tensors beyond the end": ({"a": entry(0, 4_000)}, None),
    "a name twice": (
        b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
        None,
    ),
    "deep nesting": (b"[" * 100_000, None),
    "no object": ([], None),
    "negative sizes": ({"a": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}}, None),
    "floats": ({"a": {"dtype": "F32", "shape": [4.0], "data_offsets": [0, 16]}}, None),
}
BY_THE_LIBRARY = {
    "overlapping tensors": {"a": entry(0, 16), "b": entry(8, 16)},
    "holes": {"a": entry(0, 4), "b": entry(8, 16)},
    "bytes that belong to none": {"a": entry(0, 8)},
    "sizes that are not those of the shape": {"a": entry(0, 16, [9])},
    "shapes whose product overflows": {"a": entry(0, 16, [2**63, 2**63])},
    "unknown types": {"a": {"dtype": "X9", "shape": [4], "data_offsets": [0, 16]}},
}


@pytest.mark.parametrize("kind", [*BY_US, *BY_THE_LIBRARY])
def test_a_damaged_header_is_refused(kind: str, tmp_path: Path) -> None:
    header, length = BY_US.get(kind) or (BY_THE_LIBRARY[kind], None)
    with pytest.raises(clipedit.ModelError, match="cannot read .* as safetensors"):
        read_header(write_header(tmp_path / "x.safetensors", header, length=length))


@pytest.mark.parametrize("kind", BY_THE_LIBRARY)
def test_the_library_itself_refuses_what_we_leave_to_it(kind: str, tmp_path: Path) -> None:
    path = write_header(tmp_path / "x.safetensors", BY_THE_LIBRARY[kind])
    with pytest.raises(safetensors.SafetensorError), safetensors.safe_open(path, framework="pt"):
        pass


def test_a_header_of_very_many_tensors_is_refused_in_time(tmp_path: Path) -> None:
    many = {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(weights.MAX_TENSORS + 1)}
    begun = time.process_time()
    with pytest.raises(clipedit.ModelError, match="at most 100000 are read"):
        read_header(write_header(tmp_path / "x.safetensors", many, b""))
    assert time.process_time() - begun < 10


def test_a_cached_hash_that_came_with_the_weights_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_CACHE_FROM_BYTES", 1)
    path = tmp_path / "a" / "x.safetensors"
    path.parent.mkdir()
    save_file({"x": torch.ones(3)}, path)
    true, cache = hash_checkpoint(path), path.with_name(".x.safetensors.sha256.json")
    forged = json.loads(cache.read_text()) | {"hash": "0" * 64}
    cache.write_text(json.dumps(forged))
    assert hash_checkpoint(path) == "0" * 64  # It is a cache: who can write beside the weights can write the weights.
    copy = tmp_path / "b" / "x.safetensors"
    copy.parent.mkdir()
    for source in (path, cache):
        target = copy.parent / source.name
        target.write_bytes(source.read_bytes())
        os.utime(target, ns=(source.stat().st_atime_ns, source.stat().st_mtime_ns))
    assert hash_checkpoint(copy) == true


# Configurations.


@pytest.mark.parametrize(
    "changes",
    [
        {"vision_cfg": {"layers": 10**6, "width": 64}},
        {"vision_cfg": {"layers": 12, "width": 30_000}},
        {"vision_cfg": {"image_size": 10**6}},
        {"text_cfg": {"layers": 1, "width": 8_192, "vocab_size": 4_000_000}},
        {"text_cfg": {"width": float("nan")}},
    ],
)
def test_a_configuration_much_larger_than_its_weights_is_refused_before_it_is_built(changes: dict[str, Any]) -> None:
    config = {
        "embed_dim": 64,
        "vision_cfg": {"layers": 2, "width": 64},
        "text_cfg": {"layers": 2, "width": 64},
    } | changes
    with pytest.raises(clipedit.ModelError, match=r"describes .* parameters|at most .* is known"):
        require_modest_config(config, 10_000_000, "x")


def test_published_models_are_not_taken_for_too_large() -> None:
    import open_clip

    for name in (
        "ViT-B-32",
        "ViT-L-14",
        "ViT-H-14",
        "ViT-bigG-14",
        "RN50x64",
        "xlm-roberta-large-ViT-H-14",
        "ViT-SO400M-14-SigLIP-384",
    ):
        module = open_clip.get_model_config(name)
        assert module is not None
        require_modest_config(module, 5 * 2**30, name)


# Images.


def test_only_formats_that_images_come_in_are_opened_whatever_their_suffix(tmp_path: Path) -> None:
    for name, kind in (("a.png", "EPS"), ("b.jpg", "PDF"), ("c.png", "ICNS"), ("d.png", "PCX"), ("e.gif", "TGA")):
        Image.new("RGB", (64, 64)).save(tmp_path / name, kind)
        with pytest.raises(clipedit.ImageError, match="cannot identify"):
            open_image(tmp_path / name)
    Image.new("RGB", (8, 8)).save(tmp_path / "really-a-jpeg.png", "JPEG")
    assert open_image(tmp_path / "really-a-jpeg.png").size == (8, 8)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "iCCP"])
def test_a_bomb_in_a_chunk_of_a_png_costs_nothing(kind: str, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    data = (tmp_path / "x.png").read_bytes()
    packed = zlib.compress(b"\0" * 200_000_000, 9)
    bomb = chunk(kind.encode(), (b"k\0\0" if kind != "iTXt" else b"k\0\1\0\0\0") + packed)
    (tmp_path / "x.png").write_bytes(data[:33] + bomb + data[33:])
    before = peak_megabytes()
    with contextlib.suppress(clipedit.ImageError):  # Some chunks are passed over, others spoil the image.
        assert open_image(tmp_path / "x.png").size == (8, 8)
    assert peak_megabytes() - before < 150


def peak_megabytes() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def test_of_an_animation_one_frame_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (300, 300), (i, 0, 0)) for i in range(40)]
    for name in ("x.gif", "x.tif", "x.webp", "x.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        begun = time.process_time()
        assert open_image(tmp_path / name).getpixel((5, 5)) == (0, 0, 0)
        assert time.process_time() - begun < 2


def test_tags_of_a_tiff_that_all_name_the_same_bytes_are_not_all_read(tmp_path: Path) -> None:
    blob, count = 1_000_000, 2_000
    tags = b"".join(struct.pack("<HHII", 32_768 + i, 1, blob, 8) for i in range(count))
    (tmp_path / "x.tif").write_bytes(
        b"II*\0" + struct.pack("<I", 8 + blob) + b"\0" * blob + struct.pack("<H", count) + tags + b"\0" * 4
    )
    before = peak_megabytes()
    with warnings.catch_warnings(), pytest.raises(clipedit.ImageError):
        warnings.simplefilter("ignore")
        open_image(tmp_path / "x.tif")
    assert peak_megabytes() - before < 300


def test_a_jpeg_of_very_many_scans_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / "x.jpg", progressive=True)
    data = (tmp_path / "x.jpg").read_bytes()
    last = data.rindex(b"\xff\xda")
    (tmp_path / "many.jpg").write_bytes(data[:last] + data[last:-2] * 2_000 + data[-2:])
    monkeypatch.setattr(decode, "MAX_PIXELS", 1_000_000)
    assert open_image(tmp_path / "x.jpg").size == (64, 64)
    with pytest.raises(clipedit.ImageError, match=r"a JPEG of 20\d\d scans"):
        open_image(tmp_path / "many.jpg")


def test_what_exif_says_may_turn_an_image_and_never_resizes_it(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0xA002] = 6, 10**6
    Image.new("RGB", (40, 20)).save(tmp_path / "x.jpg", exif=exif)
    assert open_image(tmp_path / "x.jpg").size == (20, 40)
    assert open_image(tmp_path / "x.jpg", Decoding("ignore")).size == (40, 20)


def test_text_chunks_within_bounds_do_no_harm(tmp_path: Path) -> None:
    notes = PngImagePlugin.PngInfo()
    notes.add_text("k", "v" * 10_000, zip=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png", pnginfo=notes)
    assert open_image(tmp_path / "x.png").size == (8, 8)


# The document.


def test_the_numbers_in_security_md_are_those_of_the_code() -> None:
    from clipedit.editor.files import bounded
    from clipedit.editor.models import config_bounds

    text = (ROOT / "SECURITY.md").read_text()
    numbers = [
        decode.MAX_PIXELS,
        decode.MAX_ASPECT,
        decode.MAX_SCANS,
        weights.MAX_HEADER_BYTES,
        weights.MAX_TENSORS,
        bounded.MAX_DEPTH,
        bounded.MAX_NODES,
        config_bounds.MOST["layers"],
    ]
    for number in numbers:
        assert re.search(rf"(?<![\d,]){number:,}(?![\d,])", text), number
    assert f"{bounded.MAX_YAML_BYTES // 2**20} MiB" in text and f"{bounded.MAX_BYTES // 2**20} MiB" in text
