"""What `audit --discover` prints: candidates, their files, and what to run next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..console import print_table, say, say_next, say_result

if TYPE_CHECKING:
    from ...editor.select.discovery.candidates import Discovery

# Instances that a row names; the file has all of them.
_SHOWN = 4
_COLUMNS = ("candidate", "instances", "selectivity", "from", "of what they write", "removed", "elsewhere")


@dataclass(frozen=True)
class ToldDiscovery:
    """Candidates, the files that they were written to, and what removes each; by name."""

    found: Discovery
    files: Mapping[str, Path]
    commands: Mapping[str, str]

    def report(self) -> dict[str, Any]:
        """Plain data."""
        report = self.found.report()
        rows = [self._extend(row) for row in report.pop("candidates")]
        return {"candidates": rows, **report}

    def _extend(self, row: Mapping[str, Any]) -> dict[str, Any]:
        file = self.files.get(row["name"])
        return {**row, "file": None if file is None else str(file), "command": self.commands.get(row["name"])}

    def show(self) -> None:
        """A row for each candidate; one sentence where there is none."""
        rows = [_cells(row) for row in self.found.report()["candidates"]]
        if rows:
            print_table(_COLUMNS, rows)
        say_result(self.found.because)
        for pair in self.found.pairs:
            say(pair.advise())
        for path in self.files.values():
            say(f"wrote {path}: a candidate to read and to correct")
        if rows and not self.files:
            say("nothing was written: -o FOLDER writes a concept file for each")
        for name, command in list(self.commands.items())[:1]:
            say_next(f"when {self.files[name]} says what you mean", command)


def _cells(row: Mapping[str, Any]) -> list[str]:
    named = list(row["instances"])
    more = [f"{len(named) - _SHOWN} more"] if len(named) > _SHOWN else []
    return [
        row["name"],
        ", ".join([*named[:_SHOWN], *more]),
        f"{row['selectivity']:.1f}",
        f"{row['source']}: {', '.join(row['from_heads'])}",
        f"{row['share']:.0%}",
        f"{row['removed']:.2f}",
        f"{row['elsewhere']:.2f}",
    ]
