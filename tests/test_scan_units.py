"""Scans in units: interrupted anywhere, resumed, sharded and merged in any order, the statistics have the same bits."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

import clipedit
from clipedit.editor.images.demo import demo_calibration_source
from clipedit.editor.images.source import ImageSource
from clipedit.editor.images.units import WorkUnit, list_units
from clipedit.editor.scan import partials
from clipedit.editor.scan.by_units import Partials
from clipedit.editor.scan.partials import partial_path, remove_partials

IMAGES, UNIT = 40, 10

pytestmark = pytest.mark.usefixtures("one_thread")


class StopError(Exception):
    pass


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    source = demo_calibration_source(IMAGES)
    for index in range(IMAGES):
        source.open(index).save(folder / f"{index:02d}.png")
    return folder


@pytest.fixture(scope="module")
def reference(demo_model: clipedit.Model, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of an uninterrupted scan."""
    folder = tmp_path_factory.mktemp("reference")
    scan_some(demo_model, photos, folder / "parts").merge().save(folder / "scan")
    return (folder / "scan").read_bytes()


def scan_some(model: clipedit.Model, images: Path | ImageSource, folder: Path, **options: object) -> Partials:
    chosen = {"unit_size": UNIT, "batch_size": 4, "layers": [3], "workers": 0, **options}
    return clipedit.scan_units(model, images, folder, **chosen)  # type: ignore[arg-type]


def bytes_of(scan: clipedit.Scan, folder: Path) -> bytes:
    scan.save(folder / "merged")
    return (folder / "merged").read_bytes()


@pytest.mark.parametrize("case", [((1,), 0), ((10,), 0), ((11, 24), 3), ((40,), 3), ((4, 4, 4, 4, 4), 0)])
def test_a_scan_interrupted_anywhere_gives_the_same_bytes(
    demo_model: clipedit.Model, photos: Path, tmp_path: Path, reference: bytes, case: tuple[tuple[int, ...], int]
) -> None:
    stops, finished = case
    for stop in stops:

        def interrupt(done: int, total: int, stop: int = stop) -> None:
            if done >= stop:
                raise StopError

        with pytest.raises(StopError):
            scan_some(demo_model, photos, tmp_path / "parts", progress=interrupt)
    said: list[str] = []
    found = scan_some(demo_model, photos, tmp_path / "parts", say=said.append)
    assert not found.missing and bytes_of(found.merge(), tmp_path) == reference
    assert said == ([f"resuming: {finished} of 4 units are done"] if finished else [])
    found.remove()
    assert not (tmp_path / "parts").exists()


def test_only_missing_units_are_computed(demo_model: clipedit.Model, photos: Path, tmp_path: Path) -> None:
    found = scan_some(demo_model, photos, tmp_path / "parts")
    found.files[2].unlink()
    seen: list[int] = []
    again = scan_some(demo_model, photos, tmp_path / "parts", progress=lambda done, total: seen.append(total))
    assert seen and set(seen) == {UNIT} and again.files == found.files


def test_shards_merged_in_any_order_give_the_same_bytes(
    demo_model: clipedit.Model, photos: Path, tmp_path: Path, reference: bytes
) -> None:
    for index in (2, 0, 1):
        part = scan_some(demo_model, photos, tmp_path / f"shard{index}", shard=(index, 3))
        assert len(part.files) + len(part.missing) == 4
    files = [path for index in (1, 2, 0) for path in sorted((tmp_path / f"shard{index}").iterdir(), reverse=True)]
    assert bytes_of(clipedit.merge_partials(files), tmp_path) == reference
    folders = [tmp_path / f"shard{index}" for index in (2, 1, 0)]
    assert bytes_of(clipedit.merge_partials(folders), tmp_path) == reference
    with pytest.raises(clipedit.StatisticsError, match="3 of 4 units are there. Run `clipedit scan` again"):
        clipedit.merge_partials(files[1:])
    assert clipedit.merge_partials(files[1:], allow_missing=True).statistics.n == 30
    with pytest.raises(clipedit.StatisticsError, match="unit 000000010-000000019 is there twice"):
        clipedit.merge_partials([*files, tmp_path / "shard1"])


