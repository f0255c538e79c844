"""Concepts: named lists of texts. The directions they span in the joint space are in `directions.py`.

A concept file is YAML with `name`, `description`, `texts` and optionally `keep`, the concept to protect when this one
is removed; `instances`, a mapping from each thing the concept can be to its texts (`texts` may then be left out); and
`related`, concepts that may share its heads by meaning. A name is looked for in the model's own folder first
(`concepts/NAME.yaml`), then in the library.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ... import recipes
from ..errors import ConceptError, nearest_names
from ..files.bounded import load_yaml

# Into so many parts a plain list of texts is cut, where a file does not say what its instances are.
PLAIN_PARTS = 5
T = TypeVar("T")


class Concept(BaseModel):
    """Texts that name instances of one concept, most of them in one form ("a photo taken in a forest")."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    description: str = ""
    keep: str | None = None
    texts: tuple[str, ...] = Field(min_length=2)
    instances: Mapping[str, tuple[str, ...]] | None = None
    related: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _fill_texts(cls, data: Any) -> Any:
        """Without `texts`, they are those of all instances, in order."""
        instances = data.get("instances") if isinstance(data, dict) else None
        if isinstance(instances, dict) and "texts" not in data:
            listed = [text for part in instances.values() if isinstance(part, list | tuple) for text in part]
            return data | {"texts": listed}
        return data

    @model_validator(mode="after")
    def _check_instances(self) -> Concept:
        if self.instances is None:
            return self
        if len(self.instances) < 2 or not all(self.instances.values()):
            raise ValueError("instances: at least two are needed, each with a text")
        if {text for part in self.instances.values() for text in part} != set(self.texts):
            raise ValueError("instances: their texts are not those of `texts`. Leave `texts` out")
        return self

    def parts(self) -> dict[str, tuple[str, ...]]:
        """Texts by instance; a plain list is cut into five parts."""
        if self.instances is not None:
            return dict(self.instances)
        cut = cut_evenly(self.texts, min(PLAIN_PARTS, len(self.texts)))
        return {f"part {index + 1}": tuple(part) for index, part in enumerate(cut)}


def cut_evenly(items: Sequence[T], count: int) -> list[Sequence[T]]:
    """A sequence in `count` runs of nearly equal length."""
    edges = [index * len(items) // count for index in range(count + 1)]
    return [items[start:end] for start, end in pairwise(edges)]


def plain_words(text: str) -> str:
    """A text as it is compared: small letters, single blanks, no punctuation. `New_York` and `new york` are one."""
    return " ".join(re.sub(r"[_\W]+", " ", text.casefold()).split())


def library_folder() -> Path:
    """Where the shipped concepts are."""
    return Path(str(resources.files(recipes) / "concepts"))


def list_concepts(model_folder: Path | None = None) -> dict[str, Path]:
    """Concept files by name; those in a model's own folder hide the library's of the same name."""
    # The model's folder last: of two files with one name, the later one stays.
    folders = [library_folder(), *([model_folder / "concepts"] if model_folder else [])]
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}


def load_concept(name: str | Path, model_folder: Path | None = None) -> Concept:
    """A concept by name or file.

    Raises:
        ConceptError: If the name is unknown (with the nearest ones), or the file cannot be used.
    """
    known = list_concepts(model_folder)
    path = Path(name) if str(name).endswith((".yaml", ".yml")) else known.get(str(name))
    if path is None:
        raise ConceptError(f"unknown concept {str(name)!r}. {nearest_names(str(name), known)} Or give a YAML file.")
    try:
        return Concept.model_validate(load_yaml(path))
    except FileNotFoundError:
        raise ConceptError(f"cannot read the concept {path}: no such file.") from None
    except ValidationError as error:
        raise ConceptError(f"cannot use the concept {path}: {describe_validation(error)}.") from None
    except (OSError, ValueError) as error:
        raise ConceptError(f"cannot read the concept {path}: {error}.") from None


def describe_validation(error: ValidationError) -> str:
    """The first problem of a YAML file, with where it is."""
    # A misspelt key is also a missing one: name the misspelling.
    first = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    where = ".".join(str(part) for part in first["loc"]) or "the file"
    if first["type"] == "extra_forbidden":
        return f"{where} is not a known key"
    # YAML reads `no`, `null` and `1990` as something else than words.
    fix = ". Put that word in quotes" if first["type"] == "string_type" else ""
    return f"{where}: {first['msg'].removeprefix('Value error, ')}{fix}"
