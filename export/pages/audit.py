"""The page of an audit: every concept in one table, what nobody had named, and what to run next.

One file, no network.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ...editor.files.whole import write_text
from ...editor.select.audit import Audit, spell_interval, spell_lean, spell_selectivity
from ...editor.select.discovery.candidates import Discovery
from .report import page_environment


def write_audit(
    found: Audit,
    out: Path,
    *,
    model: str,
    commands: Mapping[str, str] | None = None,
    discovered: Discovery | None = None,
) -> Path:
    """Write the page.

    Args:
        model: Its name, for the head of the page.
        commands: What removes a concept or a candidate, by its name.
        discovered: What was found beside the known concepts, where that was looked for.

    Raises:
        ExportError: If the file cannot be written.
    """
    rows = [(row, spell_selectivity(row), spell_lean(row)) for row in found]
    page = page_environment().get_template("audit.html.jinja")
    told = {"discovered": discovered, "spell_interval": spell_interval}
    write_text(out, page.render(model=model, audit=found, rows=rows, commands=commands or {}, **told))
    return out
