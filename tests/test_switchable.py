"""One graph answers as the base and, with an adapter, as each edited model; what cannot switch is refused by name."""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import psutil
import pytest
import torch

import clipedit
from clipedit.editor.edits.document import split_named_recipe
from clipedit.editor.edits.recipe import Recipe
from clipedit.editor.files.tensors import hash_state, load_tensors
from clipedit.editor.files.whole import save_tensors
from clipedit.export.consumers.onnx_runtime import as_function, load_adapter
from clipedit.export.verify.reference import KIND, load_reference
from clipedit.export.verify.verify import REFERENCE_NAME
from clipedit.export.verify.verify_child import run_checks
from clipedit.export.written_for import find_written

Run = Callable[..., tuple[int, str, str]]

pytestmark = pytest.mark.usefixtures("one_thread")


def named(recipe: Recipe, name: str) -> Recipe:
    return dataclasses.replace(recipe, document=recipe.document.model_copy(update={"name": name}))


@pytest.fixture(scope="module")
def recipes(demo_model: clipedit.Model, demo_scan: clipedit.Scan) -> dict[str, Recipe]:
    """A refitted readout; folded heads and output; and texts too, which are of the other graph."""
    strong = {"heads": 8, "output_strength": 0.9}
    place = clipedit.make_recipe(demo_scan, demo_model, concept="location", **strong)  # pyright: ignore[reportArgumentType]
    colour = clipedit.make_recipe(demo_scan, demo_model, concept="color", effect="total", **strong)  # pyright: ignore[reportArgumentType]
    steps = [*place.document.steps, place.document.steps[-1].model_copy(update={"target": "texts", "spared": None})]
    both = clipedit.bind_recipe(place.document.model_copy(update={"steps": tuple(steps)}), demo_scan, demo_model)
    return {"place": named(place, "place"), "colour": named(colour, "colour"), "both": named(both, "both")}


@pytest.fixture(scope="module")
def edited(demo_model: clipedit.Model, recipes: dict[str, Recipe]) -> dict[str, clipedit.Model]:
    return {name: clipedit.apply_recipe(recipe, demo_model) for name, recipe in recipes.items()}


