"""The map of stored embeddings is the least-squares one, in constant memory; what is not such embeddings is refused."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F

import clipedit
from clipedit import cli
from clipedit.demo import world
from clipedit.editor.components import Features
from clipedit.editor.edits.bind import bind_recipe
from clipedit.editor.edits.direct import compute_recipe_embeddings
from clipedit.editor.edits.document import Base, RecipeDocument, Step
from clipedit.editor.edits.recipe import Recipe
from clipedit.editor.files import vectors as vector_files
from clipedit.editor.images.demo import demo_calibration_source, render_source
from clipedit.editor.measure.reindex import EmbeddingMap, measure_fidelity
from clipedit.editor.scan.collect import collect_features

pytestmark = pytest.mark.usefixtures("verified_here")


@pytest.fixture(scope="module")
def edited_folder(
    demo_model: clipedit.Model, demo_scan: clipedit.Scan, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Recipe and scan, as `remove-heads` leaves them."""
    folder = tmp_path_factory.mktemp("edited")
    clipedit.make_recipe(demo_scan, demo_model, concept="location").save(folder / "recipe.yaml")
    demo_scan.save(folder / "scan.safetensors")
    return folder


@pytest.fixture(scope="module")
def mapping(edited_folder: Path, demo_model: clipedit.Model, demo_scan: clipedit.Scan) -> EmbeddingMap:
    return clipedit.compute_embedding_map(clipedit.load_recipe(edited_folder), demo_scan, demo_model)


@pytest.fixture(scope="module")
def stored(demo_model: clipedit.Model) -> np.ndarray:
    """Embeddings of 64 images, unnormalised."""
    source = demo_calibration_source(64)
    return demo_model.encode_image(torch.stack([demo_model.preprocess(source.open(i)) for i in range(64)])).numpy()


def run(*arguments: object, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["clipedit", *map(str, arguments)])
    capfd.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0), *capfd.readouterr()


@pytest.fixture(scope="module")
def scanned_features(demo_model: clipedit.Model) -> Features:
    return collect_features(demo_model, demo_calibration_source(1024), layers=range(4), batch_size=128)[0]


@pytest.mark.parametrize("effect", ["distilled", "direct"])
def test_the_map_is_the_least_squares_map_of_the_scanned_embeddings(
    demo_model: clipedit.Model, demo_scan: clipedit.Scan, scanned_features: Features, effect: str
) -> None:
    recipe = clipedit.make_recipe(demo_scan, demo_model, concept="location", effect=effect)  # type: ignore[arg-type]
    z = scanned_features.embedding.double()
    wanted = compute_recipe_embeddings(recipe, demo_model, scanned_features).double()
    norm = z.norm(dim=1, keepdim=True)
    mapping = clipedit.compute_embedding_map(recipe, demo_scan, demo_model)
    # The change from the identity, with its ridge as rows of zeros that it must explain too.
    rows = z / norm
    ridge = (mapping.ridge * rows.square().sum() / 64).sqrt() * torch.eye(64).double()
    target = torch.cat([(wanted - z) / norm, torch.zeros(64, 64).double()])
    change = torch.linalg.lstsq(torch.cat([rows, ridge]), target).solution
    assert (z @ mapping.matrix.T - z - z @ change).norm() / (wanted - z).norm() < 1e-3


def test_an_empty_recipe_gives_the_identity_to_the_bit(demo_model: clipedit.Model, demo_scan: clipedit.Scan) -> None:
    for effect in ("distilled", "direct"):
        document = RecipeDocument(schema_version=1, name="none", base=Base(model="demo"), effect=effect, steps=())
        recipe = bind_recipe(document, demo_scan, demo_model)
        found = clipedit.compute_embedding_map(recipe, demo_scan, demo_model)
        assert torch.equal(found.matrix, torch.eye(64).double())


def test_normalised_and_unnormalised_embeddings_get_the_same_direction(
    mapping: EmbeddingMap, stored: np.ndarray, tmp_path: Path
) -> None:
    np.save(tmp_path / "raw.npy", stored)
    np.save(tmp_path / "unit.npy", stored / np.linalg.norm(stored, axis=1, keepdims=True))
    for name in ("raw", "unit"):
        assert clipedit.reindex_vectors(mapping, tmp_path / f"{name}.npy", tmp_path / f"{name}-new.npy") == 64
    raw, unit = np.load(tmp_path / "raw-new.npy"), np.load(tmp_path / "unit-new.npy")
    assert np.abs(np.linalg.norm(unit, axis=1) - 1).max() < 1e-6
    assert np.abs(raw / np.linalg.norm(raw, axis=1, keepdims=True) - unit).max() < 1e-5
    assert raw.dtype == np.float32 and np.abs(np.linalg.norm(raw, axis=1) - 1).max() > 0.1


