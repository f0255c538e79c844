"""Shared fixtures; shapes in annotations are checked while tests run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

os.environ["HF_HUB_OFFLINE"] = "1"

from jaxtyping import install_import_hook

_hook = install_import_hook(["clipedit.editor", "clipedit.export"], "beartype.beartype")

import pytest
import torch

import clipedit
from clipedit import cli
from clipedit.editor.look.spatial import TokenShares, compute_token_shares, head_ids


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing is read from or written to the user's own; processes that tests start share it."""
    os.environ["CLIPEDIT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What starts a browser or fetches packages of Node is marked by what it uses: no test can forget to say it."""
    for item in items:
        used, given = getattr(item, "fixturenames", ()), getattr(item, "callspec", None)
        if "browser" in used:
            item.add_marker(pytest.mark.browser)
        if item.path.name == "test_targets.py" and given is not None and "transformers-js" in given.params.values():
            item.add_marker(pytest.mark.download)


@pytest.fixture(scope="session", autouse=True)
def _two_threads() -> None:
    torch.set_num_threads(min(2, int(os.environ.get("OMP_NUM_THREADS", "2"))))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Batches of a few images gain nothing from threads, and wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Result(NamedTuple):
    """The exit code of a command, what it printed, and what it said on stderr."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """The command line."""

    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["clipedit", *map(str, arguments)])
        capfd.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0) if not isinstance(stop.code, str) else 1
        return Result(code, *capfd.readouterr())

    return call


@pytest.fixture(scope="session")
def demo_model() -> clipedit.Model:
    return clipedit.load_model("demo")


@pytest.fixture(scope="session")
def demo_scan(demo_model: clipedit.Model) -> clipedit.Scan:
    from clipedit.editor.images.demo import demo_calibration_source

    return clipedit.scan(demo_model, demo_calibration_source(1024), mlps=True, workers=0)


@pytest.fixture(scope="session")
def small_demo_scan(demo_model: clipedit.Model) -> clipedit.Scan:
    """Of few images and no MLPs: for the fast tests, which ask what a scan does, not what the demo's heads hold."""
    from clipedit.editor.images.demo import demo_calibration_source

    return clipedit.scan(demo_model, demo_calibration_source(256), workers=0)


@pytest.fixture(scope="session")
def family_table() -> Iterator[dict[str, tuple[str, int, float]]]:
    """Components and relative error of the sum, one row per family; `pytest -s -k contributions` prints them."""
    rows: dict[str, tuple[str, int, float]] = {}
    yield rows
    print(f"\n{'family':42} {'tower':14} components  relative error")
    for name, (tower, count, error) in rows.items():
        print(f"{name:42} {tower:14} {count:10d}  {error:.1e}")


@pytest.fixture(scope="session")
def check_token_shares() -> Callable[[clipedit.Model, torch.Tensor], TokenShares]:
    """Over all tokens, the shares of every head towards any direction are its contribution along it, within 1e-5."""

    def check(model: clipedit.Model, pixels: torch.Tensor) -> TokenShares:
        directions = torch.randn(4, model.tower.d_embed, dtype=torch.float64)
        found = compute_token_shares(model, pixels, directions, heads=head_ids(model, range(model.tower.n_layers)))
        parts = clipedit.decompose(model, pixels)
        names = [str(identity) for identity in parts.components]
        contributions = parts.contributions[:, [names.index(str(head)) for head in found.heads]]
        for shares, expected in (
            (found.shares.sum(2).double(), contributions.double() @ directions.T),
            (found.norm, parts.embedding.norm(dim=1)),
        ):
            assert float((shares - expected).norm() / expected.norm()) < 1e-5
        rows, columns = found.grid
        assert found.on_image().shape == (len(pixels), len(found.heads), rows, columns, 4) and rows * columns > 1
        return found

    return check
