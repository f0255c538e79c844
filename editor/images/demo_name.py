"""The name `demo`: what may be given in place of a model, images or a data set, and where the model is; no torch."""

from __future__ import annotations

from pathlib import Path

from ... import demo

DEMO = "demo"


def is_demo(name: object) -> bool:
    """Whether a model, a source or a data set that a user named is the embedded one."""
    return name == DEMO


def demo_folder() -> Path:
    """The embedded model's folder."""
    return Path(demo.__path__[0], "model")
