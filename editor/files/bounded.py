"""Text files of others, read within bounds: size, depth and what aliases stand for are checked while a file is parsed.

Nothing is constructed but plain values. Callers name the file: here a problem is an `OSError` or a `ValueError`.
"""

from __future__ import annotations

import codecs
import io
import json
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import Composer

MAX_BYTES, MAX_YAML_BYTES = 64 * 2**20, 4 * 2**20
MAX_DEPTH, MAX_NODES, MAX_SCALAR = 64, 100_000, 200
_Parser: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_text(path: Path, *, most: int = MAX_BYTES, newline: str | None = None) -> str:
    """A whole text file in UTF-8, or in UTF-16 if it begins with that mark; the mark of either is left out.

    Args:
        newline: As for `open`: by default every line ends in a plain line feed; "" leaves ends as they are.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no plain file (a pipe would never end), is too large, or is not UTF-8, with the line.
    """
    size = path.stat().st_size
    if not path.is_file():
        raise ValueError("it is not a plain file")
    if size > most:
        raise ValueError(f"it has {size} bytes, at most {most} are read")
    content = path.read_bytes()
    # Windows writes both: "Unicode text" of a spreadsheet and PowerShell's `>` are UTF-16.
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = _decode(content, "utf-16" if wide else "utf-8-sig")
    return io.StringIO(text, newline=newline).read() if newline is None else text


def _decode(content: bytes, encoding: str) -> str:
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"line {line} is not {error.encoding}: it holds {content[error.start : error.end]!r}"
        ) from None


def load_json(path: Path) -> Any:
    """A JSON file.

    Raises:
        OSError, ValueError: As `read_text`, or if it is no JSON, or nested too deeply.
    """
    return parse_json(read_text(path))


def parse_json(text: str | bytes) -> Any:
    """JSON at most `MAX_DEPTH` deep.

    Raises:
        ValueError: Otherwise.
    """
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH}") from None
    # Level by level: the parser itself stops only at Python's limit on recursion, which lies deeper.
    level = [found]
    for _ in range(MAX_DEPTH):
        level = [inner for value in level if isinstance(value, dict | list) for inner in _values(value)]
        if not level:
            return found
    raise ValueError(f"it is nested deeper than {MAX_DEPTH}")


def load_yaml(path: Path) -> Any:
    """A YAML file: mappings, lists and scalars of YAML's own types; nothing else is constructed.

    Raises:
        OSError, ValueError: As `read_text`, or if it is no YAML, is nested too deeply, or holds too much, aliases
            counted as what they stand for.
    """
    text = read_text(path, most=MAX_YAML_BYTES)
    try:
        return yaml.load(text, _BoundedLoader)
    except (yaml.YAMLError, RecursionError, AttributeError, OverflowError, TypeError, KeyError, IndexError) as error:
        # Constructors raise nearly anything on scalars that only look like dates and numbers.
        raise ValueError(str(error) or type(error).__name__) from None


def _values(value: dict[str, Any] | list[Any]) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value


class _BoundedLoader(Composer, _Parser):
    """The safe loader; its composer counts what it makes. A node weighs what it holds, an alias what it stands for."""

    def __init__(self, stream: str):
        _Parser.__init__(self, stream)
        # It is the first base because libyaml's parser composes nodes in C, without a call to `compose_node`.
        Composer.__init__(self)
        self.depth, self.made, self.weights = 0, 0, {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        """One node and all that it holds.

        Raises:
            YAMLError: If it is too deep or too much.
        """
        is_alias, before = self.check_event(yaml.AliasEvent), self.made
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.YAMLError(f"it is nested deeper than {MAX_DEPTH}")
        node = super().compose_node(parent, index)
        self.depth -= 1
        # Weighed when it was complete: an alias without weight stands within its own anchor.
        if is_alias and id(node) not in self.weights:
            raise yaml.YAMLError("an alias stands for what it is part of")
        self.made += self.weights[id(node)] if is_alias else 1
        if self.made > MAX_NODES:
            raise yaml.YAMLError(f"it holds more than {MAX_NODES} values")
        _require_short(node)
        self.weights.setdefault(id(node), self.made - before)
        return node


def _require_short(node: Any) -> None:
    """Numbers and dates have few letters: Python takes its time over long ones."""
    if isinstance(node, yaml.ScalarNode) and node.tag != "tag:yaml.org,2002:str" and len(node.value) > MAX_SCALAR:
        raise yaml.YAMLError(f"a {node.tag.rpartition(':')[2]} has more than {MAX_SCALAR} letters")
