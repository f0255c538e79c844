"""A desk of real size, of made-up terms through the real packing: bytes of the page, time to open, frames of a drag.

`pytest -q -s -m slow tests/test_desk_size.py` prints the figures; times are only worth something on a quiet machine.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clipedit.editor.components import Features, HeadId
from clipedit.editor.concepts.textspan import HeadLabel
from clipedit.editor.edits.document import Step
from clipedit.editor.images.source import ImageSource
from clipedit.editor.look.pictures import tint_png
from clipedit.editor.measure.control import DRAWS
from clipedit.editor.measure.verdict import CONTROL_SPREADS, GOALS, KEPT, TOLERATED
from clipedit.editor.select.selectivity import GENERAL_DIRECTIONS, Selectivity
from clipedit.editor.select.whose_heads import Judgement
from clipedit.export.pages.desk.concepts import (
    DIRECTIONS,
    GENERAL,
    PROJECTED,
    SPAN,
    WATCHED,
    Held,
    Projection,
    Watched,
    join_span,
)
from clipedit.export.pages.desk.desk import COUNT, PLAIN, TEXTS
from clipedit.export.pages.desk.heat import Heat, pack_heat
from clipedit.export.pages.desk.labelled import Cell, Figure, Labelled, Question
from clipedit.export.pages.desk.pack import (
    Blob,
    Packed,
    pack_heads,
    pack_held,
    pack_labelled,
    pack_plain,
    pack_projections,
)
from clipedit.export.pages.desk.page import render_desk
from clipedit.export.pages.desk.presets import Preset
from clipedit.export.pages.desk.sheet import draw_thumbnails
from clipedit.export.pages.desk.terms import HeadParts

CLASSES, PLACES, LAYERS = 10, 20, 4


@dataclass(frozen=True)
class Shape:
    """What sizes follow from: heads a layer, the embedding's width, and the side of the grid of tokens."""

    name: str
    heads: int
    d_embed: int
    grid: int
    d_head: int = 64


SHAPES = (Shape("ViT-B-16", 12, 512, 14), Shape("ViT-L-14", 16, 768, 16))


