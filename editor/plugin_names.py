"""Names in YAML files that may be a plugin's: clipedit's own are known, those of plugins are looked up where they
stand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import core_schema

from .plugins import PluginKind, find_plugins


@dataclass(frozen=True)
class NameOf:
    """Annotates a field that takes the names of a kind; with `reserved` also those that it reserves.

    A context of validation may have `recorded`: the plugins, by name, of which a file holds all that they computed; it
    can be read where they are not installed. `missing` are those of which it does not.
    """

    kind: PluginKind
    reserved: bool = False

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return core_schema.with_info_plain_validator_function(self._require)

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        return {"enum": [*self._known(), *find_plugins(self.kind)], "type": "string"}

    def _known(self) -> tuple[str, ...]:
        return (*self.kind.own, *(self.kind.reserved if self.reserved else ()))

    def _require(self, value: Any, info: Any) -> str:
        if isinstance(value, str) and (value in self._known() or value in find_plugins(self.kind)):
            return value
        context: Mapping[str, Any] = info.context or {}
        if isinstance(value, str) and value in context.get("recorded", {}):
            return value
        word = self.kind.word
        if isinstance(value, str) and value in context.get("missing", {}):
            raise ValueError(f"the plugin {context['missing'][value]}, which has the {word} {value}, is not installed")
        *others, last = map(repr, self._known())
        hint = f"; no plugin that is installed has the {word} {value}" if isinstance(value, str) else ""
        raise ValueError(f"Input should be {', '.join(others)} or {last}{hint}")
