"""The demo's own desk and report on the site: a script makes the two pages, a hook of mkdocs puts them beside ours.

python docs/live.py live && CLIPEDIT_LIVE=live mkdocs build    # a minute or two; without the variable, only words
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

VARIABLE, PAGE = "CLIPEDIT_LIVE", "live.md"
# Which part of the page stays: each stands between `<!-- NAME -->` and `<!-- /NAME -->`.
MADE, MISSING = "made", "missing"
NAMES = ("desk.html", "report.html")


def make(folder: Path) -> None:
    """Run the demo, and write its desk and its report into a folder."""
    with tempfile.TemporaryDirectory() as temporary:
        demo = Path(temporary) / "demo"
        _run("demo", "-o", demo)
        folder.mkdir(parents=True, exist_ok=True)
        _run("desk", demo, "-o", folder / "desk.html", "--overwrite")
        (folder / "report.html").write_bytes((demo / "report.html").read_bytes())


def _run(*arguments: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "clipedit", *map(str, arguments)], check=True)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Put the pages where the site links to them; called by mkdocs.

    Raises:
        PluginError: If a page is not in the folder that the variable names.
    """
    folder = os.environ.get(VARIABLE)
    for name in NAMES if folder else ():
        path = Path(folder or "").absolute() / name
        if not path.is_file():
            raise PluginError(
                f"cannot show the live pages: {VARIABLE} names {folder}, which has no {name}. Make them with "
                f"`python docs/live.py {folder}`, or unset {VARIABLE}."
            )
        files.append(File.generated(config, f"live/{name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Show the pages, or say how they are made; called by mkdocs."""
    if page.file.src_uri != PAGE:
        return markdown
    left_out = MISSING if os.environ.get(VARIABLE) else MADE
    before, _, rest = markdown.partition(f"<!-- {left_out} -->")
    return before + rest.partition(f"<!-- /{left_out} -->")[2]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: python {sys.argv[0]} FOLDER")
    make(Path(sys.argv[1]))
    print(f"wrote {', '.join(NAMES)} into {sys.argv[1]}: {VARIABLE}={sys.argv[1]} mkdocs build")