@pytest.fixture(scope="module")
def folder(demo_model: clipedit.Model, recipes: dict[str, Recipe], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("switchable") / "onnx"
    clipedit.export_model(demo_model, out, target="onnx", switchable=list(recipes.values()))
    return out


def test_each_adapter_answers_as_its_own_model_and_no_adapter_as_the_base(
    demo_model: clipedit.Model, edited: dict[str, clipedit.Model], folder: Path
) -> None:
    files = json.loads((folder / "clip.json").read_text())["adapters"]
    assert {name: set(found) for name, found in files.items()} == {
        "place": {"visual.onnx"},
        "colour": {"visual.onnx"},
        "both": {"visual.onnx", "textual.onnx"},
    }
    sessions = {name: onnxruntime.InferenceSession(folder / name) for name in ("visual.onnx", "textual.onnx")}
    assert [one.name for one in sessions["visual.onnx"].get_inputs()] == ["image"]
    pixels = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    tokens = demo_model.tokenizer(["a photo of a circle", "the ocean", "snow"])
    feeds = {"visual.onnx": {"image": pixels.numpy()}, "textual.onnx": {"text": tokens.numpy().astype(np.int64)}}
    for name, model in [("", demo_model), *edited.items(), ("", demo_model)]:
        wanted = {"visual.onnx": model.encode_image(pixels), "textual.onnx": model.encode_tokens(tokens)}
        for graph, session in sessions.items():
            adapter, options = onnxruntime.LoraAdapter(), onnxruntime.RunOptions()
            if graph in files.get(name, {}):
                adapter.Load(str(folder / files[name][graph]))
                options.add_active_adapter(adapter)
            found = torch.from_numpy(session.run(None, feeds[graph], options)[0])
            assert ((found - wanted[graph]).norm() / wanted[graph].norm()) < 1e-5, (name, graph)
    bases = [demo_model.encode_image(pixels) - model.encode_image(pixels) for model in edited.values()]
    assert all(distance.norm() > 0.1 for distance in bases)


def test_an_adapter_holds_what_its_recipe_changes_and_no_more(folder: Path, recipes: dict[str, Recipe]) -> None:
    held = {
        path.name: onnxruntime.AdapterFormat.read_adapter(str(path)).get_parameters().keys()
        for path in folder.glob("*.onnx_adapter")
    }
    assert held["place.onnx_adapter"] == {"visual.proj", "visual.ln_post.bias"}
    assert held["both.textual.onnx_adapter"] == {"text_projection"}
    layers = {f"visual.transformer.resblocks.{name[1]}.attn.out_proj" for name in recipes["colour"].heads}
    assert held["colour.onnx_adapter"] == {
        "visual.proj",
        *(f"{layer}.{leaf}" for layer in layers for leaf in ("weight", "bias")),
    }
    # 64 x 128 numbers and 128 of four bytes, and the format's own.
    assert 4 * (64 * 128 + 128) < (folder / "place.onnx_adapter").stat().st_size < 4 * (64 * 128 + 128) + 500


def test_the_report_checks_every_adapter_and_the_base_after_them(folder: Path) -> None:
    checks = {one["name"]: one for one in json.loads((folder / "verification.json").read_text())["checks"]}
    for prefix in ("", "place: ", "colour: ", "both: "):
        for kind in ("image, batch 11", "image, batch 1", "text, batch 8"):
            assert checks[f"{prefix}{kind}, worst difference / norm"]["tolerance"] == 1e-5
    assert "both: image, distance to the unedited model" in checks
    assert checks["base, after the adapters, worst difference"]["figure"] == 0


def check(folder: Path) -> list[str]:
    """The checks of `verify`, here and not in a process of their own: the names of those that fail."""
    _, checks = run_checks(find_written("onnx"), folder, load_reference(folder))
    return [str(one) for one in checks if not one.holds]


def test_an_adapter_of_another_edit_fails_by_its_name(folder: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    shutil.copytree(folder, wrong)
    assert check(wrong) == []
    shutil.copyfile(folder / "place.onnx_adapter", wrong / "colour.onnx_adapter")
    assert check(wrong)[0].startswith("FAIL colour: image, batch 11, worst difference / norm")
    (wrong / "colour.onnx_adapter").write_bytes(b"nothing of that kind")
    with pytest.raises(clipedit.VerificationError, match=r"colour.onnx_adapter is no adapter \(The buffer"):
        check(wrong)
    (wrong / "colour.onnx_adapter").unlink()
    with pytest.raises(clipedit.VerificationError, match=r"colour.onnx_adapter is missing. Export again"):
        check(wrong)


def test_a_reference_without_an_adapters_answers_is_refused(folder: Path, tmp_path: Path) -> None:
    tensors, described = load_tensors(folder / REFERENCE_NAME, KIND)
    for change, match in (({"options": {"switchable": ["../place"]}}, "adapters are damaged"), ({}, "are missing")):
        kept = tensors if change else {name: one for name, one in tensors.items() if "colour" not in name}
        save_tensors(tmp_path / REFERENCE_NAME, kept, KIND, {**described, **change})
        with pytest.raises(clipedit.VerificationError, match=match):
            load_reference(tmp_path)


@pytest.mark.slow
def test_it_comes_out_again_to_the_byte(folder: Path) -> None:
    assert {path.name for path in (folder / "reproduce" / "adapters").glob("*.yaml")} == {
        "place.yaml",
        "colour.yaml",
        "both.yaml",
    }
    assert clipedit.reproduce(folder) == []


@pytest.mark.slow
def test_an_edited_folder_switches_to_its_own_edit(
    demo_model: clipedit.Model, recipes: dict[str, Recipe], run: Run, tmp_path: Path
) -> None:
    from clipedit.export.edited_folder import apply_to_folder

    assert demo_model.folder is not None
    apply_to_folder(recipes["place"], demo_model.folder, tmp_path / "edited")
    code, out, err = run("export", tmp_path / "edited", "--target", "onnx", "--switchable", "-o", tmp_path / "own")
    assert code == 0, err
    assert "place: image, distance to the unedited model" in out + err
    recipes["colour"].save(tmp_path / "colour.yaml")
    code, out, err = run(
        *(
            "export",
            "demo",
            "--target",
            "onnx",
            "--switchable",
            tmp_path / "edited",
            f"loud={tmp_path / 'colour.yaml'}",
        ),
        *("-o", tmp_path / "two"),
    )
    assert code == 0, err
    assert {path.name for path in (tmp_path / "two").glob("*.onnx_adapter")} == {
        "place.onnx_adapter",
        "loud.onnx_adapter",
    }
    # The graph is the base's in both: the same file wherever the same tensors may change.
    assert (tmp_path / "own" / "place.onnx_adapter").read_bytes() == (
        tmp_path / "two" / "place.onnx_adapter"
    ).read_bytes()


def test_a_path_may_hold_the_sign_of_a_name(recipes: dict[str, Recipe], run: Run, tmp_path: Path) -> None:
    held = tmp_path / "a=b"
    held.mkdir()
    recipes["place"].save(held / "recipe.yaml")
    assert split_named_recipe(f"loud={held}") == ("loud", str(held))
    assert split_named_recipe(str(held)) == (None, str(held))
    assert split_named_recipe("place") == (None, "place")
    # What is read is not replaced.
    code, _, err = run("export", "demo", held, "--target", "onnx", "--switchable", "-o", held, "--overwrite")
    assert code == 1 and f"{held} is read from there" in err.replace("\n", " ")
    assert (held / "recipe.yaml").is_file()


def test_what_cannot_switch_is_refused_by_name(
    demo_model: clipedit.Model, demo_scan: clipedit.Scan, recipes: dict[str, Recipe], tmp_path: Path, run: Run
) -> None:
    place = recipes["place"]
    direct = named(clipedit.make_recipe(demo_scan, demo_model, concept="location", effect="direct"), "direct-one")
    unbound = Recipe(place.document)
    other = demo_model.with_tensors({"visual.proj": demo_model.module.visual.proj * 2})

    def refused(match: str, *given: Recipe | str, model: clipedit.Model = demo_model, **options: object) -> None:
        with pytest.raises(clipedit.ClipeditError, match=match):
            clipedit.export_model(model, tmp_path / "out", switchable=given, **{"target": "onnx", **options})  # pyright: ignore[reportArgumentType]
        assert not (tmp_path / "out").exists()

    refused("cannot switch demo to direct-one: its edit is direct", place, direct)
    refused("cannot switch demo to place: its recipe is unbound", unbound)
    refused("cannot switch demo to place: its recipe was made for weights .* Give that base", place, model=other)
    refused("cannot make demo switchable: it is not edited, and no recipe was given")
    refused("cannot write two adapters 'place'", place, place)
    refused("cannot write two adapters 'place'", place, named(recipes["colour"], "PLACE"))
    refused("cannot write an adapter '../place': it is no name of a file", named(place, "../place"))
    refused("cannot write an adapter 'base': so the answers without one are called", named(place, "Base"))
    refused("cannot use --switchable with hf: it has no adapters. Use --target onnx", place, target="hf")
    refused("cannot use --switchable with triton: it has no adapters. Use --target onnx", place, target="triton")
    refused("cannot use --switchable with --precision int8", place, precision="int8")
    refused("cannot use --switchable with --prune", place, prune=True)
    refused("unknown recipe 'nowhere'", "nowhere")
    worse = place.with_measured({"evidence": {"verdict": "HARMS", "because": "b is .1 lower"}})
    refused("its edit harms, b is .1 lower. Edit again, or add --force", worse)
    code, _, err = run("export", "demo", tmp_path / "place.yaml", "--target", "onnx", "-o", tmp_path / "out")
    assert code == 2 and "give --switchable" in err


@pytest.mark.parametrize("name", ["place", "colour", "both"])
def test_a_switched_model_answers_as_the_edited_one_and_is_the_base_again(
    demo_model: clipedit.Model, edited: dict[str, clipedit.Model], recipes: dict[str, Recipe], name: str
) -> None:
    pixels, texts = torch.randn(2, 3, 64, 64), ["a circle on snow", "the ocean"]
    before, image, text = (
        hash_state(demo_model.stored_state()),
        demo_model.encode_image(pixels),
        demo_model.encode_text(texts),
    )
    own, changed = dict(demo_model.module.named_parameters()), names_of_changed(edited[name], demo_model)
    with clipedit.switch(demo_model, recipes[name]) as switched:
        assert switched is demo_model
        assert torch.equal(demo_model.encode_image(pixels), edited[name].encode_image(pixels))
        assert torch.equal(demo_model.encode_text(texts), edited[name].encode_text(texts))
        assert demo_model.weights_hash == edited[name].weights_hash
        assert demo_model.recipe.document.name == name
        # Nothing but the changed tensors is new.
        now = dict(demo_model.module.named_parameters())
        assert {one for one in own if now[one] is not own[one]} == changed
    assert hash_state(demo_model.stored_state()) == before == demo_model.weights_hash
    assert demo_model.recipe is None and demo_model.checkpoint is not None
    assert all(parameter is own[one] for one, parameter in demo_model.module.named_parameters())
    assert torch.equal(demo_model.encode_image(pixels), image) and torch.equal(demo_model.encode_text(texts), text)


def names_of_changed(edited: clipedit.Model, base: clipedit.Model) -> set[str]:
    ours, theirs = base.module.state_dict(), edited.module.state_dict()
    return {name for name in ours if not torch.equal(ours[name], theirs[name])}


def test_blocks_nest_and_an_exception_restores_the_base(
    demo_model: clipedit.Model, edited: dict[str, clipedit.Model], recipes: dict[str, Recipe]
) -> None:
    pixels = torch.randn(2, 3, 64, 64)
    base, before = demo_model.encode_image(pixels), hash_state(demo_model.stored_state())
    other = dataclasses.replace(
        recipes["place"],
        document=recipes["place"].document.model_copy(
            update={"base": recipes["place"].document.base.model_copy(update={"weights_hash": "0" * 64})}
        ),
    )
    with clipedit.switch(demo_model, recipes["colour"]):
        with clipedit.switch(demo_model, recipes["place"]):
            assert torch.equal(demo_model.encode_image(pixels), edited["place"].encode_image(pixels))
        assert torch.equal(demo_model.encode_image(pixels), edited["colour"].encode_image(pixels))
        with (
            pytest.raises(clipedit.RecipeError, match="it was made for weights 000"),
            clipedit.switch(demo_model, other),
        ):
            pass
        assert torch.equal(demo_model.encode_image(pixels), edited["colour"].encode_image(pixels))
    with pytest.raises(ZeroDivisionError), clipedit.switch(demo_model, recipes["both"]):
        raise ZeroDivisionError
    assert hash_state(demo_model.stored_state()) == before
    assert torch.equal(demo_model.encode_image(pixels), base)


def test_threads_that_switch_wait_for_each_other(
    demo_model: clipedit.Model, edited: dict[str, clipedit.Model], recipes: dict[str, Recipe]
) -> None:
    pixels, wrong = torch.randn(1, 3, 64, 64), []
    wanted = {name: model.encode_image(pixels) for name, model in edited.items()}
    before = hash_state(demo_model.stored_state())

    def work(name: str) -> None:
        for _ in range(5):
            with clipedit.switch(demo_model, recipes[name]):
                wrong.extend([] if torch.equal(demo_model.encode_image(pixels), wanted[name]) else [name])

    threads = [threading.Thread(target=work, args=(name,)) for name in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and hash_state(demo_model.stored_state()) == before


def test_a_direct_edit_cannot_be_switched_to(demo_model: clipedit.Model, demo_scan: clipedit.Scan) -> None:
    direct = clipedit.make_recipe(demo_scan, demo_model, concept="location", effect="direct")
    with pytest.raises(clipedit.RecipeError, match="its edit is direct"), clipedit.switch(demo_model, direct):
        pass


@pytest.mark.slow
def test_eight_threads_that_switch_edits_get_the_answers_of_one(folder: Path) -> None:
    """As a server asks: 2,000 requests of one to four images, the edit another from request to request."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / "visual.onnx", settings, providers=["CPUExecutionProvider"])
    adapters = {name: load_adapter(folder / f"{name}.onnx_adapter") for name in ("place", "colour", "both")}
    answer = {name: as_function(session, adapter=adapter) for name, adapter in {"base": None, **adapters}.items()}
    generator = torch.Generator().manual_seed(0)
    pixels = [torch.randn(1 + index % 4, 3, 64, 64, generator=generator) for index in range(8)]
    keys = [(name, index) for name in answer for index in range(len(pixels))]
    expected = {(name, index): answer[name](pixels[index]) for name, index in keys}
    asked = [keys[number] for number in np.random.default_rng(0).integers(0, len(keys), 2_000)]

    def ask(key: tuple[str, int]) -> bool:
        return torch.equal(answer[key[0]](pixels[key[1]]), expected[key])

    process = psutil.Process()
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, asked[:500]))
        warm = process.memory_info().rss
        assert all(pool.map(ask, asked[500:]))
    assert process.memory_info().rss - warm < 20_000_000
