"""Scans in units on a Ray cluster: Ray Data hands units to actors that hold the model, and brings back partial scans.

The driver writes the partials, so workers need no common disk, and any engine can go on with what another one left. A
unit whose worker or node dies is computed again by Ray.
"""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch

from ..choices import Side
from ..errors import ClipeditError, ImageError, ModelError
from ..files.whole import staged_file
from ..images.shards import WorkUnit
from ..models.loaders import lasting_name
from ..models.model import Model
from .by_units import Job, scan_unit
from .partials import partial_path, read_description
from .scan import read_batches
from .scanner import Scanner
from .tally import Tally


class UnitResult(NamedTuple):
    """A unit's name, and its partial scan as the bytes of a file, or why there is none."""

    name: str
    partial: bytes | None
    error: str


@runtime_checkable
class Load(Protocol):
    """How a worker comes by the model: `editor.load.load_aligned`, which knows edited folders too."""

    def __call__(
        self, name: str, pretrained: str | None, *, aligner: str | None, tower: Side, device: str
    ) -> Model: ...


@dataclass(frozen=True)
class RayEngine:
    """The engine of a cluster.

    Attributes:
        load: Called by every actor; it goes to them by name, so it stands in a module that they can import.
        address: Of a cluster, `auto` for the one that this machine belongs to; None starts one on this machine.
        actors: Copies of the model; by default as many as the cluster's GPUs, or its processors, hold.
    """

    load: Load
    address: str | None = None
    actors: int | None = None

    def run(self, job: Job) -> Iterator[tuple[str, str]]:
        """As `Engine.run`; partials are written here, so that workers need no common disk.

        Raises:
            ModelError: As `scan`.
        """
        for result in self.scan(job.units, job.scanner, job.workers, job.of) if job.units else ():
            if result.partial is not None:
                path = partial_path(job.folder, result.name)
                with staged_file(path) as temporary:
                    temporary.write_bytes(result.partial)
                entry = read_description(path) or {"folds": [0], "bad": []}
                job.tally.finished += 1
                job.tally.count(sum(entry["folds"]) + len(entry["bad"]), entry["bad"])
            yield result.name, result.error

    def scan(self, units: Sequence[WorkUnit], scanner: Scanner, workers: int | None, of: int) -> Iterator[UnitResult]:
        """Partial scans as they are finished.

        Raises:
            ModelError: If Ray is not installed, there is no such cluster, or a worker cannot load the same model.
        """
        ray = _connect(self.address)
        per_actor = {"num_gpus": 1} if scanner.model.device.type == "cuda" else {"num_cpus": torch.get_num_threads()}
        count = self.actors or _count_actors(ray.cluster_resources(), per_actor)
        # One unit a block: a block is what Ray computes again when a node dies. The units themselves go once to each
        # actor.
        rows, shared = [{"index": index} for index in range(len(units))], ray.put(list(units))
        results = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            UnitScanner,
            fn_constructor_args=(self.load, describe_scanner(scanner, workers, of), [shared]),
            batch_size=1,
            batch_format="numpy",
            concurrency=min(count, len(rows)),
            **per_actor,
        )
        for row in results.iter_rows():
            if row["fatal"]:
                raise ModelError(row["error"])
            # A column has one type, so no partial is empty bytes.
            yield UnitResult(row["name"], bytes(row["partial"]) or None, row["error"])


class UnitScanner:
    """The actor: a model, and units that are scanned with it."""

    def __init__(self, load: Load, given: dict[str, Any], shared: list[Any]):
        # Sums have the same bits only with the same number of threads.
        torch.set_num_threads(given["threads"])
        self.workers, self.of = given["workers"], given["of"]
        self.units: list[WorkUnit] = importlib.import_module("ray").get(shared[0])
        model = load(**given["model"])
        self.scanner = Scanner(model, **given["scanner"])
        self.refusal = ""
        if model.weights_hash != given["weights_hash"]:
            self.refusal = (
                f"cannot scan on this cluster: a worker loads {given['model']['name']} with weights "
                f"{model.weights_hash[:12]}, {given['weights_hash'][:12]} are needed. Give a folder or checkpoint that "
                "every node sees."
            )

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Scan the units of a batch."""
        rows = [self._scan(self.units[index]) for index in batch["index"]]
        return {key: [row[key] for row in rows] for key in ("name", "partial", "error", "fatal")}

    def _scan(self, unit: WorkUnit) -> dict[str, Any]:
        row: dict[str, Any] = {"name": unit.name, "partial": b"", "error": self.refusal, "fatal": bool(self.refusal)}
        if self.refusal:
            return row
        try:
            source = unit.open()
            batches = read_batches(self.scanner, source, self.workers)
            with tempfile.TemporaryDirectory() as folder:
                # What is tolerated is decided where the units are counted together.
                tally = Tally(None, max_bad=1.0)
                path = scan_unit(self.scanner, unit, Path(folder), source, batches, of=self.of, tally=tally)
                return row | {"partial": path.read_bytes()}
        except ClipeditError as error:
            return row | {"error": str(error), "fatal": not isinstance(error, ImageError)}


def describe_scanner(scanner: Scanner, workers: int | None, of: int) -> dict[str, Any]:
    """What a worker needs to make the same scanner."""
    model = scanner.model
    parts = ("layers", "mlps", "self_attention", "batch_size", "precision", "compiled", "exif", "decode")
    return {
        "model": {
            # A worker may run in another working directory.
            "name": lasting_name(model.name),
            "pretrained": model.pretrained and lasting_name(model.pretrained),
            "aligner": model.texts_from and lasting_name(model.texts_from.path),
            "tower": model.side,
            "device": model.device.type,
        },
        "weights_hash": model.weights_hash,
        "threads": torch.get_num_threads(),
        "workers": workers or 0,
        "of": of,
        "scanner": {part: getattr(scanner, part) for part in parts},
    }


def _connect(address: str | None) -> Any:
    # By name: type checkers need not find an optional package.
    # Ray reports usage unless it is told not to; nothing is sent from here.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray = importlib.import_module("ray")
        importlib.import_module("ray.data")
    except ImportError:
        raise ModelError('cannot scan with Ray: it is not installed. Run `pip install "clipedit[ray]"`.') from None
    if not ray.is_initialized():
        try:
            ray.init(address=address, include_dashboard=False if address is None else None, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            first = str(error).splitlines()[0].rstrip(".")
            raise ModelError(
                f"cannot join the Ray cluster {address}: {first}. Start one with `ray start`, or leave out --address."
            ) from None
    return ray


def _count_actors(resources: dict[str, float], per_actor: dict[str, int]) -> int:
    kind, each = ("GPU", 1) if "num_gpus" in per_actor else ("CPU", per_actor["num_cpus"])
    return max(1, int(resources.get(kind, 0) // each))