class Maker:
    """Made-up parts of a desk; everything is packed by the package's own functions."""

    def __init__(self, shape: Shape):
        self.shape, self.generator = shape, torch.Generator().manual_seed(0)
        self.ids = tuple(HeadId(layer, head) for layer in range(LAYERS) for head in range(shape.heads))

    def draw(self, *size: int) -> torch.Tensor:
        return torch.randn(*size, generator=self.generator).double()

    def parts(self) -> HeadParts:
        means = tuple(self.draw(self.shape.d_head) for _ in self.ids)
        readouts = tuple(self.draw(self.shape.d_embed, self.shape.d_head) / 40 for _ in self.ids)
        return HeadParts(self.ids, means, readouts)

    def features(self, count: int) -> Features:
        size = (count, self.shape.heads, self.shape.d_head)
        groups = {f"L{layer}.heads": self.draw(*size).float() for layer in range(LAYERS)}
        embedding = self.draw(count, self.shape.d_embed).float()
        return Features(groups, {}, embedding, embedding)

    def labelled(self) -> Labelled:
        classes = [index % CLASSES for index in range(COUNT)]
        strata = tuple(f"class {one} / place {index % PLACES}" for index, one in enumerate(classes))
        every = {name: tuple(i for i, one in enumerate(strata) if one == name) for name in sorted(set(strata))}
        words = tuple(f"class {index}" for index in range(CLASSES))
        questions = tuple(
            Question(name, words, self.draw(CLASSES, self.shape.d_embed) / 30, tuple(classes))
            for name in ("classes", "retention")
        )
        whole = ((Cell(tuple(range(COUNT))),),)
        figures = (
            Figure("overall", "overall", 0, whole),
            Figure("worst_group", "worst group", 0, (tuple(map(Cell, every.values())),)),
            Figure("retention", "retention", 1, whole),
        )
        names = tuple(f"photos/place-{index % PLACES}/{index:08d}.jpg" for index in range(COUNT))
        source = ImageSource(names, self.picture)
        return Labelled(
            source, self.features(COUNT), questions, figures, every, strata, "made-up", COUNT, {}, "retention"
        )

    def picture(self, index: int) -> Image.Image:
        """Noise with the spectrum of photographs, amplitudes falling as 1 / frequency: they compress alike."""
        generator = np.random.default_rng(index)
        across, down = np.meshgrid(np.fft.fftfreq(64), np.fft.fftfreq(64))
        size = np.maximum(np.hypot(across, down), 1 / 64)
        planes = [np.fft.ifft2(np.fft.fft2(generator.standard_normal((64, 64))) / size).real for _ in range(3)]
        # Channels of a photograph hardly differ.
        mixed = np.stack([planes[0] + 0.3 * plane for plane in planes], -1)
        return Image.fromarray((128 + 60 * mixed / mixed.std()).clip(0, 255).astype(np.uint8))

    def heat(self) -> dict[str, list[Heat]]:
        grid, generator = self.shape.grid, np.random.default_rng(0)
        grids = generator.standard_normal((len(self.ids), 4, grid, grid))
        return {
            str(head): [
                Heat((at * 4 + i) % COUNT, tint_png(one, 3.0), (0.0, 0.0, 1.0, 1.0)) for i, one in enumerate(grids[at])
            ]
            for at, head in enumerate(self.ids)
        }

    def presets(self, count: int, kind: str) -> list[Preset]:
        taken = [torch.randperm(len(self.ids), generator=self.generator)[: 1 + at % 16] for at in range(count)]
        return [Preset(kind, f"{kind} {at}", {str(self.ids[i]): 1.0 for i in one}, {}) for at, one in enumerate(taken)]

    def held(self, name: str) -> Held:
        judged = Judgement(name, "held", Selectivity(name, 3.0, 2.0, 4.0, {}, {}), "these heads are made up")
        return Held(name, judged, tuple(self.draw(len(self.ids)).tolist()), tuple(self.draw(len(self.ids)).tolist()))

    def pack(self) -> Packed:
        parts, labelled, blob = self.parts(), self.labelled(), Blob()
        concepts = [f"concept {index}" for index in range(1 + WATCHED)]
        width = SPAN // (1 + PROJECTED)
        bases = [torch.linalg.qr(self.draw(self.shape.d_embed, width))[0] for _ in range(1 + PROJECTED)]
        projections = [
            Projection(Step(operation="project-out", target="output", concept=name, texts=("one", "two")), basis)
            for name, basis in zip(concepts, bases, strict=False)
        ]
        span = join_span(projections, self.shape.d_embed)
        watched = [Watched(name, self.draw(DIRECTIONS, self.shape.d_embed)) for name in concepts]
        watched.append(Watched(GENERAL, self.draw(GENERAL_DIRECTIONS, self.shape.d_embed)))
        texts = {str(head): [HeadLabel(f"a photo of something {i}", 0.1) for i in range(TEXTS)] for head in self.ids}
        sheet = draw_thumbnails(labelled.source)
        facts: dict[str, Any] = {
            "model": {"name": self.shape.name, "pretrained": None},
            "concept": concepts[0],
            "effects": ["distilled", "direct"],
            "fidelity": {"explained": 0.9, "images": 100},
            "calibration": 1000,
            "rules": {"goals": GOALS, "kept": KEPT, "tolerated": TOLERATED, "spreads": CONTROL_SPREADS, "draws": DRAWS},
            "concepts": pack_held([self.held(name) for name in concepts]),
            "heads": pack_heads(parts, texts),
            "heat": pack_heat(self.heat()),
            "projections": pack_projections(projections, span),
            "span": span.shape[1],
            "presets": [asdict(one) for one in self.presets(1, "default")],
            "front": [asdict(one) for one in (*self.presets(24, "front"), *self.presets(16, "size"))],
            "plain": pack_plain(blob, parts, self.features(PLAIN), watched, span),
            "labelled": pack_labelled(blob, parts, labelled, span),
            "sheet": {"columns": sheet.columns, "rows": sheet.rows},
        }
        return Packed(facts | {"places": blob.places}, b"".join(blob.chunks), sheet)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sizes")
    found = {shape.name: folder / f"{shape.name}.html" for shape in SHAPES}
    for shape in SHAPES:
        found[shape.name].write_text(render_desk(Maker(shape).pack()), encoding="utf-8")
    return found


@pytest.mark.slow
def test_pages_of_real_models_stay_small(pages: dict[str, Path]) -> None:
    """1,000 images, 10 classes, a second task of 10: ViT-B-16 under 12 MB, ViT-L-14 under 25 MB."""
    sizes = {name: page.stat().st_size / 1e6 for name, page in pages.items()}
    print("".join(f"\nbytes of the page, {name}: {size:.2f} MB" for name, size in sizes.items()))
    assert sizes["ViT-B-16"] < 12 and sizes["ViT-L-14"] < 25


