"""Heatmaps fall where they should, and on the right pixels of the original image."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

import clipedit
from clipedit.demo import world
from clipedit.editor.concepts.queries import encode_contrast, require_text_fits
from clipedit.editor.look.pictures import AWAY, STRONGEST, TOWARDS, draw_overlay, draw_sheet, tint
from clipedit.editor.look.spatial import compute_token_shares, heatmap
from clipedit.editor.look.view import View, find_view


def positive_mass_on_objects(model: clipedit.Model, scenes: list[world.Scene], texts: list[str]) -> float:
    """Share of the positive mass of each scene's own heatmap that falls on its object, averaged."""
    shares = []
    for scene, text in zip(scenes, texts, strict=True):
        found = heatmap(model, Image.fromarray(world.render(scene)), text=text)
        mass = found.values.clip(0)
        shares.append((mass * world.render_mask(scene)).sum() / mass.sum())
    return float(np.mean(shares))


def test_shapes_are_seen_on_the_object_and_places_behind_it(demo_model: clipedit.Model) -> None:
    scenes = world.draw_balanced_scenes(48, seed=77)
    area = np.mean([world.render_mask(scene).mean() for scene in scenes])
    shape = positive_mass_on_objects(demo_model, scenes, [f"a photo of a {scene.shape}" for scene in scenes])
    color = positive_mass_on_objects(demo_model, scenes, [f"a {scene.color} object" for scene in scenes])
    place = positive_mass_on_objects(demo_model, scenes, [f"a photo of the {scene.place}" for scene in scenes])
    assert shape > 1.8 * area and color > 1.8 * area
    assert place < area


CONFIGS = {
    "shortest side and centre crop": {"size": 64, "resize_mode": "shortest"},
    "squashed": {"size": 64, "resize_mode": "squash"},
    "longest side and padding": {"size": 64, "resize_mode": "longest"},
    "padding in white": {"size": 64, "resize_mode": "longest", "fill_color": 255},
    "a frame that is not square": {"size": (48, 96), "resize_mode": "shortest"},
    "bilinear": {"size": 64, "interpolation": "bilinear"},
}


@pytest.mark.parametrize("size", [(64, 64), (300, 200), (90, 400), (7, 9), (1, 1), (50, 2)])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_mark_on_the_original_is_found_where_it_was(name: str, size: tuple[int, int]) -> None:
    """A white square goes through the model's preprocessing; projected back, its weight lies around the same centre."""
    preprocess = image_transform_v2(PreprocessCfg(**CONFIGS[name]), is_train=False)
    view = find_view(preprocess, size)  # type: ignore[arg-type]
    width, height = size
    image = np.zeros((height, width, 3), np.uint8)
    x, y = slice(int(width * 0.45), int(width * 0.55) + 1), slice(int(height * 0.45), int(height * 0.55) + 1)
    image[y, x] = 255
    marked, black = (preprocess(Image.fromarray(array))[1].double().numpy() for array in (image, image * 0))  # type: ignore[index,operator]
    values = np.nan_to_num(view.project((marked - black).clip(0)))
    assert values.shape == (height, width)
    for axis, wanted, step in (
        (1, (x.start + x.stop) / 2, view.right - view.left),
        (0, (y.start + y.stop) / 2, view.bottom - view.top),
    ):
        found = (values.sum(1 - axis) * (np.arange(values.shape[axis]) + 0.5)).sum() / values.sum()
        assert abs(found - wanted) < max(1.5 * step / 64, 0.3)


def test_pixels_that_the_crop_left_out_are_not_a_number() -> None:
    view = View(left=50.0, top=0.0, right=150.0, bottom=100.0, width=200, height=100)
    projected = view.project(np.arange(4.0).reshape(2, 2))
    assert np.isnan(projected[:, :50]).all() and np.isnan(projected[:, 150:]).all()
    assert not np.isnan(projected[:, 50:150]).any()
    assert projected[0, 50] == 0 and projected[-1, 149] == 3


def test_chosen_heads_give_their_own_part(demo_model: clipedit.Model) -> None:
    image = Image.fromarray(world.render(world.draw_balanced_scenes(1, seed=3)[0]))
    both = heatmap(demo_model, image, text="a circle", heads=["L3H5", "L2H1"])
    single = [heatmap(demo_model, image, text="a circle", heads=[head]) for head in ("L3H5", "L2H1")]
    assert np.allclose(both.cells, single[0].cells + single[1].cells, atol=1e-7)
    assert both.total == pytest.approx(single[0].total + single[1].total, abs=1e-6)


def test_no_array_of_tokens_heads_and_dimensions_is_made(demo_model: clipedit.Model) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            found = func(*args, **(kwargs or {}))
            largest = max(largest, found.numel() if isinstance(found, torch.Tensor) else 0)
            return found

    tower = demo_model.tower
    pixels, directions = torch.randn(4, 3, 64, 64), torch.randn(2, tower.d_embed, dtype=torch.float64)
    with Watch():
        compute_token_shares(demo_model, pixels, directions)
    # Queries, keys and values of one layer, which every forward pass makes; one layer's tokens x heads x d_embed is
    # more.
    assert largest == 3 * 4 * 65 * tower.d_model < 4 * 65 * tower.heads_per_layer[0] * tower.d_embed


