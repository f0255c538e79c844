"""The pages: their code runs, their commands exist, the README stays short, and the site builds without a warning."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import typer
from PIL import Image

import clipedit
from clipedit.cli import app
from clipedit.demo import world

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
README_WORDS, PHOTOS = 1_000, 256
# A fence is run if the line before it says so; `<!-- run: slow -->` leaves it to `-m slow`.
RUN = re.compile(r"^<!-- run(: slow)? -->\n```(python|bash)\n(.*?)^```", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fence that is run."""

    slow: bool
    language: str
    code: str


def blocks_of(page: Path) -> list[Block]:
    return [Block(bool(slow), language, code) for slow, language, code in RUN.findall(page.read_text())]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages speak of: photos, one of them by itself, captions, labels, and a repaired model."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "photos").mkdir()
    rows = []
    for index, scene in enumerate(world.draw_balanced_scenes(PHOTOS, 11)):
        Image.fromarray(world.render(scene)).save(folder / "photos" / f"{index:03}.png")
        rows.append({"path": f"photos/{index:03}.png", "shape": scene.shape, "place": scene.place})
    with (folder / "labelled.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    shutil.copytree(folder / "photos", folder / "images")
    shutil.copy(folder / "photos" / "000.png", folder / "photo.png")
    captions = [f"a photo of a {row['shape']} in the {row['place']}, {index}" for index, row in enumerate(rows)]
    (folder / "captions.txt").write_text("\n".join(captions) + "\n")
    model = clipedit.load_model("demo")
    recipe = clipedit.make_recipe(clipedit.scan(model, folder / "photos"), model, concept="location")
    clipedit.export_model(clipedit.apply_recipe(recipe, model), folder / "repaired", target="open-clip")
    return folder


def commands_of(text: str) -> list[str]:
    """The lines of shell blocks that call clipedit, each joined where it goes on."""
    lines = [
        line
        for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
        for line in block.replace("\\\n", " ").splitlines()
    ]
    return [line.strip() for line in lines if line.strip().startswith("clipedit ")]


def run_page(page: Path, folder: Path, run: Callable, *, slow: bool) -> None:
    space: dict[str, object] = {}
    for block in blocks_of(page):
        if block.slow and not slow:
            continue
        if block.language == "python":
            exec(compile(block.code, page.name, "exec"), space)
            continue
        for line in block.code.replace("\\\n", " ").splitlines():
            program, *arguments = shlex.split(line, comments=True) or ["clipedit", "--help"]
            assert program == "clipedit", f"{page.name}: only clipedit is run, not {line}"
            shutil.rmtree(folder / "repaired") if _writes_over(arguments, folder) else None
            result = run(*arguments)
            assert result.code == 0, f"{page.name}: {line}\n{result.err}"


def _writes_over(arguments: list[str], folder: Path) -> bool:
    """Pages that make `repaired` themselves start without the prepared one."""
    return "-o" in arguments and arguments[arguments.index("-o") + 1] == "repaired" and (folder / "repaired").exists()


def pages_that_run(*, slow: bool) -> list[Path]:
    return [page for page in PAGES if any(block.slow == slow for block in blocks_of(page))]


@pytest.mark.parametrize("page", pages_that_run(slow=False), ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(
    page: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable
) -> None:
    folder = shutil.copytree(prepared, tmp_path / "work")
    monkeypatch.chdir(folder)
    run_page(page, folder, run, slow=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_that_run(slow=True), ids=lambda page: page.stem)
def test_the_slow_code_of_a_page_runs(
    page: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable
) -> None:
    folder = shutil.copytree(prepared, tmp_path / "work")
    monkeypatch.chdir(folder)
    run_page(page, folder, run, slow=True)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda page: page.stem)
def test_commands_and_options_of_a_page_exist(page: Path) -> None:
    known = typer.main.get_command(app)
    for line in commands_of(page.read_text()):
        command = known
        for word in shlex.split(line, comments=True)[1:]:
            if word.startswith("-"):
                options = {name for option in command.params for name in [*option.opts, *option.secondary_opts]}
                assert word.partition("=")[0] in options or word == "--help", f"{page.name}: {line}: no {word}"
            elif word in getattr(command, "commands", {}):
                command = command.commands[word]
        assert command is not known or line == "clipedit --help", f"{page.name}: no such command: {line}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= README_WORDS


def test_links_of_the_readme_lead_to_files() -> None:
    text = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text) + re.findall(r"\b(?:src|srcset)=\"([^\"]+)\"", text):
        assert (ROOT / target).exists(), target


def test_the_api_page_names_everything_public() -> None:
    named = set(re.findall(r"^::: clipedit\.(\w+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE))
    assert named == set(clipedit.__all__)


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "site" / "api" / "index.html").is_file()


def build_live_page(folder: Path) -> Path:
    """Only the page of the live desk and report, without plugins: the whole site takes seconds."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    (folder / "docs").mkdir()
    for name in ("live.md", "look.md", "report.png"):
        shutil.copy(ROOT / "docs" / name, folder / "docs")
    given = {"hooks": [str(ROOT / "docs" / "live.py")], "markdown_extensions": ["admonition", "attr_list"]}
    (folder / "mkdocs.yml").write_text(json.dumps({"site_name": "page", "plugins": [], "theme": "mkdocs", **given}))
    build(load_config(str(folder / "mkdocs.yml"), strict=True))
    return folder / "site" / "live" / "index.html"


def test_the_live_desk_and_report_lie_where_their_page_shows_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mkdocs")
    made = {name: f"<title>{name}</title>" for name in ("desk.html", "report.html")}
    (tmp_path / "given").mkdir()
    for name, text in made.items():
        (tmp_path / "given" / name).write_text(text)
    monkeypatch.setenv("CLIPEDIT_LIVE", str(tmp_path / "given"))
    page = build_live_page(tmp_path)
    frames = re.findall(r"<iframe[^>]* src=\"([^\"]+)\"([^>]*)>", page.read_text())
    links = re.findall(r"href=\"((?:desk|report)\.html)\"", page.read_text())
    assert [name for name, _ in frames] == links == list(made)
    assert {name: (page.parent / name).read_text() for name in links} == made
    # Scripts of the desk run, but not as the site's own; the report has none.
    assert all("sandbox" in rest and "same-origin" not in rest for _, rest in frames)
    assert "allow-scripts" in frames[0][1] and "allow" not in frames[1][1]
    assert "CLIPEDIT_LIVE" not in page.read_text()


def test_a_site_without_the_live_pages_says_how_they_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mkdocs")
    monkeypatch.delenv("CLIPEDIT_LIVE", raising=False)
    page = build_live_page(tmp_path)
    assert "<iframe" not in page.read_text() and 'href="desk.html"' not in page.read_text()
    assert "python docs/live.py live" in page.read_text()
    assert [path.name for path in page.parent.iterdir()] == ["index.html"]


def test_a_live_page_that_was_not_made_stops_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("mkdocs")
    from mkdocs.exceptions import Abort

    (tmp_path / "desk.html").write_text("a desk alone")
    monkeypatch.setenv("CLIPEDIT_LIVE", str(tmp_path))
    with pytest.raises(Abort):
        build_live_page(tmp_path)
    assert f"has no report.html. Make them with `python docs/live.py {tmp_path}`" in caplog.text
