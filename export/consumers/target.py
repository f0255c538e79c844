"""A target: one consumer, and everything that is particular to it. Each is one file in `export/targets/`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ...editor.choices import WeightPrecision
from ...editor.errors import VerificationError
from ...editor.models.model import Model
from ...editor.models.open_clip_config import CONFIG_NAME, read_open_clip_config
from ..graphs.profile import Profile
from ..verify.reference import Reference
from .consumer import Consumer
from .model_name import spell_model_name
from .shipped import Statement

Writer = Callable[[Model, Path, Profile], None]
Loader = Callable[[Path, Reference, Profile], Consumer]
Teller = Callable[[Path, Reference, Profile], list[Statement]]

# Of consumers that are given what Pillow opened.
AS_STORED = (
    "`PIL.Image.open` gives photos as their pixels are stored; turn them upright with `PIL.ImageOps.exif_transpose`."
)


def describe_name(model: Model) -> Mapping[str, str]:
    """For targets whose cards say no more of a model than its name."""
    return {"name": spell_model_name(model)}


def tell_nothing(folder: Path, reference: Reference, profile: Profile) -> list[Statement]:
    """For targets whose files say nothing of the model that running them does not show."""
    return []


@dataclass(frozen=True)
class TargetRow:
    """What tables say of a target, as Markdown; its name and precisions they read off its profile.

    Attributes:
        written: The files.
        verified_with: The consumer that reads them, or what stands in for it.
        to_install: What that consumer needs beside clipedit.
    """

    written: str
    verified_with: str
    to_install: str = "nothing more"


@dataclass(frozen=True)
class Target:
    """What is written for one consumer, and how that consumer loads it.

    Attributes:
        profile: The numbers and names in which it differs from others.
        write: Writes a model into an empty folder.
        load: Loads such a folder as its users do; `ImportError` says that the consumer is not installed.
        card: The part of the model card that loads the folder and prints what the card shows: a Jinja template. Empty
            where models without texts are written only, which get no card.
        row: Its row in tables; None for folders that `export` does not write.
        tell: What its files say of preprocessing and sizes, beside what the model has.
        stand_in: What reads the same files where the consumer is not installed.
        runs_code: Whether loading runs code that may be in the folder.
        require_no_code: Raises `VerificationError` if this folder holds code that loading would run.
        own_layout: What is written, in full precision, of a model that was read from such a folder: its readers know
            the layout that it has.
        keeps_rules: Whether its consumer resizes by the rules of the folder that the model came from.
        describe: What its card is given of the model: a `name`, safe as that of a folder, and what else the card takes.
        photos: What its consumer does with a photo's EXIF orientation, as the card says it.
    """

    profile: Profile
    write: Writer
    load: Loader
    card: str
    row: TargetRow | None
    tell: Teller = tell_nothing
    stand_in: Loader | None = None
    runs_code: bool = False
    require_no_code: Callable[[Path], None] | None = None
    own_layout: Target | None = None
    keeps_rules: bool = False
    describe: Callable[[Model], Mapping[str, str]] = describe_name
    photos: str = AS_STORED

    @property
    def name(self) -> str:
        """As `--target` is given it."""
        return self.profile.target

    def chosen_for(self, model: Model) -> Target:
        """This target, or the layout that the model came in."""
        kept = self.own_layout if model.hf_towers and self.profile.precision == "fp32" else None
        return kept or self

    def shown(self, model: Model) -> Model:
        """The model as its consumer shows it images: by open_clip's rules of resizing, or by the model's own."""
        return model if self.keeps_rules else model.as_shipped

    def guarded(self, call: Callable[..., Any]) -> Target:
        """The same target, its functions run by `call`, which says whose failure it was."""
        functions = {name: partial(call, getattr(self, name)) for name in ("write", "load", "tell")}
        return replace(self, **functions)

    def at(self, precision: WeightPrecision) -> Target:
        """The same target in another precision."""
        return replace(self, profile=self.profile.at(precision))


def load_consumer(target: Target, folder: Path, reference: Reference) -> Consumer:
    """Load an export with its consumer, or with what stands in for it; the runtime says which it was."""
    try:
        return target.load(folder, reference, target.profile)
    except ImportError as error:
        if target.stand_in is None:
            raise
        consumer = target.stand_in(folder, reference, target.profile)
        return replace(consumer, runtime=f"{consumer.runtime}, standing in for {target.name} ({error})")


def require_no_code(target: Target, folder: Path, *, trusted: bool) -> None:
    """Refuse a folder whose consumer would run code that is in it, since a folder may come from anybody.

    Most consumers read weights and graphs, which are data; the exceptions say so in their file.

    Args:
        trusted: The user knows who wrote the folder, or it was written just now.

    Raises:
        VerificationError: With what it holds.
        ModelError: If its configuration asks for code.
    """
    if trusted:
        return
    if target.runs_code:
        raise VerificationError(
            f"cannot verify {folder}: loading a {target.name} program can run code that is in it. Add --trust if you "
            "know who wrote it."
        )
    # Whatever the target, a configuration may ask for code: both are looked at.
    if target.require_no_code is not None:
        target.require_no_code(folder)
    if (folder / CONFIG_NAME).is_file():
        read_open_clip_config(folder)
