"""Shared fixtures; shapes in annotations are checked while tests run."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from jaxtyping import install_import_hook

_hook = install_import_hook(["clipedit.editor", "clipedit.export"], "beartype.beartype")

import pytest
import torch

import clipedit


@pytest.fixture(scope="session", autouse=True)
def _two_threads() -> None:
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def demo_model() -> clipedit.Model:
    return clipedit.load_model("demo")


@pytest.fixture(scope="session")
def demo_scan(demo_model: clipedit.Model) -> clipedit.Scan:
    from clipedit.editor.images import demo_calibration_source

    return clipedit.scan(demo_model, demo_calibration_source(1024), mlps=True, workers=0)