def test_texts_that_would_be_cut_are_refused(demo_model: clipedit.Model) -> None:
    fits = " ".join(["red"] * 30)
    require_text_fits(demo_model, fits)
    with pytest.raises(clipedit.ConceptError, match="demo reads 32 tokens, the rest would be cut. Shorten it"):
        require_text_fits(demo_model, fits + " circle")
    with pytest.raises(clipedit.ConceptError, match="empty text"):
        heatmap(demo_model, Image.new("RGB", (64, 64)), text="  ")


def test_a_contrast_with_itself_is_nothing(demo_model: clipedit.Model) -> None:
    assert encode_contrast(demo_model, ["a circle"], ["a circle"]).norm() < 1e-6
    assert encode_contrast(demo_model, ["a circle"], []).norm() == pytest.approx(1)


@pytest.mark.parametrize("size", [(3, 2), (1, 1), (64, 64), (700, 90)])
def test_overlays_have_the_proportions_of_the_image(demo_model: clipedit.Model, size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (200, 30, 30))
    drawn = draw_overlay(image, heatmap(demo_model, image, text="a red circle"))
    assert drawn.width / drawn.height == pytest.approx(size[0] / size[1], rel=0.05)
    assert min(drawn.size) >= 90


def test_hostile_captions_are_drawn_as_text() -> None:
    sheet = draw_sheet([Image.new("RGB", (9, 9))] * 3, ["<script>", 'a "quote"\nand a line', "é" * 500], columns=2)
    assert sheet.size == (2 * 268 + 12, 2 * 292 + 12)


def test_a_long_caption_takes_two_lines_and_a_scale_a_bar() -> None:
    pictures = [Image.new("RGB", (40, 20), "red")] * 2
    plain = draw_sheet(pictures, ["one", "two"], columns=2, side=200)
    # Pictures of one proportion leave no empty band above and below.
    assert plain.size == (2 * 212 + 12, 12 + 100 + 18 + 6 + 12)
    longer = draw_sheet(pictures, ["one", "many words that do not fit into one line"], columns=2, side=200)
    assert longer.height == plain.height + 18
    ruled = np.asarray(draw_sheet(pictures, ["one", "two"], columns=2, side=200, scale=0.25))
    bar = ruled[plain.height + 6, 12 : 12 + 260].astype(int)
    # From blue through grey to red, the ends as strong as the strongest cell of a map.
    assert bar[0, 2] > bar[0, 0] + 100 and bar[-1, 0] > bar[-1, 2] + 100 and np.ptp(bar[130]) < 60


def test_a_weak_cell_keeps_its_colour_beside_a_strong_one() -> None:
    color, opacity = tint(np.array([[1.0, 0.04, -0.04, 0.0]]), 1.0)
    assert opacity[0] == pytest.approx([STRONGEST, 0.2 * STRONGEST, 0.2 * STRONGEST, 0])
    assert (color[0, 1] == TOWARDS).all() and (color[0, 2] == AWAY).all()


def test_the_heatmap_command(run, tmp_path: Path, demo_scan: clipedit.Scan) -> None:  # type: ignore[no-untyped-def]
    image, out = tmp_path / "<b>scene.png", tmp_path / "out.png"
    Image.fromarray(world.render(world.draw_balanced_scenes(1, seed=3)[0])).resize((300, 200)).save(image)
    code, printed, said = run("heatmap", image, "--text", "a circle", "--head", "L3H5", "-o", out, "--json")
    assert code == 0, said
    (drawn,) = json.loads(printed)["heatmaps"]
    assert drawn["heads"] == "L3H5" and np.shape(drawn["cells"]) == (8, 8)
    # The image and the overlay, side by side, then a caption and a colour bar.
    sheet = Image.open(out).convert("RGB")
    assert sheet.width == 2 * 524 + 12
    beside = np.asarray(sheet.crop((12, 12, 524, 12 + 341)), float)
    shown = np.asarray(Image.open(image).convert("RGB").resize((512, 341), Image.Resampling.BICUBIC), float)
    assert np.abs(beside - shown).mean() < 1
    assert "it exists" in run("heatmap", image, "--text", "a circle", "-o", out)[2]
    code, printed, said = run("heatmap", image, "--text", "a circle", "--each-head", "-o", out, "--overwrite")
    assert code == 0 and len(printed.splitlines()) == 33 and f"wrote {out}" in said
    demo_scan.save(tmp_path / "scan.safetensors")
    code, printed, said = run(
        "heatmap", image, "--head", "L3H5", "--scan", tmp_path / "scan.safetensors", "-o", out, "--overwrite"
    )
    assert code == 0 and len(printed.splitlines()) == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--text", "x", "--head", "L9H0"], "cannot look into L9H0: demo has L0H0 to L3H7"),
        (["--text", "x", "--head", "9"], "'9' is not a head: write it as L22H5"),
        (["--text", "word " * 99], "the rest would be cut. Shorten it."),
        ([], "Add --text, or --scan and one --head"),
        (["--text", ""], "cannot use an empty text"),
    ],
)
def test_the_heatmap_command_refuses(run, tmp_path: Path, options: list[str], message: str) -> None:  # type: ignore[no-untyped-def]
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    code, _, said = run("heatmap", tmp_path / "a.png", *options, "-o", tmp_path / "out.png")
    assert code == 1 and message in said and said.startswith("error: ")
    assert not (tmp_path / "out.png").exists()
