"""Is a concept found again in other worlds than the demo's, where nobody wrote it down? CSV on stdout.

    python benchmarks/discovery_worlds.py PEOPLE_FOLDER... --world people --data DATA_FOLDER
    python benchmarks/discovery_worlds.py TYPOGRAPHIC_FOLDER... --world typographic

As `discovery.py`: the rules were made on the demo's shipped model and nothing was chosen here. Of people `gender`, role
and skin tone are taken out of the library in turn; written words are in no library. One row for each candidate of
`audit --discover`, and for each pair of two values that it names, beside the edit of the concept itself and the
unedited model; then nothing is taken out: what is found is false, or another name of what is there.

Pools of texts: `own` names all of the world (for words: that of the demo's world and texts that name the words);
`listed` leaves out what the concept does not list; `general` is the shipped one, made without these worlds in mind.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
import typographic
from discovery import SEARCH
from field_worlds import WORLDS, Case
from people_texts import LISTED_WORDINGS
from people_world import ADJECTIVES, GENDERS, NOUNS, ROLES, SKINS
from rows import print_rows
from selectivity import embed, show

from clipedit.demo import texts
from clipedit.editor.concepts.concepts import Concept, load_concept, plain_words
from clipedit.editor.concepts.queries import encode_unit
from clipedit.editor.images.demo import SHAPES
from clipedit.editor.images.texts import load_texts
from clipedit.editor.select.amounts import choose_for
from clipedit.editor.select.choice import Choice
from clipedit.editor.select.discovery.candidates import CandidateConcept
from clipedit.editor.select.discovery.discover import search_concepts
from clipedit.editor.select.discovery.instances import Pool
from clipedit.editor.select.head_subsets import removed_by_both
from clipedit.editor.select.whose_heads import Measured, judge, measure

NOTHING = "nothing"
NAMES = [
    "world",
    "model",
    "split",
    *SEARCH,
    "verdict",
    "texts",
    "texts that name it",
    "values named",
    "heads",
    "heads of the concept among them",
    "heads of the concept",
    "strength",
    "removed of the concept",
]


@dataclass(frozen=True)
class Naming:
    """How a concept is named.

    Attributes:
        values: Phrases of each value.
        unlisted: Phrases that the concept leaves out.
        extra: Texts of the own pool, where the model's folder has none.
    """

    values: Mapping[str, Sequence[str]]
    unlisted: Sequence[str] = ()
    extra: tuple[str, ...] = ()

    def values_in(self, text: str) -> set[str]:
        return {value for value, phrases in self.values.items() if speaks_of(text, phrases)}


def speaks_of(text: str, phrases: Sequence[str]) -> bool:
    """Whether a text has a phrase, whole words only."""
    return any(f" {phrase} " in f" {plain_words(text)} " for phrase in phrases)


# By world, what is taken out of the library; the first is what the other benchmarks of that world remove.
NAMINGS = {
    "people": {
        "gender": Naming(
            {gender: (*NOUNS[gender], ADJECTIVES[gender]) for gender in GENDERS},
            [word for gender in GENDERS for word in (*NOUNS[gender][LISTED_WORDINGS:], ADJECTIVES[gender])],
        ),
        "role": Naming({role: (role,) for role in ROLES}),
        "skin-tone": Naming({skin: (f"with {skin} skin",) for skin in SKINS}),
    },
    "typographic": {
        "written-shape": Naming(
            {shape: (f"word {shape}",) for shape in SHAPES}, extra=(*texts.pool_texts(), *typographic.WORDS.texts)
        )
    },
}


@dataclass(frozen=True)
class Judge:
    """What candidates are worth on one model."""

    case: Case
    naming: Naming

    @cached_property
    def target(self) -> Measured:
        return measure(self.case.setting.known.probe, self.case.setting.concept)

    @cached_property
    def without(self) -> dict[str, Measured]:
        library = self.case.setting.known.library
        return {name: one for name, one in library.items() if name != self.target.concept.name}

    @cached_property
    def whole(self) -> dict[str, Measured]:
        return self.without | {self.target.concept.name: self.target}

    @cached_property
    def edit(self) -> Choice:
        """What the tool makes of the concept itself, whether it would refuse or not."""
        return choose_for(self.case.setting.known, self.target.concept, "distilled", library=self.whole)

    @cached_property
    def figures(self) -> Callable[[torch.Tensor], Mapping[str, float]]:
        found = self.case.judge(self.case.setting.model)
        return lambda embeddings: found(embeddings, self.case.kept)

    @cached_property
    def directions(self) -> torch.Tensor:
        """One for each value of the concept."""
        parts = self.case.setting.instances
        rows = torch.stack([encode_unit(self.case.setting.model, part).mean(0) for part in parts])
        return torch.nn.functional.normalize(rows - rows.mean(0), dim=1).T

    def pools(self) -> Iterator[tuple[str, str, Pool]]:
        """Each with whether images of low margin are looked at too."""
        model = self.case.setting.model
        own = self.naming.extra or load_texts(model_folder=model.folder)
        listed = tuple(text for text in own if not speaks_of(text, self.naming.unlisted))
        pools = {"own": own, "general": load_texts()} | ({"listed": listed} if len(listed) < len(own) else {})
        for name, pool in pools.items():
            encoded = Pool(pool, encode_unit(model, pool))
            yield from ((name, classes, encoded) for classes in ("no", "yes"))

    def describe(self, concept: Concept, edit: Choice) -> list[str]:
        """What its texts name, what its edit is, and what that does."""
        known, case = self.case.setting.known, self.case
        naming = [self.naming.values_in(text) for text in concept.texts]
        span = known.probe.directions(encode_unit(case.setting.model, concept.texts))
        taken = [known.probe.subsets.heads.index(head) for head in edit.heads]
        removed = removed_by_both(known.probe.subsets, self.directions, taken, span, edit.output_strength)
        found = self.figures(embed(known.probe, case.features.final, taken, span, edit.output_strength))
        counts = (len(naming), sum(map(bool, naming)), len(set().union(*naming)), len(edit.heads))
        shared = len(set(edit.heads) & set(self.edit.heads)), len(self.edit.heads)
        figures = map(show, (edit.output_strength, removed, *found.values()))
        return [*map(str, (*counts, *shared)), *figures]

    def candidate(self, row: str, one: CandidateConcept, count: int) -> list[str]:
        value = [show(one.selectivity.value), "held"]
        return [row, one.concept.name, one.source, str(count), *value, *self.describe(one.concept, one.edit)]

    def known_rows(self) -> Iterator[list[str]]:
        """The unedited model, and the concept as a person would write it."""
        said = [show(self.target.selectivity.value), judge(self.target, self.whole).verdict]
        nothing = Choice((), 0.0, self.edit.weighed[0], ())
        for row, edit in (("unedited", nothing), (self.target.concept.name, self.edit)):
            yield [NOTHING, "none", "no", row, row, "none", "0", *said, *self.describe(self.target.concept, edit)]

    def found_rows(self, taken: str, width: int) -> Iterator[list[str]]:
        """Candidates and pairs of every search; a row that says so where there is none."""
        library = self.whole if taken == NOTHING else self.without
        for pool, classes, encoded in self.pools():
            weights = self.case.setting.class_weights if classes == "yes" else None
            found = search_concepts(self.case.setting.known, library, encoded, classes=weights)
            head, count = [taken, pool, classes], len(found.candidates)
            print(f"{self.case.setting.model.folder}, {', '.join(head)}: {found.because}", file=sys.stderr)
            if not found.candidates and not found.pairs:
                yield [*head, "none", "none", "none", "0", *["none"] * (width - 7)]
            for kind, ones in (("candidate", found.candidates), ("pair", found.pairs)):
                yield from ([*head, *self.candidate(f"{kind} {n}", one, count)] for n, one in enumerate(ones, 1))


def measure_model(kind: str, name: str, split: str, data: Path | None) -> Iterator[list[str]]:
    """The rows of one model."""
    world, (first, *_) = WORLDS[kind], NAMINGS[kind]
    case, width = next(world.cases(name, split, data)), len(NAMES) - 3 + len(world.figures)
    for taken, naming in NAMINGS[kind].items():
        concept = case.setting.concept if taken == first else load_concept(taken, case.setting.model.folder)
        judged = Judge(replace(case, setting=replace(case.setting, concept=concept)), naming)
        yield from ([kind, Path(name).name, split, *row] for row in judged.known_rows())
        # What is found with everything in the library does not depend on what else is asked.
        for left_out in (taken, NOTHING) if taken == first else (taken,):
            yield from ([kind, Path(name).name, split, *row] for row in judged.found_rows(left_out, width))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--world", choices=list(NAMINGS), required=True)
    parser.add_argument("--data", type=Path, help="folder of the people world's pictures")
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    found = (measure_model(options.world, name, options.split, options.data) for name in options.models)
    print_rows([*NAMES, *WORLDS[options.world].figures], (row for rows in found for row in rows))


if __name__ == "__main__":
    main()
