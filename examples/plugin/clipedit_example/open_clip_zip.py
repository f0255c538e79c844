"""The target `open-clip-zip`: the folder that open_clip reads as one file, for stores that take one file a model."""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path

from clipedit.editor.models.model import Model
from clipedit.export.consumers.consumer import Consumer
from clipedit.export.consumers.shipped import Statement
from clipedit.export.consumers.target import Target, TargetRow
from clipedit.export.graphs.profile import Profile
from clipedit.export.targets.open_clip import TARGET as OPEN_CLIP
from clipedit.export.verify.reference import Reference

NAME = "open-clip-zip"
CARD = (
    """\
Unpack the file first: `python -m zipfile -e model.zip .`

"""
    + OPEN_CLIP.card
)


def _write(model: Model, folder: Path, profile: Profile) -> None:
    with tempfile.TemporaryDirectory() as inside:
        OPEN_CLIP.write(model, Path(inside), OPEN_CLIP.profile)
        # Weights do not get smaller. Written without times, so that the same model gives the same bytes.
        with zipfile.ZipFile(folder / "model.zip", "w", zipfile.ZIP_STORED) as packed:
            for path in sorted(Path(inside).iterdir()):
                packed.writestr(zipfile.ZipInfo(path.name), path.read_bytes())


def _load(folder: Path, reference: Reference, profile: Profile) -> Consumer:
    with tempfile.TemporaryDirectory() as inside:
        return OPEN_CLIP.load(_unpack(folder, inside), reference, OPEN_CLIP.profile)


def _tell(folder: Path, reference: Reference, profile: Profile) -> list[Statement]:
    with tempfile.TemporaryDirectory() as inside:
        return OPEN_CLIP.tell(_unpack(folder, inside), reference, OPEN_CLIP.profile)


def _unpack(folder: Path, inside: str) -> Path:
    with zipfile.ZipFile(folder / "model.zip") as packed:
        packed.extractall(inside)  # Names that lead out of the folder are cut by `zipfile`.
    return Path(inside)


TARGET = Target(
    Profile(target=NAME),
    write=_write,
    load=_load,
    tell=_tell,
    card=CARD,
    row=TargetRow("`model.zip`", "`zipfile` and open_clip"),
)
