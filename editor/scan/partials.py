"""Partial scans: one file a work unit in a folder, and their sum.

A partial is an ordinary scan file that also says which unit it is of and how it was computed. Files appear whole or not
at all, so a folder of them is what an interrupted scan goes on from; they are summed in the order of the units' names,
so the sum has the same bits whoever computed which unit, and when.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..errors import StatisticsError
from ..files.bounded import parse_json
from ..files.inputs import list_scan_files
from .description import check_description
from .sample import Sample, merge_samples
from .scan import KIND, OLD_KIND, SETTINGS, Scan, load_scan
from .statistics import Statistics
from .tally import MAX_BAD, check_bad

# The sum is a tree of two levels, always cut alike: rounding grows less than in one long sum.
GROUP = 256
MAX_NAMED_BAD, MAX_THREADS = 1_000, 4
# Not the device and the number of threads, which a partial names too: they change its last bits only.
UNIT_SETTINGS = ("batch_size", "precision", "compiled")


@dataclass(frozen=True)
class Partials:
    """The partial scans of a set of units.

    Attributes:
        folder: Where they lie.
        files: Those that are complete, in the order of the units.
        missing: Names of units that have none yet.
        failed: Units that could not be read, and why; they are missing too.
    """

    folder: Path
    files: tuple[Path, ...]
    missing: tuple[str, ...] = ()
    failed: dict[str, str] = field(default_factory=dict)

    def merge(self, *, max_bad: float = MAX_BAD) -> Scan:
        """The scan of all units.

        Raises:
            StatisticsError: If a unit is missing.
            ImageError: If more than `max_bad` of the images could not be read.
        """
        return merge_partials(self.files, max_bad=max_bad)

    def remove(self) -> None:
        """Delete the partial scans, and the folder if nothing else is in it."""
        for path in self.files:  # By name: nothing needs to be read for it, which may fail.
            path.unlink(missing_ok=True)
        remove_partials(self.folder)


def partials_folder(scan: Path) -> Path:
    """Where the partials of a scan lie: `scan.safetensors.partials` beside `scan.safetensors`."""
    return Path(scan).with_name(f"{Path(scan).name}.partials")


def partial_path(folder: Path, name: str) -> Path:
    """The file of one unit; a hash keeps names apart that are equal up to odd characters."""
    # The length of a file name is limited, and a leading dot would hide the file.
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", name)[-80:].lstrip(".")
    return folder / f"{plain}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}.safetensors"


def read_description(path: Path) -> dict[str, Any] | None:
    """What a scan file says of itself, without its sums; None if it is damaged or no scan."""
    try:
        with safe_open(path, framework="pt") as stream:
            metadata = stream.metadata() or {}
            return check_description(parse_json(metadata.get(KIND) or metadata[OLD_KIND]))
    except (OSError, SafetensorError, KeyError, ValueError):
        return None


def find_difference(given: dict[str, Any], wanted: dict[str, Any]) -> str | None:
    """The first setting in which two scans differ, in words, or None."""
    pairs = [(key, given.get(key), wanted.get(key)) for key in SETTINGS]
    units = given.get("unit") or {}, wanted.get("unit") or {}
    pairs += [(key, units[0].get(key), units[1].get(key)) for key in UNIT_SETTINGS]
    for key, found, needed in pairs:
        # JSON gives lists back where tuples were written.
        if (list(found) if isinstance(found, tuple) else found) != (
            list(needed) if isinstance(needed, tuple) else needed
        ):
            return f"{key} {_short(found)}, not {_short(needed)}"
    return None


def merge_partials(paths: Sequence[str | Path], *, max_bad: float | None = None, allow_missing: bool = False) -> Scan:
    """The sum of partial scans, in the order of their units: the same bytes for any order of `paths`.

    Memory is that of two scans a thread, of which there are at most four, and one: however many there are.

    Args:
        paths: Files, or folders of them; ordinary scans are merged too, in the order of their fingerprints.
        max_bad: Share of unreadable images that is tolerated; any share if None.
        allow_missing: Merge although units are missing.

    Raises:
        StatisticsError: If a file is damaged, a unit is missing or there twice, or they were not computed alike.
        ImageError: If more than `max_bad` of the images could not be read.
    """
    described = _describe_all(list_scan_files(paths))
    units = [entry.get("unit") for _, entry in described]
    if not all(units):
        if any(units):
            raise StatisticsError("cannot merge partial scans with scans of one pass. Merge the partials first.")
        return _merge_scans([path for path, _ in described])
    _require_alike(described)
    _require_complete([unit for unit in units if unit], allow_missing=allow_missing)
    merged = _sum([path for path, _ in described])
    if max_bad is not None:
        total = merged.statistics.n + len(merged.bad) + merged.more_bad
        check_bad(merged.bad, total, max_bad, unnamed=merged.more_bad)
    return merged


def remove_partials(folder: Path) -> None:
    """Delete partial scans and what an interrupted writer left, and the folder if nothing else is in it."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if ".safetensors.partial-" in path.name or (read_description(path) or {}).get("unit"):
            path.unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def _describe_all(paths: Sequence[Path]) -> list[tuple[Path, dict[str, Any]]]:
    """What each file says, in the order of the reduce."""
    described = []
    for path in paths:
        entry = read_description(path)
        if entry is None:
            load_scan(path)  # Says what is wrong, where that is known.
            raise StatisticsError(f"cannot merge {path}: it is damaged. Delete it and scan its unit again.")
        described.append((path, entry))
    return sorted(described, key=lambda item: ((item[1].get("unit") or {}).get("name", ""), item[1]["fingerprint"]))


