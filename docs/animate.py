"""The README's moving picture: heads of the demo go one by one, then a part of the output, and the desk shows what for.

python docs/animate.py desk.html    # a desk of the demo: `clipedit demo -o demo && clipedit desk demo`
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from screenshot import photograph

PICTURE = Path(__file__).with_name("desk.webp")
STILL = PICTURE.with_suffix(".png")  # for those who asked for less motion
SIZE = (1120, 656)
FIRST, EACH, LAST = 1600, 700, 3600  # milliseconds
PARTS = 3  # steps in which the output projection grows


def list_states(page: Path) -> Iterator[str]:
    """What lies on the desk in each frame, as its address says it: from nothing to the edit that it begins with."""
    found = re.search(r'id="facts">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None, f"{page} is no desk"
    edit = json.loads(found[1])["presets"][0]
    heads = list(edit["heads"])
    for count in range(len(heads) + 1):
        yield f"heads={','.join(heads[:count])}"
    for part in range(1, PARTS + 1):
        outputs = (f"{name}:{value * part / PARTS:.2f}" for name, value in edit["projections"].items())
        yield f"heads={','.join(heads)}&output={','.join(outputs)}"


def main() -> None:
    """Photograph the desk in each state."""
    page = Path(sys.argv[1])
    shots = [photograph(f"{page.absolute().as_uri()}#{state}", SIZE, 1) for state in list_states(page)]
    shots[-1].save(STILL, optimize=True)
    frames: list[Image.Image] = [shot.convert("RGB") for shot in shots]
    times = [FIRST, *[EACH] * (len(frames) - 2), LAST]
    frames[0].save(
        PICTURE, save_all=True, append_images=frames[1:], duration=times, loop=0, lossless=True, quality=80, method=4
    )
    print(f"wrote {PICTURE}: {len(frames)} frames, {PICTURE.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
