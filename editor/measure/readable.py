"""Is a concept still readable after an edit? Of the one that it removes, and of every other that this model holds.

Labelled images answer it where one of their columns says the concept: zero-shot, by the texts of its instances. Without
them the variance along its instances does, on the sample of a scan. Fixing one shortcut can make another stronger, so
every other concept of the library that a few heads hold is read before and after as well.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from ..concepts.concepts import Concept, plain_words
from ..concepts.queries import encode_means, encode_unit
from ..edits.document import Step
from ..edits.held_out import hold_out
from ..edits.recipe import Recipe
from ..errors import ConceptError
from ..images.layouts import Dataset
from ..images.skew import RetrievalSet
from ..images.source import ImageSource, LabelledImages
from ..models.model import Model
from ..scan.scan import Scan
from ..select.choice import plan_removal
from ..select.head_subsets import removed_by_both
from ..select.selectivity import Fold, Probe, cut_folds
from ..select.whose_heads import Measured, judge

ZERO_SHOT, VARIANCE = "zero-shot accuracy", "share of the variance"
LEAST_IMAGES = 20
# Of a column: what has more values is no attribute, but a name of each image.
MOST_VALUES = 256


@dataclass(frozen=True)
class Readable:
    """How well one concept can be read before and after an edit.

    Attributes:
        edited: Whether it is the concept that the edit removes.
        measure: `zero-shot accuracy` over the instances that a column of labelled images names, mean of the instances;
            or the `share of the variance` of unit embeddings along an instance, mean of the instances.
        images: How many images.
        instances: How many instances; by chance zero-shot is right in one of so many cases.
        column: Of the labelled images.
        left_out: Whether each instance was left out of the edit that was read along it; of a concept that took no part
            in the edit there is nothing to leave out.
    """

    concept: str
    edited: bool
    measure: str
    before: float
    after: float
    images: int
    instances: int
    column: str | None = None
    left_out: bool = True


_ROW = TypeAdapter(Readable)


@dataclass(frozen=True)
class Column:
    """The images whose value in a column names an instance of a concept.

    Attributes:
        texts: Of each instance that is named.
        rows: Positions of the images.
        found: The instance of each of them.
    """

    name: str
    texts: tuple[tuple[str, ...], ...]
    rows: tuple[int, ...]
    found: tuple[int, ...]


@dataclass(frozen=True)
class Answers:
    """A model's embeddings of labelled images, and the position of each in its source."""

    model: Model
    embeddings: Float[Tensor, "image d_embed"]
    kept: Sequence[int]


def describe_images(dataset: Dataset, source: ImageSource) -> list[dict[str, str]]:
    """What is known of each image of a data set, by column: its attributes, and its class."""
    rows = [dict(row) for row in source.attributes] or [{} for _ in source.names]
    if isinstance(dataset, str | Path):
        return rows
    columns = dataset.attributes if isinstance(dataset, RetrievalSet) else {}
    labels = [dataset.classes[label] for label in dataset.labels] if isinstance(dataset, LabelledImages) else None
    if labels is not None:
        columns = {**columns, "class": labels}
    return [row | {name: column[index] for name, column in columns.items()} for index, row in enumerate(rows)]


def find_column(concept: Concept, rows: Sequence[Mapping[str, str]]) -> Column | None:
    """The column that names an instance of most images: as the instance is called, or by a word of its texts only.

    Returns:
        None where no column names two instances.
    """
    values = {name: [row.get(name, "") for row in rows] for name in (rows[0] if rows else ())}
    columns = [
        _match_column(concept, name, column) for name, column in values.items() if len(set(column)) <= MOST_VALUES
    ]
    # A single instance has nothing to be told from.
    fitting = [column for column in columns if len(column.texts) > 1]
    return max(fitting, key=lambda column: len(column.rows), default=None)


def _match_column(concept: Concept, name: str, values: Sequence[str]) -> Column:
    match = {value: _match_texts(concept, value) for value in sorted(set(values))}
    texts = tuple(dict.fromkeys(found for found in match.values() if found))
    rows = tuple(index for index, value in enumerate(values) if match[value])
    return Column(name, texts, rows, tuple(texts.index(match[values[index]]) for index in rows))


def _match_texts(concept: Concept, value: str) -> tuple[str, ...]:
    """The texts of the one instance that a value names; of a plain list, those with the value in them."""
    # Spelled alike on both sides: columns write `new_york`, texts "New York".
    wanted = plain_words(value)
    if not wanted:
        return ()
    pattern = re.compile(rf"\b{re.escape(wanted)}\b")
    if concept.instances is None:
        return tuple(text for text in concept.texts if pattern.search(plain_words(text)))
    called = [texts for part, texts in concept.instances.items() if plain_words(part) == wanted]
    said = [texts for texts in concept.instances.values() if any(pattern.search(plain_words(text)) for text in texts)]
    found = called or said
    # A value that fits two instances names neither.
    return tuple(found[0]) if len(found) == 1 else ()


