"""A picture of the pages: the demo's own report, as headless Chromium shows it.

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
    """Photograph the top of a page, in light colours, at one and a half the resolution; stored with few colours."""
    photograph(page.absolute().as_uri(), (WIDTH, HEIGHT), 1.5).save(out, optimize=True)


def photograph(address: str, size: tuple[int, int], scale: float) -> Image.Image:
    """The top of a page, in light colours, with few colours."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("cannot take the picture: chromium is not installed. apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        # Timers of the page run before it is photographed: the desk draws its intervals and its front last.
        options += [f"--force-device-scale-factor={scale}", "--virtual-time-budget=10000"]
        window = f"--window-size={size[0]},{size[1]}"
        command = [chromium, *options, window, f"--screenshot={shot}", address]
        subprocess.run(command, check=True, capture_output=True)
        return Image.open(shot).convert("RGB").quantize(192, dither=Image.Dither.NONE)


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
