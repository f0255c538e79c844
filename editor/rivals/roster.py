"""Every method that stands beside an edit, by the name of its row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..components import HeadId
from ..select.plan import Evidence
from ..select.selectors import select_recipe
from .causal import remove_causes
from .erasers import erase, erase_and_keep
from .inferred import translate_images
from .residual import reweight_components
from .selectors import ablate, pursue_heads
from .setting import Rival, Setting, ship_recipe
from .text_maps import (
    calibrate_texts,
    correct_by_insights,
    project_class_texts,
    project_differences,
    project_images,
)


@dataclass(frozen=True)
class Method:
    """A row: how it is made, and whether it is fitted to labels."""

    make: Callable[[Setting], Rival]
    labels: bool = False


def keep_default(setting: Setting) -> Rival:
    """What the tool itself would make."""
    return ship_recipe(setting.default, setting)


def ablate_default(setting: Setting) -> Rival:
    """The tool's heads, without its projection of the output."""
    return ablate(setting, [HeadId.parse(head) for head in setting.default.heads])


def choose_by_labels(setting: Setting) -> Rival:
    """The `frontier` selector: heads and strength of the projection by worst group on labelled images."""
    evidence = Evidence(setting.task, setting.retention, cached=setting.cached)
    document = select_recipe(
        setting.scan,
        setting.model,
        select="frontier",
        evidence=evidence,
        concept=setting.concept,
        effect="distilled",
        known=setting.known,
    )
    return ship_recipe(document, setting)


METHODS: dict[str, Method] = {
    "clipedit": Method(keep_default),
    "clipedit, heads alone": Method(ablate_default),
    "output projection": Method(project_images),
    "class-text projection": Method(project_class_texts),
    "difference subspace": Method(project_differences),
    "Orth-Cali": Method(calibrate_texts),
    "RoboShot": Method(correct_by_insights),
    "TIE*": Method(translate_images),
    "Head Pursuit": Method(pursue_heads),
    "causal score": Method(remove_causes),
    "frontier": Method(choose_by_labels, labels=True),
    "LEACE": Method(erase, labels=True),
    "SPLINCE": Method(erase_and_keep, labels=True),
    "ResiDual": Method(reweight_components, labels=True),
}