def read_column(column: Column, answers: Answers) -> tuple[float, int]:
    """Zero-shot accuracy over a column's instances, mean of the instances; and over how many images."""
    # The position in the source -> the row among the embeddings: images that could not be read are missing.
    where = {position: row for row, position in enumerate(answers.kept)}
    pairs = [(where[row], found) for row, found in zip(column.rows, column.found, strict=True) if row in where]
    if not pairs:
        return 0.0, 0
    embedded = answers.embeddings[[row for row, _ in pairs]].cpu().double()
    right = (embedded @ column_weights(answers.model, column).T).argmax(1)
    truth = torch.tensor([found for _, found in pairs])
    # Instances weigh equally: a common one does not hide a rare one.
    shares = [float((right[truth == index] == index).double().mean()) for index in truth.unique().tolist()]
    return sum(shares) / len(shares), len(pairs)


def column_weights(model: Model, column: Column) -> Float[Tensor, "instance d_embed"]:
    """Zero-shot weights of a column's instances, at unit length: the mean of the texts of each."""
    return F.normalize(encode_means(model, column.texts), dim=1)


def read_labelled(
    concept: Concept, rows: Sequence[Mapping[str, str]], answers: tuple[Answers, Answers], *, edited: bool
) -> Readable | None:
    """One concept zero-shot, before and after; None where no column says it of enough images."""
    column = find_column(concept, rows)
    if column is None:
        return None
    (before, images), (after, _) = (read_column(column, one) for one in answers)
    figures = (before, after, images, len(column.texts), column.name)
    return Readable(concept.name, edited, ZERO_SHOT, *figures) if images >= LEAST_IMAGES else None


def read_variance(
    embeddings: Float[Tensor, "image d_embed"], directions: Float[Tensor, "direction d_embed"]
) -> Float[Tensor, " direction"]:
    """Shares of the variance of unit embeddings along unit directions, in [0, 1]; 0 where nothing varies."""
    unit = F.normalize(embeddings.double(), dim=1)
    centred = unit - unit.mean(0)
    total = centred.square().sum()
    along = (centred @ F.normalize(directions.double(), dim=1).T).square().sum(0)
    # Below rounding nothing varies, and a ratio would be noise.
    return along / total if total > 1e-12 * len(unit) else torch.zeros_like(along)


@dataclass(frozen=True)
class Reader:
    """What concepts are read from: labelled images by both models, or unlabelled embeddings before and after.

    Attributes:
        probe: The heads of the unedited model, and its texts.
        recipe: The edit.
        rows: Columns of the labelled images.
        answers: Of the labelled images, before and after.
        plain: Embeddings of other images before and after, of which nothing is known.
        by_texts: Whether the heads were chosen by the concept's texts.
        alone: Whether one concept is removed: of several none can be left out of the edit by itself.
    """

    probe: Probe
    recipe: Recipe
    rows: Sequence[Mapping[str, str]] = ()
    answers: tuple[Answers, Answers] | None = None
    plain: tuple[Float[Tensor, "image d_embed"], Float[Tensor, "image d_embed"]] | None = None
    by_texts: bool = True
    alone: bool = True

    def read(self, concept: Concept, *, edited: bool) -> Readable | None:
        """One concept; None where there are no images to read it from."""
        found = read_labelled(concept, self.rows, self.answers, edited=edited) if self.answers is not None else None
        # Of few images a share of right answers says little: the variance is read instead.
        return self._read_variance(concept, edited=edited) if found is None and self.plain is not None else found

    def _read_variance(self, concept: Concept, *, edited: bool) -> Readable | None:
        assert self.plain is not None
        folds = cut_folds(concept, encode_unit(self.probe.model, concept.texts))
        directions = torch.stack([fold.direction for fold in folds])
        before, after = (read_variance(one, directions) for one in self.plain)
        left_out = not edited
        if edited and self.alone and self.recipe.document.effect != "total" and self._is_closed_form():
            kept = torch.tensor([1 - self._removed(fold) for fold in folds]).double()
            # The edit that ships saw every instance: along each the same edit, made without it, is judged in its place.
            after, left_out = before * kept, True
        figures = float(before.mean()), float(after.mean())
        return Readable(concept.name, edited, VARIANCE, *figures, len(self.plain[0]), len(folds), left_out=left_out)

    @property
    def _output(self) -> Step | None:
        """The projection of the output, if the edit has one."""
        return next((step for step in self.recipe.document.steps if step.target == "output"), None)

    @cached_property
    def _spared(self) -> Float[Tensor, "d_embed spared"] | None:
        if self._output is None or not self._output.spared:
            return None
        return self.probe.directions(encode_unit(self.probe.model, self._output.spared))

    def _is_closed_form(self) -> bool:
        """Whether the edit is ablated heads and a projection of texts: of those any subset is known in closed form."""
        steps = self.recipe.document.steps
        heads = [step for step in steps if step.target == "heads"]
        outputs = [step for step in steps if step.target == "output"]
        ablated = all(
            step.operation in ("mean-ablate", "zero-ablate") and step.strength == 1 and not step.then for step in heads
        )
        projected = all(step.operation == "project-out" and step.along == "texts" for step in outputs)
        return len(heads) + len(outputs) == len(steps) and len(outputs) < 2 and ablated and projected

    def _removed(self, fold: Fold) -> float:
        """The share of the variance along an instance that the same edit, made from the others, removes."""
        named, subsets = self.recipe.heads, self.probe.subsets
        # What was kept is spared in a fold as in the edit that ships.
        span, ranked = plan_removal(self.probe, fold.chosen_from, self._spared)
        if self.by_texts:
            # As many heads, chosen anew from the other instances' texts.
            taken: Sequence[int] = ranked[: len(named)]
        else:
            # Labels chose the heads, so that no text has to be left out of the choice.
            taken = [index for index, head in enumerate(subsets.heads) if str(head) in named]
        strength = self._output.strength if self._output is not None else 0.0
        return removed_by_both(subsets, fold.direction[:, None], taken, span, strength)


