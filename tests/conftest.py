"""Shared fixtures; shapes in annotations are checked while tests run."""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ["HF_HUB_OFFLINE"] = "1"

from jaxtyping import install_import_hook

_hook = install_import_hook(["clipedit.editor", "clipedit.export"], "beartype.beartype")

import pytest
import torch

import clipedit


@pytest.fixture(scope="session", autouse=True)
def _two_threads() -> None:
    torch.set_num_threads(min(2, int(os.environ.get("OMP_NUM_THREADS", "2"))))


@pytest.fixture(scope="session")
def demo_model() -> clipedit.Model:
    return clipedit.load_model("demo")


@pytest.fixture(scope="session")
def demo_scan(demo_model: clipedit.Model) -> clipedit.Scan:
    from clipedit.editor.images import demo_calibration_source

    return clipedit.scan(demo_model, demo_calibration_source(1024), mlps=True, workers=0)


@pytest.fixture(scope="session")
def family_table() -> Iterator[dict[str, tuple[str, int, float]]]:
    """Components and relative error of the sum, a row a family; printed at the end (`pytest -s -k contributions`)."""
    rows: dict[str, tuple[str, int, float]] = {}
    yield rows
    print(f"\n{'family':42} {'tower':14} components  relative error")
    for name, (tower, count, error) in rows.items():
        print(f"{name:42} {tower:14} {count:10d}  {error:.1e}")
