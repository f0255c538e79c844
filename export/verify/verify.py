"""verify: run an export with its real consumer, in a fresh process, against the edited model's own answers."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
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


def verify_if_edited(model: str | Path, verifier: Verifier) -> None:
    """Verify a folder that clipedit wrote before it is exported again; other models have nothing to be compared with.

    Raises:
        VerificationError: As `verify`.
    """
    if (Path(model) / REFERENCE_NAME).is_file():
        verifier.verify(Path(model), trusted=False)


class Verifier:
    """The child process of `verify`: a crash of the consumer is a failed check, not a crash of this program.

    Entered before a folder is written, it imports its libraries meanwhile; one serves any number of folders in turn.
    """

    def __enter__(self) -> Verifier:
        # -P: without it Python would import from the working directory, which may be a stranger's folder.
        command = [sys.executable, "-P", "-m", "clipedit.export.verify.verify_child"]
        # Offline: a file that is missing must not be fetched in its place.
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
        # A file, since nobody reads what it says while it works, and a full pipe would stop it.
        self._said = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        pipe = subprocess.PIPE
        self._child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self._said, text=True, env=environment)
        return self

    def __exit__(self, *_: object) -> None:
        # What was not asked anything, since the folder could not be written, or waits to be asked again.
        self._child.kill()
        self._child.communicate()
        self._said.close()

    def verify(self, folder: Path, *, trusted: bool = True) -> list[Check]:
        """Run the checks of a folder.

        Args:
            trusted: Whether it is known who wrote the folder, as when it was written just now.

        Raises:
            VerificationError: Naming the first check that fails.
        """
        _require_folder(folder)
        # Late: it brings torch, and a folder that is not there is refused without; the child imports meanwhile.
        from .evidence import read_evidence

        # A report of an earlier success must not outlive a failure.
        (folder / REPORT_NAME).unlink(missing_ok=True)
        answer = self._ask(folder, trusted=trusted)
        checks = [Check(**check) for check in answer["checks"]]
        _require_all(checks, folder, answer["options"]["precision"])
        report = read_evidence(folder) | {key: answer[key] for key in ("target", "runtime")} | answer["options"]
        report["checks"] = [asdict(check) for check in checks]
        write_text(folder / REPORT_NAME, json.dumps(report, indent=2) + "\n")
        return checks

    def _ask(self, folder: Path, *, trusted: bool) -> dict[str, Any]:
        """The child's answer about a folder.

        Raises:
            VerificationError: With why there is none.
        """
        asked = json.dumps({"folder": str(folder), "trusted": trusted})
        # In a thread, since a pipe has no time limit.
        with ThreadPoolExecutor(1) as waiting:
            answering = waiting.submit(self._exchange, asked)
            try:
                answered = answering.result(timeout=TIMEOUT_SECONDS)
            except TimeoutError:
                self._child.kill()
                raise VerificationError(f"cannot verify {folder}: no answer within {TIMEOUT_SECONDS} s.") from None
        if not answered:
            raise VerificationError(f"cannot verify {folder}: {self._last_words()}")
        answer = json.loads(answered)
        if "refused" in answer:
            raise VerificationError(f"cannot verify {folder}: {_bare(answer['refused'])}")
        return answer

    def _exchange(self, asked: str) -> str:
        """One line to the child and one back; nothing if it has ended."""
        assert self._child.stdin is not None and self._child.stdout is not None
        try:
            self._child.stdin.write(asked + "\n")
            self._child.stdin.flush()
        except OSError:
            return ""
        return self._child.stdout.readline()

    def _last_words(self) -> str:
        """Why a child failed: what it said last, or the signal that ended it."""
        code = self._child.wait()
        # subprocess gives the signal's number, negated.
        if code < 0:
            return f"the consumer crashed (signal {-code}). Try another --precision."
        self._said.seek(0)
        lines = [line for line in self._said.read().splitlines() if line.strip()]
        return _bare(lines[-1]) if lines else f"the process ended with {code}"


def lend(verifier: Verifier | None) -> AbstractContextManager[Verifier]:
    """A verifier that was entered already and is left open, or one of one's own."""
    return Verifier() if verifier is None else nullcontext(verifier)


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


def _bare(said: str) -> str:
    """What was said, without that it cannot be verified: its folder was another to the child."""
    return said.partition(": ")[2] if said.startswith("cannot verify ") else said