def read_concepts(reader: Reader, removed: Sequence[Concept], library: Mapping[str, Measured]) -> list[Readable]:
    """The concepts that an edit removes first, then every other one that a few heads of this model hold."""
    found = []
    for concept in removed:
        # Without one of its instances a concept may have nothing left that differs: that is no reason not to edit.
        with contextlib.suppress(ConceptError):
            found.append(reader.read(concept, edited=True))
    names = {concept.name for concept in removed}
    held = [other for key, other in library.items() if key not in names and judge(other, library).verdict == "held"]
    return [one for one in [*found, *(reader.read(other.concept, edited=False) for other in held)] if one is not None]


@dataclass(frozen=True)
class Interaction:
    """What one removal does to how well one concept can be read; the removal of several is named by all of them."""

    removed: tuple[str, ...]
    concept: str
    before: float
    after: float

    def report(self) -> dict[str, Any]:
        """Plain data."""
        return {**vars(self), "removed": list(self.removed)}


_INTERACTION = TypeAdapter(Interaction)


def read_interactions(
    removals: Mapping[tuple[str, ...], Reader], concepts: Sequence[Concept], scan: Scan
) -> list[Interaction]:
    """Every removal against every concept, each concept read as it ships: none of its instances is left out here.

    Args:
        removals: By what is removed, a reader of the edit.
    """
    found = []
    for removed, reader in removals.items():
        held = hold_out(reader.recipe, scan, reader.probe.model)
        reads = replace(reader, plain=(held.before, held.after)) if held is not None else reader
        rows = [reads.read(concept, edited=False) for concept in concepts]
        found += [Interaction(removed, row.concept, row.before, row.after) for row in rows if row is not None]
    return found


def find_interactions(measured: Mapping[str, Any] | None) -> list[Interaction]:
    """What a recipe's figures say of several removals; what cannot be read is left out."""
    return _find_rows(measured, "interactions", _INTERACTION)


def find_readable(measured: Mapping[str, Any] | None) -> list[Readable]:
    """What a recipe's figures say of concepts; what cannot be read is left out."""
    return _find_rows(measured, "readable", _ROW)


def _find_rows(measured: Mapping[str, Any] | None, key: str, kind: Any) -> list[Any]:
    # pydantic's generic adapter is no type that beartype can check.
    evidence = (measured or {}).get("evidence")
    rows = evidence.get(key) if isinstance(evidence, Mapping) else None
    found = []
    for row in rows if isinstance(rows, list | tuple) else ():
        with contextlib.suppress(ValidationError):
            found.append(kind.validate_python(row))
    return [one for one in found if math.isfinite(one.before) and math.isfinite(one.after)]


def describe_readable(one: Readable) -> tuple[str, str, str, str]:
    """The cells of a table: the concept, how it was read, before and after."""
    name = f"{one.concept} (removed)" if one.edited else one.concept
    return name, _describe_how(one), f"{one.before:.3f}", f"{one.after:.3f}"


def _describe_how(one: Readable) -> str:
    if one.measure == ZERO_SHOT:
        return f"zero-shot, column {one.column}: {one.instances} instances, {one.images} images"
    left = ", each left out of the edit" if one.edited and one.left_out else ""
    return f"share of the variance along {one.instances} instances{left}; {one.images} images"
