"""In a notebook, results are tables and figures; every text in them is shown as text."""

from __future__ import annotations

import io
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

import clipedit
from clipedit.editor.components import HeadId
from clipedit.editor.concepts.scores import SHOWN, HeadScore, HeadScores
from clipedit.editor.concepts.textspan import HeadLabel, HeadLabels
from clipedit.editor.edits.document import describe_step
from clipedit.editor.look.plot import plot_frontier, plot_heatmap, plot_scores, save_figure

HOSTILE = '<script>alert("x")</script>\n\'"&'


class Table(HTMLParser):
    """The tags of a page, and its text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def read(shown: object) -> str:
    table = Table(shown._repr_html_())  # type: ignore[attr-defined]
    assert table.tags <= {"table", "caption", "thead", "tbody", "tr", "th", "td", "p"}
    return table.text


def test_scores_and_labels_are_a_list_and_a_dictionary_that_notebooks_show(
    demo_scan: clipedit.Scan, demo_model: clipedit.Model
) -> None:
    scores = clipedit.score_heads(demo_scan, demo_model, concept="location")
    assert scores == list(scores) and scores[0].component in read(scores)
    assert f"and {len(scores) - SHOWN} more" in read(scores) and f"{scores[0].score:.3f}" in read(scores)
    labels = clipedit.text_span(
        demo_scan, demo_model, texts=["a circle", "the ocean", "a red object"], texts_per_head=2
    )
    assert labels == dict(labels) and labels["L3H5"][0].text in read(labels)


def test_scans_statistics_and_recipes_are_tables(demo_scan: clipedit.Scan, demo_model: clipedit.Model) -> None:
    assert "demo" in read(demo_scan) and "1024" in read(demo_scan) and demo_scan.weights_hash in read(demo_scan)
    assert "statistics of 1024 images" in read(demo_scan.statistics) and "L3.heads" in read(demo_scan.statistics)
    recipe = clipedit.make_recipe(demo_scan, demo_model, concept="location", heads=2)
    assert all(head in read(recipe) for head in recipe.heads) and "1024 images" in read(recipe)
    assert "0.25" not in read(recipe)
    measured = recipe.with_measured(
        {"before": {"overall": 0.25}, "after": {"overall": 0.75}, "frontier": {"front": []}}
    )
    assert "before0.250after0.750" in read(measured)


def test_hostile_texts_are_shown_as_text(demo_scan: clipedit.Scan, demo_model: clipedit.Model) -> None:
    document = clipedit.load_recipe("waterbirds-vit-b-16").document
    recipe = clipedit.Recipe(document.model_copy(update={"name": HOSTILE, "description": HOSTILE}))
    shown = (
        HeadScores([HeadScore(HOSTILE, 0.1, 0.0)]),
        HeadLabels({"L0H0": (HeadLabel(HOSTILE, 0.5),)}),
        replace(demo_scan, model_name=HOSTILE),
        recipe,
    )
    assert all(HOSTILE in read(one) for one in shown)


def test_a_step_is_a_line() -> None:
    recipe = clipedit.load_recipe("waterbirds-protocol-vit-b-16")
    assert [describe_step(step) for step in recipe.document.steps] == [
        f"mean-ablate {', '.join(recipe.document.steps[0].heads)}",
        f"mean-ablate {', '.join(recipe.document.steps[1].heads)}",
        "mean-ablate mlps 8, 9, 10, 11",
        "mean-ablate layers 0, 1, 2, 3, 4, 5, 6, 7",
    ]


def test_plots_are_figures_that_notebooks_show_without_pyplot(demo_model: clipedit.Model, tmp_path: Path) -> None:
    image = Image.new("RGB", (90, 60), (200, 30, 30))
    shown = clipedit.heatmap(demo_model, image, text="a $red circle <b>", heads=["L3H5"])
    point = {"retention": 0.9, "worst_group": 0.5}
    scores = [HeadScore("L3H1", 0.2, 0.0), HeadScore("L1H7", 0.1, 0.3), HeadScore("L3.mlp", 0.9, 0.0)]
    figures = [
        plot_heatmap(image, shown),
        plot_scores(scores),
        plot_frontier({"front": [point], "unedited": point, "chosen": point}),
    ]
    for index, figure in enumerate(figures):
        assert isinstance(figure, Figure)
        assert min(Image.open(io.BytesIO(figure._repr_png_())).size) > 90  # type: ignore[attr-defined]
        save_figure(figure, tmp_path / f"{index}.svg")
        assert (tmp_path / f"{index}.svg").read_text().startswith("<?xml")
    assert figures[0].axes[0].get_title() == "a $red circle <b> (L3H5)"
    grid = figures[1].axes[0].images[0].get_array()
    assert grid.shape == (2, 8) and grid[0, 1] == 0.2 and grid[1, 7] == pytest.approx(-0.2)
    with pytest.raises(clipedit.StatisticsError, match="none is of a head"):
        plot_scores(scores[2:])
    assert HeadId.parse("L3H1") == HeadId(3, 1)
