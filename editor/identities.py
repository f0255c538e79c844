"""Names of heads and components. Nothing here needs torch: recipes and the command line name heads without a model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple


class HeadId(NamedTuple):
    """An attention head, both numbers zero-based; printed `L22H5`."""

    layer: int
    head: int

    def __str__(self) -> str:
        return f"L{self.layer}H{self.head}"

    @classmethod
    def parse(cls, text: str) -> HeadId:
        """Read `L22H5`.

        Raises:
            ValueError: If the text has another form.
        """
        match = re.fullmatch(r"L(\d{1,4})H(\d{1,4})", text.strip())
        if match is None:
            raise ValueError(f"{text!r} is not a head: write it as L22H5 (layer 22, head 5, both from zero)")
        return cls(int(match[1]), int(match[2]))


@dataclass(frozen=True, order=True)
class ComponentId:
    """One component; `str()` is `L3H5`, `L3.mlp`, `L3.bias` or `embedding`; `L3H5.self` is a part of a head."""

    kind: str
    layer: int = -1
    head: int = -1

    def __str__(self) -> str:
        if self.kind == "head":
            return str(HeadId(self.layer, self.head))
        if self.kind == "self":
            return f"{HeadId(self.layer, self.head)}.self"
        return self.kind if self.layer < 0 else f"L{self.layer}.{self.kind}"
