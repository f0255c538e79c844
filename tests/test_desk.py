"""The desk shows what the applied recipe gives, works from the keyboard in a real browser, and asks no network."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image

import clipedit
from clipedit.editor.components import Features, take_rows
from clipedit.editor.concepts.class_weights import compute_class_weights
from clipedit.editor.concepts.concepts import load_concept
from clipedit.editor.concepts.queries import encode_queries, encode_unit
from clipedit.editor.edits.bind import bind_recipe
from clipedit.editor.edits.direct import compute_recipe_embeddings
from clipedit.editor.edits.document import RecipeDocument
from clipedit.editor.images.demo import COLORS, SHAPES
from clipedit.editor.images.demo import test_source as demo_test_source
from clipedit.editor.images.source import LabelledImages
from clipedit.editor.look.pictures import tint
from clipedit.editor.look.spatial import compute_token_shares, head_ids
from clipedit.editor.look.view import View
from clipedit.editor.measure.certificate import bound_turn, compute_turns
from clipedit.editor.measure.control import DRAWS, ControlRows, mean_rows
from clipedit.editor.measure.demo_measure import SHAPE_TEMPLATES
from clipedit.editor.measure.evaluate import build_demo_yardstick, build_yardstick
from clipedit.editor.measure.intervals import Difference, compare_outcomes, wilson_interval
from clipedit.editor.measure.verdict import judge_edit
from clipedit.editor.scan.collect import collect_embeddings, collect_features
from clipedit.editor.select.selectivity import cut_folds
from clipedit.export.pages.desk.desk import Desk, desk
from clipedit.export.pages.desk.heat import _find_box

ROOM = Path(clipedit.__file__).parent / "export" / "pages" / "desk"
HOSTILE = '</script><script>alert("x")</script>\n\'"& <b>.png'
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="Node is not installed: the page's mathematics was not run")


@pytest.fixture(scope="module")
def task() -> LabelledImages:
    """Shapes grouped by place, with colour as what must stay; one name is hostile."""
    source = demo_test_source()
    source = source.subset(range(0, len(source), 16))
    rows = source.attributes
    source = replace(source, names=(HOSTILE, *source.names[1:]))
    shapes = tuple(SHAPES.index(row["shape"]) for row in rows)
    groups = tuple(f"{row['place']} <i>" for row in rows)
    colors = tuple(COLORS.index(row["color"]) for row in rows)
    second = LabelledImages(source, tuple(f"{name} object" for name in COLORS), colors, groups)
    return LabelledImages(source, SHAPES, shapes, groups, retention=second)


@pytest.fixture(scope="module")
def laid(demo_model: clipedit.Model, demo_scan: clipedit.Scan, task: LabelledImages) -> Desk:
    return desk(
        demo_scan,
        demo_model,
        concept="location",
        dataset=task,
        labels=clipedit.LabelledOptions(templates=SHAPE_TEMPLATES),
        count=len(task.source),
    )


@pytest.fixture(scope="module")
def page(laid: Desk, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return laid.save(tmp_path_factory.mktemp("desk") / "desk.html")


def parts_of(page: Path) -> tuple[dict[str, Any], str]:
    text = page.read_text(encoding="utf-8")
    facts = re.search(r'id="facts">(.*?)</script>', text, re.DOTALL)
    data = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)
    assert facts and data
    return json.loads(facts[1]), data[1]


def draw_mixes(facts: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """The default, random heads and strengths beside random projections, and the projections alone."""
    default = next(one for one in facts["presets"] if one["kind"] == "default")
    generator = np.random.default_rng(0)
    mixes = [{key: default[key] for key in ("heads", "projections")}]
    names, outputs = [head["name"] for head in facts["heads"]], [one["name"] for one in facts["projections"]]
    for _ in range(count):
        heads = generator.choice(names, generator.integers(1, 12), replace=False)
        strengths = generator.choice([1.0, 0.5, 0.13], len(heads)).tolist()
        projected = {name: float(generator.choice([0, 0.4, 1])) for name in outputs}
        mixes.append({"heads": dict(zip(heads.tolist(), strengths, strict=True)), "projections": projected})
    return [*mixes, {"heads": {}, "projections": dict.fromkeys(outputs, 0.9)}]


def run_node(page: Path, mixes: Sequence[Mapping[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """What the page's own code computes of some edits, and the recipe that it writes of each."""
    facts, data = parts_of(page)
    given = folder / "given.json"
    given.write_text(json.dumps({"facts": facts, "data": data, "mixes": mixes}))
    script = f"""
        const given = JSON.parse(require("fs").readFileSync({json.dumps(str(given))}));
        const {{ Engine, decodeBytes }} = require({json.dumps(str(ROOM / "desk_engine.js"))});
        const {{ judge }} = require({json.dumps(str(ROOM / "desk_verdict.js"))});
        const {{ Mix, writeRecipe, readRecipe }} = require({json.dumps(str(ROOM / "desk_state.js"))});
        const facts = given.facts;
        const engine = new Engine(facts, decodeBytes(given.data));
        const names = [facts.heads.map((one) => one.name), facts.projections.map((one) => one.name)];
        const found = given.mixes.map((preset) => {{
          const mix = new Mix(...names);
          mix.load(preset);
          const now = engine.measure(mix.strengths, mix.outputs);
          const differences = facts.labelled && engine.compare(now);
          const draws = facts.labelled && engine.control(mix.strengths, mix.outputs);
          let control = draws?.next();
          while (control && !control.done) control = draws.next();
          control = control?.value;
          const recipe = writeRecipe(mix, facts, "direct");
          const shared = new Mix(...names);
          shared.readFragment("#" + mix.fragment());
          return {{
            figures: Object.fromEntries(Object.entries(now.figures).map(([key, one]) => [key, one.value])),
            groups: now.groups, left: now.left, turns: now.turns, answers: [...now.answers], recipe,
            again: readRecipe(recipe, mix), differences,
            beside: control?.beside, drawn: control?.drawn.map((one) => [...one]),
            verdict: differences && judge(differences, facts.rules, control.beside),
            shared: [[...shared.strengths], [...shared.outputs]], own: [[...mix.strengths], [...mix.outputs]],
          }};
        }});
        console.log(JSON.stringify(found));
    """
    done = subprocess.run([str(NODE), "-"], input=script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def found(page: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    if NODE is None:
        pytest.skip("Node is not installed: the page's mathematics was not run")
    return run_node(page, draw_mixes(parts_of(page)[0], 10), tmp_path_factory.mktemp("node"))


Read = tuple[Features, Sequence[int]]


@pytest.fixture(scope="module")
def read(demo_model: clipedit.Model, demo_scan: clipedit.Scan, task: LabelledImages) -> Read:
    return collect_features(demo_model, task.source, layers=demo_scan.layers)


def bind(text: str, scan: clipedit.Scan, model: clipedit.Model) -> clipedit.Recipe:
    document = RecipeDocument.model_validate(yaml.safe_load(text))
    return bind_recipe(document, scan, model)


def test_figures_are_those_that_evaluate_gives_of_the_applied_recipe(
    found: list[dict[str, Any]], demo_model: clipedit.Model, demo_scan: clipedit.Scan, task: LabelledImages
) -> None:
    """The default and the projection alone, by the models themselves."""
    chosen = [found[0], found[-1]]
    recipes = [bind(one["recipe"], demo_scan, demo_model) for one in chosen]
    edited = {str(at): clipedit.apply_recipe(recipe, demo_model) for at, recipe in enumerate(recipes)}
    table = clipedit.evaluate(edited, dataset=task, templates=SHAPE_TEMPLATES)
    for row, one in zip(table.values(), chosen, strict=True):
        for name in ("overall", "worst_group", "retention"):
            assert one["figures"][name] == pytest.approx(row[name], abs=1e-3)


def test_any_mix_answers_as_its_recipe(
    found: list[dict[str, Any]], demo_model: clipedit.Model, demo_scan: clipedit.Scan, task: LabelledImages, read: Read
) -> None:
    """Ten random subsets with strengths and projections: every answer, and what is left of concepts."""
    features, _ = read
    weights = compute_class_weights(demo_model, task.classes, SHAPE_TEMPLATES)
    sample = demo_scan.sample
    assert sample is not None
    plain = take_rows(sample.features, torch.arange(0, len(sample), 2))
    for one in found:
        recipe = bind(one["recipe"], demo_scan, demo_model)
        answers = (compute_recipe_embeddings(recipe, demo_model, features) @ weights.T).argmax(1)
        assert (answers.numpy() != one["answers"]).sum() <= 1
        after = compute_recipe_embeddings(recipe, demo_model, plain)
        turns = compute_turns(plain.embedding.double(), after.double())
        for level, angle in one["turns"].items():
            assert angle == pytest.approx(bound_turn(turns, float(level)), abs=2e-3)
        named = {head: step.strength for step in recipe.document.steps for head in step.heads}
        assert one["again"]["heads"] == pytest.approx(named)
        for shared, own in zip(one["shared"], one["own"], strict=True):
            assert shared == pytest.approx(own, abs=1e-4)


def test_what_is_left_of_a_concept_is_the_variance_of_the_edited_embeddings(
    found: list[dict[str, Any]], laid: Desk, demo_model: clipedit.Model, demo_scan: clipedit.Scan
) -> None:
    sample = demo_scan.sample
    assert sample is not None
    plain = take_rows(sample.features, torch.arange(0, len(sample), 2))
    for at, watched in enumerate(laid.facts["plain"]["watched"][:-1]):
        concept = load_concept(watched["name"], demo_model.folder)
        rows = torch.stack([fold.direction for fold in cut_folds(concept, encode_unit(demo_model, concept.texts))])
        before = (F.normalize(plain.embedding.double(), dim=1) @ rows.T).var(0)
        for one in found[:4]:
            recipe = bind(one["recipe"], demo_scan, demo_model)
            after = compute_recipe_embeddings(recipe, demo_model, plain).double()
            expected = float(((F.normalize(after, dim=1) @ rows.T).var(0) / before).mean())
            assert one["left"][at] == pytest.approx(expected, abs=2e-3)


def test_the_verdict_agrees_with_the_library(
    found: list[dict[str, Any]], demo_model: clipedit.Model, demo_scan: clipedit.Scan, task: LabelledImages, read: Read
) -> None:
    """Intervals come from other draws: they agree to one image of the 32 in a group."""
    features, kept = read
    yardstick = build_yardstick(demo_model, task, templates=SHAPE_TEMPLATES)
    recipe = bind(found[0]["recipe"], demo_scan, demo_model)
    after = compute_recipe_embeddings(recipe, demo_model, features)
    sides = [yardstick.outcomes(one, kept) for one in (features.embedding, after)]
    expected = compare_outcomes(sides[0][0], sides[1][0], sides[0][1])
    assert set(found[0]["differences"]) == set(expected)
    for name, difference in found[0]["differences"].items():
        for key in ("before", "after", "low", "high"):
            tolerance = 1e-3 if key in ("before", "after") else 1 / 32 + 1e-6
            assert difference[key] == pytest.approx(getattr(expected[name], key), abs=tolerance)
    assert judge_edit(expected).word == "HELPS"


def test_random_heads_beside_an_edit_are_those_of_python(
    found: list[dict[str, Any]], demo_model: clipedit.Model, demo_scan: clipedit.Scan, task: LabelledImages, read: Read
) -> None:
    """Mean, spread and the projection alone, from the very heads that the page draws; and the sentence about them."""
    yardstick = build_yardstick(demo_model, task, templates=SHAPE_TEMPLATES)
    one = found[0]
    document = bind(one["recipe"], demo_scan, demo_model).document
    names = [str(head) for head in head_ids(demo_model, demo_scan.layers)]
    chosen, output = next(step for step in document.steps if step.heads), document.steps[-1]
    rows = []
    for strengths in one["drawn"]:
        drawn = [name for name, strength in zip(names, strengths, strict=True) if strength]
        assert Counter(name.split("H")[0] for name in drawn) == Counter(name.split("H")[0] for name in chosen.heads)
        steps = (chosen.model_copy(update={"heads": tuple(drawn)}), output)
        recipe = bind_recipe(document.model_copy(update={"steps": steps}), demo_scan, demo_model)
        rows.append(yardstick.figures(compute_recipe_embeddings(recipe, demo_model, read[0]), read[1]))
    recipe = bind_recipe(document.model_copy(update={"steps": (output,)}), demo_scan, demo_model)
    alone = yardstick.figures(compute_recipe_embeddings(recipe, demo_model, read[0]), read[1])
    assert len({tuple(drawn) for drawn in one["drawn"]}) == len(rows) == DRAWS
    controls = ControlRows({"control": mean_rows(rows), "output_projection": alone}, rows)
    for name in ("overall", "worst_group", "retention"):
        beside = one["beside"][name]
        assert beside["control"]["mean"] == pytest.approx(controls.rows["control"][name], abs=1e-3)
        assert beside["control"]["sd"] == pytest.approx(controls.spread[name], abs=1e-3)
        assert beside["projection"] == pytest.approx(alone[name], abs=1e-3)


def test_every_verdict_is_the_library_s_own_word_for_word(found: list[dict[str, Any]]) -> None:
    assert len({one["verdict"]["word"] for one in found}) > 1
    for one in found:
        differences = {
            name: Difference(**{key: float(value) for key, value in difference.items()})
            for name, difference in one["differences"].items()
        }
        control, spread, alone = {}, {}, {}
        for name, beside in one["beside"].items():
            if "control" in beside:
                control[name], spread[name] = float(beside["control"]["mean"]), float(beside["control"]["sd"])
            if "projection" in beside:
                alone[name] = float(beside["projection"])
        expected = judge_edit(differences, control=control, control_sd=spread, projection=alone)
        assert (one["verdict"]["word"], one["verdict"]["because"]) == (expected.word, expected.because)


def test_head_cards_show_where_each_head_looks_on_the_images_that_excite_it(
    laid: Desk, demo_model: clipedit.Model, task: LabelledImages, read: Read
) -> None:
    texts = {head["name"]: head["texts"][0][0] for head in laid.facts["heads"] if head["texts"]}
    assert set(laid.facts["heat"]) == set(texts) and len(texts) > 20
    for name in ("L3H5", "L1H2"):
        head, images = clipedit.HeadId.parse(name), laid.facts["heat"][name]
        text = encode_queries(demo_model, [texts[name]])
        pixels = torch.stack([demo_model.preprocess(task.source.open(index)) for index in range(len(task.source))])
        shares = compute_token_shares(demo_model, pixels, text, heads=[head])
        said = shares.shares[:, 0, :, 0].sum(1) / shares.norm
        assert [one["image"] for one in images] == said.topk(4).indices.tolist()
        grids = shares.on_image()[[one["image"] for one in images], 0, :, :, 0].double().numpy()
        for one, grid in zip(images, grids, strict=True):
            pixels_of = np.asarray(Image.open(io.BytesIO(base64.b64decode(one["overlay"]))))
            color, opacity = tint(grid, float(np.abs(grids).max()))
            assert np.abs(pixels_of[..., 3] - opacity * 255).max() <= 2 and one["box"] == (0, 0, 1, 1)
            assert (pixels_of[..., :3] == color)[np.abs(grid) > 1e-6].all()


@pytest.mark.parametrize(
    ("view", "box"),
    [
        (View(50.0, 0.0, 150.0, 100.0, 200, 100), (0, 0, 1, 1)),
        (View(0.0, 0.0, 200.0, 100.0, 200, 100), (-0.5, 0, 2, 1)),
        (View(0.0, -50.0, 100.0, 250.0, 100, 200), (0, -1, 1, 3)),
    ],
)
def test_a_heatmap_lies_where_the_model_looked(view: View, box: tuple[float, ...]) -> None:
    assert _find_box(view) == box


def test_the_demo_is_measured_as_the_demo_is(
    demo_model: clipedit.Model, demo_scan: clipedit.Scan, tmp_path: Path
) -> None:
    laid = desk(demo_scan, demo_model, concept="location", dataset="demo", count=128)
    if NODE is None:
        pytest.skip("Node is not installed: the page's mathematics was not run")
    path = laid.save(tmp_path / "desk.html")
    (one,) = run_node(path, draw_mixes(laid.facts, 0)[:1], tmp_path)
    source = demo_test_source()
    names = {name: index for index, name in enumerate(source.names)}
    source = source.subset([names[name] for name in laid.facts["labelled"]["names"]])
    edited = clipedit.apply_recipe(bind(one["recipe"], demo_scan, demo_model), demo_model)
    row = build_demo_yardstick(edited, source).figures(*collect_embeddings(edited, source))
    for name in ("overall", "worst_group_listed", "worst_group_held_out", "retention", "place_accuracy"):
        assert one["figures"][name] == pytest.approx(row[name], abs=1e-3)


@needs_node
def test_the_mathematics_by_itself() -> None:
    """Known values: intervals, maps of projections, lengths, undo and fragments; see the script."""
    wilson = [wilson_interval(*pair) for pair in ((0, 10), (7, 10), (10, 10), (123, 250))]
    given = {**os.environ, "DESK": str(ROOM), "WILSON": json.dumps(wilson)}
    script = Path(__file__).parent / "desk.test.js"
    done = subprocess.run([str(NODE), "--test", str(script)], capture_output=True, text=True, check=False, env=given)
    assert done.returncode == 0, done.stdout[-3000:]


TEXTS = (
    "plain",
    'a "quoted" \\ text: # [x], {y}',
    "yes",
    "1990",
    " blanks ",
    "süß — ☃ 😀",
    "line\nbreak\ttab",
    "\u2028\x85\x7f",
)


@needs_node
@pytest.mark.parametrize("text", TEXTS)
def test_any_text_survives_the_recipe_that_the_page_writes(text: str) -> None:
    facts = {
        "concept": text,
        "model": {"name": text, "pretrained": text},
        "projections": [{"name": text, "step": {"concept": text, "texts": [text, "other"]}}],
    }
    script = f"""
        const state = require({json.dumps(str(ROOM / "desk_state.js"))});
        const facts = {json.dumps(facts)};
        const mix = new state.Mix(["L0H0"], [facts.concept]);
        mix.outputs[0] = 0.25, (mix.strengths[0] = 1);
        process.stdout.write(state.writeRecipe(mix, facts, "distilled"));
    """
    done = subprocess.run([str(NODE), "-"], input=script, capture_output=True, text=True, check=True)
    document = RecipeDocument.model_validate(yaml.safe_load(done.stdout))
    heads, output = document.steps
    assert (heads.heads, heads.strength, output.strength) == (("L0H0",), 1.0, 0.25)
    assert (document.base.model, document.base.pretrained, output.texts) == (text, text, (text, "other"))


def test_the_page_holds_everything_itself_and_no_text_can_leave_its_place(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert HOSTILE not in text and "<b>.png" not in text and "<i>" not in text.split("<script>")[0]
    assert len(re.findall(r"<script", text)) == 3 and not re.search(r'(src|href)="(?!data:|#)', text)
    policy = re.search(r"script-src 'sha256-([^']+)'", text)
    assert policy and "default-src 'none'" in text
    facts, data = parts_of(page)
    assert facts["labelled"]["names"][0] == HOSTILE and len(base64.b64decode(data)) % 8 == 0


def test_a_notebook_shows_it_in_a_frame_of_its_own(laid: Desk) -> None:
    shown = laid._repr_html_()
    assert shown.startswith("<iframe") and "&lt;script" in shown and "<script" not in shown


def test_what_cannot_be_laid_out_is_refused(demo_model: clipedit.Model, demo_scan: clipedit.Scan) -> None:
    with pytest.raises(clipedit.ModelError, match="it is a text tower"):
        desk(demo_scan, demo_model.with_tower("text"))
    with pytest.raises(clipedit.ConceptError, match="unknown concept 'locaton'"):
        desk(demo_scan, demo_model, concept="locaton")


def test_the_command_writes_a_page_from_a_folder(
    run: Callable[..., Any], demo_model: clipedit.Model, demo_scan: clipedit.Scan, tmp_path: Path
) -> None:
    folder = tmp_path / "repaired"
    folder.mkdir()
    demo_scan.save(folder / "scan.safetensors")
    clipedit.make_recipe(demo_scan, demo_model, concept="location", heads=3, output_strength=0.0).save(
        folder / "recipe.yaml"
    )
    done = run("desk", folder, "--count", 64, "-o", tmp_path / "a.html")
    assert done.code == 0, done.err
    assert "64 of 4096 labelled images x 32 heads" in done.err + done.out
    kinds = [one["kind"] for one in parts_of(tmp_path / "a.html")[0]["presets"]]
    assert kinds == ["recipe", "default"]


def test_the_command_without_labels_and_what_it_refuses(
    run: Callable[..., Any], demo_scan: clipedit.Scan, tmp_path: Path
) -> None:
    demo_scan.save(tmp_path / "scan.safetensors")
    asked = ("desk", "--scan", tmp_path / "scan.safetensors", "--concept", "color", "-o", tmp_path / "a.html")
    done = run(*asked)
    assert done.code == 0, done.err
    assert "no labelled images x 32 heads" in done.err + done.out
    facts, _ = parts_of(tmp_path / "a.html")
    assert facts["labelled"] is None and facts["front"] == []
    if NODE is not None:
        (one, *_) = run_node(tmp_path / "a.html", draw_mixes(facts, 0), tmp_path)
        assert one["figures"] == {} and 0 < one["left"][0] < 0.6
    again = run(*asked)
    assert again.code == 1 and "--overwrite" in again.err
    nothing = run("desk", "-o", tmp_path / "b.html")
    assert nothing.code == 1 and "Give --scan SCAN, or a folder" in nothing.err
    columns = run("desk", "--label", "shape", "-o", tmp_path / "b.html")
    assert columns.code == 2


# In a browser: from opening the page to the downloaded recipe, by keys alone.

TAB, ENTER, RIGHT, SHIFT, CONTROL = "\ue004", "\ue007", "\ue014", "\ue008", "\ue009"


def press(browser: Any, *keys: str) -> None:
    """The last key, with the ones before it held."""
    *held, key = keys
    down = [{"type": "keyDown", "value": one} for one in (*held, key)]
    up = [{"type": "keyUp", "value": one} for one in (key, *reversed(held))]
    browser("actions", {"actions": [{"type": "key", "id": "keyboard", "actions": [*down, *up]}]})


def tab_to(browser: Any, condition: str, *, most: int = 60) -> None:
    for _ in range(most):
        press(browser, TAB)
        if browser.run(f"const focused = document.activeElement; return {condition}"):
            return
    raise AssertionError(f"no key leads to {condition}")


def open_page(browser: Any, page: Path, width: int, height: int, fragment: str = "") -> None:
    browser.resize(width, height)
    browser("url", {"url": "about:blank"})
    browser("se/log", {"type": "browser"}), browser.requests()
    browser("url", {"url": page.as_uri() + fragment})
    wait(browser, "document.getElementById('word').textContent !== ''")


def wait(browser: Any, condition: str) -> None:
    for _ in range(100):
        if browser.run(f"return {condition}"):
            return
        time.sleep(0.1)
    raise AssertionError(f"never: {condition}")


@pytest.mark.parametrize(("width", "height"), [(1400, 900), (900, 900), (390, 844)], ids=["wide", "tablet", "phone"])
def test_the_desk_works_by_keys_alone(browser: Any, page: Path, tmp_path: Path, width: int, height: int) -> None:
    allow = {"behavior": "allow", "downloadPath": str(tmp_path)}
    browser("goog/cdp/execute", {"cmd": "Browser.setDownloadBehavior", "params": allow})
    open_page(browser, page, width, height)
    assert browser.run("return document.documentElement.scrollWidth") <= width
    before = browser.run("return document.getElementById('figures').innerText")
    tab_to(browser, "focused.className.startsWith('cell')")
    press(browser, RIGHT)
    head = browser.run("return document.activeElement.dataset.head")
    press(browser, " ")
    wait(browser, "document.activeElement.ariaSelected === 'true'")
    assert head in browser.run("return document.getElementById('card').innerText")
    assert "100 % removed" in browser.run("return document.activeElement.ariaLabel")
    press(browser, "-")
    wait(browser, f"location.hash.includes('{head}:0.9')")
    wait(browser, f"document.getElementById('figures').innerText !== {json.dumps(before)}")
    press(browser, CONTROL, "z")
    wait(browser, f"/{head}(,|&|$)/.test(location.hash)")
    browser.run("document.getElementById('preset').focus()")
    tab_to(browser, "focused.id === 'recipe'")
    press(browser, ENTER)
    for _ in range(100):
        if (tmp_path / "recipe.yaml").is_file():
            break
        time.sleep(0.1)
    document = RecipeDocument.model_validate(yaml.safe_load((tmp_path / "recipe.yaml").read_text()))
    assert head in document.heads and document.effect == "distilled"
    assert [entry for entry in browser("se/log", {"type": "browser"})] == []
    foreign = [url for url in browser.requests() if not url.startswith(("data:", "blob:", page.as_uri()))]
    assert foreign == []


def test_a_link_opens_with_what_it_says_and_names_are_text(browser: Any, page: Path) -> None:
    open_page(browser, page, 1400, 900, "#heads=L1H1,L2H2:0.5&output=location:0.25")
    assert browser.run("return [...document.querySelectorAll('[aria-selected=true]')].map(c => c.dataset.head)") == [
        "L2H2",
        "L1H1",
    ]
    assert "25 %" in browser.run("return document.getElementById('outputs').innerText")
    assert "city <i>" in browser.run("return document.getElementById('groups').innerText")
    browser.run(
        "const preset = document.getElementById('preset'); preset.value = '0';preset.dispatchEvent(new Event('change'))"
    )
    wait(browser, "document.getElementById('because').textContent.startsWith('nothing is edited')")
    assert browser.run("return location.hash") == ""
    assert browser.run("return document.querySelectorAll('b.png, main script').length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_can_be_read_in_light_and_dark(browser: Any, page: Path, scheme: str) -> None:
    """Contrast of words against their paper: at least 4.5 to 1 (WCAG AA)."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser("goog/cdp/execute", {"cmd": "Emulation.setEmulatedMedia", "params": {"features": features}})
    open_page(browser, page, 1400, 900)
    names = ["--paper", "--page", "--ink", "--soft", "--link", "--good", "--bad"]
    paper, ground, *inks = browser.run(
        "const s = getComputedStyle(document.documentElement);"
        f"return {json.dumps(names)}.map(n => s.getPropertyValue(n).trim())"
    )
    assert all(contrast(ink, under) >= 4.5 for ink in inks for under in (paper, ground))


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(color: str) -> float:
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
