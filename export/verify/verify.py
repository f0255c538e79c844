"""verify: run an export with its real consumer, in a fresh process, against the edited model's own answers."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...editor.errors import VerificationError, require_path
from ...editor.files.inputs import REPORT_NAME
from ...editor.files.whole import write_text

REFERENCE_NAME = "verification.safetensors"
TIMEOUT_SECONDS = 1_800


@dataclass(frozen=True)
class Check:
    """One comparison: it holds if `figure` is at most (or at least) `tolerance`."""

    name: str
    figure: float
    relation: str
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether the figure is within the tolerance; never for NaN."""
        return self.figure <= self.tolerance if self.relation == "<=" else self.figure >= self.tolerance

    def report(self) -> dict[str, Any]:
        """Plain data; a figure that is no number is null, which JSON can hold."""
        return {**asdict(self), "figure": self.figure if math.isfinite(self.figure) else None, "holds": self.holds}

    def __str__(self) -> str:
        mark = "ok  " if self.holds else "FAIL"
        return f"{mark} {self.name}: {self.figure:.3g} (needs {self.relation} {self.tolerance:g})"


def verify(folder: str | Path, *, trust: bool = False) -> list[Check]:
    """Verify an export made earlier, and rewrite its `verification.json`.

    Args:
        trust: Also load what can run code that is in the folder: targets `torch-export`.

    Raises:
        VerificationError: If a check fails, or the folder is no export.
    """
    require_path("verify an export", folder, "the folder that it was written to")
    return verify_in_child(Path(folder), trusted=trust)


def verify_if_edited(model: str | Path) -> None:
    """Verify a folder that clipedit wrote before it is exported again; other models have nothing to be compared with.

    Raises:
        VerificationError: As `verify`.
    """
    if (Path(model) / REFERENCE_NAME).is_file():
        verify(model)


def verify_in_child(folder: Path, *, trusted: bool = True) -> list[Check]:
    """Run the checks in a child process: a crash of the consumer is a failed check, not a crash of this program.

    Args:
        trusted: Whether it is known who wrote the folder, as when it was written just now.

    Raises:
        VerificationError: Naming the first check that fails.
    """
    if not folder.is_dir():
        raise VerificationError(f"cannot verify {folder}: there is no such folder.")
    # A report of an earlier success must not outlive a failure.
    (folder / REPORT_NAME).unlink(missing_ok=True)
    # -P: without it Python would import from the working directory, which may be a stranger's folder.
    command = [
        sys.executable,
        "-P",
        "-m",
        "clipedit.export.verify.verify_child",
        str(folder),
        *(["trusted"] if trusted else []),
    ]
    # Offline: a file that is missing must not be fetched in its place.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    try:
        child = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=environment,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise VerificationError(f"cannot verify {folder}: no answer within {TIMEOUT_SECONDS} s.") from None
    if child.returncode != 0:
        raise VerificationError(f"cannot verify {folder}: {_last_words(child)}")
    # The last line: consumers may print before it.
    answer = json.loads(child.stdout.strip().splitlines()[-1])
    checks = [Check(**check) for check in answer["checks"]]
    failed = next((check for check in checks if not check.holds), None)
    if failed is not None:
        precision = answer["options"]["precision"]
        cost = (
            ""
            if precision == "fp32"
            else f" in fp32; {precision} costs too much here. Use another --precision, or --force"
        )
        raise VerificationError(
            f"{folder} does not compute what the edited model computes{cost}: {failed}. Export again.", checks
        )
    # Late: it brings torch, and a folder that is not there is refused without.
    from .evidence import read_evidence

    report = read_evidence(folder) | {key: answer[key] for key in ("target", "runtime")} | answer["options"]
    report["checks"] = [asdict(check) for check in checks]
    write_text(folder / REPORT_NAME, json.dumps(report, indent=2) + "\n")
    return checks


def _last_words(child: subprocess.CompletedProcess[str]) -> str:
    """Why a child failed: what it said last, or the signal that ended it."""
    # subprocess gives the signal's number, negated.
    if child.returncode < 0:
        return f"the consumer crashed (signal {-child.returncode}). Try another --precision."
    lines = [line for line in child.stderr.strip().splitlines() if line.strip()]
    last = lines[-1] if lines else f"the process ended with {child.returncode}"
    return last.partition(": ")[2] if last.startswith("cannot verify ") else last
