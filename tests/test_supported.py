"""`clipedit models`: what the towers say, and the page of models made from it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from clipedit import ModelError, cli
from clipedit.editor.models.supported import describe_models, render_markdown

ROOT = Path(__file__).resolve().parents[1]


def test_the_tables_of_the_page_are_what_the_towers_say() -> None:
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    block = page.split("<!-- clipedit models --markdown -->\n")[1].split("<!-- end -->")[0]
    rows = describe_models()
    assert block == render_markdown(rows)
    assert all((row.tower is None) == bool(row.reason) == (not row.heads_per_layer) for row in rows)
    assert all("direct" in row.effects for row in rows if row.tower)


def test_a_pattern_names_models_of_both_libraries(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = run(["swin_base_patch4_window7_224", "RN50", "--json"], capsys, monkeypatch)
    assert [(row["library"], row["tower"]) for row in json.loads(rows)] == [
        ("open_clip", "timm Swin"),
        ("timm", "timm Swin"),
        ("open_clip", None),
    ]
    assert json.loads(rows)[0]["heads_per_layer"] == [4] * 2 + [8] * 2 + [16] * 18 + [32] * 2
    assert "ModifiedResNet is convolutional" in json.loads(rows)[2]["reason"]


def run(arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "argv", ["clipedit", "models", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ModelError, match="cannot find a model named 'swin_basic'.*Did you mean"):
        describe_models(["swin_basic"])
