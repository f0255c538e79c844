"""Scans in units: each ends in one partial scan, and an interrupted scan goes on with the units that have none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ..choices import AskedPrecision, Decode, Exif
from ..errors import ImageError, StatisticsError, require_kinds
from ..images.batches import Batch
from ..images.source import ImageSource
from ..images.units import AnySource, WorkUnit, choose_shard, list_units
from ..models.devices import choose_precision
from ..models.model import Model
from .partials import Partials, find_difference, partial_path, read_description, remove_partials
from .scan import choose_layers, describe_scan, read_batches
from .scanner import Scanner
from .tally import MAX_BAD, Progress, Tally, is_too_many

Say = Callable[[str], None]


@runtime_checkable
class Engine(Protocol):
    """Where units are scanned: `InProcess` is one."""

    def run(self, job: Job) -> Iterator[tuple[str, str]]:
        """Leave a partial scan of every unit in the job's folder, and count its images.

        Gives the names of units as they are finished, and why one failed, or nothing.
        """
        ...


@dataclass(frozen=True)
class Job:
    """The units of a scan that are to be computed, and all that their numbers depend on.

    Attributes:
        folder: Where the partial scans are written.
        of: How many units the whole scan has.
    """

    units: Sequence[WorkUnit]
    scanner: Scanner
    workers: int | None
    folder: Path
    of: int
    tally: Tally


class InProcess:
    """The engine of one process: reads units ahead and scans them in turn."""

    def run(self, job: Job) -> Iterator[tuple[str, str]]:
        """As `Engine.run`."""
        for unit, opened in _open_ahead(job.units, job.scanner, job.workers):
            if isinstance(opened, ImageError):
                yield unit.name, str(opened)
                continue
            scan_unit(job.scanner, unit, job.folder, *opened, of=job.of, tally=job.tally)
            job.tally.finished += 1
            yield unit.name, ""


def scan_units(
    model: Model,
    images: AnySource | list[WorkUnit],
    folder: str | Path,
    *,
    unit_size: int | None = None,
    shard: tuple[int, int] = (0, 1),
    resume: bool = True,
    batch_size: int | None = 32,
    layers: Sequence[int] | None = None,
    mlps: bool = False,
    self_attention: bool = False,
    workers: int | None = None,
    max_bad: float = MAX_BAD,
    precision: AskedPrecision = "fp32",
    compiled: bool = False,
    exif: Exif = "upright",
    decode: Decode = "scaled",
    engine: Engine | None = None,
    progress: Progress | None = None,
    say: Say = lambda message: None,
) -> Partials:
    """Scan what has no partial scan in `folder` yet; `.merge()` of the result is the scan of all units.

    For the same units, batch size, number of threads and device the merged scan has the same bits however often the
    work was interrupted and whoever did which unit; otherwise it is equal to 1e-5 relative.

    Args:
        images: As for `scan`, or units that `list_units` gave.
        folder: Where partial scans are read and written.
        unit_size: As for `list_units`.
        shard: `(i, N)`: only every N-th unit from the i-th on, zero-based.
        resume: Use partial scans that are there; else delete them first.
        engine: Where to scan, by default in this process; partials of several engines can be mixed.
        say: Called with a sentence about what is reused, computed again or cannot be read.

    Raises:
        StatisticsError: If the folder holds partials of other images, or of a scan with other settings.
        ImageError: If there are no images, or more than `max_bad` of them cannot be read. Units that cannot be opened
            do not stop the others: they are `failed`.
    """
    require_kinds("scan images", model=(model, Model))
    units = _given_units(model, images, unit_size)
    mine = choose_shard(units, shard)
    folder = Path(folder)
    parts = choose_layers(model, layers), mlps, self_attention
    how = choose_precision(precision, model.device)
    scanner = Scanner(model, *parts, batch_size, how, compiled, exif, decode)
    if not resume:
        remove_partials(folder)
    done = find_done(folder, units, scanner, max_bad=max_bad, say=say)
    todo = [unit for unit in mine if unit.name not in done]
    if len(todo) < len(mine):
        say(f"resuming: {len(mine) - len(todo)} of {len(mine)} units are done")
    tally = Tally(_count_images(todo), max_bad, progress, units=len(todo))
    failed: dict[str, str] = {}
    for name, error in (engine or InProcess()).run(Job(todo, scanner, workers, folder, len(units), tally)):
        if error:
            failed[name] = error
            say(f"unit {name} failed: {error}")
        else:
            done.add(name)
    files = tuple(partial_path(folder, unit.name) for unit in units if unit.name in done)
    return Partials(folder, files, tuple(unit.name for unit in units if unit.name not in done), failed)


def scan_unit(
    scanner: Scanner,
    unit: WorkUnit,
    folder: Path,
    source: ImageSource,
    batches: Iterator[Batch],
    *,
    of: int,
    tally: Tally,
) -> Path:
    """Scan one unit and write its partial; `of` is the number of units there are, `tally` counts over several."""
    # The tally runs over several units: a partial names the unreadable images of its own only.
    before = len(tally.bad)
    folds, sample = scanner.sum_folds(source, batches, tally.add, units=of)
    scan = describe_scan(scanner, folds, source.fingerprint(), tally.bad[before:], sample)
    path = partial_path(folder, unit.name)
    replace(scan, unit=describe_unit(scanner, unit, of)).save(path)
    return path


def describe_unit(scanner: Scanner, unit: WorkUnit, of: int) -> dict[str, Any]:
    """What a partial says of its unit and of how it was computed."""
    return {"name": unit.name, "key": unit.key, "of": of, **scanner.describe()}


def find_done(folder: Path, units: Sequence[WorkUnit], scanner: Scanner, *, max_bad: float, say: Say) -> set[str]:
    """Names of the units whose partial scan can be used.

    One that is damaged, that was made from other bytes, or that found too many images unreadable (a lost mount may do
    that) is computed again, and said.

    Raises:
        StatisticsError: If the folder is of other images or settings: it is then not this scan that was interrupted.
    """
    paths = {partial_path(folder, unit.name).name: unit for unit in units}
    # Units that share a file name would overwrite each other's partial.
    if len(paths) < len(units):
        raise ImageError("cannot scan in units: two of them have one name. Rename the shards, or scan them apart.")
    done: set[str] = set()
    again: dict[str, list[str]] = {}
    # A scan of no image: settings are compared, and any unit has the same ones.
    wanted = vars(describe_scan(scanner, (scanner.empty(),), "")) | {
        "unit": describe_unit(scanner, units[0], len(units))
    }
    for path in sorted(folder.glob("*.safetensors")):
        entry = read_description(path)
        unit = paths.get(path.name)
        if unit is None:
            raise StatisticsError(
                f"cannot resume in {folder}: {path.name} is of other images, or of units of another size. Give the "
                "same images and options, choose another -o, or start again with --no-resume."
            )
        # A damaged file says nothing of its settings: it is not refused here but computed again.
        difference = entry and find_difference(entry, wanted)
        if difference:
            raise StatisticsError(
                f"cannot resume in {folder}: {path.name} has {difference}. Give the same options, choose another -o, "
                "or start again with --no-resume."
            )
        reason = _why_again(entry, unit, max_bad)
        if reason:
            again.setdefault(reason, []).append(unit.name)
        else:
            done.add(unit.name)
    for reason, names in again.items():
        say(f"{len(names)} units are computed again, such as {names[0]}: {reason}")
    return done


def _why_again(entry: dict[str, Any] | None, unit: WorkUnit, max_bad: float) -> str | None:
    if entry is None:
        return "the partial scan is damaged"
    if (entry.get("unit") or {}).get("key") != unit.key:
        return "the images changed"
    bad = len(entry["bad"])
    too_many = is_too_many(bad, sum(entry["folds"]) + bad, max_bad)
    return "too many images could not be read" if too_many else None


def _count_images(units: Sequence[WorkUnit]) -> int | None:
    """How many images there are; None if a unit does not say."""
    known = [unit.images for unit in units if unit.images is not None]
    return sum(known) if len(known) == len(units) else None


def _given_units(model: Model, images: AnySource | list[WorkUnit], unit_size: int | None) -> list[WorkUnit]:
    if isinstance(images, list) and images and isinstance(images[0], WorkUnit):
        return [unit for unit in images if isinstance(unit, WorkUnit)]
    return list_units(images, unit_size, texts=model.side == "text")  # pyright: ignore[reportArgumentType]


def _open_ahead(
    units: Sequence[WorkUnit], scanner: Scanner, workers: int | None
) -> Iterator[tuple[WorkUnit, tuple[ImageSource, Iterator[Batch]] | ImageError]]:
    """Units with their batches. While one is scanned, readers of the next start and the one after it is opened."""

    def start(opened: Future[ImageSource]) -> tuple[ImageSource, Iterator[Batch]] | ImageError:
        try:
            source = opened.result()
        except ImageError as error:
            return error
        return source, read_batches(scanner, source, workers)

    with ThreadPoolExecutor(1) as thread:
        # One thread: shards are opened in order, at most two ahead of the one that is scanned.
        openings = [thread.submit(unit.open) for unit in units[:2]]
        ahead = start(openings[0]) if units else None
        for index, unit in enumerate(units):
            current = ahead
            if index + 2 < len(units):
                openings.append(thread.submit(units[index + 2].open))
            ahead = start(openings[index + 1]) if index + 1 < len(units) else None
            # A finished future keeps its result, here a source that may hold a spool as large as a shard.
            openings[index] = None  # pyright: ignore[reportArgumentType, reportCallIssue]
            assert current is not None
            yield unit, current
