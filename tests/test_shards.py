"""Shards: tars, Parquet and Hugging Face datasets hold the same images as a folder, and give the same statistics."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import clipedit
from clipedit.editor.files.locations import expand_range
from clipedit.editor.images.demo import demo_calibration_source
from clipedit.editor.images.listing import list_images
from clipedit.editor.images.shards import list_shards
from clipedit.editor.images.units import list_units

COUNT, A_SHARD = 24, 8

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def encoded() -> list[bytes]:
    source, found = demo_calibration_source(COUNT), []
    for index in range(COUNT):
        stream = io.BytesIO()
        source.open(index).save(stream, "PNG")
        found.append(stream.getvalue())
    return found


@pytest.fixture(scope="module")
def folder(encoded: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("images")
    for index, content in enumerate(encoded):
        (found / f"{index:03d}.png").write_bytes(content)
    return found


def write_tar(path: Path, contents: list[bytes], mode: str = "w") -> None:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for index, content in enumerate(contents):
            for suffix, data in (("png", content), ("txt", b"a caption"), ("json", b"{}")):
                entry = tarfile.TarInfo(f"{index:03d}.{suffix}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))


def write_tars(out: Path, encoded: list[bytes], mode: str = "w", suffix: str = ".tar") -> None:
    for shard in range(COUNT // A_SHARD):
        write_tar(out / f"shard-{shard:03d}{suffix}", encoded[shard * A_SHARD : (shard + 1) * A_SHARD], mode)


def structs(encoded: list[bytes]) -> pa.Table:
    images = [{"bytes": content, "path": f"{index}.png"} for index, content in enumerate(encoded)]
    return pa.table({"label": list(range(len(encoded))), "image": images})


def write_parquet(out: Path, encoded: list[bytes]) -> None:
    pq.write_table(structs(encoded), out / "train-00000-of-00001.parquet", row_group_size=A_SHARD)


def write_plain_parquet(out: Path, encoded: list[bytes]) -> None:
    half = COUNT // 2
    for name, part in (("0", encoded[:half]), ("1", encoded[half:])):
        table = pa.table({"jpg": part, "__key__": [f"key{i}" for i in range(half)], "embedding": part})
        pq.write_table(table, out / f"{name}.parquet", row_group_size=4)


def write_dataset(out: Path, encoded: list[bytes]) -> None:
    """As `datasets.save_to_disk` leaves it."""
    half = COUNT // 2
    for number, part in enumerate((encoded[:half], encoded[half:])):
        table = structs(part)
        path = str(out / f"data-0000{number}-of-00002.arrow")
        with pa.OSFile(path, "wb") as stream, pa.ipc.new_stream(stream, table.schema) as writer:
            writer.write_table(table, max_chunksize=5)
    (out / "cache-0123.arrow").write_bytes(b"results of map()")
    (out / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00002.arrow"}]}))
    (out / "dataset_info.json").write_text("{}")


def write_arrow_file(out: Path, encoded: list[bytes]) -> None:
    table = structs(encoded)
    with pa.OSFile(str(out / "images.arrow"), "wb") as stream, pa.ipc.new_file(stream, table.schema) as writer:
        writer.write_table(table)


WRITERS: dict[str, tuple[Callable[[Path, list[bytes]], None], int]] = {
    "tar": (write_tars, 3),
    "tar.gz": (lambda out, encoded: write_tars(out, encoded, "w:gz", ".tar.gz"), 3),
    "tar.xz": (lambda out, encoded: write_tars(out, encoded, "w:xz", ".tar.xz"), 3),
    "parquet of datasets": (write_parquet, 1),
    "parquet": (write_plain_parquet, 2),
    "datasets": (write_dataset, 2),
    "arrow file": (write_arrow_file, 1),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_shards_hold_the_images_that_a_folder_holds(
    kind: str, folder: Path, encoded: list[bytes], tmp_path: Path
) -> None:
    write, shards = WRITERS[kind]
    write(tmp_path, encoded)
    assert len(list_shards(tmp_path)) == shards
    found, expected = list_images(tmp_path), list_images(folder)
    assert len(found) == COUNT and found.stamps == expected.stamps
    for index in range(COUNT):
        assert np.array_equal(found.open(index), expected.open(index))
    assert len(set(found.names)) == COUNT
    some = list_shards(tmp_path)[-1].open()
    assert np.array_equal(some.subset([3, 1]).open(1), some.open(1))


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "parquet of datasets", "datasets"])
def test_statistics_of_shards_are_those_of_the_folder(
    demo_model: clipedit.Model, kind: str, folder: Path, encoded: list[bytes], tmp_path: Path
) -> None:
    WRITERS[kind][0](tmp_path, encoded)
    options = {"layers": [3], "batch_size": 4, "unit_size": A_SHARD}
    # Forked readers share a spool's position: two of them must not disturb each other.
    found = clipedit.scan_units(demo_model, str(tmp_path), tmp_path / "parts", workers=2, **options).merge()
    expected = clipedit.scan_units(demo_model, folder, tmp_path / "expected", workers=0, **options).merge()
    assert found.statistics.n == COUNT
    for name, sums in expected.statistics.groups.items():
        assert (found.statistics.groups[name].uu - sums.uu).norm() <= 1e-9 * sums.uu.norm()
    if kind != "datasets":
        # The names of images differ, and with them their folds: the same numbers are added in another order.
        assert (found.statistics.gg - expected.statistics.gg).norm() <= 1e-12 * expected.statistics.gg.norm()


def test_parquet_is_cut_at_row_groups(encoded: list[bytes], tmp_path: Path) -> None:
    write_parquet(tmp_path, encoded)
    names = [unit.name for unit in list_units(tmp_path, A_SHARD)]
    assert names == [f"train-00000-of-00001.parquet#{i}-{i}" for i in range(3)]
    assert [unit.images for unit in list_units(tmp_path, 2 * A_SHARD)] == [2 * A_SHARD, A_SHARD]
    assert [unit.images for unit in list_units(tmp_path, 1)] == [A_SHARD] * 3
    assert len(list_units(tmp_path, 0)) == 1 and list_units(tmp_path, 0)[0].images == COUNT


@pytest.mark.parametrize("pattern", ["shard-{000..002}.tar", "shard-*.tar", "."])
def test_shards_are_named_by_folders_globs_and_ranges(pattern: str, encoded: list[bytes], tmp_path: Path) -> None:
    write_tars(tmp_path, encoded)
    assert [unit.name for unit in list_shards(f"{tmp_path}/{pattern}")] == [f"shard-00{i}.tar" for i in range(3)]
    assert len(list_shards([tmp_path / "shard-000.tar", tmp_path / "shard-002.tar"])) == 2


def test_shards_behind_a_uri_are_read(encoded: list[bytes], tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    write_tars(tmp_path, encoded)
    write_parquet(tmp_path, encoded)
    for path in tmp_path.iterdir():
        memory.pipe(f"/bucket/{path.suffix[1:]}/{path.name}", path.read_bytes())
    for index, content in enumerate(encoded):
        memory.pipe(f"/bucket/png/{index:03d}.png", content)
    for kind, shards in (("tar", 3), ("parquet", 1), ("png", 0)):
        uri = f"memory://bucket/{kind}"
        assert len(list_shards(uri)) == shards
        found = list_images(uri)
        assert len(found) == COUNT and np.array_equal(found.open(9), Image.open(io.BytesIO(encoded[9])))
    assert [unit.name for unit in list_shards("memory://bucket/tar/shard-{000..001}.tar")] == [
        "shard-000.tar",
        "shard-001.tar",
    ]
    assert [unit.name for unit in list_shards("memory://bucket/tar/*2.tar")] == ["shard-002.tar"]
    assert np.array_equal(list_images("memory://bucket/png").subset([5]).open(0), Image.open(io.BytesIO(encoded[5])))


def cut(path: Path, encoded: list[bytes]) -> None:
    write_tar(path / "a.tar", encoded)
    (path / "a.tar").write_bytes((path / "a.tar").read_bytes()[:20_000])


def no_tar(path: Path, encoded: list[bytes]) -> None:
    (path / "a.tar").write_bytes(b"nothing of the kind" * 100)


def cut_gz(path: Path, encoded: list[bytes]) -> None:
    write_tar(path / "b.tar", encoded)
    (path / "a.tar.gz").write_bytes(gzip.compress((path / "b.tar").read_bytes())[:9_000])
    (path / "b.tar").unlink()


def no_images(path: Path, encoded: list[bytes]) -> None:
    with tarfile.open(path / "a.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("text.txt"))


def sparse(path: Path, encoded: list[bytes]) -> None:
    with tarfile.open(path / "a.tar", "w") as tar:
        entry = tarfile.TarInfo("1.png")
        entry.type = tarfile.GNUTYPE_SPARSE
        tar.addfile(entry)


def no_parquet(path: Path, encoded: list[bytes]) -> None:
    (path / "a.parquet").write_bytes(b"PAR1 and nothing else")


def no_column(path: Path, encoded: list[bytes]) -> None:
    pq.write_table(pa.table({"a": encoded, "b": encoded, "text": ["x"] * COUNT}), path / "a.parquet")


def no_arrow(path: Path, encoded: list[bytes]) -> None:
    (path / "a.arrow").write_bytes(b"\0" * 100)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (cut, r"cannot read .*a\.tar: .*etch it again"),
        (no_tar, r"cannot read .*a\.tar: .*etch it again"),
        (cut_gz, r"cannot read .*a\.tar\.gz: .*etch it again"),
        (no_images, r"cannot read images from .*a\.tar: it holds none"),
        (sparse, r"cannot read images from .*a\.tar: it holds none"),
        (no_parquet, r"cannot read .*a\.parquet: .*etch it again"),
        (no_column, r"2 of its columns a, b, text hold bytes, one called image, .* is needed"),
        (no_arrow, r"cannot read .*a\.arrow: "),
    ],
)
def test_a_damaged_shard_is_refused_by_name(
    spoil: Callable[[Path, list[bytes]], None], told: str, encoded: list[bytes], tmp_path: Path
) -> None:
    spoil(tmp_path, encoded)
    with pytest.raises(clipedit.ImageError, match=told):
        list_images(tmp_path)


def test_a_missing_shard_of_a_range_is_named(encoded: list[bytes], tmp_path: Path) -> None:
    write_tars(tmp_path, encoded)
    with pytest.raises(clipedit.ImageError, match=r"cannot read .*shard-003\.tar: no such file. Correct the range"):
        list_shards(f"{tmp_path}/shard-{{000..003}}.tar")
    with pytest.raises(clipedit.ImageError, match="its range has -1 numbers"):
        expand_range("a-{3..1}.tar")
    assert expand_range("a{08..10}-{1..2}") == ["a08-1", "a08-2", "a09-1", "a09-2", "a10-1", "a10-2"]
    with pytest.raises(clipedit.ImageError, match=r"cannot read nowhere://x: .*nowhere"):
        list_images("nowhere://x")


def test_rows_without_an_image_are_skipped_and_named(
    demo_model: clipedit.Model, encoded: list[bytes], tmp_path: Path
) -> None:
    (tmp_path / "beside.png").write_bytes(encoded[1])
    rows = [
        {"bytes": encoded[0], "path": "0.png"},
        {"bytes": None, "path": "beside.png"},
        {"bytes": None, "path": "../outside.png"},
        {"bytes": b"no image", "path": "3.png"},
        None,
    ]
    pq.write_table(
        pa.table({"image": pa.array(rows, structs(encoded).schema.field("image").type)}), tmp_path / "a.parquet"
    )
    (tmp_path.parent / "outside.png").write_bytes(encoded[2])
    scan = clipedit.scan(demo_model, tmp_path / "a.parquet", layers=[3], max_bad=1.0)
    assert scan.statistics.n == 2
    assert [name for name, _ in scan.bad] == ["a.parquet#0/2:../outside.png", "a.parquet#0/3:3.png", "a.parquet#0/4"]
    assert "it has 0 bytes" in scan.bad[0][1]
