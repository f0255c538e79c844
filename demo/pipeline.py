"""The main job, start to finish, on the embedded world: what `clipedit demo` runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..editor.concepts.concepts import load_concept
from ..editor.concepts.textspan import HeadLabel, text_span
from ..editor.edits.recipe import Recipe
from ..editor.files.whole import staged_folder, write_text
from ..editor.images.batches import load_batches
from ..editor.images.demo import JUDGED_CONCEPT, test_source
from ..editor.images.demo_name import DEMO
from ..editor.images.labelled import write_metadata
from ..editor.images.listing import list_images
from ..editor.images.source import ImageSource
from ..editor.images.texts import load_texts
from ..editor.load import load_model
from ..editor.measure.control import MeasuredEdit, compare_sides, measure_controls
from ..editor.measure.demo_measure import task_weights
from ..editor.measure.evaluate import build_demo_yardstick
from ..editor.measure.fidelity import embed_edit
from ..editor.measure.readable import Answers, Readable, find_readable
from ..editor.measure.table import Details, read_details
from ..editor.models.model import Model
from ..editor.scan.scan import scan
from ..editor.scan.tally import Progress
from ..export.judge import Made, collect_evidence, describe_fitted
from ..export.pages.head_pictures import Edit
from ..export.pages.report import read_checks, render_report
from ..export.repair import Repair, repair
from ..export.verify.verify import Check, Verifier, lend
from ..export.write import export_model
from . import world
from .picture import choose_examples, draw_picture, shape_similarity

DEMO_DRAWS = 100


@dataclass(frozen=True)
class DemoResult:
    """What the demo found; `report()` is what `--json` prints."""

    rows: dict[str, dict[str, float]]
    recipe: Recipe
    labels: dict[str, tuple[HeadLabel, ...]]
    files: dict[str, Path]
    checks: dict[str, list[Check]]
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def evidence(self) -> Mapping[str, Any]:
        """What speaks for the edit beside the rows."""
        return (self.recipe.document.measured or {})["evidence"]

    @property
    def details(self) -> dict[str, Details]:
        """Of `before` and `after`, numbers of images, intervals and groups."""
        return read_details(self.recipe.document.measured)

    @property
    def readable(self) -> list[Readable]:
        """How well location, and what else the model holds, can be read before and after."""
        return find_readable(self.recipe.document.measured)

    def report(self) -> dict[str, Any]:
        """Plain data; the verdict first."""
        held_out = [place for place in world.PLACES if place not in world.LISTED_PLACES]
        return {
            "verdict": self.evidence["verdict"],
            "because": self.evidence["because"],
            **self.rows,
            "control": {**self.rows["control"], **self.evidence["control_spread"]},
            "differences": self.evidence["differences"],
            "details": self.evidence["details"],
            "fidelity": (self.recipe.document.measured or {})["fidelity"],
            "certificate": self.evidence["certificate"],
            "readable": self.evidence["readable"],
            "places": {"listed": list(world.LISTED_PLACES), "held_out": held_out},
            "usual_place": world.USUAL_PLACE,
            "heads": self.recipe.heads,
            "files": {name: str(path) for name, path in self.files.items()},
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
        }


def run_demo(
    out: Path,
    *,
    overwrite: bool = False,
    progress: Callable[[str], Progress] | None = None,
    verifier: Verifier | None = None,
) -> DemoResult:
    """Render, scan, label, score, edit, measure, export, verify. `out` appears only when all of it succeeded.

    Args:
        progress: From a stage's name to a function that is told images done and in total.
        verifier: One that was entered already, so that its imports need not be waited for.
    """
    seconds: dict[str, float] = {}
    follow = progress or (lambda stage: lambda done, total: None)

    @contextmanager
    def stage(name: str) -> Iterator[Progress]:
        started = time.perf_counter()
        yield follow(name)
        seconds[name] = time.perf_counter() - started

    with staged_folder(out, overwrite=overwrite) as folder, lend(verifier) as lent:
        with stage("render") as told:
            _write_test_images(folder / "test_images", told)
            tests = list_images(folder / "test_images" / "metadata.csv")
        with stage("load"):
            model = load_model("demo")
        with stage("scan") as told:
            scanned = scan(model, "demo", mlps=True, batch_size=128, progress=told)
            scanned.save(folder / "scan.safetensors")
        with stage("label"):
            labels = text_span(scanned, model, texts=load_texts(model_folder=model.folder))
        with stage("edit"):
            # Measured below, with more draws than elsewhere and a picture.
            done = repair(model, scan=scanned, concept=JUDGED_CONCEPT, measure=False)
        with stage("measure") as told:
            found, picture = _measure(done, tests, told)
            write_text(folder / "picture.svg", picture)
            done = replace(done, recipe=done.recipe.with_measured(_collect_measured(done, found)))
            done.recipe.save(folder / "recipe.yaml")
        with stage("export"):
            checks = _export_all(model, done.edited, folder, tests, lent)
        with stage("report") as told:
            edit = Edit(done.recipe, model, load_model(str(folder / "after")), scanned, list_images(DEMO))
            render_report(edit, read_checks(folder / "after"), folder / "report.html", progress=told)
    names = {
        "test_images": "test_images",
        "before": "before",
        "after": "after",
        "recipe": "recipe.yaml",
        "scan": "scan.safetensors",
        "onnx": "onnx",
        "picture": "picture.svg",
        "report": "report.html",
    }
    files = {name: (out / path).absolute() for name, path in names.items()}
    return DemoResult(found.rows, done.recipe, labels, files, checks, seconds)


def _collect_measured(done: Repair, found: MeasuredEdit) -> dict[str, Any]:
    """All figures of the edit, as its recipe keeps them."""
    made = Made(done.recipe, done.scan, done.model, load_concept(JUDGED_CONCEPT, done.model.folder))
    rows = {name: _round(row) for name, row in found.rows.items()}
    return {**rows, "evidence": collect_evidence(made, found), "fidelity": describe_fitted(made)}


def _measure(done: Repair, tests: ImageSource, told: Progress) -> tuple[MeasuredEdit, str]:
    """Before and after, random heads and the output projection beside them; and the picture.

    The edited model has its weights rounded as on disk: it is the one that is exported afterwards, to the bit.
    """
    side, weights = build_demo_yardstick(done.model, tests, by_group=True), task_weights(done.model)
    embedded = embed_edit(done.recipe, done.scan, done.model, done.edited, tests, progress=told)
    before, after = embedded.before, embedded.after
    controls = measure_controls(
        done.recipe, done.scan, done.model, lambda bound: side.figures(*embedded.embed(bound)), draws=DEMO_DRAWS
    )
    # The edit leaves the texts as they are: one yardstick is that of both.
    found = compare_sides([side, side], [before, after], controls)
    answers = Answers(done.model, *before), Answers(done.edited, *after)
    found = replace(found, answers=answers, attributes=tests.attributes)
    examples = choose_examples(tests, *(shape_similarity(one, weights) for one, _ in (before, after)))
    return found, draw_picture(found.rows, tests, examples)


def _export_all(
    base: Model, edited: Model, folder: Path, tests: ImageSource, verifier: Verifier
) -> dict[str, list[Check]]:
    """Both models as open_clip folders, the edited one as graphs too."""
    wanted = {"before": (base, "open-clip"), "after": (edited, "open-clip"), "onnx": (edited, "onnx")}
    return {
        name: export_model(model, folder / name, target=target, images=tests, verifier=verifier)
        for name, (model, target) in wanted.items()
    }


def _write_test_images(folder: Path, progress: Progress) -> None:
    source = test_source()
    folder.mkdir()
    # Rendered by the processes that read ahead elsewhere, and written here.
    for batch in load_batches(source, lambda image: torch.from_numpy(np.array(image)), batch_size=64):
        for index, pixels in zip(batch.indices, batch.pixels, strict=True):
            Image.fromarray(pixels.numpy()).save(folder / source.names[index])
        progress(batch.indices[-1] + 1, len(source))
    write_metadata(folder / "metadata.csv", source.attributes)


def _round(row: dict[str, float]) -> dict[str, float]:
    return {key: round(value, 4) for key, value in row.items()}
