"""Scans in units: each ends in one partial scan, and an interrupted scan goes on with the units that have none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..choices import PassPrecision
from ..errors import ImageError, StatisticsError
from ..files.whole import staged_file
from ..images.batches import Batch
from ..images.source import ImageSource
from ..images.units import AnySource, WorkUnit, choose_shard, list_units
from .on_ray import RayEngine
from .partials import Partials, find_difference, partial_path, read_description, remove_partials
from .scan import Progress, check_bad, choose_layers, describe_scan, read_batches
from .scanner import Scanner

Say = Callable[[str], None]
# Before so many images are seen, a few unreadable ones do not stop a scan whose size is not known.
ENOUGH_IMAGES = 1_000


@dataclass
class _Count:
    """What a run has seen so far; `total` is an estimate where units do not say how many images they hold."""

    units: Sequence[WorkUnit]
    progress: Progress | None
    max_bad: float
    images: int = 0
    finished: int = 0
    bad: list[tuple[str, str]] = field(default_factory=list)

    def total(self) -> int:
        known = [unit.images for unit in self.units]
        if all(count is not None for count in known):
            return sum(count or 0 for count in known)
        return max(self.images, round(self.images / max(self.finished, 1) * len(self.units)))

    def add(self, images: int, bad: Sequence[tuple[str, str]]) -> None:
        self.images += images
        self.bad += bad
        total = self.total() if all(unit.images is not None for unit in self.units) else max(self.images, ENOUGH_IMAGES)
        check_bad(self.bad, total, self.max_bad)
        if self.progress is not None:
            self.progress(self.images, self.total())


def scan_units(
    model: Any,
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
    max_bad: float = 0.01,
    precision: PassPrecision = "fp32",
    compiled: bool = False,
    engine: RayEngine | None = None,
    progress: Progress | None = None,
    say: Say = lambda message: None,
) -> Partials:
    """Scan what has no partial scan in `folder` yet; `.merge()` of the result is the scan of all units.

    For the same units, batch size, number of threads and device the merged scan has the same bits however often the work
    was interrupted and whoever did which unit; otherwise it is equal to 1e-5 relative.

    Args:
        images: As for `scan`, or units that `list_units` gave.
        folder: Where partial scans are read and written.
        unit_size: As for `list_units`.
        shard: `(i, N)`: only every N-th unit from the i-th on, zero-based.
        resume: Use partial scans that are there; else delete them first.
        engine: A cluster to scan on; partials of this process and of clusters can be mixed.
        say: Called with a sentence about what is reused, computed again or cannot be read.

    Raises:
        StatisticsError: If the folder holds partials of other images, or of a scan with other settings.
        ImageError: If there are no images, or more than `max_bad` of them cannot be read. Units that cannot be opened do
            not stop the others: they are `failed`.
    """
    units = _given_units(model, images, unit_size)
    mine = choose_shard(units, shard)
    folder = Path(folder)
    scanner = Scanner(model, choose_layers(model, layers), mlps, self_attention, batch_size, precision, compiled)
    if not resume:
        remove_partials(folder)
    done = find_done(folder, units, scanner, max_bad=max_bad, say=say)
    todo = [unit for unit in mine if unit.name not in done]
    if len(todo) < len(mine):
        say(f"resuming: {len(mine) - len(todo)} of {len(mine)} units are done")
    run = _Run(scanner, workers, folder, len(units), _Count(todo, progress, max_bad))
    finished = run.here(todo) if engine is None else run.on(engine, todo)
    failed: dict[str, str] = {}
    for name, error in finished:
        if error:
            failed[name] = error
            say(f"unit {name} failed: {error}")
        else:
            done.add(name)
    files = tuple(partial_path(folder, unit.name) for unit in units if unit.name in done)
    return Partials(folder, files, tuple(unit.name for unit in units if unit.name not in done), failed)


@dataclass(frozen=True)
class _Run:
    """How the units of a scan are computed; both ways give names as they are finished, with the reason if one failed."""

    scanner: Scanner
    workers: int | None
    folder: Path
    of: int
    count: _Count

    def here(self, units: Sequence[WorkUnit]) -> Iterator[tuple[str, str]]:
        """In this process."""
        for unit, opened in _open_ahead(units, self.scanner, self.workers):
            if not isinstance(opened, ImageError):
                scan_unit(self.scanner, unit, self.folder, *opened, of=self.of, seen=self.count.add)
                self.count.finished += 1
            yield unit.name, str(opened) if isinstance(opened, ImageError) else ""

    def on(self, engine: RayEngine, units: Sequence[WorkUnit]) -> Iterator[tuple[str, str]]:
        """On a cluster; partials are written here."""
        for result in engine.scan(units, self.scanner, self.workers, self.of) if units else ():
            if result.partial is not None:
                path = partial_path(self.folder, result.name)
                with staged_file(path) as temporary:
                    temporary.write_bytes(result.partial)
                entry = read_description(path) or {"folds": [0], "bad": []}
                self.count.finished += 1
                self.count.add(sum(entry["folds"]) + len(entry["bad"]), entry["bad"])
            yield result.name, result.error


def scan_unit(
    scanner: Scanner,
    unit: WorkUnit,
    folder: Path,
    source: ImageSource,
    batches: Iterator[Batch],
    *,
    of: int,
    seen: Callable[[int, Sequence[tuple[str, str]]], None] = lambda images, bad: None,
) -> Path:
    """Scan one unit and write its partial; `of` is the number of units there are."""
    bad: list[tuple[str, str]] = []

    def after(batch: Batch) -> None:
        bad.extend(batch.bad)
        seen(len(batch.indices) + len(batch.bad), batch.bad)

    folds, sample = scanner.sum_folds(source, batches, after, units=of)
    scan = describe_scan(scanner, folds, source.fingerprint(), bad, sample)
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
    if len(paths) < len(units):
        raise ImageError("cannot scan in units: two of them have one name. Rename the shards, or scan them apart.")
    done: set[str] = set()
    again: dict[str, list[str]] = {}
    wanted = vars(describe_scan(scanner, (scanner.empty(),), "")) | {
        "unit": describe_unit(scanner, units[0], len(units))
    }
    for path in sorted(folder.glob("*.safetensors")):
        entry = read_description(path)
        unit = paths.get(path.name)
        if unit is None:
            raise StatisticsError(
                f"cannot resume in {folder}: {path.name} is of other images, or of units of another size. Give the same "
                "images and options, choose another -o, or start again with --no-resume."
            )
        difference = entry and find_difference(entry, wanted)
        if difference:
            raise StatisticsError(
                f"cannot resume in {folder}: {path.name} has {difference}. Give the same options, choose another -o, or "
                "start again with --no-resume."
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
    return "too many images could not be read" if bad > max_bad * (sum(entry["folds"]) + bad) else None


def _given_units(model: Any, images: AnySource | list[WorkUnit], unit_size: int | None) -> list[WorkUnit]:
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
        openings = [thread.submit(unit.open) for unit in units[:2]]
        ahead = start(openings[0]) if units else None
        for index, unit in enumerate(units):
            current = ahead
            if index + 2 < len(units):
                openings.append(thread.submit(units[index + 2].open))
            ahead = start(openings[index + 1]) if index + 1 < len(units) else None
            openings[index] = None  # pyright: ignore[reportArgumentType, reportCallIssue]
            assert current is not None
            yield unit, current