# What a page is told before it opens: when the verdict stood there, and how long frames and tasks take.
WATCH = """
  window.seen = { tasks: [], work: [] };
  new PerformanceObserver((list) => list.getEntries().forEach((one) => seen.tasks.push([one.startTime, one.duration])))
    .observe({ type: "longtask", buffered: true });
  new MutationObserver(() => {
    const word = document.getElementById("because");
    if (word && word.textContent && !seen.opened) seen.opened = performance.now();
  }).observe(document, { childList: true, subtree: true, characterData: true });
  const ask = window.requestAnimationFrame.bind(window);
  window.requestAnimationFrame = (call) => ask((now) => {
    const from = performance.now();
    call(now);
    seen.work.push(performance.now() - from);
  });
"""
# A hand that moves in every frame, over the head that is pressed.
MOVE = """
  Object.assign(seen, { frames: [], work: [] });
  const cell = document.querySelectorAll('.cell')[20];
  const from = cell.getBoundingClientRect().left;
  const tick = (now) => {
    seen.frames.push(now);
    const clientX = from + 60 + 50 * Math.sin(seen.frames.length / 9);
    if (!seen.stop) cell.dispatchEvent(new PointerEvent('pointermove', { clientX }));
    if (!seen.stop) requestAnimationFrame(tick);
  };
  requestAnimationFrame(tick);
"""


def drag(browser: Any, seconds: float) -> None:
    """Press on a head, and move to and fro over what sets its strength."""

    def act(*actions: dict[str, Any]) -> None:
        mouse = {"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": actions}
        browser("actions", {"actions": [mouse]})

    box = "const box = document.querySelectorAll('.cell')[20].getBoundingClientRect();"
    x, y = browser.run(f"{box} return [box.left + box.width / 2, box.top + box.height / 2].map(Math.round)")
    act({"type": "pointerMove", "duration": 0, "x": x, "y": y}, {"type": "pointerDown", "button": 0})
    browser.run(MOVE)
    time.sleep(seconds)
    browser.run("seen.stop = true")
    act({"type": "pointerUp", "button": 0})


@pytest.mark.slow
def test_a_desk_of_64_heads_and_1000_images_opens_fast_and_follows_the_hand(
    browser: Any, pages: dict[str, Path]
) -> None:
    """It opens in under 2 s, verdict included, and what it does in a frame of a drag leaves the frame its turn."""
    page = pages["ViT-L-14"]
    browser("goog/cdp/execute", {"cmd": "Page.addScriptToEvaluateOnNewDocument", "params": {"source": WATCH}})
    browser.resize(1400, 900)
    opened = []
    for _ in range(3):
        browser("url", {"url": "about:blank"})
        browser("url", {"url": page.as_uri()})
        opened.append(wait_for(lambda: browser.run("return seen.opened"), "the page says no verdict") / 1000)
    time.sleep(1)
    drag(browser, 5)
    seen = browser.run("return seen")
    moved = [value for value in seen["work"] if value > 0.2]
    gaps = np.diff(seen["frames"])
    rests = [duration for start, duration in seen["tasks"] if start > opened[-1] * 1000]
    print(f"\nopening, from the address to the verdict, s: {', '.join(f'{one:.2f}' for one in opened)}")
    for name, values in (("work of a frame while dragging", moved), ("from frame to frame", gaps)):
        median, high, most = np.percentile(values, [50, 95, 100])
        print(f"{name}, ms: median {median:.1f}, 95 % under {high:.1f}, longest {most:.1f}, n {len(values)}")
    print(f"tasks over 50 ms after opening, ms: {', '.join(f'{one:.0f}' for one in rests) or 'none'}")
    assert len(moved) > 60
    print(f"frames a second: {1000 / gaps.mean():.1f}")
    assert max(opened) < 2 and np.percentile(moved, 95) < 1000 / 60
    # Half of the frames and more are in their turn; that none misses it needs a graphics card, since pages are painted
    # by the processor here.
    assert np.median(gaps) < 1.1 * 1000 / 60 and gaps.mean() < 1000 / 50


def wait_for(ask: Any, otherwise: str) -> Any:
    for _ in range(300):
        if found := ask():
            return found
        time.sleep(0.1)
    raise AssertionError(otherwise)
