"""The report says what was measured, shows hostile names as text, and works in a real browser without a network."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import clipedit
from clipedit.editor.images.demo import demo_calibration_source
from clipedit.editor.images.source import ImageSource
from clipedit.export.pages.head_pictures import Edit
from clipedit.export.pages.report import render_report, write_report
from clipedit.export.pages.report_figures import build_measures, describe_result

HOSTILE = '<script>alert("x")</script>\n\'"& .png'
MEASURED = {
    "before": {"overall": 0.61, "worst_group": 0.4, "group: circle / <b>ocean</b>": 0.4, "group: square / city": 0.8},
    "control": {"overall": 0.62, "worst_group": 0.45, "group: circle / <b>ocean</b>": 0.5, "group: square / city": 0.7},
    "after": {"overall": 0.7, "worst_group": 0.65, "group: circle / <b>ocean</b>": 0.65, "group: square / city": 0.75},
}
CHECKS = {
    "target": "open-clip",
    "runtime": "<i>torch</i>",
    "checks": [
        {"name": "worst cosine & more", "figure": 0.99999, "relation": ">=", "tolerance": 0.999},
        {"name": "difference", "figure": 2.0, "relation": "<=", "tolerance": 1.0},
    ],
}


class Page(HTMLParser):
    """Every tag with its attributes, and the text of the page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def edit(demo_model: clipedit.Model, demo_scan: clipedit.Scan) -> Edit:
    recipe = clipedit.make_recipe(
        demo_scan, demo_model, concept="location", heads=8, output_strength=0.9
    ).with_measured(MEASURED)
    plain = demo_calibration_source(48)
    source = ImageSource((HOSTILE, *plain.names[1:]), plain.open)
    return Edit(recipe, demo_model, clipedit.apply_recipe(recipe, demo_model), demo_scan, source)


