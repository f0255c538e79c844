"""The README's picture: the demo's own report, as headless Chromium shows it.

python docs/screenshot.py [FOLDER]    # a folder that `clipedit remove-heads --concept location` wrote; made if left out
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

PICTURE = Path(__file__).with_name("report.png")
WIDTH, HEIGHT = 1120, 878


def take(page: Path, out: Path) -> None:
    """Photograph the top of a page, in light colours, at twice the resolution; stored with 128 colours."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("cannot take the picture: chromium is not installed. apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        options = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--force-device-scale-factor=1.5",
        ]
        command = [
            chromium,
            *options,
            f"--window-size={WIDTH},{HEIGHT}",
            f"--screenshot={shot}",
            page.absolute().as_uri(),
        ]
        subprocess.run(command, check=True, capture_output=True)
        Image.open(shot).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(out, optimize=True)


def main() -> None:
    """Make the report if no folder is given, and photograph it."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(temporary) / "out"
        if not folder.exists():
            subprocess.run(
                [sys.executable, "-m", "clipedit.cli", "remove-heads", "--concept", "location", "-o", folder],
                check=True,
            )
        take(folder / "report.html", PICTURE)
    print(f"wrote {PICTURE}")


if __name__ == "__main__":
    main()
