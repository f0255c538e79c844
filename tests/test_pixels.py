"""Pixels as cameras and instruments write them: turned by EXIF, in floating point, in 32 bits."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps

import clipedit
from clipedit.editor.choices import Exif
from clipedit.editor.edits.document import RecipeDocument, Step
from clipedit.editor.images.decode import Decoding, open_image
from clipedit.editor.images.listing import list_images
from clipedit.editor.images.source import join_sources
from clipedit.export.inputs import follow_nothing, load_erased, load_evidence
from clipedit.export.judge import Made, _find_seen

pytestmark = pytest.mark.usefixtures("one_thread")
UPRIGHT = np.arange(12 * 20, dtype=np.uint8).reshape(12, 20)


def save_turned(path: Path, orientation: int, kind: str = "PNG", picture: Image.Image | None = None) -> bytes:
    """A picture stored so that a viewer, by its EXIF, shows it upright."""
    upright = Image.fromarray(UPRIGHT) if picture is None else picture
    # What turns the upright picture to the stored one is undone by the orientation.
    undo = {6: 8, 8: 6}.get(orientation, orientation)
    exif = Image.Exif()
    exif[0x0112] = undo
    stored = ImageOps.exif_transpose(_with_exif(upright, exif))
    exif[0x0112] = orientation
    stream = io.BytesIO()
    stored.save(stream, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    path.write_bytes(stream.getvalue())
    return stream.getvalue()


def _with_exif(picture: Image.Image, exif: Image.Exif) -> Image.Image:
    stream = io.BytesIO()
    picture.save(stream, "PNG", exif=exif)
    return Image.open(stream)


def grey(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("L"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_read_upright_and_as_stored_where_that_is_asked_for(orientation: int, tmp_path: Path) -> None:
    save_turned(tmp_path / "a.png", orientation)
    assert np.array_equal(grey(open_image(tmp_path / "a.png")), UPRIGHT)
    # As open_clip's users open it.
    stored = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    assert np.array_equal(np.asarray(open_image(tmp_path / "a.png", Decoding("ignore"))), stored)
    assert (stored.shape[:2] != UPRIGHT.shape) == (orientation > 4)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_every_format_with_exif_is_turned(kind: str, tmp_path: Path) -> None:
    save_turned(tmp_path / "a.jpg", 6, kind)
    found = grey(open_image(tmp_path / "a.jpg")).astype(int)
    assert found.shape == UPRIGHT.shape and np.abs(found - UPRIGHT).mean() < (60 if kind == "JPEG" else 1.01)


def test_damaged_exif_is_no_reason_to_refuse_a_picture(tmp_path: Path) -> None:
    Image.fromarray(UPRIGHT).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\xff" * 40)
    assert open_image(tmp_path / "a.jpg").size == (20, 12)


def test_every_kind_of_source_is_read_as_it_is_asked_for(tmp_path: Path) -> None:
    content = save_turned(tmp_path / "a.png", 6)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "a.png", "a.png")
    pq.write_table(pa.table({"image": [content]}), tmp_path / "a.parquet")
    (tmp_path / "t.csv").write_text("path\na.png\n")
    sources = [list_images(tmp_path / name) for name in ("a.png", "a.tar", "a.parquet", "t.csv")]
    joined = join_sources(sources)
    for source in (*sources, joined, joined.subset([3, 1])):
        assert source.open(0).size == (20, 12) and source.read_as(Decoding("ignore")).open(0).size == (12, 20)
        assert source.read_as(Decoding("ignore")).fingerprint() == source.fingerprint()


@pytest.fixture
def photos(tmp_path: Path) -> tuple[Path, Path]:
    """The same pictures, upright, and stored sideways with EXIF."""
    for folder in ("upright", "turned"):
        (tmp_path / folder).mkdir()
    for index in range(6):
        pixels = np.random.default_rng(index).integers(0, 255, (4, 6, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC)
        picture.save(tmp_path / "upright" / f"{index}.png")
        save_turned(tmp_path / "turned" / f"{index}.png", 6, picture=picture)
    return tmp_path / "upright", tmp_path / "turned"


def test_a_scan_turns_photos_and_says_so(demo_model: clipedit.Model, photos: tuple[Path, Path], tmp_path: Path) -> None:
    upright, turned = photos

    def read(folder: Path, exif: Exif) -> clipedit.Scan:
        clipedit.scan(demo_model, folder, layers=[3], exif=exif).save(tmp_path / "s.safetensors")
        return clipedit.load_scan(tmp_path / "s.safetensors")

    expected, found, ignored = read(upright, "ignore"), read(turned, "upright"), read(turned, "ignore")
    assert [scan.exif for scan in (expected, found, ignored)] == ["ignore", "upright", "ignore"]
    sums = expected.statistics.gg
    # Files of other sizes fall into other folds: the same numbers are added in another order.
    assert (found.statistics.gg - sums).norm() <= 1e-12 * sums.norm()
    assert (ignored.statistics.gg - sums).norm() > 1e-3 * sums.norm()
    with pytest.raises(clipedit.StatisticsError, match="exif is upright in one and ignore in the other"):
        found.merge(ignored)


def test_partial_scans_of_the_other_reading_are_not_gone_on_with(
    demo_model: clipedit.Model, photos: tuple[Path, Path], tmp_path: Path
) -> None:
    options = {"layers": [3], "unit_size": 3, "workers": 0}
    clipedit.scan_units(demo_model, photos[1], tmp_path / "parts", **options)
    with pytest.raises(clipedit.StatisticsError, match="exif upright, not ignore"):
        clipedit.scan_units(demo_model, photos[1], tmp_path / "parts", exif="ignore", **options)


def test_heatmaps_masks_and_commands_are_upright_unless_told(run, photos: tuple[Path, Path], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    wide = Image.effect_noise((96, 64), 60).convert("RGB")
    save_turned(tmp_path / "a.png", 6, picture=wide)
    for exif, size in ((), (96, 64)), (("--exif", "ignore"), (64, 96)):
        out = ["--text", "a circle", "--overwrite", *exif]
        assert run("heatmap", tmp_path / "a.png", "-o", tmp_path / "h.png", *out).code == 0
        with Image.open(tmp_path / "h.png") as drawn:
            # The higher of the two sides is 512 pixels; below it are a caption and a colour bar.
            assert drawn.height == round(512 * size[1] / 96) + 12 + 18 + 6 + 12 + 42
        assert run("segment", tmp_path / "a.png", "-o", tmp_path / "masks", *out).code == 0
        with Image.open(tmp_path / "masks" / "00000-a.png") as mask:
            assert mask.size == size
    code, _, said = run("scan", photos[1], "--layers", "3", "--exif", "ignore", "-o", tmp_path / "s.safetensors")
    assert code == 0 and clipedit.load_scan(tmp_path / "s.safetensors").exif == "ignore", said


@pytest.mark.parametrize(("given", "size"), [((), (96, 64)), (("--exif", "ignore"), (64, 96))])
def test_images_that_heads_are_chosen_on_are_turned_as_all_others(
    run, demo_model: clipedit.Model, tmp_path: Path, given: tuple[str, ...], size: tuple[int, int]
) -> None:  # type: ignore[no-untyped-def]
    wide = Image.effect_noise((96, 64), 60).convert("RGB")
    for index in range(10):
        save_turned(tmp_path / f"{index}.png", 6, picture=wide)
    rows = "".join(f"{index}.png,{'ab'[index % 2]}\n" for index in range(10))
    (tmp_path / "t.csv").write_text("path,label\n" + rows)
    command = ("remove-heads", "--select", "labelled-contrast", "--labelled", tmp_path / "t.csv", "-o", tmp_path / "o")
    with mock.patch("clipedit.export.repair.repair", side_effect=clipedit.RecipeError("asked")) as repair:
        assert run(*command, "--erase", "label", *given).code == 1
    choice = repair.call_args.kwargs["choice"]
    chosen = load_evidence(choice).labelled
    document = RecipeDocument.model_construct(steps=(Step.model_construct(operation="leace", along=None),))
    collect = mock.Mock(side_effect=ZeroDivisionError)
    with mock.patch("clipedit.export.inputs.collect_labelled", collect), pytest.raises(ZeroDivisionError):
        load_erased(document, demo_model, choice, follow_nothing)
    for labelled in (chosen, collect.call_args.args[1]):
        assert labelled is not None and labelled.source.open(0).size == size


def test_where_a_scan_kept_no_sample_images_are_read_again_as_it_read_them(
    demo_model: clipedit.Model, tmp_path: Path
) -> None:
    save_turned(tmp_path / "a.png", 6, picture=Image.new("RGB", (96, 64)))
    for exif, size in (("upright", (96, 64)), ("ignore", (64, 96))):
        made = mock.Mock(spec=Made, model=demo_model, scan=mock.Mock(exif=exif, decode="scaled"))
        found = _find_seen(made, None, tmp_path)
        assert found is not None and found[0].open(0).size == size


# Ranges.

GREY = np.asarray(Image.fromarray(UPRIGHT).resize((64, 48), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(
    "values",
    [
        GREY.astype(np.float32) / 255,
        GREY.astype(np.float32),
        GREY.astype(np.float32) * 257,
        GREY.astype(np.int32),
        GREY.astype(np.int32) * 257,
        GREY.astype(np.uint16) * 257,
        (GREY.astype(np.float32) / 255) * 1.003,
    ],
    ids=lambda values: f"{values.dtype} to {values.max():g}",
)
def test_tiffs_of_any_type_are_the_picture_that_8_bits_are(values: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(values).save(tmp_path / "a.tif")
    found = np.asarray(open_image(tmp_path / "a.tif")).astype(int)
    assert found.shape == (48, 64, 3) and np.abs(found - GREY[..., None].astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (GREY.astype(np.float32) * 1e4, "its values go from 0 to 2.*e.06, where 1, 255, 65535 would be white"),
        (GREY.astype(np.float32) - 100, "its values go from -100 to"),
        (np.where(GREY > 200, np.nan, GREY).astype(np.float32), "its values go from nan to nan"),
        (GREY.astype(np.int32) * 2**20, "where 255, 65535 would be white. Save it in 8 or 16 bits"),
        (GREY.astype(np.int32) - 50, "its values go from -50 to"),
    ],
)
def test_tiffs_of_an_unknown_range_are_refused(values: np.ndarray, told: str, tmp_path: Path) -> None:
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(clipedit.ImageError, match=rf"cannot read .*a\.tif: .*{told}"):
        open_image(tmp_path / "a.tif")


def test_a_16_bit_picture_is_scaled_as_ever(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 200, np.uint16)).save(tmp_path / "dark.png")
    assert np.asarray(open_image(tmp_path / "dark.png")).max() == 0