def test_groups_are_summed_to_the_same_bytes_by_any_number_of_threads(
    demo_model: clipedit.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = scan_some(demo_model, demo_calibration_source(22), tmp_path / "parts", unit_size=2)
    monkeypatch.setattr(partials, "GROUP", 2)
    tree = None
    for start in range(0, 11, 2):
        one, *other = (clipedit.load_scan(path).folds for path in found.files[start : start + 2])
        node = tuple(a + b for a, b in zip(one, other[0], strict=True)) if other else one
        tree = node if tree is None else tuple(a + b for a, b in zip(tree, node, strict=True))
    for threads in (1, 2, 3, 8):
        monkeypatch.setattr(partials, "MAX_THREADS", threads)
        monkeypatch.setattr(partials.os, "cpu_count", lambda: 8)
        merged = found.merge()
        assert tree is not None and merged.statistics.n == sum(fold.n for fold in tree) == 22
        for fold, wanted in zip(merged.folds, tree, strict=True):
            assert torch.equal(fold.gg, wanted.gg)
            assert torch.equal(fold.groups["L3.heads"].ug, wanted.groups["L3.heads"].ug)
    # What is wrong in a partial's numbers is found by the thread that reads it.
    damaged = clipedit.load_scan(found.files[7])
    damaged.folds[0].gg[0, 0] = float("nan")
    damaged.save(found.files[7])
    with pytest.raises(clipedit.StatisticsError, match=found.files[7].name):
        found.merge()


def test_sums_so_large_that_their_own_sum_is_infinite_are_read(demo_model: clipedit.Model, tmp_path: Path) -> None:
    scanned = clipedit.scan(demo_model, demo_calibration_source(8), layers=[3])
    for value, good in ((1.7e308, True), (float("inf"), False), (float("nan"), False)):
        gg = torch.full_like(scanned.statistics.gg, value)
        dataclasses.replace(scanned, folds=(dataclasses.replace(scanned.statistics, gg=gg),)).save(tmp_path / "scan")
        if good:
            assert torch.equal(clipedit.load_scan(tmp_path / "scan").statistics.gg, gg)
        else:
            with pytest.raises(clipedit.StatisticsError, match="its sums are no finite numbers"):
                clipedit.load_scan(tmp_path / "scan")


def test_units_add_up_to_one_pass(demo_model: clipedit.Model, photos: Path, tmp_path: Path, reference: bytes) -> None:
    (tmp_path / "scan").write_bytes(reference)
    merged = clipedit.load_scan(tmp_path / "scan")
    whole = clipedit.scan(demo_model, photos, layers=[3], batch_size=16)
    assert merged.statistics.n == whole.statistics.n == IMAGES and merged.unit is None
    pairs = [(merged.statistics.gg, whole.statistics.gg)]
    for name, sums in whole.statistics.groups.items():
        pairs += [
            (getattr(merged.statistics.groups[name], part), getattr(sums, part)) for part in ("uu", "ug", "u", "v")
        ]
    for found, expected in pairs:
        assert (found - expected).norm() <= 1e-5 * expected.norm()
    assert (tmp_path / "scan").stat().st_size == pytest.approx(len(bytes_of(whole, tmp_path)), abs=200)


def test_one_unit_is_one_pass(demo_model: clipedit.Model, photos: Path, tmp_path: Path) -> None:
    one = scan_some(demo_model, photos, tmp_path / "parts", unit_size=0).merge()
    whole = clipedit.scan(demo_model, photos, layers=[3], batch_size=4)
    assert bytes_of(one, tmp_path) == bytes_of(whole, tmp_path)


def test_a_partial_of_other_settings_is_refused(demo_model: clipedit.Model, photos: Path, tmp_path: Path) -> None:
    scan_some(demo_model, photos, tmp_path / "parts", shard=(0, 4))
    for options, told in (
        ({"batch_size": 8}, "has batch_size 4, not 8"),
        ({"layers": [2, 3]}, r"has layers \[3\], not \[2, 3\]"),
        ({"unit_size": 20}, "is of other images, or of units of another size"),
    ):
        with pytest.raises(clipedit.StatisticsError, match=f"cannot resume in .*{told}.*--no-resume"):
            scan_some(demo_model, photos, tmp_path / "parts", **options)
    edited = demo_model.with_tensors({"visual.proj": demo_model.module.visual.proj * 2})
    with pytest.raises(clipedit.StatisticsError, match="has weights_hash [0-9a-f]{12}, not"):
        scan_some(edited, photos, tmp_path / "parts")
    assert len(scan_some(demo_model, photos, tmp_path / "parts", resume=False, batch_size=8).files) == 4
    other = scan_some(demo_model, photos, tmp_path / "other", shard=(0, 4))
    with pytest.raises(clipedit.StatisticsError, match="cannot merge .* with .*: it has batch_size"):
        clipedit.merge_partials([tmp_path / "parts", *other.files])


def test_changed_and_damaged_units_are_computed_again(
    demo_model: clipedit.Model, photos: Path, tmp_path: Path, reference: bytes
) -> None:
    images, said = tmp_path / "in", []
    shutil.copytree(photos, images)
    found = scan_some(demo_model, images, tmp_path / "parts")
    found.files[0].write_bytes(found.files[0].read_bytes()[:-100])
    shutil.copy(images / "00.png", images / "10.png")
    again = scan_some(demo_model, images, tmp_path / "parts", say=said.append)
    assert said[:2] == [
        "1 units are computed again, such as 000000000-000000009: the partial scan is damaged",
        "1 units are computed again, such as 000000010-000000019: the images changed",
    ]
    assert said[2] == "resuming: 2 of 4 units are done"
    assert bytes_of(again.merge(), tmp_path) != reference
    fresh = scan_some(demo_model, images, tmp_path / "fresh").merge()
    assert bytes_of(again.merge(), tmp_path) == bytes_of(fresh, tmp_path)


def test_a_unit_that_found_its_images_unreadable_is_read_again(
    demo_model: clipedit.Model, photos: Path, tmp_path: Path, reference: bytes
) -> None:
    images = tmp_path / "in"
    shutil.copytree(photos, images)
    lost = {path: path.read_bytes() for path in sorted(images.iterdir())[UNIT : 2 * UNIT]}
    for path, content in lost.items():
        path.write_bytes(b"\0" * len(content))
    with pytest.raises(clipedit.ImageError, match="cannot go on: 4 of 40 images cannot be read"):
        scan_some(demo_model, images, tmp_path / "parts")
    assert scan_some(demo_model, images, tmp_path / "parts", max_bad=1.0).merge(max_bad=1.0).statistics.n == 30
    with pytest.raises(clipedit.ImageError, match="cannot go on: 10 of 40 images"):
        scan_some(demo_model, images, tmp_path / "parts", max_bad=1.0).merge(max_bad=0.1)
    for path, content in lost.items():
        path.write_bytes(content)
    assert bytes_of(scan_some(demo_model, images, tmp_path / "parts").merge(), tmp_path) == reference


def test_a_unit_that_cannot_be_opened_does_not_stop_the_others(
    demo_model: clipedit.Model, photos: Path, tmp_path: Path, reference: bytes
) -> None:
    units = list_units(photos, UNIT)

    def dead() -> ImageSource:
        raise clipedit.ImageError("cannot read 1.tar: it is cut off.")

    broken = [dataclasses.replace(unit, open=dead) if index == 1 else unit for index, unit in enumerate(units)]
    found = scan_some(demo_model, broken, tmp_path / "parts")  # type: ignore[arg-type]
    assert found.missing == (units[1].name,) and found.failed == {units[1].name: "cannot read 1.tar: it is cut off."}
    with pytest.raises(clipedit.StatisticsError, match="3 of 4 units are there"):
        found.merge()
    assert bytes_of(scan_some(demo_model, units, tmp_path / "parts").merge(), tmp_path) == reference  # type: ignore[arg-type]


def test_many_bad_images_are_counted_but_not_all_named(
    demo_model: clipedit.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipedit.editor.scan.partials.MAX_NAMED_BAD", 3)
    source = demo_calibration_source(12)

    def open_even(index: int) -> object:
        if index % 2:
            raise clipedit.ImageError(f"cannot read {index}.")
        return source.open(index)

    half = ImageSource(source.names, open_even)  # type: ignore[arg-type]
    merged = scan_some(demo_model, half, tmp_path / "parts", unit_size=4, max_bad=0.5).merge(max_bad=0.5)
    assert (len(merged.bad), merged.more_bad, merged.statistics.n) == (3, 3, 6)
    merged.save(tmp_path / "scan")
    assert clipedit.load_scan(tmp_path / "scan").more_bad == 3
    assert merged.merge(dataclasses.replace(merged, fingerprint="0" * 64)).more_bad == 6


def test_removing_partials_leaves_other_files(demo_model: clipedit.Model, photos: Path, tmp_path: Path) -> None:
    found = scan_some(demo_model, photos, tmp_path / "parts")
    (tmp_path / "parts" / "notes.txt").write_text("mine")
    (tmp_path / "parts" / f".{found.files[0].name}.partial-1").write_bytes(b"half")
    remove_partials(tmp_path / "parts")
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["notes.txt"]


def test_scans_of_one_pass_merge_in_any_order(demo_model: clipedit.Model, tmp_path: Path) -> None:
    source = demo_calibration_source(24)
    for name, part in (("a", range(8)), ("b", range(8, 24))):
        clipedit.scan(demo_model, source.subset(part), layers=[3]).save(tmp_path / name)
    both = [clipedit.merge_partials([tmp_path / x, tmp_path / y]) for x, y in ("ab", "ba")]
    assert bytes_of(both[0], tmp_path) == bytes_of(both[1], tmp_path) and both[0].statistics.n == 24
    with pytest.raises(clipedit.StatisticsError, match="its images are in another one too"):
        clipedit.merge_partials([tmp_path / "a", tmp_path / "a"])
    partial = scan_some(demo_model, source, tmp_path / "parts")
    with pytest.raises(clipedit.StatisticsError, match="cannot merge partial scans with scans of one pass"):
        clipedit.merge_partials([tmp_path / "a", *partial.files])


def test_a_shard_that_does_not_exist_is_refused(demo_model: clipedit.Model, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(clipedit.ImageError, match="cannot scan shard 4/4: shards of 4 are 0/4 to 3/4"):
        scan_some(demo_model, photos, tmp_path / "parts", shard=(4, 4))
    with pytest.raises(clipedit.ImageError, match="cannot cut images into units of -1"):
        list_units(photos, -1)


def test_units_with_one_name_are_refused(demo_model: clipedit.Model, photos: Path, tmp_path: Path) -> None:
    unit = list_units(photos, UNIT)[0]
    with pytest.raises(clipedit.ImageError, match="two of them have one name"):
        scan_some(demo_model, [unit, unit], tmp_path / "parts")  # type: ignore[arg-type]


def test_names_with_odd_characters_have_files_of_their_own(tmp_path: Path) -> None:
    names = ["a/b.tar", "a_b.tar", "../a.tar", ".hidden", "ä" * 300]
    paths = [partial_path(tmp_path, name) for name in names]
    assert len(set(paths)) == len(names)
    assert all(path.parent == tmp_path and not path.name.startswith(".") and len(path.name) < 120 for path in paths)


def test_large_sources_are_cut_without_being_asked() -> None:
    few, many = (ImageSource(tuple(map(str, range(n))), lambda index: None) for n in (16_384, 16_385))  # type: ignore[arg-type]
    assert len(list_units(few)) == 1 and len(list_units(few, 1_000)) == 17
    assert [unit.images for unit in list_units(many)] == [8_192, 8_192, 1]
    assert isinstance(list_units(many)[0], WorkUnit) and list_units(many)[0].open().names[:2] == ("0", "1")


def test_the_command_line_scans_in_units_and_shards(run, photos: Path, tmp_path: Path, reference: bytes) -> None:  # type: ignore[no-untyped-def]
    common = ["--layers", "3", "--batch-size", "4", "--unit-size", UNIT, "--workers", "0"]
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    code, _, told = run("scan", photos, "-o", whole, *common)
    assert code == 0 and f"wrote {whole}: 40 items of 4 units, layers 3-3" in told
    assert whole.read_bytes() == reference and not Path(f"{whole}.partials").exists()
    for shard in ("1/2", "0/2"):
        code, _, told = run("scan", photos, "-o", parts, *common, "--shard", shard)
        assert code == 0 and f"wrote shard {shard} to {parts}.partials" in told
        assert f"clipedit merge {parts}.partials -o {parts}" in told
    code, _, told = run("merge", f"{parts}.partials", "-o", parts)
    assert code == 0 and "40 images" in told and parts.read_bytes() == reference
    code, _, told = run("merge", f"{parts}.partials", "-o", parts)
    assert code == 1 and "it exists" in told
    assert run("scan", photos, "-o", tmp_path / "x", *common, "--shard", "2/2")[0] == 2
    code, _, told = run("scan", photos, "-o", tmp_path / "x", *common, "--keep-features")
    assert code == 2 and "needs one pass here" in told


@pytest.mark.parametrize("workers", [0, 2])
def test_readers_do_not_change_the_bytes(
    demo_model: clipedit.Model, photos: Path, tmp_path: Path, reference: bytes, workers: int
) -> None:
    found = scan_some(demo_model, photos, tmp_path / "parts", workers=workers)
    assert bytes_of(found.merge(), tmp_path) == reference
    assert torch.get_num_threads() == clipedit.load_scan(found.files[0]).unit["threads"]  # type: ignore[index]
