"""A drift report in Prometheus' text format, for the textfile collector of its node exporter, or to be served."""

from __future__ import annotations

import math
from collections.abc import Iterator

from .monitor import DriftReport

PREFIX = "clipedit_monitor"
Sample = tuple[dict[str, str], float]


def format_metrics(report: DriftReport, scan: str) -> str:
    """Gauges of a report, each with its help and type.

    Args:
        scan: The label of every sample, so that reports of several scans stand beside each other.
    """
    lines: list[str] = []
    for name, said, samples in _list_gauges(report):
        whole = [
            f"{PREFIX}_{name}{_format_labels({'scan': scan, **labels})} {_format(value)}" for labels, value in samples
        ]
        lines += [f"# HELP {PREFIX}_{name} {said}", f"# TYPE {PREFIX}_{name} gauge", *whole] if whole else []
    return "\n".join(lines) + "\n"


def _list_gauges(report: DriftReport) -> Iterator[tuple[str, str, list[Sample]]]:
    parts, concepts = report.parts.items(), report.concepts.items()
    yield "images", "New images, or stored vectors.", [({}, float(report.images))]
    yield "calibration_images", "Images of the scan.", [({}, float(report.calibration_images))]
    yield "limit", "From what a change counts, beyond noise.", [({}, report.limit)]
    yield "drifted", "1 where anything changed by more than the limit.", [({}, float(bool(report.drifted)))]
    shifts: list[Sample] = [({"part": name}, part.mean_shift) for name, part in parts]
    yield "mean_shift", "Of a head or the embedding: distance of means in standard deviations.", shifts
    distances: list[Sample] = [({"part": name}, part.covariance_distance) for name, part in parts]
    yield "covariance_distance", "Of a head or the embedding: distance of covariances, relative.", distances
    yield (
        "part_drifted",
        "1 where this head, or the embedding, changed.",
        [({"part": n}, float(p.drifted)) for n, p in parts],
    )
    shifts = [({"concept": name}, one.mean_shift) for name, one in concepts]
    yield "concept_mean_shift", "Distance of means along a concept, in standard deviations.", shifts
    then_and_now = [(name, (one.share_then, one.share_now)) for name, one in concepts]
    yield "concept_share", "Share of the variance along a concept, then and now.", _by_time(then_and_now)
    then_and_now = [
        (name, (one.selectivity_then, one.selectivity_now))
        for name, one in concepts
        if one.selectivity_then is not None and one.selectivity_now is not None
    ]
    yield "concept_selectivity", "How selective a few heads are for a concept, then and now.", _by_time(then_and_now)


def _by_time(pairs: list[tuple[str, tuple[float, float]]]) -> list[Sample]:
    times = ("then", "now")
    return [({"concept": n, "when": when}, value) for n, pair in pairs for when, value in zip(times, pair, strict=True)]


def _format_labels(labels: dict[str, str]) -> str:
    # The format's own escapes; a name may hold any character.
    escaped = {
        name: value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"") for name, value in labels.items()
    }
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped.items()) + "}"


def _format(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return ("+Inf" if value > 0 else "-Inf") if math.isinf(value) else repr(float(value))