def _require_alike(described: Sequence[tuple[Path, dict[str, Any]]]) -> None:
    first_path, first = described[0]
    for path, entry in described[1:]:
        difference = find_difference(entry, first)
        if difference:
            raise StatisticsError(f"cannot merge {path} with {first_path}: it has {difference}. Scan both alike.")


def _require_complete(units: Sequence[dict[str, Any]], *, allow_missing: bool) -> None:
    names = [unit["name"] for unit in units]
    # They come sorted by name, so equal ones are neighbours.
    twice = next((name for name, following in pairwise(names) if name == following), None)
    if twice is not None:
        raise StatisticsError(f"cannot merge: unit {twice} is there twice. Give each partial scan once.")
    wanted = max(unit["of"] for unit in units)
    if len(units) < wanted and not allow_missing:
        raise StatisticsError(
            f"cannot merge: {len(units)} of {wanted} units are there. Run `clipedit scan` again for the missing ones, "
            "or add --allow-missing."
        )


def _merge_scans(paths: Sequence[Path]) -> Scan:
    merged = load_scan(paths[0])
    for path in paths[1:]:
        scan = load_scan(path)
        # A merged scan lists the fingerprints of its parts, joined by `+`.
        if set(scan.fingerprint.split("+")) & set(merged.fingerprint.split("+")):
            raise StatisticsError(f"cannot merge {path}: its images are in another one too. Give each scan once.")
        merged = merged.merge(scan)
    return merged


@dataclass(frozen=True)
class _Node:
    """The sum of a run of partials, and what is listed of them."""

    folds: tuple[Statistics, ...]
    fingerprints: list[str]
    bad: list[tuple[str, str]]
    more_bad: int
    sample: Sample | None


def _sum(paths: Sequence[Path]) -> Scan:
    # The first is read again for its description only: its sums are in `found` already.
    first, found = load_scan(paths[0]), _add_up(_sum_groups(paths))
    prints = found.fingerprints
    fingerprint = prints[0] if len(prints) == 1 else hashlib.sha256("\n".join(prints).encode()).hexdigest()
    return replace(
        first,
        folds=found.folds,
        fingerprint=fingerprint,
        bad=tuple(found.bad),
        unit=None,
        more_bad=found.more_bad,
        sample=found.sample,
    )


def _sum_groups(paths: Sequence[Path]) -> Iterator[_Node]:
    """Sums of groups, in order; as many are read at a time as there are threads, so bits do not depend on these."""
    threads = min(MAX_THREADS, os.cpu_count() or 1)
    groups = iter([paths[start : start + GROUP] for start in range(0, len(paths), GROUP)])
    with ThreadPoolExecutor(threads) as pool:
        running = deque(pool.submit(_sum_group, group) for group in islice(groups, threads))
        while running:
            # The oldest one, finished or not: groups are added in their order.
            yield running.popleft().result()
            running.extend(pool.submit(_sum_group, group) for group in islice(groups, 1))


def _sum_group(paths: Sequence[Path]) -> _Node:
    scans = map(load_scan, paths)
    return _add_up(_Node(scan.folds, [scan.fingerprint], list(scan.bad), scan.more_bad, scan.sample) for scan in scans)


def _add_up(nodes: Iterable[_Node]) -> _Node:
    """The sum of nodes, in their order and in the memory of the first."""
    total: tuple[Statistics, ...] | None = None
    prints, bad, more, sample = [], [], 0, None
    for node in nodes:
        total = node.folds if total is None else _add_folds(total, node.folds)
        sample = merge_samples(sample, node.sample)
        prints += node.fingerprints
        # Before the list is cut: what is no longer named is still counted.
        more += node.more_bad + max(0, len(bad) + len(node.bad) - MAX_NAMED_BAD)
        bad = [*bad, *node.bad][:MAX_NAMED_BAD]
    assert total is not None
    return _Node(total, prints, bad, more, sample)


def _add_folds(total: tuple[Statistics, ...], folds: tuple[Statistics, ...]) -> tuple[Statistics, ...]:
    """Each fold in the memory of the first.

    Raises:
        StatisticsError: If one was scanned before there were folds.
    """
    if len(total) != len(folds):
        raise StatisticsError("cannot merge partial scans of two versions: some keep no folds. Scan those units again.")
    return tuple(one.add(other) for one, other in zip(total, folds, strict=True))


def _short(value: Any) -> str:
    text = str(list(value) if isinstance(value, tuple) else value)
    return text[:12] if re.fullmatch(r"[0-9a-f]{64}", text) else text
