"""The page: template, style and scripts in one file, with a policy that lets nothing else in."""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources

from markupsafe import Markup

from ..report import page_environment
from .pack import Packed

# In this order: each uses the ones before it.
SCRIPTS = (
    "desk_math.js",
    "desk_verdict.js",
    "desk_state.js",
    "desk_engine.js",
    "desk_heads.js",
    "desk_panels.js",
    "desk_picture.js",
    "desk.js",
)


def render_desk(packed: Packed) -> str:
    """The whole page."""
    script = "\n".join(_read(name) for name in SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    sheet = packed.sheet
    return (
        page_environment()
        .get_template("desk.html.jinja")
        .render(
            title=f"{packed.facts['model']['name']}: the desk for {packed.facts['concept']}",
            style=Markup(_read("desk.css")),
            script=Markup(script),
            digest=digest,
            facts=_embed(packed.facts),
            data=base64.b64encode(packed.data).decode(),
            sheet=base64.b64encode(sheet.jpeg).decode() if sheet else "",
            columns=sheet.columns if sheet else 1,
            rows=sheet.rows if sheet else 1,
            labelled=packed.facts["labelled"] is not None,
        )
    )


def _read(name: str) -> str:
    return (resources.files("clipedit.export.pages.desk") / name).read_text(encoding="utf-8")


def _embed(facts: object) -> Markup:
    """JSON that no text can leave: what could end a script is written as an escape."""
    plain = json.dumps(facts, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return Markup(plain.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