@pytest.fixture(scope="module")
def report(edit: Edit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render_report(edit, CHECKS, tmp_path_factory.mktemp("report") / "report.html")


def test_the_page_holds_everything_itself(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    assert len(text.encode()) < 5_000_000
    page = Page(text)
    assert not {"script", "iframe", "object", "form"} & {tag for tag, _ in page.tags}
    links = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert links and all(value and value.startswith(("#", "data:")) for value in links)
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert set(re.findall(r"url\(([a-z]+)", text)) == {"data"}
    assert "default-src 'none'" in text and "prefers-color-scheme: dark" in text


def test_every_head_has_a_card_and_a_link_to_it(report: Path, edit: Edit) -> None:
    page = Page(report.read_text(encoding="utf-8"))
    cards = {attributes["id"] for tag, attributes in page.tags if tag == "article"}
    assert cards == {f"L{layer}H{head}" for layer in range(4) for head in range(8)}
    assert {attributes["href"] for tag, attributes in page.tags if "data-head" in attributes} == {
        f"#{c}" for c in cards
    }
    open_cards = [a["id"] for tag, a in page.tags if tag == "article" and a["class"] == "card edited"]
    assert sorted(map(str, open_cards)) == sorted(edit.recipe.heads)


def test_the_figures_are_those_of_the_recipe(report: Path) -> None:
    text = Page(report.read_text(encoding="utf-8")).text
    assert "The worst group went from 40% to 65% (random heads: 45%)." in text
    assert all(figure in text for figure in ("61.0 %", "62.0 %", "70.0 %", "40 → 65 %"))
    assert "8 attention heads were replaced by their mean; the texts of location were projected out" in text
    assert text.index("circle / <b>ocean</b>") < text.index("square / city")
    assert "holds" in text and "fails" in text and "worst cosine & more" in text


def test_hostile_names_and_texts_are_shown_as_text(edit: Edit, tmp_path: Path) -> None:
    document = edit.recipe.document.model_copy(update={"name": "</pre><script>1</script>", "description": HOSTILE})
    recipe = clipedit.Recipe(document, edit.recipe.tensors, edit.recipe.names)
    first = edit.source.subset([0]) if edit.source else None
    out = render_report(Edit(recipe, edit.base, edit.edited, edit.scan, first), CHECKS, tmp_path / "r.html")
    page = Page(out.read_text(encoding="utf-8"))
    assert not any(tag in ("script", "b2", "i2") for tag, _ in page.tags)
    assert "</pre><script>1</script>" in page.text
    captions = {a.get("title") for tag, a in page.tags if tag == "figcaption"}
    assert captions == {HOSTILE}


def test_an_edited_head_loses_its_heatmap(edit: Edit) -> None:
    """Of an ablated head nothing is left under `direct`; the refitted readout of `distilled` reads it less."""
    from clipedit.editor.components import HeadId
    from clipedit.editor.concepts.queries import encode_queries
    from clipedit.editor.look.spatial import compute_seen
    from clipedit.export.pages.head_pictures import _project_edited

    heads = [HeadId.parse(head) for head in edit.recipe.heads]
    texts = {head: encode_queries(edit.base, ["a photo of the ocean"]) for head in heads}
    document = edit.recipe.document.model_copy(update={"effect": "direct"})
    direct = replace(edit, recipe=clipedit.Recipe(document, edit.recipe.tensors))
    assert all(query.norm() < 1e-9 for query in _project_edited(direct, texts).values())
    after = _project_edited(edit, texts)
    before = {head: compute_seen(edit.base, text, [head])[head.layer][head.head] for head, text in texts.items()}
    assert sum(float(after[head].norm()) for head in heads) < 0.7 * sum(float(before[head].norm()) for head in heads)


def test_a_report_without_scan_and_figures_says_what_it_can(edit: Edit, tmp_path: Path) -> None:
    document = edit.recipe.document.model_copy(update={"measured": None})
    recipe = clipedit.Recipe(document, edit.recipe.tensors, edit.recipe.names)
    out = render_report(Edit(recipe, edit.base, edit.edited), {}, tmp_path / "r.html")
    text = Page(out.read_text(encoding="utf-8")).text
    assert "8 attention heads were replaced by their mean" in text and "Provenance" in text
    assert "Measured" not in text and "Heads" not in text


def test_figures_that_are_no_shares_are_left_out() -> None:
    measured = {"before": {"overall": "<b>", "x": 3.0, "worst_group": 0.5}, "after": "?", "other": {"overall": 0.1}}
    (figure,) = build_measures(measured).main
    assert figure.title == "Worst group" and [bar.kind for bar in figure.bars] == ["before"]
    assert describe_result(measured) == "" and describe_result(None) == ""


def test_a_folder_without_a_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(clipedit.ExportError, match="has no recipe.yaml. Give a folder that `remove-heads` wrote"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("width", "height"), [(1280, 900), (390, 844), (320, 640)], ids=["desktop", "phone", "small phone"]
)
def test_the_page_works_in_a_browser(browser: Any, report: Path, edit: Edit, width: int, height: int) -> None:
    browser.resize(width, height)
    browser("url", {"url": "about:blank"})
    browser("se/log", {"type": "browser"}), browser.requests()
    address = report.as_uri()
    browser("url", {"url": address})
    assert "demo without location" in browser("title", method="GET")
    assert browser.run("return document.documentElement.scrollWidth") <= width
    other = next(
        f"L{layer}H{head}" for layer in (3, 2) for head in range(8) if f"L{layer}H{head}" not in edit.recipe.heads
    )
    for head in (edit.recipe.heads[0], other):
        card = f"document.getElementById('{head}')"
        browser.click(f"a[data-head='{head}']")
        assert browser.run("return location.hash") == f"#{head}"
        box = browser.run(f"const b = {card}.getBoundingClientRect(); return [b.top, b.height, b.right]")
        assert -1 <= box[0] < height and box[1] > 100 and box[2] <= width
        text = browser.run(f"return {card}.innerText")
        assert head in text and "Texts that explain most" in text and "%" in text
        assert browser.run(f"return [...{card}.querySelectorAll('img')].every(i => i.complete && i.naturalWidth > 0)")
    assert [entry for entry in browser("se/log", {"type": "browser"})] == []
    assert {url for url in browser.requests() if not url.startswith("data:")} <= {
        address,
        *(f"{address}#{h}" for h in edit.recipe.heads),
    }


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(browser: Any, report: Path, scheme: str) -> None:
    """Contrast of body text, soft text and links against their paper: at least 4.5 to 1 (WCAG AA)."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser("goog/cdp/execute", {"cmd": "Emulation.setEmulatedMedia", "params": {"features": features}})
    browser("url", {"url": report.as_uri()})
    colors = browser.run(
        "const s = getComputedStyle(document.documentElement);"
        "return ['--paper', '--page', '--ink', '--soft', '--link', '--after'].map(n => s.getPropertyValue(n).trim())"
    )
    paper, page, *inks = [luminance(color) for color in colors]
    for ink in inks:
        for ground in (paper, page):
            lighter, darker = max(ink, ground), min(ink, ground)
            assert (lighter + 0.05) / (darker + 0.05) >= 4.5
    assert (paper > 0.5) == (scheme == "light")


def luminance(color: str) -> float:
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def screenshot(browser: Any, path: Path) -> None:
    path.write_bytes(base64.b64decode(browser("screenshot", method="GET")))
