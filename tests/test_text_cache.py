"""Embeddings of texts are kept on disk: by what they depend on, whole or not at all, and never past a bound."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import clipedit
from clipedit.commands.checks import forget_cache
from clipedit.editor.files import cache as caches
from clipedit.editor.files.cache import TensorCache, find_cache

TEXTS = [f"a photo of {number} dogs" for number in range(20)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLIPEDIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "texts"


@pytest.fixture
def fresh(demo_model: clipedit.Model, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[clipedit.Model, list]]:
    """The demo as another process would load it, some tensors changed, and the lists of tokens that it encodes."""

    def build(**changed: Tensor) -> tuple[clipedit.Model, list]:
        model = demo_model.with_tensors({name.replace("__", "."): tensor for name, tensor in changed.items()})
        counted: list[int] = []
        encode = model.module.token_embedding.register_forward_hook(lambda _, given, __: counted.append(len(given[0])))
        assert encode is not None
        return model, counted

    return build


def test_a_second_run_reads_what_the_first_one_encoded_to_the_bit(folder: Path, fresh) -> None:  # type: ignore[no-untyped-def]
    first, encoded = fresh()
    found = first.encode_text(TEXTS)
    assert sum(encoded) == 20 and len(list(folder.iterdir())) == 1
    second, again = fresh()
    assert torch.equal(second.encode_text(TEXTS), found) and again == []
    # Nobody who changes what came back changes what is kept.
    second.encode_text(TEXTS).zero_()
    assert torch.equal(fresh()[0].encode_text(TEXTS), found)


def test_an_edit_of_the_image_side_shares_texts_and_one_of_the_text_side_does_not(folder: Path, fresh) -> None:  # type: ignore[no-untyped-def]
    base, _ = fresh()
    found = base.encode_text(TEXTS)
    image, encoded = fresh(visual__proj=torch.zeros_like(base.module.visual.proj))
    assert torch.equal(image.encode_text(TEXTS), found) and encoded == []
    text, encoded = fresh(text_projection=base.module.text_projection.detach() * 2)
    assert torch.allclose(text.encode_text(TEXTS), found * 2) and sum(encoded) == 20
    assert len(list(folder.iterdir())) == 2


def test_other_texts_another_order_and_another_activation_are_encoded(folder: Path, fresh) -> None:  # type: ignore[no-untyped-def]
    base, _ = fresh()
    found = base.encode_text(TEXTS)
    model, encoded = fresh()
    assert torch.allclose(model.encode_text(TEXTS[::-1]), found.flip(0), atol=1e-5) and sum(encoded) == 20
    model.encode_text([*TEXTS[:-1], "a cat"])
    assert sum(encoded) == 40 and len(list(folder.iterdir())) == 3
    config = {**base.config, "model_cfg": {**base.config["model_cfg"], "quick_gelu": True}}
    other = replace(model, config=config)
    assert len(encoded) > 0 and other._text_identity != base._text_identity


def test_short_lists_and_an_empty_variable_keep_nothing(folder: Path, fresh, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    fresh()[0].encode_text(TEXTS[:3])
    # What `--no-cache` does; put back when the test ends.
    monkeypatch.setenv("CLIPEDIT_CACHE", "x")
    assert forget_cache(False) is False and os.environ["CLIPEDIT_CACHE"] == "x"
    assert forget_cache(True) and find_cache() is None
    model, encoded = fresh()
    model.encode_text(TEXTS)
    assert sum(encoded) == 20 and not folder.exists()


def test_what_is_damaged_is_computed_and_kept_anew(tmp_path: Path) -> None:
    cache, one = TensorCache(tmp_path / "c"), torch.randn(4, 3)
    cache.recall("a", lambda: one)
    (path,) = (tmp_path / "c").iterdir()
    for damage in (b"", path.read_bytes()[:-5], b"\xff" * 100):
        path.write_bytes(damage)
        assert torch.equal(cache.recall("a", lambda: one + 1), one + 1)
        assert torch.equal(cache.recall("a", pytest.fail), one + 1)


def test_a_folder_that_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    one = torch.randn(4, 3)
    assert torch.equal(TensorCache(tmp_path / "file").recall("a", lambda: one), one)
    assert (tmp_path / "file").read_text() == "in the way"


def test_what_was_not_read_for_longest_goes_first(tmp_path: Path) -> None:
    one = torch.zeros(1000)
    cache = TensorCache(tmp_path, most_bytes=3 * 4200)
    for age, key in ((300, "a"), (200, "b"), (100, "c")):
        cache.recall(key, lambda: one)
        os.utime(tmp_path / f"{key}.safetensors", (time.time() - age,) * 2)
    # Read: now the newest.
    cache.recall("a", pytest.fail)
    cache.recall("d", lambda: one)
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["a", "c", "d"]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= cache.most_bytes
    # What would fill it alone is not kept, and drives nothing out.
    cache.recall("e", lambda: torch.zeros(4000))
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["a", "c", "d"]


def test_many_may_read_write_and_trim_at_once(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path, most_bytes=5 * 600)

    def work(number: int) -> bool:
        key = number % 9
        found = cache.recall(f"{key}", lambda: torch.full((100,), float(key)))
        return bool((found == key).all()) and found.shape == (100,)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(150)))
    assert all(path.suffix == ".safetensors" for path in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {"XDG_CACHE_HOME": "/x/y"}, "/x/y/clipedit/texts"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, "/home/someone/.cache/clipedit/texts"),
        ("linux", {}, "/home/someone/.cache/clipedit/texts"),
        ("darwin", {}, "/home/someone/Library/Caches/clipedit/texts"),
        ("win32", {"LOCALAPPDATA": "/c/local"}, "/c/local/clipedit/texts"),
    ],
)
def test_the_default_is_the_platforms_folder_for_caches(
    platform: str, variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CLIPEDIT_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/someone", **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(caches.sys, "platform", platform)
    found = find_cache()
    assert found is not None and found.folder.as_posix() == expected


def test_label_prints_the_same_cold_warm_and_without(run, demo_scan, folder: Path, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    demo_scan.save(tmp_path / "scan.safetensors")
    cold = run("label", tmp_path / "scan.safetensors")
    assert cold.code == 0 and len(list(folder.iterdir())) == 1
    assert run("label", tmp_path / "scan.safetensors") == cold
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    monkeypatch.setenv("CLIPEDIT_CACHE", os.environ["CLIPEDIT_CACHE"])
    assert run("label", tmp_path / "scan.safetensors", "--no-cache") == cold
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