def test_on_held_out_images_the_map_is_as_faithful_as_the_distilled_readout(
    mapping: EmbeddingMap, edited_folder: Path, demo_model: clipedit.Model, demo_scan: clipedit.Scan
) -> None:
    held_out = render_source(world.draw_balanced_scenes(256, seed=78))
    recipe = clipedit.load_recipe(edited_folder)
    rows = measure_fidelity(mapping, recipe, demo_scan, demo_model, held_out)
    control, mapped = rows["as stored"], rows["reindexed"]
    assert control.mean_cosine < 0.95 and control.explained_change == 0
    assert mapped.mean_cosine > 0.995 and mapped.worst_cosine > 0.98 and mapped.explained_change > 0.95
    assert mapped.mean_cosine >= rows["distilled, for comparison"].mean_cosine


def test_the_mapped_embeddings_are_those_of_the_edited_model(
    mapping: EmbeddingMap, edited_folder: Path, demo_model: clipedit.Model, stored: np.ndarray
) -> None:
    """Through the model itself, not through the formulas that the map comes from."""
    edited = clipedit.apply_recipe(clipedit.load_recipe(edited_folder), demo_model)
    source = demo_calibration_source(64)
    expected = edited.encode_image(torch.stack([demo_model.preprocess(source.open(i)) for i in range(64)]))
    found = mapping.apply(torch.from_numpy(stored), normalised=False).float()
    assert F.cosine_similarity(found, expected).min() > 0.99
    assert F.cosine_similarity(torch.from_numpy(stored), expected).max() < 0.99


@pytest.mark.parametrize("kind", ["list", "large_list", "fixed_size_list"])
def test_parquet_keeps_every_other_column_and_the_schema(
    mapping: EmbeddingMap, stored: np.ndarray, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector_files, "CHUNK_ROWS", 10)
    value = pa.float16() if kind == "list" else pa.float32()
    types = {"list": pa.list_(value), "large_list": pa.large_list(value), "fixed_size_list": pa.list_(value, 64)}
    rows = stored.astype(value.to_pandas_dtype())
    schema = pa.schema([("id", pa.string()), ("vector", types[kind]), ("tags", pa.list_(pa.int32()))])
    schema = schema.with_metadata({"made by": "us"})
    columns = [[f"image {i}" for i in range(64)], list(rows), [[i, i] for i in range(64)]]
    pq.write_table(
        pa.table([pa.array(c, t) for c, t in zip(columns, schema.types, strict=True)], schema), tmp_path / "in.parquet"
    )
    assert clipedit.reindex_vectors(mapping, tmp_path / "in.parquet", tmp_path / "out.parquet") == 64
    before, after = pq.read_table(tmp_path / "in.parquet"), pq.read_table(tmp_path / "out.parquet")
    assert after.schema.equals(before.schema)
    marked = {b"clipedit.reindexed.vector": b'{"recipe": "remove-location"}'}
    assert after.schema.metadata == {**before.schema.metadata, **marked}
    assert after["id"].equals(before["id"]) and after["tags"].equals(before["tags"])
    expected = mapping.apply(torch.from_numpy(rows), normalised=False).numpy()
    assert np.abs(np.stack(after["vector"].to_numpy()) - expected).max() < 1e-3 * np.abs(expected).max()


