"""Cutting at the shifted threshold lets the same share of pairs pass."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import clipedit
from clipedit.editor.images.demo import demo_calibration_source
from clipedit.editor.measure.thresholds import compute_threshold_shift, format_threshold_shift
from clipedit.export.edited_folder import write_edited_model
from clipedit.export.verify.reference import load_reference

pytestmark = pytest.mark.usefixtures("verified_here")

GENERATOR = torch.Generator().manual_seed(0)
IMAGES, EDITED, TEXTS = (torch.randn(n, 16, generator=GENERATOR) for n in (60, 60, 40))


def test_the_shifted_threshold_passes_the_same_share_of_pairs() -> None:
    rows = compute_threshold_shift(IMAGES, EDITED * 3, TEXTS, TEXTS)
    assert [row.pairs for row in rows] == ["image and text"] * 4 + ["image and image"] * 4
    for row in rows:
        others = TEXTS if row.pairs == "image and text" else None
        shares = []
        for images, cut in ((IMAGES, row.before), (EDITED, row.after)):
            cosines = torch.nn.functional.cosine_similarity(
                images[:, None], images if others is None else others, dim=-1
            )
            kept = cosines.flatten() if others is not None else cosines[~torch.eye(60, dtype=torch.bool)]
            shares.append(float((kept.double() < cut).double().mean()))
        assert shares == pytest.approx([row.quantile] * 2, abs=0.005)


def test_an_edit_that_only_scales_shifts_nothing() -> None:
    for row in compute_threshold_shift(IMAGES, IMAGES * 2, TEXTS, TEXTS):
        assert row.before == pytest.approx(row.after, abs=1e-12)


def test_the_table_has_a_row_a_quantile() -> None:
    text = format_threshold_shift(compute_threshold_shift(IMAGES, EDITED, TEXTS, TEXTS, quantiles=(0.5,)))
    assert text.splitlines()[0].startswith("| pairs | share below |") and len(text.splitlines()) == 4


def test_without_pairs_there_is_no_threshold() -> None:
    with pytest.raises(clipedit.VectorError, match="1 images and 40 texts make no pairs"):
        compute_threshold_shift(IMAGES[:1], EDITED[:1], TEXTS, TEXTS)


def test_the_model_card_has_the_table_also_when_the_base_is_no_longer_at_hand(
    demo_model: clipedit.Model, tmp_path: Path
) -> None:
    scanned = clipedit.scan(demo_model, demo_calibration_source(64))
    recipe = clipedit.make_recipe(scanned, demo_model, concept="location")
    write_edited_model(recipe, demo_model, tmp_path / "edited")
    clipedit.export_model(clipedit.load_model(str(tmp_path / "edited")), tmp_path / "out", target="open-clip")
    rows = load_reference(tmp_path / "out").threshold_shift()
    assert len(rows) == 6 and any(abs(row.before - row.after) > 0.01 for row in rows)
    assert format_threshold_shift(rows) in (tmp_path / "out" / "README.md").read_text()
    clipedit.export_model(demo_model, tmp_path / "plain", target="open-clip")
    assert "Thresholds on cosines move" not in (tmp_path / "plain" / "README.md").read_text()
