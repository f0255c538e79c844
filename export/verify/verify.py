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
    # Before a process is started for it.
    _require_folder(Path(folder))
    with Verifier() as verifier:
        return verifier.verify(Path(folder), trusted=trust)


def verify_if_edited(model: str | Path) -> None:
    """Verify a folder that clipedit wrote before it is exported again; other models have nothing to be compared with.

    Raises:
        VerificationError: As `verify`.
    """
    if (Path(model) / REFERENCE_NAME).is_file():
        verify(model)


class Verifier:
    """The child process of `verify`: a crash of the consumer is a failed check, not a crash of this program.

    Entered before a folder is written, it imports its libraries meanwhile.
    """

    def __enter__(self) -> Verifier:
        # -P: without it Python would import from the working directory, which may be a stranger's folder.
        command = [sys.executable, "-P", "-m", "clipedit.export.verify.verify_child"]
        # Offline: a file that is missing must not be fetched in its place.
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
        pipe = subprocess.PIPE
        self._child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)
        return self

    def __exit__(self, *_: object) -> None:
        # What was not asked anything, since the folder could not be written, or has not answered in time.
        self._child.kill()
        self._child.communicate()

    def verify(self, folder: Path, *, trusted: bool = True) -> list[Check]:
        """Run the checks of a folder; once.

        Args:
            trusted: Whether it is known who wrote the folder, as when it was written just now.

        Raises:
            VerificationError: Naming the first check that fails.
        """
        _require_folder(folder)
        # A report of an earlier success must not outlive a failure.
        (folder / REPORT_NAME).unlink(missing_ok=True)
        answer = self._ask(folder, trusted=trusted)
        checks = [Check(**check) for check in answer["checks"]]
        _require_all(checks, folder, answer["options"]["precision"])
        # Late: it brings torch, and a folder that is not there is refused without.
        from .evidence import read_evidence

        report = read_evidence(folder) | {key: answer[key] for key in ("target", "runtime")} | answer["options"]
        report["checks"] = [asdict(check) for check in checks]
        write_text(folder / REPORT_NAME, json.dumps(report, indent=2) + "\n")
        return checks

    def _ask(self, folder: Path, *, trusted: bool) -> dict[str, Any]:
        asked = json.dumps({"folder": str(folder), "trusted": trusted})
        try:
            printed, said = self._child.communicate(asked, timeout=TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            raise VerificationError(f"cannot verify {folder}: no answer within {TIMEOUT_SECONDS} s.") from None
        if self._child.returncode != 0:
            raise VerificationError(f"cannot verify {folder}: {_last_words(self._child.returncode, said)}")
        # The last line: consumers may print before it.
        return json.loads(printed.strip().splitlines()[-1])


def _require_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise VerificationError(f"cannot verify {folder}: there is no such folder.")


def _require_all(checks: list[Check], folder: Path, precision: str) -> None:
    failed = next((check for check in checks if not check.holds), None)
    if failed is None:
        return
    cost = (
        "" if precision == "fp32" else f" in fp32; {precision} costs too much here. Use another --precision, or --force"
    )
    raise VerificationError(
        f"{folder} does not compute what the edited model computes{cost}: {failed}. Export again.", checks
    )


def _last_words(code: int, said: str) -> str:
    """Why a child failed: what it said last, or the signal that ended it."""
    # subprocess gives the signal's number, negated.
    if code < 0:
        return f"the consumer crashed (signal {-code}). Try another --precision."
    lines = [line for line in said.strip().splitlines() if line.strip()]
    last = lines[-1] if lines else f"the process ended with {code}"
    return last.partition(": ")[2] if last.startswith("cannot verify ") else last