def test_memory_does_not_grow_with_the_file(mapping: EmbeddingMap, stored: np.ndarray, tmp_path: Path) -> None:
    for name, copies in (("small", 500), ("large", 8_000)):
        np.save(tmp_path / f"{name}.npy", np.tile(stored, (copies, 1)))
    torch.save([mapping.matrix, mapping.mean_direction], tmp_path / "map.pt")
    code = (
        "import sys, torch, clipedit; from clipedit.editor.measure.reindex import EmbeddingMap\n"
        "mapping = EmbeddingMap(*torch.load('map.pt', weights_only=True))\n"
        "peak = lambda: int(next(l.split()[1] for l in open('/proc/self/status') if l.startswith('VmHWM')))\n"
        "clipedit.reindex_vectors(mapping, 'small.npy', 'a.npy'); low = peak()\n"
        "clipedit.reindex_vectors(mapping, 'large.npy', 'b.npy'); print(low, peak())"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    low, high = map(int, answer.stdout.split())
    assert (tmp_path / "large.npy").stat().st_size > 125e6 and high - low < 20_000, (low, high)


def test_the_command_maps_a_file_and_prints_its_fidelity(
    edited_folder: Path, stored: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:  # type: ignore[no-untyped-def]
    np.save(tmp_path / "v.npy", stored)
    (tmp_path / "photos").mkdir()
    held_out = render_source(world.draw_balanced_scenes(48, seed=79))
    for index in range(48):
        held_out.open(index).save(tmp_path / "photos" / f"{index}.png")
    options = ("--recipe", edited_folder, "--images", tmp_path / "photos", "-o", tmp_path / "new.npy")
    code, out, err = run("reindex", tmp_path / "v.npy", *options, "--json", monkeypatch=monkeypatch, capfd=capfd)
    assert code == 0, err
    answer = json.loads(out)
    assert answer["rows"] == 64 and answer["out"] == str(tmp_path / "new.npy")
    assert answer["fidelity"]["reindexed"]["mean_cosine"] > 0.99 > answer["fidelity"]["as stored"]["mean_cosine"]
    assert np.load(tmp_path / "new.npy").shape == stored.shape
    code, _, err = run("reindex", tmp_path / "v.npy", *options, monkeypatch=monkeypatch, capfd=capfd)
    assert code == 1 and "it exists" in err and "--overwrite" in err


def write_bad(kind: str, stored: np.ndarray, path: Path) -> Path:
    rows = stored.copy()
    if kind == "nan":
        rows[7, 3] = np.nan
    unit = np.tile(stored / np.linalg.norm(stored, axis=1, keepdims=True), (65, 1))
    arrays = {
        "nan": rows,
        "mixed": np.concatenate([unit, stored]),
        "narrow": stored[:, :32],
        "empty": stored[:0],
        "flat": stored[0],
        "integers": stored.astype(int),
        "fortran": np.asfortranarray(stored),
        "other": -stored,
        "objects": np.array([{"a": 1}], dtype=object),
    }
    target = path / ("v.npz" if kind == "npz" else "v.npy")
    if kind in arrays:
        np.save(target, arrays[kind], allow_pickle=True)
    elif kind == "npz":
        np.savez(target, stored)
    elif kind == "truncated":
        np.save(target, stored)
        target.write_bytes(target.read_bytes()[:-50])
    elif kind == "pickle":
        target.write_bytes(pickle.dumps(stored))
    elif kind == "nothing":
        target.write_bytes(b"")
    return target


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nan", "row 7 holds NaN or infinity"),
        ("mixed", "some vectors have length 1, others do not"),
        ("narrow", "its vectors are 32 wide, the recipe's model gives 64"),
        ("empty", r"float32 of shape \(0, 64\)"),
        ("flat", r"float32 of shape \(64,\)"),
        ("integers", r"int64 of shape \(64, 64\)"),
        ("fortran", "in Fortran order"),
        ("other", "do not look like embeddings of the recipe's base"),
        ("objects", r"object of shape \(1,\)"),
        ("npz", "it ends in .npz"),
        ("truncated", "Copy the whole file"),
        ("pickle", "Write it with `numpy.save`"),
        ("nothing", "Write it with `numpy.save`"),
        ("missing", "no such file"),
    ],
)
def test_what_is_not_embeddings_is_refused_and_leaves_nothing(
    mapping: EmbeddingMap, stored: np.ndarray, tmp_path: Path, kind: str, message: str
) -> None:
    path = write_bad(kind, stored, tmp_path)
    with pytest.raises(clipedit.VectorError, match=message):
        clipedit.reindex_vectors(mapping, path, tmp_path / "out.npy")
    assert not (tmp_path / "out.npy").exists() and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("columns", "column", "message"),
    [
        ({"id": [1, 2]}, None, "columns of vectors are none"),
        ({"a": [[1.0]], "b": [[1.0]]}, None, "columns of vectors are a, b"),
        ({"a": [[1.0]]}, "c", "c is needed"),
        ({"a": [[1.0, 2.0], [1.0]]}, None, "row 1 is not 2 wide"),
        ({"a": [[1.0, 2.0], None]}, None, "row 1 is not 2 wide"),
        ({"a": [[1.0, 2.0], [None, 1.0]]}, None, "row 1 holds NaN"),
        ({"a": pa.array([], pa.list_(pa.float32()))}, None, "a is empty"),
    ],
)
def test_parquet_files_without_vectors_are_refused(
    tmp_path: Path, columns: dict[str, object], column: str | None, message: str
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "v.parquet")  # type: ignore[arg-type]
    two = EmbeddingMap(torch.eye(2).double(), torch.zeros(2).double())
    with pytest.raises(clipedit.VectorError, match=message):
        clipedit.reindex_vectors(two, tmp_path / "v.parquet", tmp_path / "out.parquet", column=column, force=True)
    (tmp_path / "w.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(clipedit.VectorError, match="Give a Parquet file"):
        clipedit.reindex_vectors(two, tmp_path / "w.parquet", tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


def test_recipes_that_the_statistics_do_not_determine_are_refused(
    demo_model: clipedit.Model, demo_scan: clipedit.Scan
) -> None:
    step = Step(operation="mean-ablate", heads=("L3H1",))
    documents = {
        effect: RecipeDocument(schema_version=1, name="test", base=Base(model="demo"), effect=effect, steps=(step,))
        for effect in ("distilled", "total")
    }
    with pytest.raises(clipedit.RecipeError, match=r"it is unbound\. Give the one beside the edited weights"):
        clipedit.compute_embedding_map(Recipe(documents["distilled"]), demo_scan, demo_model)
    total = bind_recipe(documents["total"], demo_scan, demo_model)
    with pytest.raises(clipedit.RecipeError, match="its effect is total"):
        clipedit.compute_embedding_map(total, demo_scan, demo_model)
    recipe = bind_recipe(documents["distilled"], demo_scan, demo_model)
    other = demo_model.with_tensors({"visual.ln_post.bias": torch.zeros(128)})
    with pytest.raises(clipedit.RecipeError, match="it was made for weights"):
        clipedit.compute_embedding_map(recipe, demo_scan, other)


@pytest.mark.parametrize("kind", ["npy", "parquet"])
def test_what_was_carried_over_is_not_carried_over_again(
    kind: str, mapping: EmbeddingMap, stored: np.ndarray, tmp_path: Path
) -> None:
    old, new, newer = (tmp_path / f"{name}.{kind}" for name in ("old", "new", "newer"))
    if kind == "npy":
        np.save(old, stored)
    else:
        pq.write_table(pa.table({"vector": list(stored)}), old)
    clipedit.reindex_vectors(mapping, old, new)
    with pytest.raises(clipedit.VectorError, match="it is marked as carried over by recipe remove-location"):
        clipedit.reindex_vectors(mapping, new, newer)
    assert not newer.exists()
    assert clipedit.reindex_vectors(mapping, new, newer, force=True) == 64
    # The unedited vectors are carried over as often as one likes, also under the name of a marked file.
    clipedit.reindex_vectors(mapping, old, tmp_path / f"again.{kind}")
    new.write_bytes(old.read_bytes())
    assert clipedit.reindex_vectors(mapping, new, tmp_path / f"third.{kind}") == 64


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("place", [None, "forest", "ocean", "space"])
def test_the_vectors_themselves_tell_that_they_were_carried_over(
    place: str | None, unit: bool, mapping: EmbeddingMap, demo_model: clipedit.Model, tmp_path: Path
) -> None:
    """Without a mark, and also of images that all show one instance of the concept."""
    scenes = [one for one in world.draw_balanced_scenes(1024, seed=80) if place in (None, one.place)][:64]
    source = render_source(scenes)
    pixels = torch.stack([demo_model.preprocess(source.open(index)) for index in range(len(scenes))])
    rows = demo_model.encode_image(pixels)
    rows = F.normalize(rows, dim=1) if unit else rows
    np.save(tmp_path / "old.npy", rows.numpy())
    assert clipedit.reindex_vectors(mapping, tmp_path / "old.npy", tmp_path / "out.npy") == 64
    np.save(tmp_path / "bare.npy", np.load(tmp_path / "out.npy"))
    with pytest.raises(clipedit.VectorError, match="along the directions that the edit removes"):
        clipedit.reindex_vectors(mapping, tmp_path / "bare.npy", tmp_path / "twice.npy")


@pytest.mark.parametrize(("share", "refused"), [(-0.56, True), (0.79, True), (0.85, False), (0.96, False)])
def test_a_map_is_refused_by_its_error_on_images_left_out(
    share: float, refused: bool, mapping: EmbeddingMap, stored: np.ndarray, tmp_path: Path
) -> None:
    assert mapping.held_out is not None and mapping.images == 1024
    poor = replace(mapping, images=64, held_out=replace(mapping.held_out, explained_change=share))
    np.save(tmp_path / "old.npy", stored)
    if refused:
        wanted = {-0.56: 512, 0.79: 96}[share]
        with pytest.raises(
            clipedit.VectorError, match=f"reproduces {share:.2f} .* at least 0.8 .* About {wanted} images"
        ):
            clipedit.reindex_vectors(poor, tmp_path / "old.npy", tmp_path / "new.npy")
        assert clipedit.reindex_vectors(poor, tmp_path / "old.npy", tmp_path / "new.npy", force=True) == 64
        return
    with pytest.warns(UserWarning, match="64 images are few") if share < 0.95 else nullcontext():
        clipedit.reindex_vectors(poor, tmp_path / "old.npy", tmp_path / "new.npy")
