"""Arguments of the wrong kind get a sentence that says what to give; models and scans say in one line what they are."""

from __future__ import annotations

import subprocess
import sys

import clipedit

# In a process of its own: the test run checks annotations itself, and would speak first.
WRONG_CALLS = {
    "clipedit.load_model(123)": "load a model: `name` is 123 (int), a name or a folder is needed",
    "clipedit.scan('demo', 'demo')": "scan images: `model` is 'demo' (str), a Model is needed",
    "clipedit.scan_units('demo', 'demo', 'parts')": "scan images: `model` is 'demo' (str), a Model is needed",
    "clipedit.decompose('demo', None)": "decompose embeddings: `model` is 'demo' (str), a Model is needed",
    "clipedit.apply_recipe(model, recipe)": "apply a recipe: `recipe` is of type Model, a Recipe is needed",
    "clipedit.apply_recipe('no.yaml', model)": "apply a recipe: `recipe` is 'no.yaml' (str), a Recipe is needed",
    "clipedit.apply_recipe(recipe, model, scan='s')": "apply a recipe: `scan` is 's' (str), a Scan is needed",
    "clipedit.bind_recipe(recipe, 's', model)": "bind a recipe: `document` is of type Recipe",
    "clipedit.make_recipe(model, 's', concept='location')": "make a recipe: `scan` is of type Model, a Scan is needed",
    "clipedit.select_recipe('s', model)": "choose heads: `scan` is 's' (str), a Scan is needed",
    "clipedit.score_heads(None, model, concept='c')": "score heads: `scan` is None, a Scan is needed",
    "clipedit.text_span('s', model, texts=[])": "label heads: `scan` is 's' (str), a Scan is needed",
    "clipedit.monitor('s', model, 'demo')": "compare images with a scan: `scan` is 's' (str), a Scan is needed",
    "clipedit.align(model, 'ViT-B-32', 'demo')": "learn an aligner: `clip` is 'ViT-B-32' (str), a Model is needed",
    "clipedit.apply_aligner('demo', 'a')": "align the model: `model` is 'demo' (str), a Model is needed",
    "clipedit.heatmap('demo', None, text='a')": "draw a heatmap: `model` is 'demo' (str), a Model is needed",
    "clipedit.evaluate([model, model], 'demo')": "evaluate: `models` is of type list, a mapping",
    "clipedit.evaluate(model, 'demo')": "evaluate: `models` is of type Model, a mapping",
    "clipedit.evaluate({'after': 'demo'}, 'demo')": "evaluate: `models['after']` is 'demo' (str), a Model is needed",
    "clipedit.export_model('demo', 'out', target='onnx')": "export a model: `model` is 'demo' (str), a Model is needed",
    "clipedit.repair('demo', concept='location')": "repair a model: `model` is 'demo' (str), a Model is needed",
    "clipedit.scan(model, 123)": "read images: `images` is 123 (int)",
    "clipedit.scan(model, [None])": "read images: `images` is None",
    "clipedit.scan_units(model, model, 'parts')": "read images: `images` is of type Model",
    "clipedit.scan(model, 'demo', layers=3)": "scan: `layers` is 3 (int)",
    "clipedit.evaluate({'after': model}, 123)": "evaluate: `dataset` is 123 (int)",
    "clipedit.load_scan(123)": "read a scan: `path` is 123 (int)",
    "clipedit.load_recipe(model)": "read a recipe: `path` is of type Model",
    "clipedit.verify(None)": "verify an export: `path` is None",
}
SCRIPT = """
import clipedit

model = clipedit.load_model("demo")
recipe = clipedit.load_recipe("waterbirds-protocol-vit-l-14")
for call in {calls!r}:
    try:
        eval(call)
    except TypeError as error:
        print(error)
    else:
        print("nothing was raised")
"""


def test_an_argument_of_another_kind_is_refused_with_what_to_give() -> None:
    script = SCRIPT.format(calls=list(WRONG_CALLS))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    for line, (call, expected) in zip(done.stdout.splitlines(), WRONG_CALLS.items(), strict=True):
        assert line.startswith(f"cannot {expected}") and ". Give " in line, (call, line)


def test_a_model_says_in_one_line_what_it_is(demo_model: clipedit.Model, demo_scan: clipedit.Scan) -> None:
    assert repr(demo_model) == "<Model demo, image tower: 4 layers of 8 heads, 64 dimensions, cpu>"
    recipe = clipedit.make_recipe(demo_scan, demo_model, concept="location")
    edited = clipedit.apply_recipe(recipe, demo_model)
    assert repr(edited).endswith(f", cpu, edited by {recipe.document.name}>")
    assert repr(demo_model.with_tower("text")).startswith("<Model demo, text tower: ")


def test_a_scan_says_in_one_line_what_it_saw(demo_scan: clipedit.Scan) -> None:
    count = demo_scan.statistics.n
    assert repr(demo_scan).startswith(f"<Scan of demo: {count} images, layers ") and "\n" not in repr(demo_scan)
